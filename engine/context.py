"""Contexts that have to be fetched before they can be read: a git repository, an archive of the web or of stdin."""

from __future__ import annotations

import asyncio
import errno
import posixpath
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.aside import shown_step
from engine.errors import DiskError, InputError, RefledgerError
from engine.events import DefinitionRead
from engine.frontend.contexts import context_title
from engine.frontend.source import DOCKERFILE_LIMIT
from engine.graph import (
    ArchiveSource,
    ContextSource,
    FetchedSource,
    GitSource,
    Graph,
    HttpSource,
    Op,
    Vertex,
    VertexError,
)
from engine.ledger import Facts
from engine.offline.missing import NotHere
from engine.ops.rootfs import RootDir
from engine.request import BuildRequest
from storage.digest import Digest
from storage.interfaces.blobs import BlobStore

if TYPE_CHECKING:
    # reason: builds of local directories, which are most, fetch nothing
    from engine.ops.sources import SourceFetcher
    from storage.sources import TreeStore


async def open_contexts(
    graph: Graph, request: BuildRequest, pinned: Mapping[Op, Op], sources: Callable[[], SourceFetcher], facts: Facts,
    stack: AsyncExitStack,
) -> dict[Digest, Path]:  # fmt: skip
    """The directories of all contexts in `graph`, by vertex; those that are elsewhere are fetched now. `pinned`: what
    became of the ops that `request` names. What is made for this is gone when `stack` ends. Raises VertexError."""
    named = (request.frontend.context, *request.frontend.named.values())
    trees = {pinned.get(op, op) for op in named if isinstance(op, FetchedSource)}
    found: dict[Digest, Path] = {}
    lacks: list[tuple[Vertex, NotHere]] = []
    for vertex in graph.vertices:
        op = vertex.op
        if isinstance(op, ContextSource):
            path = request.directories[op.name]
            found[vertex.digest] = Path(path) if path else _empty(sources().trees, stack)
        elif isinstance(op, FetchedSource) and op in trees:
            try:
                found[vertex.digest] = await fetch_tree(op, vertex, sources(), facts)
            except VertexError as failure:
                if not isinstance(failure.cause, NotHere):
                    raise
                lacks.append((vertex, failure.cause))
    if lacks:
        raise VertexError(lacks[0][0], NotHere([item for _, lack in lacks for item in lack.missing]))
    return found


def _empty(trees: TreeStore, stack: AsyncExitStack) -> Path:
    made = trees.begin()
    stack.callback(lambda: trees.discard([made]))
    return made


async def fetch_context(
    request: BuildRequest, sources: SourceFetcher, blobs: BlobStore, facts: Facts
) -> BuildRequest:
    """`request` with its context pinned and here, and with the Dockerfile that lies in it, unless it has one.
    Raises InputError, HostError, VerificationError."""
    given = request.frontend.context
    kind = "git source" if isinstance(given, GitSource) else "build context"
    name = f"[internal] load {kind} {context_title(given) if given else ''}".rstrip()
    async with shown_step(facts, name, "context") as outputs:
        op: GitSource | ArchiveSource
        if request.archive is not None:
            op = await sources.store(request.archive)
        else:
            assert given is not None
            op = await sources.pin(given)
        ref = await sources.fetch(op, "context")
        text, filename = request.dockerfile, request.frontend.filename
        if text is None:
            read, filename = await asyncio.to_thread(_read_dockerfile, op, sources.tree(op), filename)
            await facts.record(DefinitionRead(definition=str(blobs.put(read.encode())), filename=filename))
            text = read
        outputs.append(ref.id)
    return replace(request, dockerfile=text, frontend=replace(request.frontend, context=op, filename=filename))


async def fetch_tree(op: FetchedSource, vertex: Vertex, sources: SourceFetcher, facts: Facts) -> Path:
    """The directory of a pinned context, fetched now if it is not here. Raises VertexError."""
    if not await sources.is_here(op):
        shown = f"fetch:{vertex.digest}"
        try:
            async with shown_step(facts, vertex.name, shown) as outputs:
                outputs.append((await sources.fetch(op, shown)).id)
        except RefledgerError as error:
            raise VertexError(vertex, error) from error
    return sources.tree(op)


def _read_dockerfile(op: FetchedSource, tree: Path, filename: str) -> tuple[str, str]:
    """Text and name of the Dockerfile in `tree`, whose links lead nowhere else. Raises InputError, DiskError."""
    from engine.ops.sources import CONTEXT_FILE

    where = context_title(op) if not isinstance(op, HttpSource) else op.url
    try:
        with RootDir(tree) as root:
            if isinstance(op, ArchiveSource) and [path.name for path in tree.iterdir()] == [CONTEXT_FILE]:
                filename = CONTEXT_FILE
            data = root.read_bytes(filename, DOCKERFILE_LIMIT + 1)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP}:
            raise DiskError.of(error, "reading the Dockerfile") from error
        hint = "name it with -f FILE, seen from the root of the context"
        raise InputError(f"there is no {filename!r} in the context", where=where, hint=hint) from None
    if len(data) > DOCKERFILE_LIMIT:
        raise InputError(f"the Dockerfile is larger than {DOCKERFILE_LIMIT} bytes", where=where)
    try:
        return data.decode(), posixpath.basename(filename)
    except UnicodeDecodeError as error:
        raise InputError("the Dockerfile is not UTF-8 text", where=where) from error
