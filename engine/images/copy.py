"""Copies: images, whole repositories' tags and what refers to them, from one registry or layout to another.

Within one registry nothing but manifests is sent: blobs are mounted. Between two, blobs stream from the one to the
other. Order (I11): layers, configs, manifests, the indexes above them, what refers to them, and the tag last, as it
tells everybody that all of it is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from engine.errors import InputError, VerificationError
from engine.events import Exported, ExportStarted, SourceResolved
from engine.images.choose import chosen
from engine.images.place import Cargo, Placer, Wanted, descriptors
from engine.images.read import Manifest
from engine.ledger import Facts, fitting
from engine.refs.ref import Layer
from engine.together import together
from storage.digest import Digest
from storage.interfaces.images import Descriptor, Platform, Provider, Reference
from storage.interfaces.registry import RegistryListing
from storage.reference import LAYOUT_REGISTRY
from storage.referrers import is_fallback_tag

if TYPE_CHECKING:
    from engine.policy.gate import Gate

PARALLEL = 4
"""Tags that are copied at once."""
ASKING = 8
"""Lists of referrers that are asked for at once."""
REFERRERS = 5000
"""Manifests that refer to one image, and to each other, at most: whoever wrote them must not keep us busy for ever."""


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """`platforms` of an index, one: its manifest alone, several: an index of these; `every`: all there are, the digest
    stays. `tags`: a pattern (fnmatch) of tags of the source's repository, each copied under its own name."""

    source: Reference
    destination: Reference
    platforms: tuple[Platform, ...] = ()
    every: bool = False
    referrers: bool = False
    tags: str = ""

    @property
    def options(self) -> dict[str, object]:
        """What BuildStarted.options says."""
        return {
            "source": self.source.written, "destination": self.destination.written,
            "platforms": [str(platform) for platform in self.platforms], "all": self.every,
            "referrers": self.referrers, "tags": self.tags,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Copied:
    """`digest` of `source` is what `destination` names now. `layers` as in Exported; `referrers`: how many manifests
    refer to it and came along."""

    source: str
    destination: str
    digest: Digest
    layers: tuple[Mapping[str, Any], ...]
    referrers: int

    @property
    def moved(self) -> int:
        """Bytes of layers that travelled."""
        return sum(int(layer["bytes"]) for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """The fields, by name, and `bytes` moved."""
        return {
            "source": self.source, "destination": self.destination, "digest": str(self.digest), "bytes": self.moved,
            "layers": [dict(layer) for layer in self.layers], "referrers": self.referrers,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Load:
    """What one copy has to bring: the manifest `top` with all it needs, and what refers to that, in order."""

    top: Manifest
    image: Cargo
    referring: tuple[Cargo, ...]

    @property
    def blobs(self) -> tuple[Digest, ...]:
        """All layers and configs, each once."""
        cargos = (self.image, *self.referring)
        layers = (layer for cargo in cargos for layer in (*cargo.layers, *cargo.configs))
        return tuple(dict.fromkeys(layer.blob.digest for layer in layers if layer.blob))


@dataclass(slots=True)
class Copier:
    """Copies; `host`: the platform that is meant when none is said; `gate` says what may be copied, and where to."""

    placer: Placer
    listing: RegistryListing
    facts: Facts
    host: Platform
    gate: Gate | None = None
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL))
    _asking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(ASKING))

    async def copy(self, request: CopyRequest) -> list[Copied]:
        """Do as `request` says; one result a tag. Raises InputError, RegistryError, VerificationError, DiskError,
        PolicyViolation."""
        if self.gate is not None:
            self.gate.named(request.source)
            self.gate.targets([request.destination])
        pairs = await self.pairs(request)
        return await together(self._copy_soon(request, source, destination) for source, destination in pairs)

    async def foresee(self, request: CopyRequest) -> list[Copied]:
        """What `copy` would do, were it done now: manifests are read, and destinations are asked what they have. A
        layer that would be mounted may have to be streamed, as registries need not mount."""
        answers: list[Copied] = []
        placed: set[tuple[str, str, Digest]] = set()
        for source, destination in await self.pairs(request):
            load = await self.load(request, source, destination)
            target = destination.provider
            layers = [layer for cargo in (load.image, *load.referring) for layer in cargo.layers]
            foreseen = await together(self._foreseen(layer, target, placed) for layer in layers)
            name, referrers = str(destination), sum(len(cargo.manifests) for cargo in load.referring)
            answers.append(Copied(str(source), name, load.top.digest, tuple(foreseen), referrers))
        return answers

    async def _foreseen(
        self, layer: Layer, target: Provider, placed: set[tuple[str, str, Digest]]
    ) -> dict[str, Any]:
        assert layer.blob is not None, "layers of images have blobs"
        digest, source = layer.blob.digest, ""
        key = (target.registry, target.repository, digest)
        if key in placed or await self.placer.images.registry.exists(target, digest):
            transport, source = "present", str(target)
        else:
            near = [one for one in layer.providers if one.registry == target.registry != LAYOUT_REGISTRY]
            transport = "mounted" if near else "streamed"
            source = str((near or layer.providers)[0])
        placed.add(key)
        moved = layer.blob.size if transport == "streamed" else 0
        return {"digest": str(digest), "transport": transport, "bytes": moved, "source": source}

    async def pairs(self, request: CopyRequest) -> list[tuple[Reference, Reference]]:
        """Sources and destinations by name: of a pattern of tags, each tag that fits. Raises InputError for none."""
        if not request.tags:
            return [(request.source, request.destination)]
        provider = request.source.provider
        there = await self.listing.tags(provider)
        # reason: such a tag stands in for the referrers API, and is made anew where the destination lacks that
        wanted = [
            tag for tag in there
            if fnmatchcase(tag, request.tags) and not (request.referrers and is_fallback_tag(tag))
        ]  # fmt: skip
        if not wanted:
            some = ", ".join(sorted(there)[:10]) or "none"
            raise InputError(f"no tag matches {request.tags!r}", where=str(provider), hint=f"it has: {some}")
        return [(tagged(request.source, tag), tagged(request.destination, tag)) for tag in wanted]

    async def load(self, request: CopyRequest, source: Reference, destination: Reference) -> Load:
        """Read what there is to copy: manifests only, and nothing is written. Raises as `copy` does."""
        images, provider, where = self.placer.images, source.provider, str(source)
        named, resolved_by = await images.places.resolve(source, images.registry.resolve)
        top = await images.manifest(provider, named.digest, where)
        platforms = () if request.every else request.platforms or ((self.host,) if top.is_index else ())
        if platforms:
            top = await chosen(images, provider, top, platforms, where)
        if destination.digest not in {None, top.digest}:
            raise InputError(f"the copy has the digest {top.digest}", where=str(destination), hint="name a tag")
        self.facts.post(
            SourceResolved(
                reference=source.written,
                digest=str(named.digest),
                platform=",".join(map(str, platforms)),
                provider=provider.to_json(),
                manifest=str(top.digest),
                config="".join(str(config.digest) for config, _ in descriptors(top.fields, "config", where)[:1]),
                resolved_by=resolved_by.to_json(),
            )
        )
        target = destination.provider
        if self.gate is not None:
            await self.gate.resolved(source, named.digest, top.digest, provider, None)
        image = await self.placer.gather([Wanted(top.descriptor, (provider,))], target)
        if self.gate is not None:
            self.gate.layers(image.layers)
        referring = await self._referring(image, top, provider, target) if request.referrers else ()
        return Load(top, image, referring)

    async def _copy_soon(self, request: CopyRequest, source: Reference, destination: Reference) -> Copied:
        async with self._slots:
            return await self._copy(request, source, destination)

    async def _copy(self, request: CopyRequest, source: Reference, destination: Reference) -> Copied:
        load = await self.load(request, source, destination)
        name, digest = str(destination), load.top.digest
        target = destination.target
        started = await self.facts.record(
            ExportStarted(kind="copy", target=name, digest=str(digest), layers=fitting([*map(str, load.blobs)]))
        )
        # reason: a registry stores a manifest before it names it, so the tag's PUT is enough unless others refer to it
        image = load.image.without(digest) if destination.tag and not load.referring else load.image
        moved = await self.placer.place(image, target, name)
        for cargo in load.referring:
            moved += await self.placer.place(cargo, target, name)
        if destination.tag:
            put = self.placer.mover.target.put_manifest
            await put(target, destination.tag, load.top.media_type, load.top.data)
        await self.facts.record(
            Exported(
                kind="copy",
                target=name,
                digest=str(digest),
                layers=fitting(moved),
                provider=None if destination.registry == LAYOUT_REGISTRY else destination.provider.to_json(),
            ),
            cause=started,
        )
        referrers = sum(len(cargo.manifests) for cargo in load.referring)
        return Copied(str(source), name, digest, tuple(moved), referrers)

    async def _referring(
        self, image: Cargo, top: Manifest, provider: Provider, target: Provider
    ) -> tuple[Cargo, ...]:
        """What refers to the manifests of `image`, what refers to that, and so on. Raises VerificationError for too
        many."""
        subjects = dict.fromkeys([*(one.digest for one in image.manifests), top.digest])
        seen = set(subjects)
        found: list[Cargo] = []
        while subjects:
            lists = await together(self._referrers(provider, subject) for subject in subjects)
            new = {one.digest: one for listed in lists for one in listed if one.digest not in seen}
            seen |= new.keys()
            if len(seen) > REFERRERS:
                raise VerificationError("too many manifests refer to the image", where=f"{provider}@{top.digest}")
            if new:
                found.append(await self.placer.gather([Wanted(one, (provider,)) for one in new.values()], target))
            subjects = dict.fromkeys(new)
        return tuple(found)

    async def _referrers(self, provider: Provider, subject: Digest) -> Sequence[Descriptor]:
        async with self._asking:
            return [one.manifest for one in await self.listing.referrers(provider, subject)]


def tagged(repository: Reference, tag: str) -> Reference:
    """The image `tag` of the repository that `repository` names."""
    written = repository.written.partition("@")[0].removesuffix(f":{repository.tag}")
    return Reference(repository.registry, repository.repository, tag, None, f"{written}:{tag}")
