"""Registries, servers and repositories that nobody asks: every question is Refused, and no socket opened."""

# ruff: noqa: ARG002 - whatever is asked, the answer is the same

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from engine.errors import RegistryError
from engine.offline.missing import ONLINE
from engine.refs.ref import Layer
from storage.digest import Digest
from storage.interfaces.images import Descriptor, Provider, Reference
from storage.interfaces.registry import BlobStream, ByteStream
from storage.sources import Answer, Commit, Known, Login, Sink


class Refused(RegistryError):
    """It would have had to be asked."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"offline: {what}", kind="transport", where=where, hint=ONLINE)


class NoRegistry:
    """RegistrySource and RegistryTarget."""

    async def resolve(self, reference: Reference) -> Descriptor:
        """See RegistrySource.resolve."""
        raise Refused("the registry is not asked what the name is", str(reference))

    async def manifest(self, provider: Provider, digest: Digest) -> tuple[str, bytes]:
        """See RegistrySource.manifest."""
        raise Refused("the manifest is not here", f"{provider}@{digest}")

    def blob(
        self, provider: Provider, blob: Descriptor, *, start: int = 0, end: int | None = None
    ) -> AbstractAsyncContextManager[BlobStream]:
        """See RegistrySource.blob."""
        raise Refused("the blob is not here", f"{provider}@{blob.digest}")

    async def exists(self, provider: Provider, digest: Digest) -> bool:
        """See RegistrySource.exists."""
        raise Refused("the registry is not asked what it has", f"{provider}@{digest}")

    async def mount(self, target: Provider, digest: Digest, source: Provider) -> bool:
        """See RegistryTarget.mount."""
        raise Refused("nothing is pushed", f"{target}@{digest}")

    async def upload(
        self, target: Provider, blob: Descriptor, chunks: Callable[[], ByteStream], *,
        resume: Callable[[int], ByteStream] | None = None,
    ) -> None:  # fmt: skip
        """See RegistryTarget.upload."""
        raise Refused("nothing is pushed", f"{target}@{blob.digest}")

    async def put_manifest(
        self, target: Provider, name: str, media_type: str, data: bytes
    ) -> Digest:
        """See RegistryTarget.put_manifest."""
        raise Refused("nothing is pushed", f"{target}:{name}")


class NoWeb:
    """Web that nobody asks."""

    async def get(
        self, url: str, begin: Callable[[], Sink], *, known: Known | None = None, login: Login | None = None
    ) -> Answer:
        """See Web.get."""
        raise Refused("the server is not asked", url.partition("?")[0])


class NoRepositories:
    """Repositories that nobody asks."""

    async def resolve(self, remote: str, ref: str, *, login: Login | None = None) -> Commit:
        """See Repositories.resolve."""
        raise Refused("the repository is not asked", remote)

    async def checkout(
        self, remote: str, commit: str, tree: Path, *, name: str = "", subdir: str = "", keep_git_dir: bool = False,
        submodules: bool = True, login: Login | None = None,
    ) -> None:  # fmt: skip
        """See Repositories.checkout."""
        raise Refused("the repository is not asked", remote)


class Believed:
    """Presence: what the log knows a provider for is believed to be there; nobody is asked."""

    async def absent(self, layers: Sequence[Layer]) -> Mapping[str, str]:
        """See Presence.absent."""
        return {layer.name: "bytes-lost" for layer in layers if not (layer.blob and layer.providers)}
