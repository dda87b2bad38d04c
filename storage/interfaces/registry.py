"""Registries: what is read from them, pushed to them, and listed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from storage.digest import Digest
from storage.interfaces.images import Descriptor, Provider, Reference, Referrer

ByteStream = AsyncIterator[bytes]


class RegistrySource(Protocol):
    """Reading from registries. Methods raise RegistryError (missing, auth, transport) and VerificationError, and
    InputError for a provider that no registry could have (from a foreign log, say)."""

    async def resolve(self, reference: Reference) -> Descriptor:
        """The descriptor that the tag or digest of `reference` names now (a manifest or an index)."""
        ...

    async def manifest(self, provider: Provider, digest: Digest) -> tuple[str, bytes]:
        """Media type and verified bytes of a manifest or index."""
        ...

    def blob(
        self, provider: Provider, blob: Descriptor, *, start: int = 0, end: int | None = None
    ) -> AbstractAsyncContextManager[BlobStream]:
        """Open `blob`. Retries and resumes by itself; bytes are verified while streaming: the iterator raises
        VerificationError instead of ending when they are not `blob.digest`. With `start` or `end` (offsets in bytes,
        half open) only that range comes: its length is checked, its content is the caller's to verify. Raises
        ValueError for an empty range and for one that the blob does not have."""
        ...

    async def exists(self, provider: Provider, digest: Digest) -> bool:
        """Does `provider` hold the blob? (HEAD)"""
        ...


class BlobStream(Protocol):
    """The bytes of one blob as they arrive."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Chunks, in order. Raises RegistryError, VerificationError."""
        ...

    @property
    def wire_bytes(self) -> int:
        """Body bytes received so far, as the registry counts them (a resumed stretch is counted again)."""
        ...

    @property
    def resumed_from(self) -> int:
        """Offset of the last resumption in bytes; 0 when it came in one piece."""
        ...

    @property
    def ranged(self) -> bool:
        """Did the provider answer with a range? False where it sends the blob from its start whatever is asked, which
        costs the bytes before `start`, and before the first byte was asked for."""
        ...


class RegistryTarget(Protocol):
    """Writing to registries. Methods raise RegistryError (missing, auth, transport), VerificationError, InputError."""

    async def mount(self, target: Provider, digest: Digest, source: Provider) -> bool:
        """Cross-repository mount within one registry; False when the registry would not (any 4xx or 202)."""
        ...

    async def upload(
        self, target: Provider, blob: Descriptor, chunks: Callable[[], ByteStream], *,
        resume: Callable[[int], ByteStream] | None = None,
    ) -> None:  # fmt: skip
        """Upload `blob` from a stream that can be opened anew for a retry. `resume` opens it from an offset on (bytes;
        less than `blob.size`): an upload that broke off, in an earlier process maybe, may then be gone on with."""
        ...

    async def put_manifest(self, target: Provider, name: str, media_type: str, data: bytes) -> Digest:
        """Put a manifest or index under `name` (a tag or its digest). One that has a `subject` is among its referrers
        then, also where the registry has no API for them."""
        ...


class RegistryListing(Protocol):
    """What a repository has beside what was asked for by name. Methods raise RegistryError, VerificationError and
    InputError as those of RegistrySource do."""

    async def tags(self, provider: Provider) -> tuple[str, ...]:
        """All tags of the repository, as the registry orders them."""
        ...

    async def referrers(self, provider: Provider, subject: Digest, artifact_type: str = "") -> tuple[Referrer, ...]:
        """What refers to the manifest `subject`, which need not be there itself; of `artifact_type` only, when given.
        Of a registry without the referrers API: what the tag that stands in for it lists."""
        ...
