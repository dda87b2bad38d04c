"""Writing into OCI layouts on this disk (image-spec image-layout.md), as into a registry."""

from __future__ import annotations

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
REF_NAME = "org.opencontainers.image.ref.name"


class WithLayoutTargets:
    """RegistryTarget: providers that are layouts (LAYOUT_REGISTRY) into their directories, made where they are not,
    all others by `inner`. `owner`: the build, in the names of unfinished files."""

    def __init__(self, inner: RegistryTarget, owner: str) -> None:
        self._inner = inner
        self._owner = owner
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
        digest = await in_thread(lambda: self._put(target, name, media_type, data))
        if (refers := referring(data, media_type)) is not None:
            await self._fallback.add(target, *refers)
        return digest

    def _blobs(self, target: Provider) -> DirectoryBlobs:
        blobs = self._layouts.get(target.repository)
        if blobs is None:
            blobs = self._layouts[target.repository] = DirectoryBlobs(Path(target.repository), owner=self._owner)
            blobs.sweep()
        return blobs

    def _put(self, target: Provider, name: str, media_type: str, data: bytes) -> Digest:
        digest = self._blobs(target).put(data)
        if is_tag(name):
            _tag(Path(target.repository), name, Descriptor(media_type, digest, len(data)))
        elif name != digest:
            raise VerificationError(f"the manifest has the digest {digest}", where=f"{target}@{name}")
        return digest


def _tag(layout: Path, tag: str, top: Descriptor) -> None:
    """Have `tag` name `top` in index.json, whatever else it names. Raises DiskError, InputError."""
    enter(layout, [{**top.to_json(), "annotations": {REF_NAME: tag}}])


def enter(layout: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Have index.json list `entries` (descriptors, as JSON) in the place of those with the same tags, or of those
    without one where they have none. Raises DiskError, InputError."""
    tags = {_tag_of(entry) for entry in entries}
    try:
        with _locked(layout / "index.json.lock"):
            index = _read(layout / "index.json")
            others = [one for one in index["manifests"] if _tag_of(one) not in tags]
            index["manifests"] = [*others, *entries]
            _flush(layout / "blobs")
            replace_file(layout / "index.json", canonical_json(index))
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


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock that BuildKit's tools take as well (client/ociindex). Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
