"""Sources that are fetched: files of the web, git repositories, archives of contexts.

Two steps, apart in time: `pin` asks what a URL or a ref is *now* (a digest, a commit) and says so in the log, so that
the log is enough to do it again; `fetch` makes sure that what was pinned is a snapshot here, under an id that follows
from its content. A source that nobody needs is pinned only, and one whose digest was given asks nobody until then.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, cast

from engine.clock import Clock
from engine.errors import DiskError, InputError, VerificationError
from engine.events import GitResolved, HttpResolved, LocalCreated, LocalLost, SourceRequested
from engine.frontend.urls import is_commit, split_login
from engine.graph import ArchiveSource, Copy, FetchedSource, GitSource, HttpSource
from engine.ledger import Facts
from engine.ops.copy import copy_layer
from engine.ops.select import select
from engine.record import changed
from engine.refs.ref import Remote, layers_to_json
from engine.refs.source import source_ref
from engine.together import locked
from storage.digest import Digest
from storage.interfaces.blobs import BlobStore, BlobWriter
from storage.interfaces.layers import LayerWriter
from storage.interfaces.locks import Locks
from storage.sources import Answer, Commit, Known, Login, Repositories, Sink, TreeStore, Web
from storage.threads import in_thread

CONTEXT_FILE = "context"
"""What a context that is one file is called in its tree, as in BuildKit."""
_COPY = 1 << 20
_NAME_MAX = 255  # bytes: <linux/limits.h>
T = TypeVar("T", bound=FetchedSource)


class Page(Protocol):
    """What an earlier build learned of a URL: as in HttpResolved."""

    @property
    def digest(self) -> str:
        """Of the content."""
        ...

    @property
    def bytes(self) -> int:
        """Of the content."""
        ...

    @property
    def mtime(self) -> int:
        """Seconds since the epoch, 0 for none."""
        ...

    @property
    def etag(self) -> str:
        """As the server said it, or empty."""
        ...

    @property
    def last_modified(self) -> str:
        """As the server said it, or empty."""
        ...


class Pages(Protocol):
    """What earlier builds learned of URLs: a projection answers."""

    def page(self, url: str) -> Page | None:
        """The latest answer for `url`."""
        ...


@dataclass(slots=True)
class SourceFetcher:
    """Pins and fetches. `pages`: what to ask a server about again; `writer` writes into an empty directory; logins stay
    in memory."""

    web: Web
    repositories: Repositories
    trees: TreeStore
    writer: Callable[[Path], LayerWriter]
    blobs: BlobStore
    pages: Pages
    locks: Locks
    facts: Facts
    clock: Clock
    _logins: dict[str, Login] = field(default_factory=dict)

    async def is_here(self, op: FetchedSource) -> bool:
        """Was it fetched, and is it as it was then?"""
        name = source_ref(op).id
        async with locked(self.locks, f"layer-{name}"):
            return await self._sound(name)

    def tree(self, op: FetchedSource) -> Path:
        """The directory of a source that was fetched."""
        return self.trees.path(source_ref(op).id)

    async def pin(self, op: T) -> T:
        """`op` with its digest or commit, and without credentials in its URL. Raises InputError, HostError,
        VerificationError."""
        match op:
            case HttpSource():
                made: FetchedSource = await self._pin_http(changed(op, url=self._public(op.url)))
            case GitSource():
                made = await self._pin_git(changed(op, remote=self._public(op.remote)))
            case _:  # an ArchiveSource
                made = await self._pin_archive(changed(op, url=self._public(op.url)))
        return cast("T", made)

    async def store(self, stream: BinaryIO) -> ArchiveSource:
        """An archive that comes from standard input. Blocking reads happen in a thread."""

        def copy() -> Digest:
            writer = self.blobs.writer()
            try:
                while data := stream.read(_COPY):
                    writer.write(data)
                return writer.commit()[0]
            finally:
                writer.abort()

        return ArchiveSource(digest=str(await in_thread(copy)))

    async def fetch(self, op: FetchedSource, vertex: str | None) -> Remote:
        """The ref of a pinned source, with its tree here. Raises InputError, HostError, VerificationError."""
        ref = source_ref(op)
        async with locked(self.locks, f"layer-{ref.id}"):
            if not await self._sound(ref.id):
                match op:
                    case HttpSource():
                        await self._fetch_http(op, ref, vertex)
                    case GitSource():
                        await self._fetch_git(op, ref, vertex)
                    case _:  # an ArchiveSource
                        await self._unpack(op, ref, vertex)
        return ref

    async def _sound(self, name: str) -> bool:
        """Is the tree here? A damaged one is removed. With its lock held."""
        problem = await in_thread(lambda: self.trees.mend(name))
        if problem:
            self.facts.post(LocalLost(kind="snapshot", name=name, problem="corrupt", detail=problem))
        return self.trees.has(name)

    def _public(self, url: str) -> str:
        """`url` without its credentials, which are remembered."""
        public, login = split_login(url)
        if login is not None:
            self._logins[public] = login
        return public

    # ------------------------------------------------------------ the web

    async def _pin_http(self, op: HttpSource) -> HttpSource:
        if op.digest:
            return op
        page = self.pages.page(op.url)
        tree = self.trees.begin()
        try:
            answer = await self._get(op.url, _file(tree, op), page)
            if answer.digest is None:
                assert page is not None  # only what is known can be unchanged
                return changed(op, digest=page.digest, mtime=page.mtime)
            pinned = changed(op, digest=str(answer.digest), mtime=answer.mtime)
            ref = source_ref(pinned)
            async with locked(self.locks, f"layer-{ref.id}"):
                if not await self._sound(ref.id):
                    await self._publish(tree, ref, pinned.mtime, None)
        finally:
            await in_thread(lambda: self.trees.discard([tree]))
        return pinned

    async def _fetch_http(self, op: HttpSource, ref: Remote, vertex: str | None) -> None:
        tree = self.trees.begin()
        try:
            answer = await self._get(op.url, _file(tree, op), None, vertex)
            if str(answer.digest) != op.digest:
                raise VerificationError(
                    f"the file has the digest {answer.digest}, not {op.digest}", where=op.url.partition("?")[0],
                    hint="it was changed, or the --checksum is wrong",
                )  # fmt: skip
            await self._publish(tree, ref, answer.mtime, vertex)
        finally:
            await in_thread(lambda: self.trees.discard([tree]))

    async def _get(self, url: str, dest: Path, page: Page | None, vertex: str | None = None) -> Answer:
        """Ask for `url`, into the file `dest`, and say in the log what came."""
        try:
            with dest.open("wb") as file:

                def begin() -> Sink:
                    file.seek(0)
                    file.truncate()
                    return file.write

                answer = await self._ask(url, begin, page, vertex)
                os.fchmod(file.fileno(), 0o600)
        except OSError as error:  # reason for it here: closing writes what is left, also behind another error
            raise DiskError.of(error, "storing a download") from error
        await self._say(url, answer, page, vertex)
        return answer

    async def _ask(self, url: str, begin: Callable[[], Sink], page: Page | None, vertex: str | None = None) -> Answer:
        await self.facts.record(SourceRequested(kind="http", url=url), vertex=vertex)
        known = Known(page.etag, page.last_modified) if page else None
        return await self.web.get(url, begin, known=known, login=self._logins.get(url))

    async def _say(
        self, url: str, answer: Answer, page: Page | None, vertex: str | None = None, *, stored: bool = False
    ) -> None:
        said = answer if answer.digest is not None or page is None else replace(
            answer, digest=Digest(page.digest), size=page.bytes, mtime=page.mtime
        )  # fmt: skip
        await self.facts.record(
            HttpResolved(
                url=url, digest=str(said.digest), bytes=said.size, mtime=said.mtime, etag=said.etag,
                last_modified=said.last_modified, transferred=answer.digest is not None, stored=stored,
            ),
            vertex=vertex,
        )  # fmt: skip

    # ------------------------------------------------------------ git

    async def _pin_git(self, op: GitSource) -> GitSource:
        if op.commit:
            return op
        if not is_commit(op.ref):
            await self.facts.record(SourceRequested(kind="git", url=op.remote, ref=op.ref))
        found = await self.repositories.resolve(op.remote, op.ref, login=self._logins.get(op.remote))
        check_commit(op, found)
        await self.facts.record(
            GitResolved(remote=op.remote, ref=op.ref, commit=found.id, name=found.name, tag=found.tag)
        )
        return changed(op, commit=found.id, ref=found.name)

    async def _fetch_git(self, op: GitSource, ref: Remote, vertex: str | None) -> None:
        await self.facts.record(SourceRequested(kind="git", url=op.remote, ref=op.commit), vertex=vertex)
        tree = self.trees.begin()
        try:
            await self.repositories.checkout(
                op.remote, op.commit, tree, name=op.ref, subdir=op.subdir, keep_git_dir=op.keep_git_dir,
                submodules=op.submodules, login=self._logins.get(op.remote),
            )  # fmt: skip
            await self._publish(tree, ref, None, vertex)
        finally:
            await in_thread(lambda: self.trees.discard([tree]))

    # ------------------------------------------------------------ archives

    async def _pin_archive(self, op: ArchiveSource) -> ArchiveSource:
        if op.digest:
            return op
        page = self.pages.page(op.url)
        if page is not None:
            known = Digest(page.digest)
            page = page if await in_thread(lambda: self.blobs.sound(known)) else None
        writers: list[BlobWriter] = []

        def begin() -> Sink:
            for writer in writers:
                writer.abort()
            writers.append(self.blobs.writer())
            return writers[-1].write

        try:
            answer = await self._ask(op.url, begin, page)
            if answer.digest is not None and writers:
                await in_thread(lambda: writers[-1].commit(answer.digest))
            await self._say(op.url, answer, page, stored=True)
            if answer.digest is None:
                assert page is not None  # only what is known can be unchanged
                return changed(op, digest=page.digest)
        finally:
            for writer in writers:
                writer.abort()
        return changed(op, digest=str(answer.digest))

    async def _unpack(self, op: ArchiveSource, ref: Remote, vertex: str | None) -> None:
        """As ADD does it: what is no archive is a file of that name."""
        tree, beside = self.trees.begin(), self.trees.begin()
        add = Copy(sources=(CONTEXT_FILE,), dest="/", unpack=True)

        def unpack() -> None:
            with self.blobs.open(Digest(op.digest)) as stored, (beside / CONTEXT_FILE).open("wb") as whole:
                shutil.copyfileobj(stored, whole, _COPY)
            selection = select(add, beside, hash_files=False)
            copy_layer(add, selection, beside, None, lambda: self.writer(tree), now_ns=self.clock.now())

        try:
            try:
                await in_thread(unpack)
            except InputError as error:
                error.where = error.where or op.url or "standard input"
                raise
            except OSError as error:
                raise DiskError.of(error, "unpacking the context") from error
            await self._publish(tree, ref, None, vertex)
        finally:
            await in_thread(lambda: self.trees.discard([tree, beside]))

    # ------------------------------------------------------------ what all share

    async def _publish(self, tree: Path, ref: Remote, mtime: int | None, vertex: str | None) -> None:
        """Make `tree` the snapshot of `ref`; `mtime`: of its one file and of itself, in seconds since the epoch."""

        def publish() -> int:
            if mtime is not None:
                for path in (*tree.iterdir(), tree):
                    os.utime(path, (mtime, mtime))
            return self.trees.publish(tree, ref.id)

        try:
            size = await in_thread(publish)
        except OSError as error:
            raise DiskError.of(error, "storing a source") from error
        await self.facts.record(
            LocalCreated(ref=ref.id, parent=None, bytes=size, layers=tuple(layers_to_json(ref.layers))), vertex=vertex
        )


def _file(tree: Path, op: HttpSource) -> Path:
    """Where the file of `op` goes. Raises InputError: graphs come with bundles, from whomever."""
    name = op.filename
    if name in {"", ".", ".."} or "/" in name or "\0" in name or len(os.fsencode(name)) > _NAME_MAX:
        raise InputError(f"{name[:80]!r} cannot be a file's name", where=op.url.partition("?")[0][:200])
    return tree / op.filename


def check_commit(op: GitSource, found: Commit) -> None:
    """Raises VerificationError unless the commit, or the annotated tag that led to it, begins with the checksum."""
    if not (found.id.startswith(op.checksum) or found.tag.startswith(op.checksum)):
        raise VerificationError(
            f"{op.ref or 'the default branch'} is at commit {found.id}, not at {op.checksum}", where=op.remote,
            hint="it was moved, or the --checksum is wrong",
        )  # fmt: skip
