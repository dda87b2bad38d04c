"""Registries that one suite is run against: docker-registry, spoken to by the real client, and the simulation's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from storage.digest import Digest, sha256
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import RegistryListing, RegistrySource, RegistryTarget
from storage.media_types import CONFIG, INDEX, MANIFEST
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import OCI_LAYER, RegistryProcess
from tests.simulation.chance import Chance, Faults
from tests.simulation.loop import SimLoop
from tests.simulation.registry import MemoryRegistries
from tests.storage.registry.kit import described, stream_of, use

T = TypeVar("T")


class Client(RegistrySource, RegistryTarget, RegistryListing, Protocol):
    """What an engine is given."""


Work = Callable[[Client], Awaitable[T]]


class Registries(Protocol):
    """Two registries."""

    @property
    def one(self) -> str:
        """A host name."""
        ...

    @property
    def two(self) -> str:
        """Another one."""
        ...

    def use(self, work: Work[T]) -> T:
        """What `work` makes of a client that nothing is remembered in."""
        ...

    def failing(self, fault: str, work: Callable[[Client, str], Awaitable[T]]) -> T:
        """What `work` makes of a client and a host that shows what `one` has, and fails in the way of `fault` (see
        FAULTS) whatever it is asked for, however often."""
        ...

    def lose(self, digest: Digest) -> None:
        """Take a blob away from `one`."""
        ...

    def requests(self) -> list[tuple[str, str, int, int]]:
        """What `one` was asked so far: method, digest of the blob if it is about one, status, bytes sent."""
        ...


FAULTS: Mapping[str, Fault] = {
    "lost connection": Fault(".*", headless=True, cut_after=0),
    "503": Fault(".*", status=503),
    "404": Fault(".*", status=404),
    "401": Fault(".*", status=401),
    "wrong bytes": Fault("GET", flip=True),
    "broken off": Fault("GET", "/blobs/", cut_after=100),
    "resumed": Fault("GET", "/blobs/", 1, cut_after=100),
}


@dataclass(slots=True)
class RealRegistries:
    """docker-registry and RegistryClient."""

    first: RegistryProcess
    second: RegistryProcess

    @property
    def one(self) -> str:
        return self.first.host

    @property
    def two(self) -> str:
        return self.second.host

    def use(self, work: Work[T]) -> T:
        return use(work)

    def failing(self, fault: str, work: Callable[[Client, str], Awaitable[T]]) -> T:
        with FaultyProxy(self.one, replace(FAULTS[fault])) as proxy:
            return use(lambda client: work(client, proxy.host), progress_bytes=1 << 30)

    def lose(self, digest: Digest) -> None:
        self.first.blob_path(digest).unlink()

    def requests(self) -> list[tuple[str, str, int, int]]:
        return [(line.method, line.blob, line.status, line.bytes) for line in self.first.requests()]


class Striking(Faults):
    """Faults that strike wherever they can."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.left = kind, -1
        if kind == "resumed":
            self.left = 1
        if kind == "broken off":
            self.kind = "lost connection in a piece"

    def at(self, point: str, *kinds: str) -> str:
        kind = self.kind.removesuffix(" in a piece")
        if kind not in kinds or not self.left or (kind != self.kind and point != "registry.piece"):
            return ""
        self.left -= 1
        return kind


class MemoryKit:
    """MemoryRegistries and its clients, each in a loop of its own."""

    one, two = "one.example:5000", "two.example"

    def __init__(self) -> None:
        self._registries = MemoryRegistries(Chance(1), Faults())
        self._registries.host(self.one)
        self._registries.host(self.two)

    def use(self, work: Work[T]) -> T:
        async def main() -> T:
            return await work(self._registries.client())

        loop = SimLoop(self._registries.chance)
        try:
            return loop.run(main())
        finally:
            assert not loop.complaints

    def failing(self, fault: str, work: Callable[[Client, str], Awaitable[T]]) -> T:
        healthy, self._registries.faults = self._registries.faults, Striking(fault)
        try:
            return self.use(lambda client: work(client, self.one))
        finally:
            self._registries.faults = healthy

    def lose(self, digest: Digest) -> None:
        self._registries.host(self.one).lose(digest)

    def requests(self) -> list[tuple[str, str, int, int]]:
        return [
            (line.method, line.name if line.kind == "blobs" else "", line.status, line.bytes)
            for line in self._registries.log if line.host == self.one
        ]  # fmt: skip


# ---------------------------------------------------------------- what is put there


async def put(client: Client, target: Provider, data: bytes, media_type: str = OCI_LAYER) -> Descriptor:
    """Have blob `data` there."""
    await client.upload(target, described(data), stream_of(data))
    return Descriptor(media_type, sha256(data), len(data))


async def put_image(
    client: Client, target: Provider, layers: Sequence[bytes], tag: str = "latest", **more: Any
) -> tuple[Descriptor, bytes]:
    """Have an image of `layers` there; its manifest, to which `more` is added."""
    placed = [await put(client, target, layer) for layer in layers]
    config = await put(client, target, json.dumps({"architecture": "amd64", "os": "linux"}).encode(), CONFIG)
    data = manifest(config, placed, **more)
    digest = await client.put_manifest(target, tag, MANIFEST, data)
    return Descriptor(MANIFEST, digest, len(data)), data


def manifest(config: Descriptor, layers: Sequence[Descriptor], **more: Any) -> bytes:
    """An OCI manifest."""
    return json.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config.to_json(),
        "layers": [layer.to_json() for layer in layers], **more,
    }).encode()  # fmt: skip


def index(*manifests: Descriptor) -> bytes:
    """An OCI index."""
    entries = [one.to_json() for one in manifests]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()


async def read(
    client: Client, provider: Provider, blob: Descriptor, start: int = 0, end: int | None = None
) -> tuple[bytes, int, int, bool]:
    """Bytes, bytes on the wire, where it was resumed, and whether the registry answered with a range."""
    async with client.blob(provider, blob, start=start, end=end) as stream:
        ranged = stream.ranged
        data = b"".join([chunk async for chunk in stream])
        return data, stream.wire_bytes, stream.resumed_from, ranged


def failing_stream(data: bytes, error: Exception) -> Callable[[], AsyncIterator[bytes]]:
    """All of `data`, and then the source says that it was wrong."""

    async def chunks() -> AsyncIterator[bytes]:
        yield data
        raise error

    return chunks
