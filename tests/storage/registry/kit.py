"""What the registry client's tests share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from storage.credentials.lookup import Anonymous, Credential, Credentials
from storage.digest import Digest, sha256
from storage.interfaces.images import Descriptor, Provider
from storage.registries import HostSettings, Registries
from storage.registry import Limits, RegistryClient
from storage.uploads import UploadSessions

T = TypeVar("T")
OCTETS = "application/octet-stream"


class Known:
    """Credentials by registry."""

    def __init__(self, **by_host: Credential) -> None:
        self.by_host = by_host

    async def lookup(self, registry: str) -> Credential | None:
        return self.by_host.get(registry)


def known(host: str, credential: Credential) -> Known:
    return Known(**{host: credential})


def use(
    work: Callable[[RegistryClient], Awaitable[T]],
    *,
    credentials: Credentials | None = None,
    slept: list[float] | None = None,
    clock: Callable[[], float] | None = None,
    registries: Registries | None = None,
    uploads: UploadSessions | None = None,
    **limits: Any,
) -> T:
    """Run `work` with a client that waits for nothing; the pauses it would have made are appended to `slept`."""

    async def sleep(seconds: float) -> None:
        if slept is not None:
            slept.append(seconds)

    async def main() -> T:
        options: dict[str, Any] = {"clock": clock} if clock else {}
        client = RegistryClient(
            credentials or Anonymous(), user_agent="refledger/test", limits=Limits(**limits), sleep=sleep,
            jitter=lambda: 1.0, registries=registries, uploads=uploads, **options,
        )  # fmt: skip
        try:
            return await work(client)
        finally:
            await client.aclose()

    return asyncio.run(main())


def settings(**hosts: HostSettings) -> Registries:
    """Registries with these settings, by host."""
    return Registries(hosts)


def described(data: bytes) -> Descriptor:
    return Descriptor(OCTETS, sha256(data), len(data))


async def fetched(client: RegistryClient, provider: Provider, blob: Descriptor) -> tuple[bytes, int, int]:
    """Bytes, wire bytes and the offset of the last resumption."""
    async with client.blob(provider, blob) as stream:
        data = b"".join([chunk async for chunk in stream])
        return data, stream.wire_bytes, stream.resumed_from


def stream_of(data: bytes, size: int = 70_000) -> Callable[[], AsyncIterator[bytes]]:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    return chunks


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that do not repeat, the same every time."""
    import random

    return random.Random(seed).randbytes(size)


def missing_digest() -> Digest:
    return sha256(b"nobody ever stored this")
