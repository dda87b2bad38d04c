"""Is what lies in a root what its name says? For those who check a root and change nothing of it (I13)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from storage.digest import Digest, digest_read
from storage.errors import InputError
from storage.layers.erofs.check import examine_image
from storage.layers.erofs.header import SUFFIX
from storage.layers.seal import broken
from storage.layers.snapshots import is_snapshot_id
from storage.regular import open_regular


def examine_blob(root: Path, name: str, *, quick: bool = False) -> str | None:
    """What is wrong with blob `name`: "" for nothing, None when it is not here. `quick`: its content is not read.
    Raises OSError."""
    try:
        digest = Digest(name)
    except (InputError, TypeError):
        return "it is no digest"
    path = root / "blobs" / digest.algorithm / digest.hex
    if quick:
        return "" if path.is_file() else None
    try:
        with open_regular(path) as file:
            found = digest_read(file.read, digest.algorithm)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in {errno.EISDIR, errno.EINVAL}:
            raise
        return "a directory stands in its place" if path.is_dir() else "something else than a file stands in its place"
    return "" if found == digest else f"its content has digest {found}"


def examine_layer(root: Path, name: str, *, quick: bool = False) -> str | None:
    """The same of the layer with diff ID `name`: of an image all is read, of a tree what its seal is over."""
    try:
        return _examine(root / "layers" / Digest(name).hex, name, quick)
    except (InputError, TypeError):
        return "it is no digest"


def examine_snapshot(root: Path, name: str, *, quick: bool = False) -> str | None:
    """The same of a snapshot."""
    if not is_snapshot_id(name):
        return "it is no id of a snapshot"
    return _examine(root / "snapshots" / name, name, quick)


def _examine(tree: Path, name: str, quick: bool) -> str | None:
    image = tree.with_name(tree.name + SUFFIX)
    here = [path for path in (tree, image) if os.path.lexists(path)]
    if not here:
        return None
    if quick:
        return ""
    return next((found for path in here if (found := broken(path) if path == tree else examine_image(path, name))), "")
