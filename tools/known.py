"""What the log answers to the solver and the exporters: the cache index, the blobs, who has what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from engine.refs.ref import Layer, Remote, layers_from_json
from engine.solver.answers import Found
from projections.cache_index import CacheIndex, Page
from projections.history import History
from projections.runner import Views
from storage.digest import Digest, parse_json
from storage.errors import InputError, VerificationError
from storage.interfaces.blobs import BlobStore
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.packing import PackedBlob

if TYPE_CHECKING:
    from engine.cache.imports import CacheImports
    from engine.solver.cache import Component


@dataclass(frozen=True, slots=True)
class LogAnswers:
    """What the solver and the exporters ask of the log, answered by the cache index."""

    index: CacheIndex
    catch_up: Callable[[], object] = lambda: None
    """Has `index` see what was said since."""
    _providers: dict[Digest, tuple[Provider, ...]] = field(default_factory=dict)

    def lookup(self, key: Digest) -> Found | None:
        """See CacheLookup."""
        entry = self.index.lookup(str(key))
        if entry is None:
            return None
        layers = tuple(map(self.known, layers_from_json(entry.layers)))
        return Found(Remote(entry.ref, layers), entry.origin_build or "", entry.resolved, entry.importer)

    def known(self, layer: Layer) -> Layer:
        """`layer` with all that the log has of it: the blob it was packed into, and who has that."""
        packed = self.index.blob_of(layer.snapshot) if layer.snapshot else None
        if packed is not None:
            blob = Descriptor(packed.media_type, Digest(packed.digest), packed.bytes, packed.annotations)
            layer = replace(layer, diff_id=Digest(packed.diff_id), blob=blob)
        if layer.blob is None:
            return layer
        known = self.providers(layer.blob.digest)
        return replace(layer, providers=tuple(dict.fromkeys((*layer.providers, *known))))

    def let_go(self, name: str) -> bool:
        """See CacheLookup, Known and Catalog."""
        return self.index.let_go(name)

    def unexplained(self, diff_ids: Sequence[str]) -> Sequence[str]:
        """See Known."""
        if any(not self.index.came(diff_id) for diff_id in diff_ids):
            self.catch_up()
        return [diff_id for diff_id in diff_ids if not self.index.came(diff_id)]

    def keeps(self, listing: Digest) -> bool:
        """See CacheLookup."""
        return self.index.kept_of(str(listing)) is not None

    def packs(self) -> list[Digest]:
        """See CacheLookup."""
        return [Digest(pack) for pack in self.index.packs()]

    def page(self, url: str) -> Page | None:
        """See Pages."""
        return self.index.page_of(url)

    def packed(self, name: str, epoch: int | None, compression: str) -> PackedBlob | None:
        """See Catalog."""
        found = self.index.packed(name, epoch, compression)
        if found is None:
            return None
        blob = Descriptor(found.media_type, Digest(found.digest), found.bytes, found.annotations)
        return PackedBlob(Digest(found.diff_id), blob, "recorded")

    def providers(self, digest: Digest) -> tuple[Provider, ...]:
        """See Catalog."""
        if digest not in self._providers:  # the same base is below hundreds of records
            self._providers[digest] = tuple(self.index.providers_of(str(digest)))
        return self._providers[digest]


@dataclass(frozen=True, slots=True)
class Past:
    """What is known of earlier builds: here by the log, elsewhere by the caches that were read."""

    history: History
    blobs: BlobStore
    imports: Sequence[CacheImports]

    def started(self, build: str) -> int:
        """See Past."""
        with suppress(InputError):
            record = self.history.get(build)
            if record.id == build:
                return record.started
        return next((time for one in self.imports if (time := one.started(build))), 0)

    def components(self, key: Digest) -> tuple[Component, ...]:
        """See Past."""
        with suppress(FileNotFoundError, VerificationError):
            return tuple((name, value) for name, value in parse_json(self.blobs.get(key)))
        return next((found for one in self.imports if (found := one.components(key))), ())


def known_providers(views: Views, digest: Digest) -> tuple[Provider, ...]:
    """Everyone known to have blob `digest`."""
    return LogAnswers(CacheIndex(views)).providers(digest)


