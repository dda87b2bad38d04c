"""The whole story of a build: start, define, solve, export, end. Every turn of it is an event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import Cancelled, DockerfileError, NotGranted, RefledgerError
from engine.events import BuildCancelled, BuildCompleted, BuildFailed, BuildStarted, GraphDefined
from engine.executor import Executor
from engine.frontend.compile import FrontendOptions, compile_dockerfile
from engine.grants import NOTHING, Offered
from engine.graph import Graph, ImageSource, Result, Scratch, Vertex
from engine.ledger import Ledger
from engine.output import Output
from engine.refs.materializer import Materializer
from engine.refs.ref import Remote
from engine.resolver import ImageResolver
from engine.solver.scheduler import VertexError
from engine.solver.solve import CacheLookup, Solver
from engine.together import settle
from storage.digest import Digest, canonical_json
from storage.interfaces import BlobStore, Reference

if TYPE_CHECKING:
    from engine.exporters.exporters import Exporters  # a build without outputs need not load them


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build. `dockerfile` is its text, `context` a directory; `options` go into the log as they are
    (secrets by id only); `epoch` SOURCE_DATE_EPOCH in seconds; `offered`: the names of what the executor may lend."""

    dockerfile: str
    frontend: FrontendOptions
    context: str
    names: tuple[Reference, ...] = ()
    outputs: tuple[Output, ...] = ()
    jobs: int = 2
    no_cache: bool = False
    epoch: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    name: str = ""
    version: str = ""
    host: Mapping[str, object] = field(default_factory=dict)
    offered: Offered = NOTHING


@dataclass(frozen=True, slots=True)
class BuildResult:
    """`digest`: of the manifest, when an output needed one; `ref`: the result's id; `warnings`: the frontend's."""

    ref: str
    digest: Digest | None
    config: Digest | None = None
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Engine:
    """The collaborators of one build, put together by tools/bootstrap.py."""

    ledger: Ledger
    blobs: BlobStore
    resolver: ImageResolver
    executor: Executor
    materializer: Materializer
    cache: CacheLookup
    exporters: Callable[[], Exporters]

    async def build(self, request: BuildRequest) -> BuildResult:
        """Build `request`. Raises RefledgerError (its exit code is the process's), with the end already in the log."""
        vertex: Vertex | None = None
        try:
            self._start(request)
            graph = await self._define(request)
            refs = await self._solve(request, graph)
            result = await self._export(request, graph, refs)
        except asyncio.CancelledError:
            await settle(asyncio.ensure_future(self.ledger.record(BuildCancelled())))
            raise Cancelled("interrupted") from None
        except VertexError as failure:
            vertex, error = failure.vertex, failure.cause
            if isinstance(error, NotGranted) and vertex.lines[0]:
                error.where = f"{request.frontend.filename}:{vertex.lines[0]}"
            error.vertex = vertex  # type: ignore[attr-defined]  # for the excerpt that the terminal shows
            await self._failed(error, vertex)
            raise error from failure
        except RefledgerError as error:
            await self._failed(error, None)
            raise
        return result

    def _start(self, request: BuildRequest) -> None:
        definition = self.blobs.put(request.dockerfile.encode())
        self.ledger.post(
            BuildStarted(
                frontend="dockerfile.v0",
                definition=str(definition),
                options=dict(request.options),
                context=None,
                engine_version=request.version,
                host=dict(request.host),
                name=request.name,
                filename=request.frontend.filename,
                tags=tuple(str(name) for name in request.names),
            )
        )

    async def _define(self, request: BuildRequest) -> Graph:
        graph = await compile_dockerfile(request.dockerfile, request.frontend, self.resolver.resolve)
        stored = self.blobs.put(canonical_json(graph.to_json()))
        shown = [vertex for vertex in graph.vertices if not isinstance(vertex.op, Scratch)]
        plan = tuple({"vertex": str(v.digest), "name": v.name, "lines": list(v.lines)} for v in shown[:PLAN_SHOWN])
        self.ledger.post(
            GraphDefined(
                graph=str(stored),
                vertices=len(graph.vertices),
                plan=plan,
                target=str(graph.results[0].vertex),
            )
        )
        return graph

    async def _solve(self, request: BuildRequest, graph: Graph) -> Mapping[Digest, Remote]:
        solver = Solver(
            build=self.ledger.build,
            facts=self.ledger,
            executor=self.executor,
            materializer=self.materializer,
            cache=self.cache,
            blobs=self.blobs,
            context=request.context,
            jobs=request.jobs,
            no_cache=request.no_cache,
            epoch=request.epoch,
            offered=request.offered,
        )
        return await solver.solve(graph)

    async def _export(self, request: BuildRequest, graph: Graph, refs: Mapping[Digest, Remote]) -> BuildResult:
        result = graph.results[0]
        ref = refs[result.vertex]
        image = None
        if request.outputs:
            image = await self.exporters().export(
                result, ref, _base_layers(graph, result), request.outputs, request.names, request.epoch
            )
        digest = image.digest if image else None
        entry = {"ref": ref.id, "platform": result.platform, **({"digest": str(digest)} if digest else {})}
        await self.ledger.record(BuildCompleted(results=(entry,)))
        return BuildResult(ref.id, digest, image.config_blob.digest if image else None, graph.warnings)

    async def _failed(self, error: RefledgerError, vertex: Vertex | None) -> None:
        where = None if vertex is None else str(vertex.digest)
        text = str(error)
        if isinstance(error, DockerfileError) and error.excerpt:
            text += "\n" + error.excerpt
        await self.ledger.record(
            BuildFailed(vertex=where, error=text, exit_code=error.exit_code), vertex=where
        )


PLAN_SHOWN = 200
"""Vertices named in GraphDefined: an event is at most 64 KiB; the stored graph has them all."""


def _base_layers(graph: Graph, result: Result) -> int:
    """How many layers the result has from its base image: follow first inputs down to the source."""
    vertex = graph.by_digest[result.vertex]
    while vertex.inputs:
        vertex = graph.by_digest[vertex.inputs[0]]
    return len(vertex.op.layers) if isinstance(vertex.op, ImageSource) else 0
