"""An index of images that are somewhere already: what it lists is placed beside it, and nothing else moves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.errors import InputError, RegistryError, VerificationError
from engine.events import Exported, ExportStarted, SourceResolved
from engine.images.combine import CONFIGS, Annotation, Member, combine, config_platform, image_entry, subject_of
from engine.images.place import (
    COUNT_LIMIT,
    MANIFEST_TYPES,
    PARALLEL,
    Placer,
    Wanted,
    descriptors,
)
from engine.images.read import ImageReader, Manifest
from engine.ledger import Facts, fitting
from engine.together import together
from storage.digest import Digest, parse_json
from storage.interfaces.images import Descriptor, Platform, Provider, Reference

if TYPE_CHECKING:
    from engine.policy.gate import Gate

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class IndexRequest:
    """`names` to put the index under, of `refs`; `append`: to what the first name is now; `platforms`: only those."""

    names: tuple[Reference, ...]
    refs: tuple[Reference, ...]
    append: bool = False
    annotations: tuple[Annotation, ...] = ()
    platforms: tuple[Platform, ...] = ()

    @property
    def options(self) -> Json:
        """What BuildStarted.options says."""
        annotations = [
            f"{one.level}{f'[{one.platform}]' if one.platform else ''}:{one.key}={one.value}"
            for one in self.annotations
        ]
        return {
            "names": [str(name) for name in self.names], "refs": [ref.written for ref in self.refs],
            "append": self.append, "annotations": annotations, "platforms": [str(one) for one in self.platforms],
        }  # fmt: skip

    @property
    def sources(self) -> tuple[Reference, ...]:
        """All that goes in, in order."""
        return (self.names[0], *self.refs) if self.append else self.refs


@dataclass(frozen=True, slots=True)
class Assembled:
    """`index`, and what has to lie beside it: `wanted`; `resolved`: what the references were."""

    index: Manifest
    wanted: tuple[Wanted, ...]
    resolved: tuple[SourceResolved, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """A reference that was asked for."""

    member: Member
    provider: Provider
    resolved: SourceResolved


@dataclass(frozen=True, slots=True)
class Assembler:
    """Makes an index's bytes. Reads manifests, and configs where nothing else tells a platform; writes nothing. `gate`
    says which images may be listed."""

    images: ImageReader
    gate: Gate | None = None
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL))

    async def assemble(self, request: IndexRequest) -> Assembled:
        """What `request` asks for. Raises InputError, RegistryError, VerificationError, DiskError, PolicyViolation."""
        if self.gate is not None:
            for reference in request.sources:
                self.gate.named(reference)
        found = await together(
            self._find(reference, appended=request.append and number == 0)
            for number, reference in enumerate(request.sources)
        )
        index = combine([one.member for one in found], request.annotations, request.platforms)
        holders: dict[Digest, dict[Provider, None]] = {}
        for one in found:
            for entry in one.member.entries:
                holders.setdefault(Digest(entry["digest"]), {})[one.provider] = None
        listed = {entry.digest: entry for entry, _ in descriptors(index.fields, "manifests", "the index")}
        wanted = tuple(Wanted(entry, tuple(holders[digest])) for digest, entry in listed.items())
        return Assembled(index, wanted, tuple(one.resolved for one in found))

    async def _find(self, reference: Reference, *, appended: bool) -> _Found:
        where, provider = str(reference), reference.provider
        resolve, resolved_by = self.images.registry.resolve, provider
        try:
            if appended:
                top = await resolve(reference)  # what it is now: a mirror may be behind
            else:
                top, resolved_by = await self.images.places.resolve(reference, resolve)
        except RegistryError as error:
            if appended and error.kind == "missing":
                raise InputError(
                    "there is nothing to append to", where=where, hint="leave out --append to make the index"
                ) from error
            raise
        manifest = await self.images.manifest(provider, top.digest, where)
        if manifest.fields.get("schemaVersion") == 1:
            raise InputError("docker's schema 1 cannot be listed in an index", where=where, hint="push it again")
        config = ""
        if manifest.is_index:
            entries = tuple(dict(fields) for _, fields in descriptors(manifest.fields, "manifests", where))
            platforms = await self._platforms(entries, provider)
            member, platform = Member(manifest, entries, platforms), ""
        else:
            said = await self._platform(manifest, provider, where)
            config = next((str(blob.digest) for blob, _ in descriptors(manifest.fields, "config", where)), "")
            member = Member(manifest, (image_entry(manifest, said),))
            platform = "/".join(filter(None, (str((said or {}).get(key, "")) for key in _PLATFORM)))
        resolved = SourceResolved(
            reference=reference.written, digest=str(manifest.digest), platform=platform, provider=provider.to_json(),
            manifest=str(manifest.digest), config=config, resolved_by=resolved_by.to_json(),
        )  # fmt: skip
        if self.gate is not None:
            await self.gate.resolved(reference, manifest.digest, manifest.digest, provider, None)
        return _Found(member, provider, resolved)

    async def _platforms(self, entries: Sequence[Json], provider: Provider) -> dict[str, Json]:
        """Of the images that do not say theirs in the index."""
        silent = [
            entry["digest"] for entry in entries
            if not entry.get("platform") and not subject_of(entry) and entry["mediaType"] in MANIFEST_TYPES
        ]  # fmt: skip

        if len(silent) > COUNT_LIMIT:
            raise VerificationError(f"an index of {len(silent)} images that are for no platform", where=str(provider))

        async def ask(digest: Digest) -> Json | None:
            where = f"{provider}@{digest}"
            async with self._slots:
                return await self._platform(await self.images.manifest(provider, digest, where), provider, where)

        said = await together(ask(Digest(digest)) for digest in silent)
        return {digest: platform for digest, platform in zip(silent, said, strict=True) if platform}

    async def _platform(self, manifest: Manifest, provider: Provider, where: str) -> Json | None:
        """What an image's config says it runs on; None for other artifacts, and for indexes."""
        for blob, _ in descriptors(manifest.fields, "config", where):
            if blob.media_type in CONFIGS:
                return config_platform(await read_config(self.images, provider, blob, where))
        return None


