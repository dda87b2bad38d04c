"""A registry client that somebody looks at over the shoulder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from storage.digest import Digest
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import BlobStream
from tests.simulation.machine import Doing
from tests.simulation.registry import MemoryClient, MemoryRegistries


def is_layer(blob: Descriptor) -> bool:
    """Is it a layer's?"""
    return "tar" in blob.media_type


def check_asked(doing: Doing, blob: Descriptor) -> None:
    """I2: a layer is read by whoever's log asks for it, from a registry as from a layout."""
    machine, build = doing.machine, doing.build
    asked, exported = machine.asked.get(build, ()), machine.exported.get(build, ())
    if is_layer(blob) and blob.digest not in asked and blob.digest not in exported:
        doing.problems.append(f"I2 {build} reads {blob.digest[:19]}, which no event of it asks for")


class Watching:
    """A registry client that somebody watches: what it reads was asked for (I2), by one process of a machine at a time
    (I4), and a tag that it puts leads to an image (I11)."""

    def __init__(self, inner: MemoryClient, doing: Doing, registries: MemoryRegistries) -> None:
        self._inner = inner
        self._doing = doing
        self._registries = registries
        self._problems = doing.problems

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @asynccontextmanager
    async def blob(
        self, provider: Provider, blob: Descriptor, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobStream]:
        """See RegistrySource.blob."""
        machine, build = self._doing.machine, self._doing.build
        check_asked(self._doing, blob)
        # reason: a table of contents, and single files, may be read by several at once
        fetching = is_layer(blob) and blob.digest not in machine.exported.get(build, ()) and not blob.annotations
        others = machine.fetching[blob.digest]
        if fetching:
            at_once = [other.build for other in others if other is not self._doing and other.process.alive]
            if at_once:
                self._problems.append(f"I4 {blob.digest[:19]} is fetched by {build} and {at_once} at once")
            others.append(self._doing)
        try:
            async with self._inner.blob(provider, blob, start=start, end=end) as stream:
                yield stream
        finally:
            if fetching:
                others.remove(self._doing)

    async def upload(self, target: Provider, blob: Descriptor, *given: Any, **options: Any) -> None:
        """See RegistryTarget.upload."""
        self._writes(blob.digest)
        await self._inner.upload(target, blob, *given, **options)

    async def mount(self, target: Provider, digest: Digest, source: Provider) -> bool:
        """See RegistryTarget.mount."""
        self._writes(digest)
        return await self._inner.mount(target, digest, source)

    def _writes(self, what: str) -> None:
        if self._doing.build not in self._doing.machine.exported:
            self._problems.append(f"I6 {self._doing.build} puts {what[:19]}, and its log does not say why")

    async def put_manifest(self, target: Provider, name: str, media_type: str, data: bytes) -> Digest:
        """See RegistryTarget.put_manifest."""
        self._writes(name)
        done = await self._inner.put_manifest(target, name, media_type, data)
        host = self._registries.host(target.registry)
        self._problems += [f"I11 {hole}, just when it was put" for hole in host.holes()]
        return done
