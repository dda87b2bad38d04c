"""Sources that were fetched before, that a disk does not take, and whose server breaks off."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import DiskError
from engine.graph import ArchiveSource, HttpSource
from engine.ops.sources import SourceFetcher
from engine.refs.source import source_ref
from storage.blobs import DirectoryBlobs
from storage.digest import sha256
from storage.locks import FileLocks
from storage.sources import Answer, Sink
from tests.engine.solver.kit import Recorded


class BreakingOff:
    """A web whose first answer ends early."""

    async def get(self, _url: str, begin: Callable[[], Sink], **_: object) -> Answer:
        begin()(b"half of")
        begin()(b"all of it")
        return Answer(sha256(b"all of it"), 9)


def fetcher(path: Path, trees: Any, web: Any = None) -> SourceFetcher:
    pages: Any = SimpleNamespace(page=lambda _url: None)
    nothing: Any = None
    blobs, locks = DirectoryBlobs(path, owner="t"), FileLocks(path / "locks")
    return SourceFetcher(web, nothing, trees, nothing, blobs, pages, locks, Recorded(), nothing)


def test_what_is_here_is_not_fetched_again(tmp_path: Path) -> None:
    trees = SimpleNamespace(mend=lambda _: "", has=lambda _: True)
    page = HttpSource("https://h.example/f", "f", digest=str(sha256(b"f")))
    assert asyncio.run(fetcher(tmp_path, trees).fetch(page, None)) == source_ref(page)


def test_an_archive_whose_first_answer_broke_off_is_kept_whole_and_nothing_else(tmp_path: Path) -> None:
    one = fetcher(tmp_path, None, BreakingOff())
    pinned = asyncio.run(one.pin(ArchiveSource("https://h.example/a.tar")))
    assert pinned.digest == sha256(b"all of it")
    assert one.blobs.get(sha256(b"all of it")) == b"all of it"
    assert [path.name for path in (tmp_path / "blobs/sha256").iterdir()] == [sha256(b"all of it").hex]


def test_a_tree_that_the_disk_does_not_take_is_said(tmp_path: Path) -> None:
    def full(_tree: Path, _snapshot: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "tree").mkdir()
    one = fetcher(tmp_path, SimpleNamespace(publish=full))
    with pytest.raises(DiskError, match="storing a source: No space left on device"):
        asyncio.run(one._publish(tmp_path / "tree", source_ref(ArchiveSource("", str(sha256(b"a")))), None, None))