_PLATFORM = ("os", "architecture", "variant")


async def read_config(images: ImageReader, provider: Provider, blob: Descriptor, where: str) -> Json:
    """An image's config. Raises RegistryError, VerificationError, DiskError."""
    try:
        config = parse_json(await images.config(provider, blob, where))
    except ValueError as error:
        raise VerificationError("the image's config is not JSON", where=where) from error
    if not isinstance(config, dict):
        raise VerificationError("the image's config is not a JSON object", where=where)
    return config


@dataclass(frozen=True, slots=True)
class Created:
    """`index` is what all names name now; `layers` as in Exported, of all of them."""

    index: Manifest
    layers: tuple[Json, ...]


@dataclass(frozen=True, slots=True)
class Indexer:
    """Puts indexes into registries; `gate` says of what, and where."""

    placer: Placer
    facts: Facts
    gate: Gate | None = None

    async def create(self, request: IndexRequest) -> Created:
        """Have the index under all its names. An interruption leaves none of them changed that was not done. Raises
        InputError, RegistryError, MaterializationError, VerificationError, DiskError, PolicyViolation."""
        if self.gate is not None:
            self.gate.targets(request.names)
        made = await Assembler(self.placer.images, self.gate).assemble(request)
        for resolved in made.resolved:
            self.facts.post(resolved)
        self.placer.images.blobs.put(made.index.data)
        placed: list[tuple[str, str]] = []
        moved: list[Json] = []
        for name in request.names:
            target = name.target
            there = target.coordinates in placed
            moved += await self._put(made.index, () if there else made.wanted, name, target)
            placed.append(target.coordinates)
        return Created(made.index, tuple(moved))

    async def _put(self, index: Manifest, wanted: Sequence[Wanted], name: Reference, target: Provider) -> list[Json]:
        cargo = await self.placer.gather(wanted, target)
        if self.gate is not None:
            self.gate.layers(cargo.layers)
        layers = fitting([str(layer.blob.digest) for layer in cargo.layers if layer.blob])
        started = await self.facts.record(
            ExportStarted(kind="index", target=str(name), digest=str(index.digest), layers=layers)
        )
        moved = await self.placer.place(cargo, target, str(name))
        for put in (str(index.digest), name.tag or "latest"):
            await self.placer.mover.target.put_manifest(target, put, index.media_type, index.data)
        exported = Exported(
            kind="index", target=str(name), digest=str(index.digest), layers=fitting(moved),
            provider=name.provider.to_json(),
        )  # fmt: skip
        await self.facts.record(exported, cause=started)
        return moved
