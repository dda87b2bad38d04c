"""Writing into OCI layouts on this disk (image-spec image-layout.md), as into a registry."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from storage.blobs import DirectoryBlobs
from storage.digest import Digest, canonical_json, parse_json
from storage.durable import fsync_directory, replace_file
from storage.errors import DiskError, InputError, VerificationError
from storage.interfaces.blobs import BlobWriter
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import ByteStream, RegistryTarget
from storage.layout.listing import read_tagged
from storage.reference import LAYOUT_REGISTRY, is_tag
from storage.referrers import FallbackTag, referring
from storage.regular import read_regular
from storage.threads import in_thread

_LARGEST = 16 << 20
"""Bytes of index.json at most: no reader takes more."""
POLL = 0.05
PATIENCE = 180.0
"""Seconds between two looks at the lock of index.json, and after which it is an error that somebody holds it: a change
takes milliseconds, so its holder is stuck."""
REF_NAME = "org.opencontainers.image.ref.name"


class WithLayoutTargets:
    """RegistryTarget: providers that are layouts (LAYOUT_REGISTRY) into their directories, made where they are not,
    all others by `inner`. `owner`: the build, in the names of unfinished files. `delayed` is told of a file that
    somebody else has locked, and that is waited for, `patience` seconds at most."""

    def __init__(
        self, inner: RegistryTarget, owner: str, delayed: Callable[[str], None] = lambda _: None, *,
        patience: float = PATIENCE,
    ) -> None:  # fmt: skip
        self._inner = inner
        self._owner = owner
        self._delayed = delayed
        self._patience = patience
        self._fallback = FallbackTag(read_tagged, self.put_manifest)
        self._layouts: dict[str, DirectoryBlobs] = {}

    async def mount(self, target: Provider, digest: Digest, source: Provider) -> bool:
        """See RegistryTarget.mount. A layout mounts nothing."""
        if target.registry == LAYOUT_REGISTRY:
            return False
        return await self._inner.mount(target, digest, source)

    async def upload(
        self, target: Provider, blob: Descriptor, chunks: Callable[[], ByteStream], *,
        resume: Callable[[int], ByteStream] | None = None,
    ) -> None:  # fmt: skip
        """See RegistryTarget.upload. Raises DiskError, VerificationError."""
        if target.registry != LAYOUT_REGISTRY:
            await self._inner.upload(target, blob, chunks, resume=resume)
            return
        writers: list[BlobWriter] = []  # one, also where whoever asked for it is cancelled before it is there
        try:
            await in_thread(lambda: writers.append(self._blobs(target).writer()))
            async for chunk in chunks():
                await in_thread(partial(writers[0].write, chunk))
            await in_thread(lambda: writers[0].commit(blob.digest))
        finally:
            for writer in writers:
                writer.abort()

    async def put_manifest(self, target: Provider, name: str, media_type: str, data: bytes) -> Digest:
        """See RegistryTarget.put_manifest; a tag is an entry of index.json. Raises DiskError, VerificationError."""
        if target.registry != LAYOUT_REGISTRY:
            return await self._inner.put_manifest(target, name, media_type, data)
        digest = await in_thread(lambda: self._put(target, name, data))
        if is_tag(name):
            top = Descriptor(media_type, digest, len(data))
            await self.enter(target, [{**top.to_json(), "annotations": {REF_NAME: name}}])
        if (refers := referring(data, media_type)) is not None:
            await self._fallback.add(target, *refers)
        return digest

    async def enter(self, target: Provider, entries: Sequence[dict[str, Any]]) -> None:
        """Have the index.json of `target` list `entries`, as `try_enter` does. Raises DiskError, InputError."""
        layout = Path(target.repository)
        clock, told = asyncio.get_running_loop().time, False
        deadline = clock() + self._patience
        while not await in_thread(lambda: try_enter(layout, entries)):
            if clock() > deadline:
                where = str(_lock_of(layout))
                hint = f"see which one: fuser -v {where}"
                raise DiskError("another process has kept it locked for minutes", where=where, hint=hint)
            if not told:
                self._delayed(str(layout / "index.json"))
                told = True
            await asyncio.sleep(POLL)

    def _blobs(self, target: Provider) -> DirectoryBlobs:
        blobs = self._layouts.get(target.repository)
        if blobs is None:
            blobs = self._layouts[target.repository] = DirectoryBlobs(Path(target.repository), owner=self._owner)
            blobs.sweep()
        return blobs

    def _put(self, target: Provider, name: str, data: bytes) -> Digest:
        digest = self._blobs(target).put(data)
        if name != digest and not is_tag(name):
            raise VerificationError(f"the manifest has the digest {digest}", where=f"{target}@{name}")
        return digest


def try_enter(layout: Path, entries: Sequence[dict[str, Any]]) -> bool:
    """Have index.json list `entries` (descriptors, as JSON) in the place of those with the same tags, or of those
    without one where they have none; False when somebody else has it locked. Blocking. Raises DiskError, InputError."""
    tags = {_tag_of(entry) for entry in entries}
    try:
        with _locked(_lock_of(layout)) as held:
            if held:
                index = _read(layout / "index.json")
                others = [one for one in index["manifests"] if _tag_of(one) not in tags]
                index["manifests"] = [*others, *entries]
                _flush(layout / "blobs")
                replace_file(layout / "index.json", canonical_json(index))
            return held
    except OSError as error:
        raise DiskError.of(error, "naming the image in the layout") from error


def _flush(blobs: Path) -> None:
    """Make the names of all blobs durable: whoever put what was found there may have died before this. Raises
    OSError."""
    for path in (blobs, *blobs.iterdir()):
        if path.is_dir():
            fsync_directory(path)


def _tag_of(entry: Mapping[str, Any]) -> str | None:
    """Raises AttributeError or TypeError for what no descriptor has there."""
    tag = (entry.get("annotations") or {}).get(REF_NAME)
    if not isinstance(tag, str | None):
        raise TypeError("a name is no text")
    return tag


def _read(path: Path) -> Any:
    try:
        index = parse_json(read_regular(path, _LARGEST))
        for entry in index["manifests"]:
            _tag_of(entry)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("the layout's index.json is malformed", where=str(path)) from error
    return index


def _lock_of(layout: Path) -> Path:
    """What BuildKit's tools lock as well (client/ociindex)."""
    return layout / "index.json.lock"


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Try to hold the lock: is it held? Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)
