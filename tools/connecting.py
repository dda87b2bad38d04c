"""What speaks to registries for this user: the one place that makes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from storage import registries
from storage.credentials.lookup import Credential, Credentials, DockerCredentials
from storage.registries import Registries
from storage.registry import Limits, RegistryClient
from storage.registry.attempts import Observe
from storage.uploads import UploadSessions
from tools import __version__
from tools.roots import root_directory

if TYPE_CHECKING:
    from engine.refs.ref import Layer
    from storage.credentials.store import CredentialStore
    from storage.interfaces.images import Provider
    from storage.registry.login import Accepted

USER_AGENT = f"refledger/{__version__}"


def known_registries() -> Registries:
    """What `registries.toml` says. Raises InputError."""
    return registries.load(registries.find(os.environ, root_directory()))


def registry_client(
    limits: Limits | None = None, observe: Observe | None = None, uploads: UploadSessions | None = None
) -> RegistryClient:
    """A client with this user's credentials and settings; `observe`, `uploads` as in RegistryClient. The caller closes
    it. Raises InputError."""
    return RegistryClient(
        DockerCredentials(), user_agent=USER_AGENT, limits=limits, registries=known_registries(), observe=observe,
        uploads=uploads,
    )  # fmt: skip


async def check_login(registry: str, credential: Credential) -> Accepted:
    """Does `registry` take `credential`? Raises RegistryError, InputError."""
    from storage.registry import login

    return await login.check_login(registry, credential, user_agent=USER_AGENT, registries=known_registries())


def fetch_blob(layer: Layer, write: Callable[[bytes], object]) -> None:
    """Bring the blob of `layer` from the first provider that gives it, uncompressed and verified. Blocking. Raises
    RegistryError, VerificationError, InputError."""
    import asyncio
    import tempfile

    from engine.refs.places import Places
    from storage.decompression import decompress
    from storage.layout.source import WithLayouts
    from storage.temporary import usual_directory

    blob = layer.blob
    assert blob is not None
    with tempfile.TemporaryFile(dir=usual_directory()) as file:

        async def fetch() -> None:
            client = registry_client()
            source = WithLayouts(client)

            async def copy(place: Provider) -> None:
                file.seek(0)
                file.truncate()
                async with source.blob(place, blob) as stream:
                    async for chunk in stream:
                        file.write(chunk)

            try:
                await Places(known_registries().mirrors).first(layer.providers, blob.digest, copy)
            finally:
                await client.aclose()

        asyncio.run(fetch())
        file.seek(0)
        source = decompress(file, blob.media_type)
        while data := source.read(1 << 20):
            write(data)


def kept_credentials() -> Credentials:
    """This user's credentials."""
    return DockerCredentials()


def credential_store() -> CredentialStore:
    """Where this user's credentials are kept."""
    from storage.credentials.store import CredentialStore

    return CredentialStore()
