"""What an image is, read from an archive of any builder: its config, and a tree of facts by path.

A tree is path (no leading slash) → facts: `type`, `mode` (permission bits), `owner`, `mtime` (whole seconds), and for
files `content` (SHA-256) and `links` (names it has), for links `target`, for devices `device`; `xattrs` for all.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
Tree = dict[str, Facts]

_TYPES = {
    tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "symlink",
    tarfile.FIFOTYPE: "fifo", tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block",
}  # fmt: skip
_XATTR = "SCHILY.xattr."
_read_layers: dict[str, list[tuple[tarfile.TarInfo, str]]] = {}


@dataclass(frozen=True, slots=True)
class Image:
    """`config` is the whole image config, `tree` what its layers make when one is put on the other."""

    config: Mapping[str, Any]
    tree: Tree

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return len(self.config["rootfs"]["diff_ids"])

    @property
    def made_layers(self) -> list[bool]:
        """For each entry of the history, whether it made a layer."""
        return [not entry.get("empty_layer", False) for entry in self.config.get("history", [])]


def read_archive(path: Path) -> Image:
    """Read an OCI or `docker save` archive that has one image."""
    with tarfile.open(path) as archive:
        names = set(archive.getnames())

        def read(name: str) -> bytes:
            file = archive.extractfile(name)
            assert file is not None, name
            return file.read()

        if "index.json" in names and "manifest.json" not in names:
            index = json.loads(read("index.json"))
            manifest = json.loads(read(_blob(index["manifests"][0])))
            config, layers = json.loads(read(_blob(manifest["config"]))), [_blob(it) for it in manifest["layers"]]
        else:
            manifest = json.loads(read("manifest.json"))[0]
            config, layers = json.loads(read(manifest["Config"])), manifest["Layers"]
        diff_ids = config["rootfs"]["diff_ids"]
        assert len(diff_ids) == len(layers), "as many layers as diff IDs"
        found: Tree = {}
        for diff_id, name in zip(diff_ids, layers, strict=True):
            if diff_id not in _read_layers:
                _read_layers[diff_id] = _members(read(name))
            _apply(found, _read_layers[diff_id])
    return Image(config, _counted(found))


def _blob(descriptor: Mapping[str, Any]) -> str:
    return f"blobs/{descriptor['digest'].replace(':', '/')}"


def _members(layer: bytes) -> list[tuple[tarfile.TarInfo, str]]:
    """Each member with the digest of its content."""
    out = []
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            out.append((member, hashlib.sha256(file.read()).hexdigest() if file else ""))
    return out


def _apply(tree: Tree, members: list[tuple[tarfile.TarInfo, str]]) -> None:
    """Put a layer on `tree`, by the image-spec's "Applying changesets"."""
    new: set[str] = set()
    for member, digest in members:
        name = os.path.normpath("/" + member.name).lstrip("/")
        parent, _, base = name.rpartition("/")
        below = parent + "/" if parent else ""
        if not name:
            continue
        if base == ".wh..wh..opq":
            _remove(tree, {path for path in tree if path.startswith(below) and path not in new})
        elif base.startswith(".wh.plnk") or base == ".wh..wh.aufs":
            continue
        elif base.startswith(".wh."):
            gone = below + base.removeprefix(".wh.")
            _remove(tree, {path for path in tree if path == gone or path.startswith(gone + "/")})
        elif member.islnk():
            tree[name] = tree[os.path.normpath("/" + member.linkname).lstrip("/")]
            new.add(name)
        else:
            if not member.isdir():
                _remove(tree, {path for path in tree if path.startswith(name + "/")})
            tree[name] = _facts(member, digest)
            new.add(name)


def _remove(tree: Tree, paths: set[str]) -> None:
    for path in paths:
        del tree[path]


def _facts(member: tarfile.TarInfo, digest: str) -> Facts:
    facts: Facts = {
        "type": _TYPES[member.type], "mode": oct(member.mode & 0o7777), "owner": (member.uid, member.gid),
        "mtime": int(float(member.pax_headers.get("mtime", member.mtime))),
        "xattrs": {
            key.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
            for key, value in member.pax_headers.items() if key.startswith(_XATTR)
        },
    }  # fmt: skip
    if facts["type"] == "file":
        facts["content"] = digest
    elif facts["type"] == "symlink":
        facts["target"] = member.linkname
        facts["mode"] = ""  # reason: a symlink has none, and tools write 0777 or 0755
    elif facts["type"] in ("char", "block"):
        facts["device"] = (member.devmajor, member.devminor)
    return facts


def _counted(tree: Tree) -> Tree:
    names = Counter(id(facts) for facts in tree.values())
    return {
        path: {**facts, "links": names[id(facts)]} if facts["type"] == "file" else facts
        for path, facts in tree.items()
    }  # fmt: skip
