"""What a build has of its root, of concrete classes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from engine.events import LocalLost
from engine.ledger import Ledger
from projections.cache_index import CacheIndex
from projections.names import Names
from storage.blobs import DirectoryBlobs, WithMore
from storage.errors import InputError
from storage.interfaces.blobs import BlobStore
from storage.interfaces.layers import CheckedLayers
from storage.interfaces.packing import LayerTars
from storage.layers.directory import LAYER_LIMIT, ChosenLayers, DirectoryLayers
from storage.layers.erofs.layers import ErofsLayers
from storage.layers.erofs.mount import ErofsMounts
from storage.layers.snapshots import OverlaySnapshots
from storage.partial import DirectoryPartials
from tools.known import LogAnswers
from tools.roots import Root
from tools.sensitive import sensitive_args

if TYPE_CHECKING:
    from storage.parts.trees import DirectoryParts


@dataclass(eq=False)
class Here:
    """Each part is made once, when it is first asked for. `snapshotter`: how layers are laid out, one of SNAPSHOTTERS;
    `more`: blobs that lie elsewhere."""

    root: Root
    build: str
    snapshotter: str
    more: BlobStore | None

    @cached_property
    def ledger(self) -> Ledger:
        """Where the build says what it does."""
        return Ledger(self.root.log, self.build, sensitive_args(self.root.path))

    @cached_property
    def blobs(self) -> BlobStore:
        """With the blobs that lie elsewhere; a damaged one of the root is told of."""
        def lost(digest: str, detail: str) -> None:
            self.ledger.post(LocalLost(kind="blob", name=digest, problem="corrupt", detail=detail))

        own = DirectoryBlobs(self.root.path, owner=self.build, lost=lost)
        return own if self.more is None else WithMore(own, self.more)

    @cached_property
    def cache(self) -> LogAnswers:
        """What the log knows of cache keys and providers."""
        views, log = self.root.views, self.root.log
        return LogAnswers(CacheIndex(views), lambda: views.catch_up(log))

    @cached_property
    def names(self) -> Names:
        """Which digests names had."""
        return Names(self.root.views)

    @cached_property
    def mounts(self) -> ErofsMounts:
        """Of images of layers."""
        return ErofsMounts(self.root.tmp, self.build)

    @cached_property
    def layers(self) -> CheckedLayers:
        """With a way that is forced, layers laid out in the other count as not here. Raises InputError."""
        where, limit = self.root.path / "layers", layer_limit()
        images = ErofsLayers(where, self.root.tmp, self.build, self.mounts, limit=limit)
        directories = DirectoryLayers(where, self.root.tmp, self.build, limit=limit)
        if self.snapshotter == "directory":
            return directories
        if self.snapshotter == "erofs":
            if not self.mounts.works:
                raise InputError(
                    "--snapshotter erofs: this kernel mounts no EROFS images on the disk of the root",
                    where=str(self.root.path),
                    hint="--snapshotter directory works everywhere",
                )
            return images
        return ChosenLayers((images, directories), lambda: images if self.mounts.works else directories)

    @cached_property
    def snapshots(self) -> OverlaySnapshots:
        """Results of steps, laid out as `layers` are."""
        return OverlaySnapshots(
            self.root.path / "snapshots", self.root.tmp, self.build, mounts=self.mounts,
            as_images=lambda: self.layers.name == ErofsLayers.name,
        )  # fmt: skip

    @cached_property
    def partials(self) -> DirectoryPartials:
        """Where what comes off the wire is kept until it is whole."""
        return DirectoryPartials(self.root.path / "partial")

    @cached_property
    def tars(self) -> LayerTars:
        """The tars in images of layers."""
        from storage.layers.erofs.tars import ImageTars

        return ImageTars(self.root.path / "layers")

    @cached_property
    def parts(self) -> DirectoryParts:
        """Trees of layers of which only parts are fetched."""
        from storage.parts.trees import DirectoryParts

        return DirectoryParts(self.root.tmp, self.build, limit=layer_limit())


def layer_limit() -> int:
    """Bytes that a layer may have unpacked: $REFLEDGER_LAYER_LIMIT. Raises InputError."""
    limit = os.environ.get("REFLEDGER_LAYER_LIMIT") or str(LAYER_LIMIT)
    if not limit.isdecimal() or len(limit) > 18:
        raise InputError(f"REFLEDGER_LAYER_LIMIT={limit[:40]}: not a number of bytes", hint="write digits only")
    return int(limit)
