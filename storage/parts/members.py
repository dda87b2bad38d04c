"""What is laid out of a layer that is only asked for in part: members, as of a tar, made of its table of contents."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from storage.errors import TocUnusable
from storage.interfaces.parts import Part
from storage.parts.toc import Chunk, ChunkedToc, Node, number, text
from storage.tar.reader import BLOCK_DEVICE, CHARACTER, DIRECTORY, FIFO, HARD_LINK, REGULAR, SYMLINK, Entry
from storage.tar.rules import OPAQUE_NAME, WHITEOUT

_KINDS = {
    "dir": DIRECTORY, "reg": REGULAR, "symlink": SYMLINK, "char": CHARACTER, "block": BLOCK_DEVICE, "fifo": FIFO,
}  # fmt: skip
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True)
class Member:
    """A member to be laid out: `chunks` of a file's content, or all of it as `data`."""

    entry: Entry
    chunks: Sequence[Chunk] = ()
    data: bytes = b""
    implied: bool = False
    """A directory that the layer does not tell of, though it has something in it."""


_IMPLIED = {"mode": 0o755, "uid": 0, "gid": 0}
"""How a directory looks until a lower layer tells (storage/tar/unpack.py)."""


def members(table: ChunkedToc, part: Part) -> Iterator[Member]:
    """What `part` asks for of the layer with `table`: parents first, whiteouts where the layer has them. Raises
    TocUnusable."""
    wanted = _chosen(table, part)
    full = {id(table.nodes[path]) for path, content in wanted.items() if content and path in table.nodes}
    written: dict[int, bytes] = {}
    for path in sorted(wanted):
        node = table.nodes.get(path)
        if node is not None and node.type != "dir":
            first = written.setdefault(id(node), path)
            if first != path:
                yield Member(_entry(HARD_LINK, path, {}, link=first))
            else:
                yield _member(table, path, node, with_content=id(node) in full)
        elif node is not None:
            # also what is implied: of all that is in it, nothing else may be wanted
            yield Member(_entry(DIRECTORY, path, node.told or _IMPLIED), implied=node.told is None)
        if path in table.opaque:
            yield Member(_entry(REGULAR, path + b"/" + OPAQUE_NAME if path else OPAQUE_NAME, {}))
        if path in table.whiteouts:
            parent, slash, base = path.rpartition(b"/")
            yield Member(_entry(REGULAR, parent + slash + WHITEOUT + base, {}))


def _chosen(table: ChunkedToc, part: Part) -> dict[bytes, bool]:
    """What of the layer is laid out: path → with its content?"""
    chosen: dict[bytes, bool] = {b"": False}
    for seen in (*part.seen, *part.files, *part.trees):
        path = seen
        while path not in chosen:
            if path in table.nodes or path in table.whiteouts:
                chosen[path] = False
            path = path.rpartition(b"/")[0]
    chosen.update(dict.fromkeys(part.files, True))
    pending = list(part.trees)
    while pending:
        directory = pending.pop()
        for name in table.names(directory):
            path = directory + b"/" + name if directory else name
            above = part.above(path)
            if above == "covers":
                continue
            if table.look(path).kind == "directory":
                pending.append(path)
            # below a directory of an upper layer it only keeps what lies deeper out of sight
            chosen[path] = chosen.get(path, False) or above == "nothing"
    return chosen


def _member(table: ChunkedToc, path: bytes, node: Node, *, with_content: bool) -> Member:
    if node.member is not None:
        return Member(replace(node.member, name=path), data=node.data)
    assert node.told is not None  # only directories are implied
    told = node.told
    entry = _entry(_KINDS[node.type], path, told)
    if node.type == "symlink":
        entry.link = text(told, "linkName")
    elif node.type in {"char", "block"}:
        entry.device = (number(told, "devMajor"), number(told, "devMinor"))
    elif node.type == "reg" and with_content:
        chunks = table.chunks(node)
        entry.size = number(told, "size")
        if any(chunk.digest is None for chunk in chunks):
            entry.segments = list(_data_segments(chunks))
        return Member(entry, chunks)
    return Member(entry)


def _data_segments(chunks: Sequence[Chunk]) -> Iterator[tuple[int, int]]:
    at = 0
    for chunk in chunks:
        if chunk.digest is not None:
            yield at, chunk.size
        at += chunk.size


def _entry(kind: bytes, path: bytes, told: Mapping[str, Any], link: bytes = b"") -> Entry:
    xattrs = told.get("xattrs") or {}
    if not isinstance(xattrs, dict) or any("\0" in name or "=" in name for name in xattrs):
        raise TocUnusable("it has xattrs that are none")
    try:
        values = {name.encode(): base64.b64decode(value, validate=True) for name, value in xattrs.items()}
    except (ValueError, TypeError) as error:
        raise TocUnusable(f"it has an xattr that is not in base64: {error}") from error
    return Entry(
        name=path, type=kind, mode=number(told, "mode") & 0o7777, uid=number(told, "uid"),
        gid=number(told, "gid"), size=0, mtime=_time(told.get("modtime")), link=link, xattrs=values,
    )  # fmt: skip


def _time(told: object) -> int:
    """Nanoseconds since the epoch of an RFC 3339 time; 0 for none, as Go writes the year 1 for it."""
    if told is None or told == "" or (isinstance(told, str) and told.startswith("0001-01-01T00:00:00")):
        return 0
    found = _TIME.fullmatch(told) if isinstance(told, str) else None
    try:
        if found is None:
            raise ValueError
        whole = datetime.fromisoformat(found[1] + found[3].replace("Z", "+00:00")).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise TocUnusable(f"it has {str(told)[:40]!r} for a time") from error
    since = whole - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 10**9 + int((found[2] or "").ljust(9, "0"))
