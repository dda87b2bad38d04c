"""What an OCI layout on this disk says is believed no more than what a registry says."""

from __future__ import annotations

import asyncio
import json
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from storage.digest import Digest, sha256
from storage.errors import DiskError, InputError, RegistryError, VerificationError
from storage.interfaces.images import Descriptor, Provider, Reference
from storage.interfaces.registry import BlobStream
from storage.layout.source import WithLayouts
from storage.layout.target import REF_NAME, try_enter
from storage.reference import LAYOUT_REGISTRY, parse_layout, parse_reference

ENTRY: dict[str, Any] = {"mediaType": "m", "digest": str(sha256(b"{}")), "size": 2}
MALFORMED: dict[str, Any] = {
    "a text as entry": {"manifests": ["x"]}, "a list as entry": {"manifests": [[]]},
    "nothing as entry": {"manifests": [None]}, "an object of entries": {"manifests": {"a": 1}},
    "a number of entries": {"manifests": 5}, "no entries": {}, "a list": [], "nothing": None,
    "a number as name": {"manifests": [{**ENTRY, "annotations": {REF_NAME: 5}}]},
    "a list as name": {"manifests": [{**ENTRY, "annotations": {REF_NAME: []}}]},
    "a list of annotations": {"manifests": [{**ENTRY, "annotations": [1]}]},
    "a list as media type": {"manifests": [{**ENTRY, "mediaType": []}]},
    "a text of annotations": {"manifests": [{**ENTRY, "annotations": "ab"}]},
}  # fmt: skip


class Nobody:
    """There is no registry."""


LAYOUTS = WithLayouts(Nobody())  # type: ignore[arg-type]


def layout(path: Path, index: Any, *blobs: bytes) -> Provider:
    """A layout at `path` with this index.json and these blobs."""
    (path / "blobs/sha256").mkdir(parents=True)
    (path / "index.json").write_text(json.dumps(index))
    for data in blobs:
        (path / "blobs/sha256" / sha256(data).hex).write_bytes(data)
    return Provider.of(LAYOUT_REGISTRY, str(path))


def resolve(path: Path, more: str = "") -> Descriptor:
    return asyncio.run(LAYOUTS.resolve(parse_layout(f"oci-layout://{path}{more}")))


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("name", ["", ":tag"])
def test_a_malformed_index_is_one_line(tmp_path: Path, case: str, name: str) -> None:
    layout(tmp_path, MALFORMED[case])
    with pytest.raises(InputError, match=r"^oci-layout:///\S+: the layout's index.json is malformed$"):
        resolve(tmp_path, name)


@pytest.mark.parametrize("case", sorted(MALFORMED.keys() - {"an object of entries", "a list as media type"}))
def test_nothing_is_written_into_a_layout_whose_index_is_malformed(tmp_path: Path, case: str) -> None:
    layout(tmp_path, MALFORMED[case])
    before = (tmp_path / "index.json").read_bytes()
    with pytest.raises(InputError, match=r"the layout's index.json is malformed"):
        try_enter(tmp_path, [{**ENTRY, "annotations": {REF_NAME: "new"}}])
    assert (tmp_path / "index.json").read_bytes() == before


def test_an_image_is_found_by_name_digest_or_for_being_the_only_one(tmp_path: Path) -> None:
    named = [{**ENTRY, "digest": str(sha256(name.encode())), "annotations": {REF_NAME: name}} for name in ("a", "b")]
    layout(tmp_path / "two", {"manifests": named}, b"below an index")
    assert resolve(tmp_path / "two", ":b").digest == sha256(b"b")
    assert resolve(tmp_path / "two", f"@{sha256(b'a')}").digest == sha256(b"a")
    assert resolve(tmp_path / "two", f"@{sha256(b'below an index')}").size == 14
    for more in ("", ":c", f"@{sha256(b'none')}"):
        with pytest.raises(InputError, match=r"no such image .it has: a, b; name one with :tag or @digest"):
            resolve(tmp_path / "two", more)
    layout(tmp_path / "one", {"manifests": [ENTRY]})
    assert resolve(tmp_path / "one").digest == sha256(b"{}")
    with pytest.raises(InputError, match="it has 1 images without names"):
        resolve(tmp_path / "one", ":c")


