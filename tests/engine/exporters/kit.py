"""What reads, packs and converts layers for exports, in a root with the real parts."""

from __future__ import annotations

import time

from engine.clock import Clock
from engine.exporters.conversion import Conversion
from engine.exporters.reading import BlobReader
from engine.exporters.transfer import Catalog, Transfer
from engine.ledger import Ledger
from storage.digest import Digest
from storage.interfaces.images import Provider
from storage.interfaces.packing import PackedBlob
from storage.layers.erofs.tars import ImageTars
from storage.layout.source import WithLayouts
from storage.packing import BlobConverter, BlobPacker
from tests.engine.refs.kit import Kit


class NothingKnown:
    """Implements Catalog for a root without a past."""

    def packed(self, _name: str, _epoch: int | None, _compression: str) -> PackedBlob | None:
        return None

    def providers(self, _digest: Digest) -> tuple[Provider, ...]:
        return ()

    def let_go(self, _name: str) -> bool:
        return False


def transfer_in(parts: Kit, catalog: Catalog, build: str = "b1", *, repack: bool = False) -> Transfer:
    """As the wiring makes it."""
    materializer, locks = parts.materializer, parts.root.locks
    ledger, clock = Ledger(parts.root.log, build), Clock(time.time_ns, time.monotonic)
    blobs, kept = materializer.blobs, materializer.kept
    conversion = Conversion(
        blobs, BlobConverter(blobs), ImageTars(parts.root.path / "layers"), materializer, catalog, locks, ledger, clock,
        kept,
    )  # fmt: skip
    reader = BlobReader(blobs, WithLayouts(parts.registry), ledger, clock)
    return Transfer(
        reader, BlobPacker(parts.snapshots, blobs), catalog, locks, ledger, kept, conversion, repack=repack
    )
