"""Layers as plain directories: `layers/<diff ID>/fs`, each published whole.

What unpacks is imported when something is unpacked: a build that is all cached only asks what is here.
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path

from storage.digest import Digest, Hasher
from storage.durable import FileSystemSync, fsync_directory
from storage.errors import DiskError, VerificationError
from storage.interfaces import ByteSource
from storage.scratch import Scratch, remove_tree

_TREE = "fs"
_CHUNK = 1 << 20
_CHUNKS_AHEAD = 4


class DirectoryLayers:
    """Implements LayerStore. `tmp` must lie in the same file system as `layers`."""

    name = "directory"

    def __init__(self, layers: Path, tmp: Path, owner: str, sync: FileSystemSync | None = None) -> None:
        """`owner` names unfinished layers; `sync` may be shared with others of the same file system.
        Raises InputError when `owner` is not lower-case alphanumeric."""
        self._layers = layers
        self._scratch = Scratch(tmp, owner)
        self._sync = sync or FileSystemSync(tmp)

    def has(self, diff_id: Digest) -> bool:
        """See LayerStore.has."""
        return self.lower(diff_id).is_dir()

    def lower(self, diff_id: Digest) -> Path:
        """See LayerStore.lower."""
        return self._layers / diff_id.hex / _TREE

    def unpack(self, diff_id: Digest, media_type: str, source: ByteSource) -> int:
        """See LayerStore.unpack."""
        from storage.implied import write_implied

        doing = f"unpacking layer {diff_id.short}"
        try:
            directory = self._scratch.directory()
        except OSError as error:
            raise DiskError.of(error, doing) from error
        try:
            (directory / _TREE).mkdir()
            laid_out, implied = self._lay_out(diff_id, media_type, source, directory / _TREE)
            write_implied(directory, implied)
            self._publish(directory, self._layers / diff_id.hex)
        except VerificationError as error:
            raise VerificationError(error.what, where=f"layer {diff_id.short}", hint=error.hint) from error
        except OSError as error:
            raise DiskError.of(error, doing) from error
        finally:
            remove_tree(directory)
        return laid_out

    @staticmethod
    def _lay_out(diff_id: Digest, media_type: str, source: ByteSource, tree: Path) -> tuple[int, set[bytes]]:
        from storage.tar import TarReader
        from storage.unpack import unpack_tree

        with _ReadAhead(source, media_type, Hasher(diff_id.algorithm)) as ahead:
            tar = TarReader(ahead)
            try:
                laid_out = unpack_tree(tar, tree)
            except VerificationError as malformed:
                tar.drain()
                ahead.check(diff_id, f": {malformed.what}")
                raise
            tar.drain()
            ahead.check(diff_id)
        return laid_out

    def _publish(self, directory: Path, target: Path) -> None:
        directory.chmod(0o755)
        self._sync()
        self._layers.mkdir(parents=True, exist_ok=True)
        try:
            directory.rename(target)
        except OSError:
            if not (target / _TREE).is_dir():  # else another process published the same layer meanwhile
                raise
        fsync_directory(self._layers)


class _ReadAhead:
    """Decompresses and hashes on a thread of its own while this one writes files; a bounded number of chunks ahead."""

    def __init__(self, source: ByteSource, media_type: str, hasher: Hasher) -> None:
        self._source = source
        self._media_type = media_type
        self._hasher = hasher
        self._chunks: queue.Queue[bytes | BaseException] = queue.Queue(_CHUNKS_AHEAD)
        self._stopped = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="decompress", daemon=True)

    def __enter__(self) -> _ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._chunks.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def read(self, _size: int = -1, /) -> bytes:
        """The next chunk, whatever its size. Raises what broke the source, VerificationError."""
        if self._ended:
            return b""
        chunk = self._chunks.get()
        if isinstance(chunk, BaseException):
            self._ended = True
            raise chunk
        self._ended = not chunk
        return chunk

    def check(self, diff_id: Digest, but: str = "") -> None:
        """Raises VerificationError unless the bytes, read to the end, are those of `diff_id`."""
        found = self._hasher.digest()
        if found != diff_id:
            raise VerificationError(f"the layer's content has diff ID {found}, not {diff_id}{but}")

    def _run(self) -> None:
        from storage.compression import decompress

        try:
            plain = decompress(self._source, self._media_type)
            while not self._stopped.is_set():
                chunk = plain.read(_CHUNK)
                self._hasher.update(chunk)
                self._chunks.put(chunk)
                if not chunk:
                    return
        except BaseException as error:  # noqa: BLE001 - the thread that reads raises it
            self._chunks.put(error)
