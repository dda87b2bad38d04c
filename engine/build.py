"""The whole story of a build: start, define, solve, export, end. Every turn of it is an event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import InputError, MaterializationError, NotGranted, RefledgerError
from engine.events import BuildCompleted, BuildStarted, is_sensitive
from engine.frontend.compile import compile_dockerfile
from engine.graph import (
    ContextSource,
    FetchedSource,
    Graph,
    Op,
    Scratch,
    Vertex,
    VertexError,
    merged,
)
from engine.images.resolver import Resolver
from engine.ledger import Ledger
from engine.offline.missing import Missing, NotHere
from engine.operation import build_failed, cancelled, conclude, graph_defined
from engine.ops.executor import Executor
from engine.refs.materializer import Materializer
from engine.request import BuildRequest, BuildResult, Foreseen
from engine.solver.answers import CacheLookup, Imports, Presence, Solution
from engine.solver.plan import Plan
from engine.solver.solve import Solver
from storage.digest import Digest, canonical_json
from storage.interfaces.blobs import BlobStore

if TYPE_CHECKING:
    # reason: what only some builds need is not loaded for all
    from engine.attest.attester import Attester
    from engine.cache.export import CacheExporter
    from engine.exporters.exporters import Exporters, Written
    from engine.images.intake import LayerFiles
    from engine.offline.needs import Needs
    from engine.ops.emulation import Emulation
    from engine.ops.sources import SourceFetcher
    from engine.policy.gate import Gate

DOCKERFILE = "dockerfile.v0"
"""The frontend of builds that are not edits of images (Definition.frontend)."""


@dataclass(slots=True)
class Engine:
    """The collaborators of one build, put together by tools/bootstrap; `gate`: what keeps it to its policies, if it
    has any."""

    ledger: Ledger
    blobs: BlobStore
    resolver: Resolver
    executor: Executor
    materializer: Materializer
    cache: CacheLookup
    presence: Presence
    sources: Callable[[], SourceFetcher]
    exporters: Callable[[], Exporters]
    emulation: Callable[[], Emulation]
    needs: Callable[[], Needs]
    files: Callable[[], LayerFiles]
    imports: Callable[[BuildRequest, Mapping[Digest, Path]], Imports]
    caching: Callable[[Graph, Solution, int | None], CacheExporter]
    attester: Callable[[], Attester]
    gate: Gate | None = None

    async def build(self, request: BuildRequest) -> BuildResult:
        """Build `request`. Raises RefledgerError, whose exit code is the process's. Where its start is in the log, its
        end is, too."""
        self._start(request)
        try:
            if self.gate is not None:
                from engine.policing import check_request

                check_request(self.gate, request)
            request = await self._fetch_context(request)
            graph, pinned = await self._define(request)
            result = await self._solve(request, graph, pinned)
        except asyncio.CancelledError:
            await cancelled(self.ledger)
        except VertexError as failure:
            await self._failed(failure.cause, request, failure.vertex)
            raise failure.cause from failure
        except RefledgerError as error:
            await self._failed(error, request, None)
            raise
        return result

    def _start(self, request: BuildRequest) -> None:
        edit, text = request.definition, request.dockerfile
        if edit is not None:
            from engine.images.definition import definition_text

            text = definition_text(edit)
        definition = "" if text is None else str(self.blobs.put(text.encode()))
        self.ledger.post(
            BuildStarted(
                frontend=DOCKERFILE if edit is None else edit.frontend,
                definition=definition,
                options={**request.options, **({"policies": self.gate.described} if self.gate else {})},
                context=None,
                engine_version=request.version,
                host=dict(request.host),
                name=request.name,
                filename=request.frontend.filename,
                tags=tuple(str(name) for name in request.names),
            )
        )

    async def _define(self, request: BuildRequest) -> tuple[Graph, Mapping[Op, Op]]:
        """The graph, with what became of its sources when they were pinned."""
        graph = await self._compile(request)
        if len(graph.results) > 1 and any(output.kind == "docker" for output in request.outputs):
            raise InputError("type=docker holds one platform", hint="use type=oci for several, or name one: --platform")
        if self.gate is not None:
            from engine.policing import check_steps

            check_steps(self.gate, graph)
        pinned: Mapping[Op, Op] = {}
        if any(isinstance(vertex.op, FetchedSource) for vertex in graph.vertices):
            from engine.pin import pin_graph

            graph, pinned = await pin_graph(graph, self.sources(), self.ledger)
        stored = self.blobs.put(canonical_json(graph.to_json()))
        shown = [vertex for vertex in graph.vertices if not isinstance(vertex.op, Scratch)]
        self.ledger.post(graph_defined(graph, stored, shown, graph.results[0].vertex))
        return graph, pinned

    async def _compile(self, request: BuildRequest) -> Graph:
        if request.definition is not None:
            from engine.images.definition import read_definition

            definition = await read_definition(request.definition, self.files().take, self.blobs, self.ledger)
            return await definition.compile(self.resolver)
        assert request.dockerfile is not None
        platforms = request.platforms or (request.frontend.platform,)
        sensitive = self.ledger.sensitive
        hidden = frozenset(name for name in request.frontend.build_args if is_sensitive(name, sensitive))
        graphs = [
            await compile_dockerfile(
                request.dockerfile,
                replace(request.frontend, platform=platform, several=len(platforms) > 1, hidden=hidden),
                self.resolver.resolve,
            )
            for platform in platforms
        ]
        return merged(graphs)

    async def _fetch_context(self, request: BuildRequest) -> BuildRequest:
        """`request` with a context that is elsewhere fetched, and the Dockerfile that lies in it."""
        if request.archive is None and request.frontend.context is None:
            return request
        from engine.context import fetch_context

        return await fetch_context(request, self.sources(), self.blobs, self.ledger)

    async def _solve(self, request: BuildRequest, graph: Graph, pinned: Mapping[Op, Op]) -> BuildResult:
        """Solve and export. Layers that turn out to be gone only then are made again (I8), and exported anew."""
        async with AsyncExitStack() as stack:
            solver = self._solver(request, await self._contexts(request, graph, pinned, stack))
            if request.check:
                return await self._foresee(request, graph, solver)
            solution = await solver.solve(graph)
            while True:
                try:
                    return await self._export(request, graph, solution)
                except MaterializationError as error:
                    solution = await solver.recover(error)

    async def _contexts(
        self, request: BuildRequest, graph: Graph, pinned: Mapping[Op, Op], stack: AsyncExitStack
    ) -> Mapping[Digest, Path]:
        if not any(isinstance(vertex.op, ContextSource | FetchedSource) for vertex in graph.vertices):
            return {}
        from engine.context import open_contexts

        return await open_contexts(graph, request, pinned, self.sources, self.ledger, stack)

    async def _foresee(self, request: BuildRequest, graph: Graph, solver: Solver) -> BuildResult:
        checked = await solver.check(graph)
        missing = await self._lacking(request, graph, checked.plan)
        await conclude(self.ledger, BuildCompleted(results=()))
        return BuildResult("", None, None, graph.warnings, Foreseen(graph, checked, tuple(missing)))

    async def _lacking(self, request: BuildRequest, graph: Graph, todo: Plan) -> Sequence[Missing]:
        known = {vertex.digest: found.ref for vertex, found in todo.used}
        return await self.needs().lacking(graph, todo.run, known, outputs=request.outputs, epoch=request.epoch)

    def _solver(self, request: BuildRequest, contexts: Mapping[Digest, Path]) -> Solver:
        return Solver(
            build=self.ledger.build,
            facts=self.ledger,
            executor=self.executor,
            materializer=self.materializer,
            cache=self.cache,
            presence=self.presence,
            blobs=self.blobs,
            contexts=contexts,
            jobs=request.jobs,
            no_cache=request.no_cache,
            epoch=request.epoch,
            offered=request.offered,
            emulation=self.emulation,
            lacking=partial(self._lacking, request) if request.offline else None,
            imports=self.imports(request, contexts) if request.cache_from or request.cache_to else None,
        )

    async def _export(self, request: BuildRequest, graph: Graph, solution: Solution) -> BuildResult:
        written: tuple[Written, ...] = ()
        refs = solution.refs
        warnings = list(graph.warnings)
        if self.gate is not None and self.gate.minds_layers and (request.outputs or request.cache_to):
            from engine.policing import check_layers

            await check_layers(self.gate, graph, refs, self.materializer)
        caching = self.caching(graph, solution, request.epoch) if request.cache_to else None
        if request.outputs:
            from engine.exporters.exporters import built_of, told_repacked

            built = built_of(graph, refs)
            inline = caching is not None and any(target.kind == "inline" for target in request.cache_to)
            extra = caching.inline if caching is not None and inline else None
            attester = self.attester() if request.attest else None
            attach = partial(attester.attest, request.attest) if attester else None
            written = await self.exporters().export(built, request.outputs, request.epoch, extra, attach)
            warnings += [*told_repacked(graph, built, written), *(attester.warnings if attester else ())]
        if caching is not None:
            warnings += await caching.export(request.cache_to)
        entries, made = [], next((one.made for one in written if one.made is not None), None)
        for number, result in enumerate(graph.results):
            entry = {"ref": refs[result.vertex].id, "platform": result.platform}
            entries.append(entry | ({"digest": str(made.images[number].digest)} if made else {}))
        await conclude(self.ledger, BuildCompleted(results=tuple(entries)))
        first = refs[graph.results[0].vertex].id
        digest, config = (made.digest, made.config) if made else (None, None)
        return BuildResult(first, digest, config, tuple(warnings), written=written)

    async def _failed(self, error: RefledgerError, request: BuildRequest, vertex: Vertex | None) -> None:
        """Record that the build ended with `error`, which takes along what the terminal shows of it."""
        if isinstance(error, NotGranted) and vertex is not None and vertex.lines[0]:
            error.where = f"{request.frontend.filename}:{vertex.lines[0]}"
        error.definition = (request.dockerfile or "", request.frontend.filename)  # type: ignore[attr-defined]
        error.vertex = vertex  # type: ignore[attr-defined]
        where = None if vertex is None else str(vertex.digest)
        if isinstance(error, NotHere):
            self.ledger.post(error.fact, vertex=where)
        await conclude(self.ledger, build_failed(error, where), where)
