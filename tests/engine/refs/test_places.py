"""Where bytes are asked for, and in which order; what is remembered of a place within a build."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import RefledgerError, RegistryError, VerificationError
from engine.refs.places import Places
from storage.digest import sha256
from storage.errors import TocUnusable
from storage.interfaces.images import Descriptor, Mirror, Provider, Reference
from storage.reference import parse_reference

ORIGIN = Provider.of("origin.example", "team/app")
OTHER = Provider.of("other.example", "team/app")
BLOB, ANOTHER = sha256(b"blob"), sha256(b"another")
DOWN = RegistryError("nobody answers", kind="transport")
BUSY = RegistryError("try later", kind="transport", status=503)
ODD = RegistryError("what is this", kind="transport", status=405)
MISSING = RegistryError("no such blob", kind="missing", status=404)
WRONG = VerificationError("other bytes")


def mirrors(provider: Provider) -> list[Mirror]:
    if provider.registry != ORIGIN.registry:
        return []
    return [
        Mirror(Provider.of("one.example", f"hub/{provider.repository}"), tags=False),
        Mirror(Provider.of("two.example", provider.repository)),
    ]


@pytest.fixture
def places() -> Places:
    return Places(mirrors)


def hosts(places: Places, *providers: Provider, digest: object = BLOB) -> list[str]:
    return [place.registry for place in places.of(providers, digest)]  # type: ignore[arg-type]  # BLOB or ANOTHER


def test_mirrors_come_in_order_before_their_provider_those_that_the_log_names_first(places: Places) -> None:
    assert hosts(places, ORIGIN, OTHER) == ["one.example", "two.example", "origin.example", "other.example"]
    named = Provider(ORIGIN.registry, ORIGIN.repository, ORIGIN.scope, ("log.example",))
    assert hosts(places, named) == ["log.example", "one.example", "two.example", "origin.example"]
    first, *_ = places.of([ORIGIN], BLOB)
    assert first.to_json() == {
        "registry": "one.example", "repository": "hub/team/app", "scope": "repository:hub/team/app:pull",
        "mirror_of": "origin.example/team/app",
    }  # fmt: skip
    assert Provider.from_json(first.to_json()) == first


def test_a_place_is_asked_once_also_when_it_is_a_mirror_and_a_provider(places: Places) -> None:
    also = Provider.of("two.example", "team/app")
    assert hosts(places, ORIGIN, also, ORIGIN) == ["one.example", "two.example", "origin.example"]


def test_wrong_bytes_condemn_a_place_for_that_blob_only(places: Places) -> None:
    one, two, origin = places.of([ORIGIN], BLOB)
    places.failed(one, BLOB, WRONG)
    places.failed(origin, BLOB, WRONG)
    assert hosts(places, ORIGIN) == [two.registry]
    assert hosts(places, ORIGIN, digest=ANOTHER) == ["one.example", "two.example", "origin.example"]


@pytest.mark.parametrize(
    ("error", "mirror_stays", "origin_stays"),
    [(WRONG, False, True), (TocUnusable("odd"), True, True), (MISSING, True, True)],
    ids=["wrong", "unusable", "missing"],
)
def test_a_wrong_part_condemns_a_mirror_but_not_the_provider(
    places: Places, error: RefledgerError, mirror_stays: bool, origin_stays: bool
) -> None:
    one, _, origin = places.of([ORIGIN], BLOB)
    places.failed(one, BLOB, error, part=True)
    places.failed(origin, BLOB, error, part=True)
    assert (one.registry in hosts(places, ORIGIN)) == mirror_stays
    assert (origin.registry in hosts(places, ORIGIN)) == origin_stays


@pytest.mark.parametrize(("error", "silent"), [(DOWN, True), (BUSY, True), (ODD, False), (MISSING, False)])
def test_only_a_mirror_that_cannot_be_reached_is_left_alone_and_for_everything(
    places: Places, error: RegistryError, silent: bool
) -> None:
    one, _, origin = places.of([ORIGIN], BLOB)
    places.failed(one, BLOB, error)
    places.failed(origin, BLOB, error)
    left = [host for host in ("one.example", "two.example", "origin.example") if not silent or host != "one.example"]
    assert hosts(places, ORIGIN, digest=ANOTHER) == left
    assert hosts(places, Provider.of("one.example", "of/its/own")) == ["one.example"], "as itself it may be asked"


def test_what_is_learned_counts_at_once(places: Places) -> None:
    walk = places.of([ORIGIN], BLOB)
    next(walk)
    places.failed(Provider("two.example", "x", "", (), "y"), ANOTHER, DOWN)
    assert [place.registry for place in walk] == ["origin.example"]


def test_the_error_is_what_the_last_place_said_and_the_verdict_stays(places: Places) -> None:
    async def ask(place: Provider) -> str:
        raise {"one.example": MISSING, "two.example": WRONG, "origin.example": WRONG}[place.registry]

    with pytest.raises(VerificationError, match="other bytes"):
        asyncio.run(places.first([ORIGIN], BLOB, ask))
    assert hosts(places, ORIGIN) == ["one.example"]
    places.failed(Provider.of("one.example", "hub/team/app"), BLOB, WRONG)
    with pytest.raises(VerificationError, match="other bytes"):
        asyncio.run(places.first([ORIGIN], BLOB, ask))
    with pytest.raises(RegistryError, match="no provider is known"):
        asyncio.run(places.first([], ANOTHER, ask))


@pytest.mark.parametrize(
    ("name", "asked"),
    [("team/app:1", ["two.example", "origin.example"]),
     (f"team/app@{BLOB}", ["one.example", "two.example", "origin.example"])],
)  # fmt: skip
def test_what_a_tag_is_is_asked_of_mirrors_that_may_say_it(places: Places, name: str, asked: list[str]) -> None:
    seen: list[Reference] = []

    async def ask(reference: Reference) -> Descriptor:
        seen.append(reference)
        if reference.registry != ORIGIN.registry:
            raise MISSING if reference.registry == "one.example" else BUSY
        return Descriptor("", BLOB, 1)

    for _ in range(2):
        found, who = asyncio.run(places.resolve(parse_reference(f"origin.example/{name}"), ask))
        assert (found.digest, who) == (BLOB, ORIGIN)
    again = [host for host in asked if host != "two.example"]
    assert [reference.registry for reference in seen] == [*asked, *again], "the second one was found to be down"
    assert [reference.mirror_of for reference in seen][:1] == ["origin.example/team/app"]


def test_a_mirror_that_gives_another_manifest_than_was_named_is_passed_over(places: Places) -> None:
    async def ask(reference: Reference) -> Descriptor:
        if reference.registry != ORIGIN.registry:
            raise WRONG
        return Descriptor("", BLOB, 1)

    found, who = asyncio.run(places.resolve(parse_reference(f"origin.example/team/app@{BLOB}"), ask))
    assert (found.digest, who) == (BLOB, ORIGIN)
