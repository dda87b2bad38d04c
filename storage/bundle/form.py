"""What a bundle holds, and how it is laid out, for those who write it and those who read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from storage.digest import Digest

FORMAT, VERSION = "refledger-bundle", 1
SMALL = frozenset({"definition", "graph", "components", "listing", "files", "manifest", "config", "proof"})
"""Roles of blobs that are held in memory when a bundle is read."""
INDEX, EVENTS, BLOBS = "index.json", "events.jsonl", "blobs/sha256/"
TRAILER = b"\x50\x2a\x4d\x18" + (32).to_bytes(4, "little")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Member:
    """One blob of a bundle; `size` in bytes; `role`: what it is there for (one of SMALL, `pack` or `layer`)."""

    digest: Digest
    size: int
    role: str

    def to_json(self) -> Json:
        """Its entry in the index."""
        return {"digest": str(self.digest), "bytes": self.size, "role": self.role}


@dataclass(frozen=True, slots=True)
class Index:
    """What a bundle holds. `layers`: by the name of a layer (Layer.name), what is known of it, as `Layer.to_json` has
    it, and `bundled`, the descriptor of the blob in here that is its tar; `kept`: by the digest of a listing, the packs
    that have its files; `files`: by the name of a step's layer, the digest of the list of what it changed; `withheld`:
    what was left out on purpose or could not be had, each `kind`, `name` and `why`."""

    build: str
    engine_version: str
    blobs: tuple[Member, ...]
    layers: Mapping[str, Json] = field(default_factory=dict)
    kept: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    withheld: tuple[Json, ...] = ()
    full: bool = False

    def to_json(self, events: Json) -> Json:
        """The content of index.json; `events`: `count`, `bytes` and `digest` of events.jsonl."""
        return {
            "format": FORMAT, "version": VERSION, "build": self.build, "engine_version": self.engine_version,
            "full": self.full, "events": events, "blobs": [member.to_json() for member in self.blobs],
            "layers": dict(self.layers), "kept": {key: list(packs) for key, packs in self.kept.items()},
            "files": dict(self.files), "withheld": list(self.withheld),
        }  # fmt: skip


def trailer(digest: Digest) -> bytes:
    """The last bytes of a bundle whose other bytes have `digest`."""
    return TRAILER + bytes.fromhex(digest.hex)
