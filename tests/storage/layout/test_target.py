"""OCI layouts written as registries are: readable by others at any time, whoever else writes."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from storage.digest import Digest, canonical_json, sha256
from storage.errors import DiskError, InputError, VerificationError
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import ByteStream
from storage.layout.source import WithLayouts
from storage.layout.target import REF_NAME, WithLayoutTargets
from storage.reference import LAYOUT_REGISTRY, parse_layout
from tests.waiting import PATIENCE

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Elsewhere:
    """A target that notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def mount(self, _target: Provider, _digest: Digest, _source: Provider) -> bool:
        self.asked.append("mount")
        return True

    async def upload(
        self, _target: Provider, _blob: Descriptor, _chunks: Callable[[], ByteStream], *, resume: object = None
    ) -> None:
        self.asked.append("upload")

    async def put_manifest(self, _target: Provider, _name: str, _media_type: str, data: bytes) -> Digest:
        self.asked.append("manifest")
        return sha256(data)


def of(path: Path) -> Provider:
    return Provider.of(LAYOUT_REGISTRY, str(path))


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def blob(data: bytes) -> Descriptor:
    return Descriptor(GZIP, sha256(data), len(data))


def put(path: Path, tag: str, text: str = "x") -> Digest:
    """Write an image manifest of one layer, and name it."""
    target = WithLayoutTargets(Elsewhere(), "b1")
    config, layer = b"{}", text.encode()
    manifest = {
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [blob(layer).to_json()],
        "config": Descriptor("application/vnd.oci.image.config.v1+json", sha256(config), 2).to_json(),
    }  # fmt: skip

    async def write() -> Digest:
        for data in (config, layer):
            await target.upload(of(path), blob(data), lambda data=data: chunks(data[:1], data[1:]))
        return await target.put_manifest(of(path), tag, MANIFEST, canonical_json(manifest))

    return asyncio.run(write())


def index(path: Path) -> Any:
    return json.loads((path / "index.json").read_text())


def test_what_is_written_is_an_oci_layout(tmp_path: Path) -> None:
    digest = put(tmp_path / "new/layout", "v1")
    assert json.loads((tmp_path / "new/layout/oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    done = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci:{tmp_path}/new/layout:v1"], capture_output=True, check=True
    )
    assert sha256(done.stdout) == digest
    found = asyncio.run(WithLayouts(Elsewhere()).resolve(parse_layout(f"oci-layout://{tmp_path}/new/layout:v1")))  # type: ignore[arg-type]
    assert found.digest == digest
    assert not list((tmp_path / "new/layout/tmp").iterdir())


def test_a_name_moves_and_other_names_and_entries_stay(tmp_path: Path) -> None:
    put(tmp_path, "one")
    document = index(tmp_path)
    document["manifests"].append({"mediaType": MANIFEST, "digest": str(sha256(b"?")), "size": 1})
    (tmp_path / "index.json").write_text(json.dumps(document))
    put(tmp_path, "two")
    digest = put(tmp_path, "one", "other")
    entries = index(tmp_path)["manifests"]
    assert [entry.get("annotations", {}).get(REF_NAME) for entry in entries] == [None, "two", "one"]
    assert index(tmp_path)["manifests"][-1]["digest"] == digest


def test_writers_at_the_same_time_lose_no_name(tmp_path: Path) -> None:
    tags = [f"t{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda tag: put(tmp_path, tag), tags))
    names = [entry["annotations"][REF_NAME] for entry in index(tmp_path)["manifests"]]
    assert sorted(names) == tags


def test_wrong_bytes_leave_nothing(tmp_path: Path) -> None:
    target = WithLayoutTargets(Elsewhere(), "b1")
    with pytest.raises(VerificationError):
        asyncio.run(target.upload(of(tmp_path), blob(b"right"), lambda: chunks(b"wrong")))
    with pytest.raises(VerificationError):
        asyncio.run(target.put_manifest(of(tmp_path), str(sha256(b"right")), MANIFEST, b"wrong"))
    assert not (tmp_path / "blobs/sha256" / sha256(b"right").hex).exists()
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("during", [b'{"image', b"layer"], ids=["the beginning", "a write"])
def test_a_cancelled_upload_ends_when_nothing_touches_its_file_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: bytes
) -> None:
    begun, may_end, write = threading.Event(), threading.Event(), os.write

    def held(fd: int, data: bytes) -> int:
        if bytes(data[: len(during)]) == during:
            begun.set()
            assert may_end.wait(PATIENCE)
        return write(fd, data)

    async def cancel() -> None:
        target = WithLayoutTargets(Elsewhere(), "b1")
        task = asyncio.ensure_future(target.upload(of(tmp_path), blob(b"layer"), lambda: chunks(b"layer")))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr(os, "write", held)
    asyncio.run(cancel())
    assert list((tmp_path / "tmp").iterdir()) == []
    assert list((tmp_path / "blobs/sha256").iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError) as caught:
        put(tmp_path / "file", "x")
    assert "\n" not in str(caught.value)
    put(tmp_path / "layout", "x")
    (tmp_path / "layout/index.json").write_text('{"manifests": [7]}')
    with pytest.raises(InputError, match=r"index\.json is malformed"):
        put(tmp_path / "layout", "y")


def test_all_else_goes_elsewhere() -> None:
    inner = Elsewhere()
    target = WithLayoutTargets(inner, "b1")
    other, here = Provider.of("reg", "name"), of(Path("/nowhere"))

    async def ask() -> None:
        assert await target.mount(other, sha256(b""), here)
        assert not await target.mount(here, sha256(b""), other)
        await target.upload(other, blob(b""), chunks)
        await target.put_manifest(other, "t", MANIFEST, b"{}")

    asyncio.run(ask())
    assert inner.asked == ["mount", "upload", "manifest"]


@contextmanager
def held(layout: Path) -> Iterator[None]:
    """What a peer does that hangs with the lock of the layout."""
    with (layout / "index.json.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_peer_that_hangs_with_the_layout_locked_is_told_of_and_the_wait_ends_with_an_error(tmp_path: Path) -> None:
    put(tmp_path, "one")
    told: list[str] = []
    target = WithLayoutTargets(Elsewhere(), "b1", told.append, patience=0.2)
    with held(tmp_path), pytest.raises(DiskError) as caught:
        asyncio.run(target.put_manifest(of(tmp_path), "two", MANIFEST, b"{}"))
    lock = f"{tmp_path}/index.json.lock"
    assert str(caught.value) == (
        f"{lock}: another process has kept it locked for minutes (see which one: fuser -v {lock})"
    )
    assert told == [f"{tmp_path}/index.json"]
    assert [entry["annotations"][REF_NAME] for entry in index(tmp_path)["manifests"]] == ["one"]


def test_the_wait_for_a_locked_layout_ends_at_once_when_it_is_called_off_or_the_lock_is_free(tmp_path: Path) -> None:
    put(tmp_path, "one")

    async def run() -> None:
        told = asyncio.Event()
        target = WithLayoutTargets(Elsewhere(), "b1", lambda _: told.set())
        with held(tmp_path):
            off = asyncio.ensure_future(target.put_manifest(of(tmp_path), "off", MANIFEST, b"{}"))
            await told.wait()
            off.cancel()
            with pytest.raises(asyncio.CancelledError):
                await off
            told.clear()
            two = asyncio.ensure_future(target.put_manifest(of(tmp_path), "two", MANIFEST, b"{}"))
            await told.wait()
        await two

    asyncio.run(run())
    assert [entry["annotations"][REF_NAME] for entry in index(tmp_path)["manifests"]] == ["one", "two"]
