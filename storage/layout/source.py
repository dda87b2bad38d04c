"""Images in OCI layouts on this disk (image-spec image-layout.md), read as those of a registry are: when needed."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

from storage.digest import Digest, Hasher, digest_of, parse_json
from storage.errors import DiskError, InputError, RegistryError, VerificationError
from storage.interfaces.images import Descriptor, Provider, Reference
from storage.interfaces.registry import BlobStream, RegistrySource
from storage.reference import LAYOUT_REGISTRY, is_tag
from storage.regular import open_regular, read_regular

_CHUNK = 1 << 20
_SMALL = 16 << 20
"""Bytes of an index or manifest at most."""
_NO_FILE = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.EFBIG, errno.ENAMETOOLONG
})  # fmt: skip
"""What the system says of a name at which no file lies that could be meant; all else is a disk that refuses."""
_NAMES = ("org.opencontainers.image.ref.name", "io.containerd.image.name")


class WithLayouts:
    """RegistrySource: providers that are layouts (LAYOUT_REGISTRY) from their directories, all others by `inner`."""

    def __init__(self, inner: RegistrySource) -> None:
        self._inner = inner

    async def resolve(self, reference: Reference) -> Descriptor:
        """See RegistrySource.resolve. Without tag and digest: the only image there is, or the one called latest."""
        if reference.registry != LAYOUT_REGISTRY:
            return await self._inner.resolve(reference)
        return await asyncio.to_thread(_find, reference)

    async def manifest(self, provider: Provider, digest: Digest) -> tuple[str, bytes]:
        """See RegistrySource.manifest."""
        if provider.registry != LAYOUT_REGISTRY:
            return await self._inner.manifest(provider, digest)
        data = await asyncio.to_thread(_read, provider, digest)
        try:
            manifest = parse_json(data)
            return str(manifest.get("mediaType", "")), data
        except (ValueError, AttributeError) as error:
            raise VerificationError("the manifest is not a JSON object", where=f"{provider}@{digest}") from error

    def blob(
        self, provider: Provider, blob: Descriptor, *, start: int = 0, end: int | None = None
    ) -> AbstractAsyncContextManager[BlobStream]:
        """See RegistrySource.blob."""
        if provider.registry == LAYOUT_REGISTRY:
            return _open(provider, blob, start, end)
        return self._inner.blob(provider, blob, start=start, end=end)

    async def exists(self, provider: Provider, digest: Digest) -> bool:
        """See RegistrySource.exists."""
        if provider.registry != LAYOUT_REGISTRY:
            return await self._inner.exists(provider, digest)
        return await asyncio.to_thread(_exists, provider, digest)


def _path(provider: Provider, digest: Digest) -> Path:
    return Path(provider.repository) / "blobs" / digest.algorithm / digest.hex


def layout_entries(layout: Path, where: str) -> list[Descriptor]:
    """What the layout's index.json lists. Raises InputError, which says `where`, and DiskError."""
    try:
        index: Any = parse_json(read_regular(layout / "index.json", _SMALL))
        return [Descriptor.from_json(entry) for entry in index["manifests"]]
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise DiskError.of(error, "reading the layout") from error
        raise InputError("there is no OCI layout", where=where, hint="it is a directory with an index.json") from error
    except (ValueError, KeyError, TypeError, InputError) as error:
        raise InputError("the layout's index.json is malformed", where=where) from error


def tag_of(entry: Descriptor) -> str:
    """The tag that names an entry of index.json, "" for none; containerd writes whole names."""
    names = [entry.annotations.get(key, "").partition("@")[0] for key in _NAMES]
    return next((tag for name in names if is_tag(tag := name.rpartition(":")[2])), "")


def read_small(layout: Path, digest: Digest) -> bytes:
    """A manifest or index of the layout, verified. Raises RegistryError, VerificationError."""
    return _read(Provider.of(LAYOUT_REGISTRY, str(layout)), digest)


def _find(reference: Reference) -> Descriptor:
    where = reference.written
    entries = layout_entries(Path(reference.repository), where)
    if reference.digest:
        found = [entry for entry in entries if entry.digest == reference.digest]
        size = _path(reference.provider, reference.digest)
        if not found and size.is_file():  # an image below an index of the layout's own
            return Descriptor("", reference.digest, size.stat().st_size)
    elif reference.tag:
        found = [entry for entry in entries if _called(entry, reference.tag)]
    else:
        found = entries if len(entries) == 1 else [entry for entry in entries if _called(entry, "latest")]
    if not found:
        names = sorted({entry.annotations.get(_NAMES[0], "") for entry in entries} - {""})
        there = f"it has: {', '.join(names)[:300]}" if names else f"it has {len(entries)} images without names"
        raise InputError("the layout has no such image", where=where, hint=f"{there}; name one with :tag or @digest")
    return found[-1]


def _called(entry: Descriptor, tag: str) -> bool:
    names = [entry.annotations.get(key, "") for key in _NAMES]
    return any(name == tag or name.endswith(f":{tag}") for name in names)


def _read(provider: Provider, digest: Digest) -> bytes:
    try:
        data = read_regular(_path(provider, digest), _SMALL)
    except OSError as error:
        raise _unreadable(provider, digest, error) from error
    if digest_of(data, digest.algorithm) != digest:
        raise _damaged(provider, digest)
    return data


@asynccontextmanager
async def _open(provider: Provider, blob: Descriptor, start: int, end: int | None) -> AsyncIterator[BlobStream]:
    try:
        file = await asyncio.to_thread(open_regular, _path(provider, blob.digest))
    except OSError as error:
        raise _unreadable(provider, blob.digest, error) from error
    with file:
        yield _FileStream(file, provider, blob, start, blob.size if end is None else end)


class _FileStream:
    """BlobStream of a file; nothing comes over a wire."""

    wire_bytes = 0
    resumed_from = 0
    ranged = True

    def __init__(self, file: BinaryIO, provider: Provider, blob: Descriptor, start: int, end: int) -> None:
        self._file = file
        self._provider = provider
        self._blob = blob
        self._start, self._end = start, end

    async def __aiter__(self) -> AsyncIterator[bytes]:
        hasher = Hasher(self._blob.digest.algorithm)
        left = self._end - self._start
        await asyncio.to_thread(self._file.seek, self._start)
        while left and (chunk := await asyncio.to_thread(self._read, min(_CHUNK, left))):
            await asyncio.to_thread(hasher.update, chunk)
            left -= len(chunk)
            yield chunk
        whole = self._end - self._start == self._blob.size
        if left or (whole and (hasher.digest() != self._blob.digest or self._read(1))):
            raise _damaged(self._provider, self._blob.digest)

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            raise _unreadable(self._provider, self._blob.digest, error) from error


def _exists(provider: Provider, digest: Digest) -> bool:
    try:
        return _path(provider, digest).is_file()
    except OSError as error:
        raise _unreadable(provider, digest, error) from error


def _unreadable(provider: Provider, digest: Digest, error: OSError) -> RegistryError:
    """What `error` means of the blob: it is not there, or a disk refuses to give it, which takes nothing away."""
    where = f"{provider}@{digest}"
    if error.errno not in _NO_FILE:
        return RegistryError(f"the layout's blob cannot be read: {error.strerror}", kind="transport", where=where)
    hint = "the layout is incomplete, or was changed since"
    return RegistryError("the layout does not have the blob", kind="missing", where=where, hint=hint)


def _damaged(provider: Provider, digest: Digest) -> VerificationError:
    return VerificationError("the layout's blob is not what its digest promises", where=f"{provider}@{digest}")
