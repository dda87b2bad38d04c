"""A range of a blob: these bytes, this many of them, whatever the registry makes of Range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from storage.errors import RegistryError, VerificationError
from storage.interfaces.images import Descriptor, Provider
from storage.registry import RegistryClient
from tests.faulty import Answering, Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess, push_blob
from tests.storage.registry.kit import described, noise, use

BIG = noise(3 << 20)


@pytest.fixture
def blob(registry: RegistryProcess, repository: str) -> Descriptor:
    push_blob(registry.host, repository, BIG)
    return described(BIG)


def ranged(host: str, repository: str, blob: Descriptor, start: int, end: int | None, **limits: Any) -> tuple[Any, ...]:
    """Bytes, wire bytes, offset of the last resumption, and whether the registry knew the range."""

    async def read(client: RegistryClient) -> tuple[Any, ...]:
        async with client.blob(Provider.of(host, repository), blob, start=start, end=end) as stream:
            known = stream.ranged
            data = b"".join([chunk async for chunk in stream])
            return data, stream.wire_bytes, stream.resumed_from, known

    return use(read, **limits)


def answered(status: int, headers: Mapping[str, str], body: bytes, start: int, end: int) -> tuple[Any, ...]:
    with Answering(lambda seen: (status, headers, body)) as server:
        return ranged(server.host, "a/b", described(BIG), start, end)


def test_a_broken_range_is_resumed_within_itself(registry: RegistryProcess, repository: str, blob: Descriptor) -> None:
    with FaultyProxy(registry.host, Fault("GET", "/blobs/", 1, cut_after=300_000)) as proxy:
        data, wire, resumed, _ = ranged(proxy.host, repository, blob, 500_000, 1_500_000)
        ranges = [seen.headers.get("range") for seen in proxy.seen]
    assert data == BIG[500_000:1_500_000]
    assert ranges == ["bytes=500000-1499999", "bytes=800000-1499999"]
    assert (wire, resumed) == (1_000_000, 800_000)


def test_a_registry_without_ranges_is_read_up_to_the_range_and_through_it(
    registry: RegistryProcess, repository: str, blob: Descriptor
) -> None:
    with FaultyProxy(registry.host, Fault("GET", "/blobs/", strip=("range",))) as proxy:
        data, wire, _, known = ranged(proxy.host, repository, blob, 500_000, 600_000)
        assert (data, known) == (BIG[500_000:600_000], False)
        assert 600_000 <= wire < len(BIG)
        assert ranged(proxy.host, repository, blob, 2_000_000, None)[0] == BIG[2_000_000:]


def test_an_answer_that_begins_earlier_or_ends_later_is_cut_to_the_range() -> None:
    headers = {"Content-Range": f"bytes 1000-499999/{len(BIG)}"}
    data, wire, _, known = answered(206, headers, BIG[1000:500_000], 2000, 3000)
    assert (data, known) == (BIG[2000:3000], True)
    assert wire >= 2000


def test_an_answer_that_ends_early_is_asked_for_the_rest() -> None:
    def answer(seen: Any) -> tuple[int, Mapping[str, str], bytes]:
        start = int(seen.headers["range"].removeprefix("bytes=").partition("-")[0])
        end = min(start + 400_000, len(BIG))
        return 206, {"Content-Range": f"bytes {start}-{end - 1}/*"}, BIG[start:end]

    with Answering(answer) as server:
        assert ranged(server.host, "a/b", described(BIG), 100_000, 1_200_000)[0] == BIG[100_000:1_200_000]
        assert len(server.seen) == 3


@pytest.mark.parametrize(
    "said",
    [
        "", "bytes", f"bytes 2001-2999/{len(BIG)}", f"bytes 0-1999/{len(BIG)}", f"bytes 3000-2000/{len(BIG)}",
        f"bytes 2000-{len(BIG)}/{len(BIG) + 1}", f"bytes -1-2999/{len(BIG)}",
    ],
)  # fmt: skip
def test_whoever_answers_with_another_range_is_asked_for_the_whole(said: str) -> None:
    def answer(seen: Any) -> tuple[int, Mapping[str, str], bytes]:
        if "range" in seen.headers:
            return 206, {"Content-Range": said}, BIG[2000:3000]
        return 200, {}, BIG

    with Answering(answer) as server:
        data, _, _, known = ranged(server.host, "a/b", described(BIG), 2000, 3000)
        assert [seen.headers.get("range") for seen in server.seen] == ["bytes=2000-2999", None]
    assert (data, known) == (BIG[2000:3000], False)


def test_a_range_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(RegistryError, match="answered 206") as caught:
        answered(206, {"Content-Range": f"bytes 0-1999/{len(BIG)}"}, BIG[:2000], 2000, 3000)
    assert caught.value.kind == "transport"


def test_I3_no_such_range_is_checked_with_the_whole() -> None:
    def answer(seen: Any) -> tuple[int, Mapping[str, str], bytes]:
        return (416, {}, b"") if "range" in seen.headers else (200, {}, BIG[:1500])

    with Answering(answer) as server, pytest.raises(VerificationError, match="1500 bytes where"):
        ranged(server.host, "a/b", described(BIG), 2000, 3000)


@pytest.mark.parametrize(
    ("status", "headers", "body", "why"),
    [
        (206, {"Content-Range": f"bytes 2000-2999/{len(BIG) - 1}"}, BIG[2000:3000], "promised"),
        (206, {"Content-Range": f"bytes 2000-2999/{len(BIG)}"}, BIG[2000:2999], "promised"),
        (200, {}, BIG[:-1], "promised"),
    ],
)
def test_I3_a_blob_of_another_length_is_refused(
    status: int, headers: Mapping[str, str], body: bytes, why: str
) -> None:
    with pytest.raises(VerificationError, match=why):
        answered(status, headers, body, 2000, 3000)
