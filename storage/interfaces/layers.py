"""Layers and snapshots on this disk: how they come in, are mounted, checked, and written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from storage.digest import Digest
from storage.interfaces.blobs import ByteSource
from storage.interfaces.images import Descriptor


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer that was stored as it came: its blob, its diff ID, and the latest time of a file in it that is not in the
    future, in seconds since the epoch, 0 for none."""

    blob: Descriptor
    diff_id: Digest
    newest: int


class StagedLayer(Protocol):
    """A layer that was read and checked, and is not to be seen yet. Methods block."""

    def commit(self) -> StoredLayer:
        """Make it durable and visible. Raises DiskError."""
        ...

    def abort(self) -> None:
        """Drop it. Harmless after `commit`."""
        ...


class LayerIntake(Protocol):
    """Takes layers in that come as files."""

    def read(self, file: BinaryIO, now: int) -> StagedLayer:
        """Read the layer that `file` gives, to its end; `now`: seconds since the epoch. Blocking. Raises
        VerificationError, keeping nothing, for what is no layer, DiskError."""
        ...


class LayerStore(Protocol):
    """Layers of images, mountable, named by diff ID. A layer is there whole or not at all."""

    def has(self, diff_id: Digest) -> bool:
        """Is the layer mountable here?"""
        ...

    def lower(self, diff_id: Digest) -> Path:
        """The directory that serves as overlay lower."""
        ...

    def unpack(self, diff_id: Digest, media_type: str, source: ByteSource) -> int:
        """Decompress, verify against `diff_id`, lay out, make durable, publish; returns the bytes laid out.
        Raises VerificationError (wrong or malformed bytes) or DiskError; nothing of the layer stays then.
        Consumes `source` to its end. Blocking."""
        ...

    @property
    def name(self) -> str:
        """How layers are laid out, for MaterializationRequested.snapshotter: `erofs` or `directory`."""
        ...

    def close(self) -> None:
        """Let go of what this process has mounted. Raises DiskError."""
        ...


class Checked(Protocol):
    """Something kept on this disk that a disk, or a person, may have damaged since it was made."""

    def check(self, name: str) -> str:
        """What is wrong with what is kept as `name`: "" when it is as it was made, and when nothing is here. Costs
        something the first time a process asks; what this process made itself is believed. Blocking. Raises
        DiskError."""
        ...

    def discard(self, name: str) -> None:
        """Remove what is kept as `name`, whatever it is. Who has it mounted keeps it. Blocking. Raises DiskError."""
        ...


class CheckedLayers(LayerStore, Checked, Protocol):
    """Layers by diff ID, with what finds damage to them."""

    def verify(self, diff_id: Digest) -> str:
        """Look at all that is kept of the layer, however often it was looked at: by what it was found to be right,
        `diff_id` (all of its bytes), or `seal` where these are not kept as they came; "" when it is not here. It is as
        durable then as one that was just laid out. Blocking. Raises VerificationError, DiskError."""
        ...


class Snapshot(Protocol):
    """A writable file system on top of lowers, mounted at `root`; the changes gather beside it."""

    @property
    def root(self) -> Path:
        """Where it is mounted."""
        ...

    @property
    def changes(self) -> Path:
        """The directory that the changes gather in, as an overlay upper; not to be written to."""
        ...

    def commit(self) -> int:
        """Unmount, make the changes durable and visible under the snapshot's id; returns bytes of the diff."""
        ...

    def discard(self) -> None:
        """Unmount and drop the changes. Harmless after `commit`."""
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """What there is to a file besides its content; `mode` the 12 permission bits, `mtime` in ns since the epoch."""

    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


class LayerWriter(Protocol):
    """A step's layer, written entry by entry: parents before what is in them, each path once; it is packed the same
    whatever else their order is, and most cheaply written in that of `SnapshotStore.pack`. Paths are relative to the
    root, without `.`, `..` or slashes at their ends; the empty path is the root. Methods raise DiskError."""

    def directory(self, path: bytes, look: Look) -> None:
        """A directory. With the attribute `trusted.overlay.opaque` it hides all that lower layers have in it."""
        ...

    def file(self, path: bytes, look: Look, size: int, content: Iterable[bytes | memoryview]) -> None:
        """A regular file of exactly `size` bytes. Raises what `content` raises, and ValueError when it gives more or
        less; the writer can only be discarded then."""
        ...

    def node(
        self, path: bytes, look: Look, kind: Literal["symlink", "fifo", "char", "block"], target: bytes, device: int
    ) -> None:
        """A symbolic link to `target`, a FIFO, or a device of number `device`."""
        ...

    def link(self, path: bytes, target: bytes) -> None:
        """A hard link to the file written as `target`."""
        ...

    def commit(self) -> int:
        """Make the layer durable and visible under the snapshot's id; returns bytes of its regular files."""
        ...

    def discard(self) -> None:
        """Drop it. Harmless after `commit`."""
        ...


class SnapshotStore(Protocol):
    """Results of steps: the changes a step made, named by an id unique to the execution. What a command changed is
    kept as an overlay upper; what the engine itself composes may be kept as an image that no file is created for."""

    def has(self, snapshot: str) -> bool:
        """Is it here?"""
        ...

    def lower(self, snapshot: str) -> Path:
        """The directory that serves as overlay lower."""
        ...

    def begin(self, snapshot: str, lowers: Sequence[Path]) -> Snapshot:
        """Mount a new writable snapshot over `lowers` (bottom first; may be empty). Blocking. Raises DiskError."""
        ...

    def compose(self, snapshot: str) -> LayerWriter:
        """Begin a new snapshot that is written entry by entry, without mounting anything. Raises DiskError."""
        ...

    def view(self, lowers: Sequence[Path]) -> AbstractContextManager[Path]:
        """Mount `lowers` (bottom first) read-only for the time of the context. Blocking. Raises DiskError."""
        ...

    def pack(self, snapshot: str, write: Callable[[bytes], Any], *, clamp_mtime: int | None = None) -> None:
        """Write the changes as an OCI layer tar (uncompressed, deterministic order, whiteouts as image-spec layer.md
        has them). `clamp_mtime`: no time later than this many seconds since the epoch. Blocking."""
        ...


class CheckedSnapshots(SnapshotStore, Checked, Protocol):
    """Snapshots by id, with what finds damage to them."""