def test_I3_manifests_and_blobs_are_verified_and_their_lack_is_said(tmp_path: Path) -> None:
    provider = layout(tmp_path, {"manifests": []}, b"{}", b"[]", b"blob")
    damaged, gone = sha256(b"blob"), sha256(b"gone")
    (tmp_path / "blobs/sha256" / damaged.hex).write_bytes(b"blub")

    async def read(digest: Digest, size: int = 4) -> bytes:
        async with LAYOUTS.blob(provider, Descriptor("m", digest, size)) as stream:
            return b"".join([piece async for piece in stream])

    assert asyncio.run(LAYOUTS.manifest(provider, sha256(b"{}"))) == ("", b"{}")
    with pytest.raises(VerificationError, match="not a JSON object"):
        asyncio.run(LAYOUTS.manifest(provider, sha256(b"[]")))
    for wrong in (lambda: LAYOUTS.manifest(provider, damaged), lambda: read(damaged), lambda: read(sha256(b"{}"), 3)):
        with pytest.raises(VerificationError, match="the layout's blob is not what its digest promises"):
            asyncio.run(wrong())
    for missing in (lambda: LAYOUTS.manifest(provider, gone), lambda: read(gone)):
        with pytest.raises(RegistryError, match="the layout does not have the blob") as caught:
            asyncio.run(missing())
        assert caught.value.kind == "missing"


def test_a_disk_that_refuses_to_be_read_has_not_lost_what_it_holds(tmp_path: Path) -> None:
    refusing = Path("/proc/self/mem")  # a file whose first byte is an EIO
    provider = layout(tmp_path, {"manifests": []}, b"blob")
    blob = tmp_path / "blobs/sha256" / sha256(b"blob").hex
    blob.unlink()
    blob.symlink_to(refusing)
    (tmp_path / "index.json").unlink()
    (tmp_path / "index.json").symlink_to(refusing)

    async def read() -> None:
        async with LAYOUTS.blob(provider, Descriptor("m", sha256(b"blob"), 4)) as stream:
            async for _ in stream:
                pass

    for refused in (read, lambda: LAYOUTS.manifest(provider, sha256(b"blob"))):
        with pytest.raises(RegistryError, match="the layout's blob cannot be read: Input/output error") as caught:
            asyncio.run(refused())
        assert caught.value.kind == "transport"
    with pytest.raises(DiskError, match="reading the layout: Input/output error"):
        resolve(tmp_path)


def test_a_range_of_a_blob_is_that_and_is_there_or_not(tmp_path: Path) -> None:
    provider = layout(tmp_path, {"manifests": []}, b"0123456789")

    async def read(start: int, end: int | None, size: int = 10) -> bytes:
        blob = Descriptor("m", sha256(b"0123456789"), size)
        async with LAYOUTS.blob(provider, blob, start=start, end=end) as stream:
            assert (stream.wire_bytes, stream.resumed_from, stream.ranged) == (0, 0, True)
            return b"".join([piece async for piece in stream])

    assert asyncio.run(read(3, 7)) == b"3456"
    assert asyncio.run(read(8, None)) == b"89"
    with pytest.raises(VerificationError, match="not what its digest promises"):
        asyncio.run(read(8, 12, 20))


class Elsewhere:
    """A source that notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def resolve(self, reference: Reference) -> Descriptor:
        self.asked.append(reference.written)
        return Descriptor("m", sha256(b""), 0)

    async def manifest(self, _provider: Provider, digest: Digest) -> tuple[str, bytes]:
        self.asked.append(digest)
        return "m", b""

    def blob(
        self, _provider: Provider, blob: Descriptor, *, start: int = 0, end: int | None = None
    ) -> AbstractAsyncContextManager[BlobStream]:
        self.asked.append((blob.size, start, end))
        return nullcontext()  # type: ignore[return-value]

    async def exists(self, _provider: Provider, _digest: Digest) -> bool:
        return True


def test_all_else_comes_from_elsewhere() -> None:
    inner = Elsewhere()
    layouts, provider = WithLayouts(inner), Provider.of("reg.example", "a")

    async def ask() -> None:
        await layouts.resolve(parse_reference("reg.example/a:b"))
        await layouts.manifest(provider, sha256(b"m"))
        assert await layouts.exists(provider, sha256(b"b"))
        async with layouts.blob(provider, Descriptor("m", sha256(b""), 5)), layouts.blob(
            provider, Descriptor("m", sha256(b""), 5), start=1, end=3
        ):
            pass

    asyncio.run(ask())
    assert inner.asked == ["reg.example/a:b", sha256(b"m"), (5, 0, None), (5, 1, 3)]


def test_what_no_disk_can_have_is_not_there(tmp_path: Path) -> None:
    provider = Provider.of(LAYOUT_REGISTRY, f"{tmp_path}/{'a' * 300}")
    with pytest.raises(RegistryError, match="the layout does not have the blob") as caught:
        asyncio.run(LAYOUTS.exists(provider, sha256(b"blob")))
    assert caught.value.kind == "missing"
