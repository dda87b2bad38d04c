"""Steps as layers: written over a directory as base, and what a container would see then put in its place."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from engine.graph import Copy
from engine.ops.copy import copy_layer, directory_layer
from engine.ops.selection import Selection
from storage.interfaces.layers import LayerWriter
from storage.layers.snapshots import OverlaySnapshots


def copy_into(op: Copy, selection: Selection, source: Path | None, root: Path, *, now_ns: int) -> None:
    """Copy onto the file system at `root`, which then is what base and layer show together."""
    apply(root, lambda base, begin: copy_layer(op, selection, source, base, begin, now_ns=now_ns))


def make_directory(path: str, root: Path, now_ns: int) -> None:
    """WORKDIR on the file system at `root`."""
    apply(root, lambda base, begin: directory_layer(path, base, begin, now_ns=now_ns))


def apply(root: Path, step: Callable[[Path, Callable[[], LayerWriter]], int]) -> None:
    """Have `step` write a layer over `root`, which it cannot write to. When it fails, nothing may be left."""
    work = root.parent / f"store-{secrets.token_hex(4)}"
    work.mkdir()
    store = OverlaySnapshots(work / "snapshots", work / "tmp", "test")
    try:
        try:
            with store.view([root]) as base:
                step(base, lambda: store.compose("s"))
        finally:
            assert list((work / "tmp").iterdir()) == []
        with store.view([root, store.lower("s")]) as shown:
            subprocess.run(["cp", "-a", shown, work / "new"], check=True)
        for child in root.iterdir():
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
        for child in (work / "new").iterdir():
            child.rename(root / child.name)
    finally:
        shutil.rmtree(work)
