"""EROFS metadata for a tree whose file data is a tar that stands in front of it.

One file, written in one direction: the superblock at 1024, the tar from `TAR_START` on, pieces of sparse files whose
bytes in the tar are not aligned, blocks of directories and long links, then the inodes. Blocks have 512 bytes, as
those of a tar, so file data is where the tar has it. The superblock comes last: an unfinished image is none.

Source: Linux fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst (extended inodes; data layouts flat plain,
flat inline and chunk-based; inline xattrs; sorted directory blocks).
"""

from __future__ import annotations

import math
import os
import stat
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from storage.errors import VerificationError
from storage.layers.erofs.attributes import HEADER, Xattrs, inline
from storage.layers.erofs.directories import BLOCK, SLOT, directory_blocks, directory_size
from storage.layers.erofs.tree import LayerTree, Node, Segments

TAR_START = 4096
"""Where in the image the tar begins."""

_BITS = 9
_SUPER_AT, _MAGIC = 1024, 0xE0F5E1E2
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
_INODE = struct.Struct("<HHHHQIIIIqII16x")
_PLAIN, _INLINE, _CHUNKS = 0, 2, 4
_COMPAT_MTIME, _INCOMPAT_CHUNKED = 2, 4
_HOLE = 0xFFFFFFFF
_LAST_BLOCK = 0xFFFFFFF0  # block numbers have 32 bits
_MAX_CHUNK_BITS = 31
_LARGEST_FILE = 1 << 50  # bytes of a file with holes; even the numbers of larger ones' chunks take much room
_PACKED = 1024  # numbers of chunks that are made bytes at once
_FLUSH = 1 << 20


def encode(fd: int, tree: LayerTree, tar_end: int, identity: bytes) -> int:
    """Write the metadata of `tree` behind the tar, which ends at offset `tar_end` of the open file `fd`, and then the
    superblock; returns the offset where the image ends. `identity`: 16 bytes that name the volume. Raises OSError;
    VerificationError for a layer that is too large for the format (2 TiB)."""
    return _Encoder(fd, tree, tar_end).run(identity)


