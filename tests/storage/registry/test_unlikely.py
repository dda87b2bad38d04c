"""What registries, and the lines to them, rarely do: each is one clear error, or no error at all."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage.credentials.lookup import Credential
from storage.digest import canonical_json, sha256
from storage.errors import DiskError, RegistryError, VerificationError
from storage.interfaces.images import Attempt, Provider
from storage.media_types import MANIFEST
from storage.registries import HostSettings, Registries
from storage.registry.attempts import Exchange, Topic
from storage.registry.body import Body
from storage.registry.clients import _context, load_httpx
from storage.registry.failures import Unavailable, broken
from storage.registry.lasting import _Feed
from storage.registry.limits import Limits
from storage.registry.login import check_login
from storage.registry.throttle import Throttle
from storage.registry.transport import Transport, locate
from storage.uploads import UploadSessions
from tests.local_server import Answering, Seen, read_body
from tests.storage.registry.kit import described, known, missing_digest, noise, stream_of, use

Answer = tuple[int, dict[str, str], bytes]


# ---------------------------------------------------------------- what a failure is called


def test_what_another_part_failed_at_is_told_as_the_lines_failure() -> None:
    told: list[Attempt] = []
    topic = Topic("pull", "x", Provider.of("r.example", "a"))
    Exchange(topic, told.append).over(DiskError("the disk is full"))
    assert [(attempt.outcome, attempt.error) for attempt in told] == [("transport", "the disk is full")]


def test_failures_without_an_answer_say_what_there_was_none_of() -> None:
    httpx = load_httpx()
    assert "did not accept a connection in time" in str(broken(httpx.ConnectTimeout(""), "r.example", "w"))
    many = ExceptionGroup("several addresses", [ConnectionRefusedError()])
    assert "r.example refused the connection" in str(broken(many, "r.example", "w"))


@pytest.mark.parametrize("body", [b"[]", b"7", b"{", bytes(100_000)])
def test_an_explanation_that_is_none_is_left_out(body: bytes) -> None:
    with Answering(lambda seen: (404, {}, body)) as server, pytest.raises(RegistryError) as caught:
        use(lambda client: client.manifest(Provider.of(server.host, "a/b"), missing_digest()))
    assert caught.value.what == "the registry does not have the manifest (404)"


# ---------------------------------------------------------------- places


@pytest.mark.parametrize("location", ["http://[::1", "https://r.example:99999/x", "https://r.example:0x/"])
def test_a_place_that_is_none_is_not_gone_to(location: str) -> None:
    with pytest.raises(RegistryError, match="malformed URL"):
        locate("https://r.example/v2/", location, "w")
    with Answering(lambda seen: (202, {"Location": location}, b"")) as server:
        blob = described(b"data")
        with pytest.raises(RegistryError, match="malformed URL"):
            use(lambda client: client.upload(Provider.of(server.host, "a/b"), blob, stream_of(b"data")))


@pytest.mark.parametrize("realm", ["http://[bad", "https://", "", "ftp://x"])
def test_I9_a_token_server_that_is_no_place_is_shown_nothing(realm: str) -> None:
    with Answering(lambda seen: (401, {"WWW-Authenticate": f'Bearer realm="{realm}"'}, b"")) as server:
        with pytest.raises(RegistryError, match="token server that is not https") as caught:
            use(
                lambda client: client.exists(Provider.of(server.host, "a/b"), missing_digest()),
                credentials=known(server.host, Credential("me", "secret")),
            )
        assert all("authorization" not in seen.headers for seen in server.seen)
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------- bodies on their way out


def body_of(*pieces: bytes | Exception) -> Body:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    return Body(chunks, 4, "w")


def test_empty_pieces_of_a_source_are_passed_over() -> None:
    async def main() -> list[bytes]:
        body = body_of(b"", b"ab", b"", b"cd", b"")
        async with body:
            return [piece async for piece in body.whole()]

    assert asyncio.run(main()) == [b"ab", b"cd"]


def test_a_sources_own_failure_comes_before_what_it_did_to_the_request() -> None:
    wrong = VerificationError("the bytes are wrong")

    async def main() -> None:
        body = body_of(b"ab", wrong)
        async with body:
            with pytest.raises(VerificationError):
                [piece async for piece in body.whole()]
            raise RegistryError("the connection broke", kind="transport")

    with pytest.raises(VerificationError) as caught:
        asyncio.run(main())
    assert caught.value is wrong


def test_a_source_that_has_run_out_of_tries_is_not_tried_again_by_the_target() -> None:
    async def main() -> None:
        body = body_of(b"ab", Unavailable("the other registry is down", status=503, where="there"))
        async with body:
            [piece async for piece in body.whole()]

    with pytest.raises(RegistryError, match="the other registry is down") as caught:
        asyncio.run(main())
    assert type(caught.value) is RegistryError


class Reading(Answering):
    """Reads bodies of no stated length, too."""

    async def handle(self, head: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.respond(replace(head, body=await read_body(reader, head.headers)), writer)


class Uploads:
    """A registry that takes uploads as `answer` says; the paths of uploads begin with `/up/`."""

    def __init__(self, answer: Callable[[Seen], Answer | None]) -> None:
        self._answer = answer
        self.asked: list[str] = []
        self._count = 0

    def __call__(self, seen: Seen) -> Answer:
        self.asked.append(f"{seen.method} {seen.path.partition('?')[0]}")
        if (answer := self._answer(seen)) is not None:
            return answer
        if seen.method == "POST":
            self._count += 1
            return 202, {"Location": f"/up/{self._count}"}, b""
        return {"HEAD": 404, "PUT": 201, "PATCH": 202}.get(seen.method, 204), {}, b""


def test_a_registry_that_takes_nothing_of_a_part_is_asked_what_it_has() -> None:
    data = noise(2000)

    def answer(seen: Seen) -> Answer | None:
        if seen.method == "PUT" and seen.headers.get("content-length") != "0":
            return 413, {}, b""
        if seen.method == "PATCH":
            return 202, {"Range": "0-999"}, b""
        return (204, {"Range": "0-999"}, b"") if seen.method == "GET" else None

    registry = Uploads(answer)
    with Answering(registry) as server:
        provider = Provider.of(server.host, "a/b")
        with pytest.raises(RegistryError, match="the registry took nothing of a part of the upload"):
            use(lambda client: client.upload(provider, described(data), stream_of(data)), patch_bytes=1000, tries=2)
    assert registry.asked.count("PATCH /up/2") == 3


def test_an_upload_that_the_registry_no_longer_takes_up_begins_anew(tmp_path: Path) -> None:
    """It said what it has, and has forgotten it when the rest comes."""
    data, sessions = noise(3000), UploadSessions(tmp_path)

    def answer(seen: Seen) -> Answer | None:
        if seen.path.startswith("/up/old"):
            return {"GET": (204, {"Range": "0-999"}, b""), "PATCH": (416, {}, b"")}.get(seen.method)
        return None

    async def rest(start: int) -> AsyncIterator[bytes]:
        yield data[start:]

    registry = Uploads(answer)
    with Reading(registry) as server:
        provider, blob = Provider.of(server.host, "a/b"), described(data)
        sessions.save(provider, blob, f"http://{server.host}/up/old")
        use(
            lambda client: client.upload(provider, blob, stream_of(data), resume=rest), uploads=sessions,
            lasting_bytes=1000,
        )  # fmt: skip
        assert sessions.load(provider, blob) == ""
    assert registry.asked[0] == "GET /up/old"
    assert registry.asked[-1] == "PUT /up/1"


# ---------------------------------------------------------------- manifests, logins


def test_a_list_of_referrers_that_may_not_be_read_is_not_taken_for_none() -> None:
    subject = {"mediaType": MANIFEST, "digest": str(sha256(b"image")), "size": 5}
    data = canonical_json({"schemaVersion": 2, "mediaType": MANIFEST, "subject": subject})
    with Answering(lambda seen: (201 if seen.method == "PUT" else 403, {}, b"")) as server:
        provider = Provider.of(server.host, "a/b")
        with pytest.raises(RegistryError, match="denies access"):
            use(lambda client: client.put_manifest(provider, str(sha256(data)), MANIFEST, data))
        assert [seen.method for seen in server.seen] == ["PUT", "GET"]


def test_a_login_at_a_registry_that_is_down_is_not_called_refused() -> None:
    with Answering(lambda seen: (501, {}, b"")) as server, pytest.raises(RegistryError) as caught:
        asyncio.run(
            check_login(server.host, Credential("me", "secret"), user_agent="t", registries=Registries())
        )
    assert (caught.value.kind, caught.value.what) == ("transport", "the registry answered 501 when asked for its API")


# ---------------------------------------------------------------- lines


def test_without_the_systems_authorities_those_that_come_along_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: SimpleNamespace(cafile=None, capath=None))
    assert _context(HostSettings()).cert_store_stats()["x509_ca"] > 10


def test_a_slow_line_that_sends_enough_is_waited_for() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def main() -> list[bytes]:
        response: Any = SimpleNamespace(aiter_raw=pieces, url="http://r.example/")
        transport = Transport("t", Limits(stall_seconds=0.0, stall_bytes=3))
        return [piece async for piece in transport.pieces(response, "w")]

    assert asyncio.run(main()) == [b"one", b"two"]


def test_who_stops_waiting_for_a_turn_beside_an_upload_lets_go_of_no_place_of_others() -> None:
    async def sleep(_seconds: float) -> None:
        raise asyncio.CancelledError

    async def main() -> None:
        throttle = Throttle(HostSettings(requests_per_second=1, connections=1), lambda: 0.0, sleep)
        release = await throttle.enter("GET", aside=False)
        with pytest.raises(asyncio.CancelledError):
            await throttle.enter("PATCH", aside=True)
        waiting = asyncio.ensure_future(throttle.enter("GET", aside=False))
        await asyncio.sleep(0)
        assert not waiting.done(), "its one place to read is still taken"
        waiting.cancel()
        release()

    asyncio.run(main())


def test_an_answer_that_is_closed_twice_lets_go_of_its_place_once() -> None:
    load_httpx()
    from storage.registry.held import Held

    class Stream:
        async def aclose(self) -> None:
            pass

    released: list[int] = []

    async def main() -> None:
        held = Held(Stream(), lambda: released.append(1))  # type: ignore[arg-type]
        await held.aclose()
        await held.aclose()

    asyncio.run(main())
    assert released == [1]


def test_a_feed_passes_over_what_is_empty_and_ends_where_it_is_told() -> None:
    async def source(_start: int) -> AsyncIterator[bytes]:
        for piece in (b"", b"ab", b"", b"cd", b"ef", b"gh"):
            yield piece

    async def main() -> None:
        feed = _Feed(source, 0, described(b"abcdefgh"), "w")
        async with feed.open():
            body = feed.body()
            assert [await anext(body), await anext(body)] == [b"ab", b"cd"]
            await asyncio.sleep(0)
            feed.end()
            assert [piece async for piece in body] == []

    asyncio.run(main())
