"""Layers with a table of contents, made from the format documents: eStargz (stargz-snapshotter, docs/estargz.md) and
zstd:chunked (containers/storage, pkg/chunked), and by our own writer. Whole they are plain gzip or zstd layers."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import zstandard
from isal import isal_zlib

from storage.parts.estargz import Estargz
from tests.registry_fixture import OCI_LAYER, digest_of

OCI_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
_TYPES = {
    tarfile.REGTYPE: "reg", tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block", tarfile.FIFOTYPE: "fifo",
}  # fmt: skip
Edit = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Made:
    """A layer: its descriptor with `diff_id`, its bytes, and the table of contents in it."""

    blob: bytes
    descriptor: dict[str, Any]
    toc: dict[str, Any]


@dataclass
class _Writer:
    """Compressed members, one behind the other, and the tar that they expand to."""

    compress: Callable[[bytes], bytes]
    out: bytearray = field(default_factory=bytearray)
    plain: bytearray = field(default_factory=bytearray)
    pending: bytearray = field(default_factory=bytearray)

    def headers(self, data: bytes) -> None:
        self.pending += data

    def cut(self) -> int:
        """End the member; the next one begins at the returned offset."""
        if self.pending:
            self.out += self.compress(bytes(self.pending))
            self.plain += self.pending
            self.pending.clear()
        return len(self.out)


def gzipped(tar: bytes) -> Made:
    """An ordinary gzip layer: without a table."""
    blob = gzip.compress(tar, mtime=0)
    descriptor = {"mediaType": OCI_LAYER, "digest": digest_of(blob), "size": len(blob), "diff_id": digest_of(tar)}
    return Made(blob, descriptor, {})


def gzip_member(data: bytes) -> bytes:
    """`data` as one gzip member."""
    stream = isal_zlib.compressobj(2, isal_zlib.DEFLATED, 31)
    return bytes(stream.compress(data) + stream.flush())


def zstd_frame(data: bytes) -> bytes:
    """`data` as one zstd frame."""
    return zstandard.ZstdCompressor(level=3).compress(data)


def estargz(tar: bytes, *, chunk: int = 1 << 20, edit: Edit | None = None) -> Made:
    """`tar` as eStargz; `edit` changes the table of contents before it is written."""
    writer = _Writer(gzip_member)
    toc: dict[str, Any] = {"version": 1, "entries": _write(writer, tar, chunk, zstd=False)}
    if edit:
        edit(toc)
    start = writer.cut()
    data = json.dumps(toc).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as end:
        info = tarfile.TarInfo("stargz.index.json")
        info.size, info.mode = len(data), 0o444
        end.addfile(info, io.BytesIO(data))
    writer.headers(out.getvalue())
    writer.cut()
    extra = b"SG" + struct.pack("<H", 22) + b"%016xSTARGZ" % start
    footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(extra)) + extra
    footer += b"\x01\0\0\xff\xff" + bytes(8)
    return _made(writer, bytes(writer.out) + footer, OCI_LAYER, toc, {
        "containerd.io/snapshot/stargz/toc.digest": digest_of(data),
    })  # fmt: skip


def zstd_chunked(tar: bytes, *, chunk: int = 1 << 20, edit: Edit | None = None) -> Made:
    """`tar` as zstd:chunked; `edit` changes the table of contents before it is written."""
    writer = _Writer(zstd_frame)
    toc: dict[str, Any] = {"version": 1, "entries": _write(writer, tar, chunk, zstd=True)}
    if edit:
        edit(toc)
    writer.headers(bytes(1024))
    start = writer.cut() + 8
    data = json.dumps(toc).encode()
    packed = zstd_frame(data)
    blob = bytes(writer.out) + _skippable(packed)
    blob += _skippable(struct.pack("<4Q", start, len(packed), len(data), 1) + bytes(24) + b"GNUlInUx")
    prefix = "io.github.containers.zstd-chunked."
    return _made(writer, blob, OCI_ZSTD, toc, {
        prefix + "manifest-checksum": digest_of(packed),
        prefix + "manifest-position": f"{start}:{len(packed)}:{len(data)}:1",
    })  # fmt: skip


def ours(tar: bytes) -> Made:
    """`tar` as eStargz, by our own writer."""
    writer = Estargz()
    blob = writer.write(tar) + writer.finish()
    descriptor = {
        "mediaType": OCI_LAYER, "digest": digest_of(blob), "size": len(blob), "annotations": dict(writer.annotations),
        "diff_id": str(writer.diff_id),
    }  # fmt: skip
    return Made(blob, descriptor, {})


MAKERS: Sequence[Callable[..., Made]] = (estargz, zstd_chunked)


def _made(writer: _Writer, blob: bytes, media_type: str, toc: dict[str, Any], notes: dict[str, str]) -> Made:
    descriptor = {
        "mediaType": media_type, "digest": digest_of(blob), "size": len(blob), "annotations": notes,
        "diff_id": digest_of(bytes(writer.plain)),
    }  # fmt: skip
    return Made(blob, descriptor, toc)


def _skippable(data: bytes) -> bytes:
    return b"\x50\x2a\x4d\x18" + struct.pack("<I", len(data)) + data


def _write(writer: _Writer, tar: bytes, chunk: int, *, zstd: bool) -> list[dict[str, Any]]:
    entries = []
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        for info in members:
            writer.headers(tar[info.offset : info.offset_data])
            entry = _entry(info, zstd=zstd)
            entries.append(entry)
            if info.isreg() and info.size:
                data = tar[info.offset_data : info.offset_data + info.size]
                entry["digest"] = digest_of(data)
                for at in range(0, len(data), chunk):
                    piece = data[at : at + chunk]
                    told = entry if not at else {"name": info.name, "type": "chunk", "chunkOffset": at}
                    if at:
                        entries.append(told)
                    told["offset"] = writer.cut()
                    told["chunkDigest"] = digest_of(piece)
                    if zstd or at + chunk < len(data):
                        told["chunkSize"] = len(piece)
                    writer.headers(piece)
                    if zstd:
                        end = writer.cut()
                if zstd:
                    entry["endOffset"] = end
                writer.headers(bytes(-info.size % 512))
    return entries


def _entry(info: tarfile.TarInfo, *, zstd: bool) -> dict[str, Any]:
    whole, fraction = divmod(round(float(info.mtime) * 10**9), 10**9)
    stamp = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    stamp += f".{fraction:09d}".rstrip("0") if fraction and zstd else ""
    entry: dict[str, Any] = {
        "name": info.name + ("/" if info.isdir() else ""), "type": _TYPES[info.type], "mode": info.mode,
        "uid": info.uid, "gid": info.gid, "modtime": stamp + "Z",
    }  # fmt: skip
    if info.isreg() and info.size:
        entry["size"] = info.size
    if info.linkname:
        entry["linkName"] = info.linkname
    if info.isdev():
        entry |= {"devMajor": info.devmajor, "devMinor": info.devminor}
    found = {key[len("SCHILY.xattr.") :]: value for key, value in info.pax_headers.items() if "SCHILY.xattr." in key}
    if found:
        entry["xattrs"] = {
            key: base64.b64encode(value.encode("utf-8", "surrogateescape")).decode() for key, value in found.items()
        }
    return entry
