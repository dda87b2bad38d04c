"""Bundles as an attacker makes them: a real one, in which what the graph or a listing says was exchanged, and every
digest made to fit again."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from storage.bundle.form import Member
from storage.bundle.reading import _event, read_bundle
from storage.bundle.writing import write_bundle
from storage.digest import Digest, canonical_json, digest_json, parse_json, plain_json, sha256

Json = dict[str, Any]


def forge(
    bundle: Path, dest: Path, *, op: Callable[[Json], None] | None = None,
    listing: Callable[[bytes], bytes] | None = None, pack: bytes | None = None,
) -> str:  # fmt: skip
    """Write `bundle` to `dest` with each op of its graph as `op` changes it, its listings as `listing` does, and `pack`
    in the place of its pack; returns the path."""
    blobs: dict[Digest, bytes] = {}
    read = read_bundle(bundle, lambda member: _Keep(blobs, member.digest))
    blobs |= read.small
    names: dict[str, str] = {}
    roles = {member.digest: member.role for member in read.index.blobs}
    for digest, role in roles.items():
        old = blobs[digest]
        new = old
        if role == "graph" and op is not None:
            new = _graph(old, op, names)
        elif role == "listing" and listing is not None:
            new = listing(old)
        elif role == "pack" and pack is not None:
            new = pack
        if new != old:
            del blobs[digest]
            blobs[sha256(new)] = new
            names[str(digest)] = str(sha256(new))
    text = plain_json([event.to_json() for event in read.events]).decode()
    index = canonical_json(read.index.to_json({})).decode()
    for old_name, new_name in names.items():
        text, index = text.replace(old_name, new_name), index.replace(old_name, new_name)
    said = parse_json(index.encode())
    members = [
        Member(digest, len(blobs[digest]), item["role"])
        for item in said["blobs"] for digest in [Digest(item["digest"])]
    ]  # fmt: skip
    forged = replace(
        read.index, blobs=tuple(members), layers=said["layers"], kept=said["kept"], files=said["files"]
    )
    events = [_event(item) for item in parse_json(text.encode())]
    write_bundle(str(dest), forged, events, lambda digest: io.BytesIO(blobs[digest]))
    return str(dest)


def _graph(data: bytes, edit: Callable[[Json], None], names: dict[str, str]) -> bytes:
    graph = parse_json(data)
    for vertex in graph["vertices"]:
        edit(vertex["op"])
        vertex["inputs"] = [names.get(item, item) for item in vertex["inputs"]]
        digest = str(digest_json({"op": vertex["op"], "inputs": vertex["inputs"]}))
        if digest != vertex["digest"]:
            names[vertex["digest"]] = digest
            vertex["digest"] = digest
    text = canonical_json(graph).decode()
    for old, new in names.items():
        text = text.replace(old, new)
    return text.encode()


class _Keep:
    """A BlobWriter into a dictionary."""

    def __init__(self, into: dict[Digest, bytes], digest: Digest) -> None:
        self._into, self._digest, self._data = into, digest, bytearray()

    def write(self, data: bytes) -> None:
        self._data += data

    def commit(self, expected: Digest | None = None) -> tuple[Digest, int]:
        assert expected in (None, self._digest)
        self._into[self._digest] = bytes(self._data)
        return self._digest, len(self._data)

    def abort(self) -> None:
        pass
