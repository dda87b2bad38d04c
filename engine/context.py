"""Contexts that have to be fetched before they can be read: a git repository, an archive of the web or of stdin."""

from __future__ import annotations

import asyncio
import errno
import posixpath
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import DiskError, InputError, RefledgerError
from engine.events import DefinitionRead, VertexCancelled, VertexCompleted, VertexFailed, VertexStarted
from engine.frontend.contexts import context_title
from engine.frontend.source import DOCKERFILE_LIMIT
from engine.graph import ArchiveSource, FetchedSource, GitSource, HttpSource, Vertex
from engine.ledger import Facts
from engine.ops.rootfs import RootDir
from engine.ops.sources import CONTEXT_FILE, SourceFetcher
from engine.solver.scheduler import VertexError
from storage.interfaces.blobs import BlobStore

if TYPE_CHECKING:
    from engine.build import BuildRequest


async def fetch_context(
    request: BuildRequest, sources: SourceFetcher, blobs: BlobStore, facts: Facts
) -> BuildRequest:
    """`request` with its context pinned and here, and with the Dockerfile that lies in it, unless it has one.
    Raises InputError, HostError, VerificationError."""
    given = request.frontend.context
    kind = "git source" if isinstance(given, GitSource) else "build context"
    name = f"[internal] load {kind} {context_title(given) if given else ''}".rstrip()
    facts.post(VertexStarted(name=name, inputs=()), vertex="context")
    try:
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
    except asyncio.CancelledError:
        facts.post(VertexCancelled(name=name), vertex="context")
        raise
    except RefledgerError as error:
        await facts.record(VertexFailed(name=name, error=str(error)), vertex="context")
        raise
    facts.post(VertexCompleted(name=name, outputs=(ref.id,)), vertex="context")
    return replace(request, dockerfile=text, frontend=replace(request.frontend, context=op, filename=filename))


async def fetch_tree(op: FetchedSource, vertex: Vertex, sources: SourceFetcher, facts: Facts) -> Path:
    """The directory of a pinned context, fetched now if it is not here. Raises VertexError."""
    if not await sources.is_here(op):
        shown = f"fetch:{vertex.digest}"
        facts.post(VertexStarted(name=vertex.name, inputs=()), vertex=shown)
        try:
            ref = await sources.fetch(op, shown)
        except asyncio.CancelledError:
            facts.post(VertexCancelled(name=vertex.name), vertex=shown)
            raise
        except RefledgerError as error:
            await facts.record(VertexFailed(name=vertex.name, error=str(error)), vertex=shown)
            raise VertexError(vertex, error) from error
        facts.post(VertexCompleted(name=vertex.name, outputs=(ref.id,)), vertex=shown)
    return sources.tree(op)


def _read_dockerfile(op: FetchedSource, tree: Path, filename: str) -> tuple[str, str]:
    """Text and name of the Dockerfile in `tree`, whose links lead nowhere else. Raises InputError, DiskError."""
    where = context_title(op) if not isinstance(op, HttpSource) else op.url
    try:
        with RootDir(tree) as root:
            if isinstance(op, ArchiveSource) and _is_alone(tree):
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


def _is_alone(tree: Path) -> bool:
    return [path.name for path in tree.iterdir()] == [CONTEXT_FILE]
