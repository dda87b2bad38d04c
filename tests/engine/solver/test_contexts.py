"""What steps took of a context stays, or the build ends."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from engine.errors import DiskError
from engine.graph import ContextSource, Copy, Graph, vertex
from engine.ops import keep
from engine.refs.ref import Layer, Remote
from engine.solver.contexts import Taken
from storage.blobs import DirectoryBlobs
from storage.digest import Digest
from tests.engine.solver.kit import Nothing, Recorded, vertex_of


class Keeping(Nothing):
    def keeps(self, listing: Digest) -> bool:
        return False


def test_a_disk_that_takes_no_copy_of_the_context_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "f").write_bytes(b"f")
    context = vertex(ContextSource("context"), (), "context")
    copy = vertex(Copy(("/f",), "/"), (vertex_of("scratch").digest, context.digest), "COPY")
    taken = Taken({context.digest: tmp_path / "context"}, Recorded(), DirectoryBlobs(tmp_path, owner="b"), Keeping())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def main() -> None:
        await taken.read(Graph((context, copy), ()))
        monkeypatch.setattr(keep, "pack_lost", full)
        await taken.keep(copy, Remote("r", (Layer(snapshot="r"),)))

    with pytest.raises(DiskError, match="keeping the context: No space left on device"):
        asyncio.run(main())
