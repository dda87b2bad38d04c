"""Layers on this disk, read to be handed on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from engine.errors import DiskError
from engine.exporters.reading import BlobReader, drain
from engine.ledger import Silent
from engine.refs.materializer import Clock
from engine.refs.ref import Layer
from storage.blobs import DirectoryBlobs
from storage.interfaces.images import Descriptor


class Nobody:
    """There is no registry."""


def test_a_disk_that_refuses_to_be_read_is_told_and_is_no_bug(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path, owner="b1")
    digest = blobs.put(b"layer")
    reader = BlobReader(blobs, Nobody(), Silent(), Clock(time.time_ns, time.monotonic))  # type: ignore[arg-type]
    blobs.path(digest).unlink()
    blobs.path(digest).symlink_to("/proc/self/mem")  # whose first byte is an EIO
    with pytest.raises(DiskError, match=f"reading layer {digest.short}: Input/output error"):
        asyncio.run(drain(reader.read(Layer(digest, Descriptor("m", digest, 5)), lambda _: None), lambda _: None))
