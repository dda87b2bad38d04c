"""URLs and git repositories as the log knows them, with the contents that were kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

from engine.events import GitResolved, HttpResolved
from engine.frontend.urls import is_commit
from engine.graph import ArchiveSource, FetchedSource, GitSource, HttpSource
from engine.offline.missing import NotHere
from engine.offline.needs import source_lack, unknown_ref, unknown_url
from engine.ops.sources import Page, SourceFetcher, check_commit
from engine.record import changed
from engine.refs.ref import Remote
from storage.sources import Commit

T = TypeVar("T", bound=FetchedSource)


class KnownCommit(Protocol):
    """What a ref of a repository was: as in GitResolved."""

    @property
    def commit(self) -> str:
        """The whole id."""
        ...

    @property
    def name(self) -> str:
        """The full ref, or empty."""
        ...

    @property
    def tag(self) -> str:
        """The id of the annotated tag on the way, or empty."""
        ...


class KnownCommits(Protocol):
    """What earlier builds learned of repositories: a projection answers."""

    def commit(self, remote: str, ref: str) -> KnownCommit | None:
        """What `ref` was last."""
        ...


@dataclass(slots=True)
class OfflineSources(SourceFetcher):
    """Pins what the log knows, and fetches what was kept. `web` and `repositories` refuse."""

    commits: KnownCommits = field(kw_only=True)

    async def pin(self, op: T) -> T:
        """See SourceFetcher.pin. Raises NotHere for what the log does not know."""
        match op:
            case HttpSource():
                made: FetchedSource = self._recall_http(changed(op, url=self._public(op.url)))
            case GitSource():
                made = self._recall_git(changed(op, remote=self._public(op.remote)))
            case _:  # an ArchiveSource
                made = self._recall_archive(changed(op, url=self._public(op.url)))
        return cast("T", made)

    async def fetch(self, op: FetchedSource, vertex: str | None) -> Remote:
        """See SourceFetcher.fetch. Raises NotHere for what was not kept."""
        if (lacks := await source_lack(self, op)) is not None:
            raise NotHere([lacks])
        return await SourceFetcher.fetch(self, op, vertex)

    def _recall_http(self, op: HttpSource) -> HttpSource:
        if op.digest:
            return op
        page = self._page("url", op.url)
        return changed(op, digest=page.digest, mtime=page.mtime)

    def _recall_archive(self, op: ArchiveSource) -> ArchiveSource:
        return op if op.digest else changed(op, digest=self._page("archive", op.url).digest)

    def _page(self, kind: str, url: str) -> Page:
        page = self.pages.page(url)
        if page is None:
            unknown = unknown_url(url, "the log does not know what it holds")
            raise NotHere([changed(unknown, kind=kind)])
        self.facts.post(
            HttpResolved(
                url=url, digest=page.digest, bytes=page.bytes, mtime=page.mtime, etag=page.etag,
                last_modified=page.last_modified, transferred=False, recalled=True,
            )
        )  # fmt: skip
        return page

    def _recall_git(self, op: GitSource) -> GitSource:
        if op.commit:
            return op
        if is_commit(op.ref):
            found = Commit(op.ref)
        elif (known := self.commits.commit(op.remote, op.ref)) is not None:
            found = Commit(known.commit, known.name, known.tag)
        else:
            raise NotHere([unknown_ref(op, "the log does not know its commit")])
        check_commit(op, found)
        self.facts.post(
            GitResolved(
                remote=op.remote, ref=op.ref, commit=found.id, name=found.name, tag=found.tag, recalled=True
            )
        )
        return changed(op, commit=found.id, ref=found.name)
