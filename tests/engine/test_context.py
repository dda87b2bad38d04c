"""Contexts that lie elsewhere: fetched, or missing all at once, or not to be read."""

from __future__ import annotations

import asyncio
import errno
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.context import fetch_context, open_contexts
from engine.errors import DiskError, InputError
from engine.events import VertexFailed
from engine.frontend.scope import FrontendOptions
from engine.graph import ArchiveSource, FetchedSource, GitSource, Graph, VertexError, vertex
from engine.offline.missing import NotHere
from engine.ops.rootfs import RootDir
from engine.ops.sources import SourceFetcher
from engine.refs.ref import Remote
from engine.refs.source import source_ref
from engine.request import BuildRequest
from storage.blobs import DirectoryBlobs
from storage.digest import Digest, sha256
from storage.locks import FileLocks
from tests.engine.offline.test_recalled import sources as offline
from tests.engine.solver.kit import Recorded


class Fetching:
    """Sources that are all `tree`, or fail with `error`."""

    def __init__(self, tree_: Path, error: Exception | None = None) -> None:
        self._tree, self._error = tree_, error

    async def pin(self, op: FetchedSource) -> FetchedSource:
        return op

    async def is_here(self, _op: FetchedSource) -> bool:
        return False

    async def fetch(self, op: FetchedSource, _vertex: str | None) -> Remote:
        if self._error is not None:
            raise self._error
        return source_ref(op)

    def tree(self, _op: FetchedSource) -> Path:
        return self._tree


REPOSITORY = GitSource("https://h.example/r.git", commit="c" * 40)
PAGE = ArchiveSource("https://h.example/a.tar", str(sha256(b"tar")))


def opened(sources: object, told: Recorded) -> dict[Digest, Path]:
    async def main() -> dict[Digest, Path]:
        vertices = tuple(vertex(op, (), type(op).__name__) for op in (REPOSITORY, PAGE))
        named = BuildRequest(None, FrontendOptions(context=REPOSITORY, named={"a": PAGE}), {})
        async with AsyncExitStack() as stack:
            fetcher = cast("SourceFetcher", sources)
            return await open_contexts(Graph(vertices, ()), named, {}, lambda: fetcher, told, stack)

    return asyncio.run(main())


def test_all_contexts_that_are_not_here_are_told_of_at_once(tmp_path: Path) -> None:
    told = Recorded()
    fetcher = offline(told)
    fetcher.locks, fetcher.blobs = FileLocks(tmp_path), DirectoryBlobs(tmp_path, owner="t")
    fetcher.trees = cast("Any", SimpleNamespace(mend=lambda _: "", has=lambda _: False))
    with pytest.raises(VertexError) as caught:
        opened(fetcher, told)
    assert isinstance(caught.value.cause, NotHere)
    assert [lack.kind for lack in caught.value.cause.missing] == ["git", "archive"]
    assert len(told.of(VertexFailed)) == 2


def test_a_context_that_cannot_be_fetched_ends_the_build_at_once(tmp_path: Path) -> None:
    told = Recorded()
    with pytest.raises(VertexError, match="no such commit"):
        opened(Fetching(tmp_path, InputError("no such commit")), told)
    assert len(told.of(VertexFailed)) == 1


def request(dockerfile: str | None) -> BuildRequest:
    return BuildRequest(dockerfile, FrontendOptions(context=REPOSITORY), {})


def test_a_dockerfile_that_was_given_goes_before_the_contexts_own(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    sources, blobs = cast("SourceFetcher", Fetching(tmp_path)), DirectoryBlobs(tmp_path / "root", owner="t")
    for given in (None, "FROM given\n"):
        made = asyncio.run(fetch_context(request(given), sources, blobs, Recorded()))
        assert made.dockerfile == (given or "FROM scratch\n")


def test_a_dockerfile_that_the_disk_does_not_give_is_the_disks_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(RootDir, "read_bytes", broken)
    sources, blobs = cast("SourceFetcher", Fetching(tmp_path)), DirectoryBlobs(tmp_path / "root", owner="t")
    with pytest.raises(DiskError, match="reading the Dockerfile: Input/output error"):
        asyncio.run(fetch_context(request(None), sources, blobs, Recorded()))
