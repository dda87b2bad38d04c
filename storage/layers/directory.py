"""Layers as plain directories (`layers/<diff ID>/fs`, each published whole), and the choice between ways to lay out.

What unpacks is imported when something is unpacked: a build that is all cached only asks what is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from storage.digest import Digest
from storage.durable import FileSystemSync
from storage.errors import DiskError, VerificationError
from storage.interfaces.blobs import ByteSource
from storage.interfaces.layers import CheckedLayers
from storage.layers.checked import CheckedOnce
from storage.layers.seal import TREE, broken
from storage.layers.unpublished import UnpublishedTree
from storage.scratch import Scratch

LAYER_LIMIT = 64 << 30
"""Uncompressed bytes of one layer that are let onto the disk, unless told otherwise: a bomb must end somewhere."""


class DirectoryLayers(CheckedOnce):
    """Implements LayerStore. `tmp` must lie in the same file system as `layers`."""

    name = "directory"
    kind = "layer"

    def __init__(self, layers: Path, tmp: Path, owner: str, *, limit: int = LAYER_LIMIT) -> None:
        """`owner` names unfinished layers; one of more than `limit` uncompressed bytes is refused. Raises InputError
        when `owner` is not lower-case alphanumeric."""
        self._layers = layers
        self._limit = limit
        self._scratch = Scratch(tmp, owner)
        self._sync = FileSystemSync(tmp)
        super().__init__()

    def has(self, diff_id: Digest) -> bool:
        """See LayerStore.has."""
        return self.lower(diff_id).is_dir()

    def lower(self, diff_id: Digest) -> Path:
        """See LayerStore.lower."""
        return self._layers / diff_id.hex / TREE

    def unpack(self, diff_id: Digest, media_type: str, source: ByteSource) -> int:
        """See LayerStore.unpack."""
        from storage.layers.implied import write_implied
        from storage.layers.readahead import read_layer
        from storage.tar.unpack import unpack_tree

        doing = f"unpacking layer {diff_id.short}"
        try:
            new = UnpublishedTree(self._scratch, self._sync)
        except OSError as error:
            raise DiskError.of(error, doing) from error
        try:
            new.tree.mkdir()
            laid_out, implied = read_layer(
                diff_id, media_type, source, lambda tar: unpack_tree(tar, new.tree), limit=self._limit
            )
            write_implied(new.path, implied)
            new.publish(self._layers / diff_id.hex)
            self.believe(diff_id)
        except VerificationError as error:
            raise VerificationError(error.what, where=f"layer {diff_id.short}", hint=error.hint) from error
        except OSError as error:
            raise DiskError.of(error, doing) from error
        finally:
            new.clear_away()
        return laid_out

    def verify(self, diff_id: Digest) -> str:
        """See CheckedLayers.verify."""
        self._examined(str(diff_id), lambda: broken(self._layers / diff_id.hex), self._layers)
        return "seal" if self.has(diff_id) else ""

    def _problem(self, name: str) -> str:
        return broken(self._layers / Digest(name).hex)

    def _remove(self, name: str) -> None:
        self._scratch.drop(self._layers / Digest(name).hex)

    def close(self) -> None:
        """See LayerStore.close."""


class ChosenLayers:
    """Implements LayerStore: new layers are laid out in one way, those laid out in another are used as they are."""

    def __init__(self, stores: Sequence[CheckedLayers], choose: Callable[[], CheckedLayers]) -> None:
        """`stores`: which layers count as here, in this order; `choose` is asked once, when a new one comes."""
        self._stores = tuple(stores)
        self._choose = choose
        self._chosen: CheckedLayers | None = None

    @property
    def name(self) -> str:
        """See LayerStore.name."""
        return self._preferred().name

    def has(self, diff_id: Digest) -> bool:
        """See LayerStore.has."""
        return any(store.has(diff_id) for store in self._stores)

    def lower(self, diff_id: Digest) -> Path:
        """See LayerStore.lower."""
        return next((store for store in self._stores if store.has(diff_id)), self._preferred()).lower(diff_id)

    def unpack(self, diff_id: Digest, media_type: str, source: ByteSource) -> int:
        """See LayerStore.unpack."""
        return self._preferred().unpack(diff_id, media_type, source)

    def check(self, name: str) -> str:
        """See Checked.check."""
        return next((problem for store in self._stores if (problem := store.check(name))), "")

    def verify(self, diff_id: Digest) -> str:
        """See CheckedLayers.verify."""
        return next((found for store in self._stores if store.has(diff_id) and (found := store.verify(diff_id))), "")

    def discard(self, name: str) -> None:
        """See Checked.discard. Where checks tell which layout is damaged, a layer in the other one stays."""
        damaged = [store for store in self._stores if store.check(name)]
        for store in damaged or self._stores:
            store.discard(name)

    def close(self) -> None:
        """See LayerStore.close."""
        for store in self._stores:
            store.close()

    def _preferred(self) -> CheckedLayers:
        if self._chosen is None:
            self._chosen = self._choose()
        return self._chosen
