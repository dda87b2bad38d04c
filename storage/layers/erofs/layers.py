"""Layers as EROFS images: `layers/<diff ID>.erofs`, one file each, mounted when they are first asked for."""

from __future__ import annotations

from pathlib import Path

from storage.digest import Digest
from storage.durable import fsync_directory
from storage.errors import DiskError, VerificationError
from storage.interfaces.blobs import ByteSource
from storage.layers.checked import CheckedOnce
from storage.layers.directory import LAYER_LIMIT
from storage.layers.erofs.header import SUFFIX
from storage.layers.erofs.mount import KIND, ErofsMounts
from storage.scratch import Scratch, clear_away


class ErofsLayers(CheckedOnce):
    """Implements LayerStore. `tmp` must lie in the same file system as `layers`.

    What makes images is imported when one is made: a build that is all cached only asks what is here.
    """

    name = KIND
    kind = "layer"

    def __init__(self, layers: Path, tmp: Path, owner: str, mounts: ErofsMounts, *, limit: int = LAYER_LIMIT) -> None:
        """`owner` names unfinished layers; `limit` as for DirectoryLayers. Raises InputError when `owner` is not
        lower-case alphanumeric."""
        self._layers = layers
        self._scratch = Scratch(tmp, owner)
        self._mounts = mounts
        self._limit = limit
        super().__init__()

    def has(self, diff_id: Digest) -> bool:
        """See LayerStore.has."""
        return self._image(diff_id).is_file() and self._mounts.possible

    def lower(self, diff_id: Digest) -> Path:
        """See LayerStore.lower. Raises DiskError."""
        return self._mounts.lower(self._image(diff_id))

    def unpack(self, diff_id: Digest, media_type: str, source: ByteSource) -> int:
        """See LayerStore.unpack."""
        path = self._scratch.name()
        try:
            laid_out = self._write(path, diff_id, media_type, source)
            self._layers.mkdir(parents=True, exist_ok=True)
            path.rename(self._image(diff_id))  # another process may have published the same layer: the same bytes
            fsync_directory(self._layers)
            self.believe(diff_id)
        except VerificationError as error:
            raise VerificationError(error.what, where=f"layer {diff_id.short}", hint=error.hint) from error
        except OSError as error:
            raise DiskError.of(error, f"writing layer {diff_id.short}") from error
        finally:
            clear_away(path)
        return laid_out

    def verify(self, diff_id: Digest) -> str:
        """See CheckedLayers.verify."""
        from storage.layers.erofs.check import examine_image

        try:
            self._examined(str(diff_id), lambda: examine_image(self._image(diff_id), str(diff_id)), self._layers)
        except DiskError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return ""  # somebody let it go meanwhile
            raise
        return "diff_id"

    def _problem(self, name: str) -> str:
        from storage.layers.erofs.check import check_image

        return check_image(self._image(Digest(name)), name, self._scratch)

    def _remove(self, name: str) -> None:
        image = self._image(Digest(name))
        self._mounts.forget(image)
        self._scratch.drop(image)

    def close(self) -> None:
        """See LayerStore.close. Unmounts snapshots too, where they share the mounts."""
        self._mounts.close()

    def _write(self, path: Path, diff_id: Digest, media_type: str, source: ByteSource) -> int:
        from storage.layers.erofs.image import ImageWriter
        from storage.layers.readahead import read_layer
        from storage.tar.reader import TarReader

        self._scratch.tmp.mkdir(parents=True, exist_ok=True)
        with ImageWriter(path) as image:

            def index(tar: TarReader) -> None:
                for entry in tar:
                    image.tree.add(entry)

            read_layer(diff_id, media_type, source, index, limit=self._limit, tee=image.write)
            image.finish(diff_id, str(diff_id))
            return image.tree.bytes

    def _image(self, diff_id: Digest) -> Path:
        return self._layers / (diff_id.hex + SUFFIX)