def write_at(fd: int, data: bytes, at: int) -> None:
    """Write all of `data` at offset `at`. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        at, view = at + written, view[written:]


@dataclass(slots=True)
class _Plan:
    """What was decided of one inode: its layout, the word that says where its data is, and what follows it inline."""

    node: Node
    parent: Node
    layout: int = _PLAIN
    where: int = 0
    size: int = 0
    chunks: Sequence[int] = ()


class _Encoder:
    def __init__(self, fd: int, tree: LayerTree, tar_end: int) -> None:
        self._fd = fd
        self._root = tree.root
        self._budget = tree.budget
        self._next = -(-tar_end // BLOCK)  # the next free block
        self._plans: list[_Plan] = []
        self._end = 0  # of the inodes, in bytes from their start
        self._bodies: dict[Xattrs, bytes] = {}
        self._chunked = False

    def run(self, identity: bytes) -> int:
        self._place_all()
        meta = self._next
        total = meta + -(-self._end // BLOCK)
        if total > _LAST_BLOCK:
            raise _too_large()
        out = _Writer(self._fd)
        for plan in self._plans:
            if plan.layout == _PLAIN and isinstance(plan.node.data, dict | bytes):
                out.seek(plan.where * BLOCK)
                for piece in self._content(plan):
                    out.write(piece)
        for plan in self._plans:
            out.seek(meta * BLOCK + plan.node.place)
            for piece in self._inode(plan):
                out.write(piece)
        out.seek(total * BLOCK)
        out.flush()
        os.ftruncate(self._fd, total * BLOCK)
        write_at(self._fd, self._superblock(meta, total, identity), _SUPER_AT)
        return total * BLOCK

    # ---------------------------------------------------------------- where everything goes

    def _place_all(self) -> None:
        """Inodes of one directory lie side by side, those of its directories behind: as they are looked at."""
        self._root.place = 0
        self._place(self._root, self._root)
        pending = [self._root]
        while pending:
            directory = pending.pop()
            below = []
            for name in sorted(directory.entries):
                node = directory.entries[name]
                if node.place < 0:
                    self._place(node, directory)
                if node.is_directory:
                    below.append(node)
            pending.extend(reversed(below))

    def _place(self, node: Node, parent: Node) -> None:
        plan = _Plan(node, parent, size=node.size)
        if node.is_directory:
            plan.size = directory_size(node.entries)
            tail = self._blocks_or_inline(plan)
        elif isinstance(node.data, bytes):
            tail = self._blocks_or_inline(plan)
        elif isinstance(node.data, Segments):
            self._plan_sparse(plan, node.data)
            tail = 4 * len(plan.chunks)
        else:
            tail = 0
            assert isinstance(node.data, int)
            if stat.S_ISREG(node.mode):
                plan.where = (TAR_START + node.data) >> _BITS if node.size else 0
            else:
                plan.where = _encode_device(node.data)
        head = _INODE.size + len(self._body(node))
        start = -(-self._end // SLOT) * SLOT
        if plan.layout == _INLINE and (start + head) % BLOCK + tail > BLOCK:
            start = -(-start // BLOCK) * BLOCK  # what stands inline must not cross a block's end
        node.place = start
        self._end = start + head + tail
        self._plans.append(plan)

    def _blocks_or_inline(self, plan: _Plan) -> int:
        """Content of links and directories: behind the inode when it is small, else in blocks. Bytes inline."""
        head = (_INODE.size + len(self._body(plan.node))) % BLOCK
        if plan.size <= BLOCK - max(head, _INODE.size):
            plan.layout = _INLINE
            return plan.size
        plan.where = self._take(-(-plan.size // BLOCK))
        return 0

    def _take(self, blocks: int) -> int:
        at = self._next
        self._next += blocks
        if self._next > _LAST_BLOCK:
            raise _too_large()
        return at

    # ---------------------------------------------------------------- sparse files

    def _plan_sparse(self, plan: _Plan, data: Segments) -> None:
        """Chunks that point into the tar where its pieces are aligned, or into copies behind the tar: whatever of both
        takes less room."""
        if plan.size > _LARGEST_FILE:
            raise VerificationError(f"a sparse file of {plan.size} bytes is larger than a file can be")
        plan.layout = _CHUNKS
        self._chunked = True
        stored = sum(length for _, length in data.pieces)
        bits = min(range(_MAX_CHUNK_BITS + 1), key=lambda bits: _room(plan.size, stored, len(data.pieces), bits))
        room = _room(plan.size, stored, len(data.pieces), bits)
        aligned = _aligned_bits(plan.size, data.pieces)
        if aligned >= 0 and 4 * _count(plan.size, aligned) <= room:
            bits = aligned
            self._budget.spend(4 * _count(plan.size, bits))
        else:
            self._budget.spend(max(room - stored, 0))  # the tar has its own bound
        plan.where = bits
        plan.chunks = chunks = array("I", [_HOLE]) * _count(plan.size, bits)
        if bits == aligned:
            self._point(chunks, bits, data)
        else:
            self._copy(chunks, bits, data)

    def _point(self, chunks: array[int], bits: int, data: Segments) -> None:
        at = (TAR_START + data.offset) >> _BITS
        for offset, length in data.pieces:
            for number in range(_count(length, bits)):
                chunks[(offset >> _BITS + bits) + number] = at + (number << bits)
            at += -(-length // BLOCK)

    def _copy(self, chunks: array[int], bits: int, data: Segments) -> None:
        size = BLOCK << bits
        at = TAR_START + data.offset
        for offset, length in data.pieces:
            done = 0
            while done < length:
                number, inside = divmod(offset + done, size)
                if chunks[number] == _HOLE:
                    chunks[number] = self._take(1 << bits)
                step = min(length - done, size - inside, _FLUSH)
                piece = os.pread(self._fd, step, at + done)
                write_at(self._fd, piece, chunks[number] * BLOCK + inside)
                done += len(piece)
            at += length

    # ---------------------------------------------------------------- bytes

    def _inode(self, plan: _Plan) -> Iterator[bytes]:
        node, body = plan.node, self._body(plan.node)
        seconds, nanoseconds = divmod(node.mtime, 10**9)
        links = node.links
        if node.is_directory:
            links = 2 + sum(child.is_directory for child in node.entries.values())
        yield _INODE.pack(
            1 | plan.layout << 1, 1 + (len(body) - HEADER) // 4 if body else 0, node.mode, 0, plan.size,
            plan.where, 1 + (node.place // SLOT & 0x7FFFFFFF), node.uid, node.gid, seconds, nanoseconds, links,
        )  # fmt: skip
        yield body
        if plan.layout == _INLINE:
            yield from self._content(plan)
        for at in range(0, len(plan.chunks), _PACKED):
            numbers = plan.chunks[at : at + _PACKED]
            yield struct.pack(f"<{len(numbers)}I", *numbers)

    def _content(self, plan: _Plan) -> Iterator[bytes]:
        if isinstance(plan.node.data, bytes):
            yield plan.node.data
        else:
            yield from directory_blocks(plan.node, plan.parent)

    def _body(self, node: Node) -> bytes:
        """The inline attributes; equal ones are encoded once."""
        found = self._bodies.get(node.xattrs)
        if found is None:
            found = self._bodies[node.xattrs] = inline(node.xattrs)
        return found

    def _superblock(self, meta: int, total: int, identity: bytes) -> bytes:
        return _SUPER.pack(
            _MAGIC, 0, _COMPAT_MTIME, _BITS, 0, self._root.place // SLOT, len(self._plans), 0, 0, total, meta, 0,
            identity, b"", _INCOMPAT_CHUNKED if self._chunked else 0, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip


def _aligned_bits(size: int, pieces: tuple[tuple[int, int], ...]) -> int:
    """The largest chunks, as a power of two of blocks, that all pieces begin and end with; -1 for none. The end of
    the file ends a chunk too."""
    common = 0
    for offset, length in pieces:
        common = math.gcd(common, offset, 0 if offset + length == size else length)
    if common % BLOCK:
        return -1
    blocks = common // BLOCK
    return min((blocks & -blocks).bit_length() - 1, _MAX_CHUNK_BITS) if blocks else _MAX_CHUNK_BITS


def _count(size: int, bits: int) -> int:
    """How many chunks of `1 << bits` blocks have `size` bytes."""
    return -(-size // (BLOCK << bits))


def _room(size: int, stored: int, pieces: int, bits: int) -> int:
    """Bytes that a sparse file takes at most whose `pieces`, of `stored` bytes, are copied into chunks of `1 << bits`
    blocks: those chunks, and the numbers of all."""
    count = _count(size, bits)
    return 4 * count + min(_count(stored, bits) + 2 * pieces, count) * (BLOCK << bits)


def _too_large() -> VerificationError:
    return VerificationError("the layer is larger than EROFS can hold", hint="use --snapshotter directory")


def _encode_device(device: int) -> int:
    """As the kernel's new_encode_dev(): 12 bits of major, 20 of minor."""
    major, minor = os.major(device), os.minor(device)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


class _Writer:
    """Writes mostly forward, in large pieces."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0
        self._pending: list[bytes] = []
        self._size = 0

    def seek(self, offset: int) -> None:
        """Go on at `offset`; a small gap is filled with zeros."""
        gap = offset - self._at - self._size
        if 0 <= gap <= 2 * BLOCK:
            self.write(bytes(gap))
        else:
            self.flush()
            self._at = offset

    def write(self, data: bytes) -> None:
        self._pending.append(data)
        self._size += len(data)
        if self._size >= _FLUSH:
            self.flush()

    def flush(self) -> None:
        data = b"".join(self._pending)
        self._pending.clear()
        write_at(self._fd, data, self._at)
        self._at += len(data)
        self._size = 0
