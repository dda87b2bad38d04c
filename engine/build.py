"""The whole story of a build: start, define, solve, export, end. Every turn of it is an event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.errors import DockerfileError, InputError, MaterializationError, NotGranted, RefledgerError
from engine.events import BuildCompleted, BuildFailed, BuildStarted, GraphDefined, is_sensitive
from engine.executor import Executor
from engine.frontend.compile import FrontendOptions, compile_dockerfile
from engine.grants import NOTHING, Offered
from engine.graph import (
    ArchiveSource,
    ContextSource,
    GitSource,
    Graph,
    HttpSource,
    ImageSource,
    Merge,
    Op,
    Scratch,
    Vertex,
    merged,
)
from engine.ledger import Ledger, fitting
from engine.offline.missing import Missing, NotHere
from engine.operation import cancelled, conclude
from engine.output import Output
from engine.refs.materializer import Materializer
from engine.resolver import Resolver
from engine.solver.answers import CacheLookup, Imports, Presence, Solution
from engine.solver.plan import Plan
from engine.solver.scheduler import VertexError
from engine.solver.solve import Checked, Solver
from storage.digest import Digest, canonical_json
from storage.interfaces.blobs import BlobStore
from storage.interfaces.images import Reference

if TYPE_CHECKING:
    # reason: what only some builds need is not loaded for all
    from engine.attest.attester import Attester
    from engine.attest.spec import Attest
    from engine.cache.export import CacheExporter
    from engine.cache.spec import CacheSource, CacheTarget
    from engine.exporters.exporters import Attach, Built, Exporters, Written
    from engine.images.definition import Definition
    from engine.images.intake import LayerFiles
    from engine.offline.needs import Needs
    from engine.ops.emulation import Emulation
    from engine.ops.sources import SourceFetcher
    from engine.policy.gate import Gate

DOCKERFILE = "dockerfile.v0"
"""The frontend of builds that are not edits of images (Definition.frontend)."""
FETCHED = (HttpSource, GitSource, ArchiveSource)


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build. `dockerfile` is its text, None when it lies in the context, at `frontend.filename`, or when
    `definition`, an edit of an image, stands for it; `directories`: what local contexts stand for, by the name of their
    ContextSource, "" for an empty directory; `archive`: a context that comes on this stream (`frontend.context` says of
    others where they are); `platforms`: one image for each; `options` go into the log as they are (secrets by id only);
    `epoch` SOURCE_DATE_EPOCH in seconds; `offered`: the names of what the executor may lend; `offline`: nobody may be
    asked; `check`: only tell what would be done; `attest`: what is to be said of the images."""

    dockerfile: str | None
    frontend: FrontendOptions
    directories: Mapping[str, str]
    archive: BinaryIO | None = None
    platforms: tuple[str, ...] = ()
    names: tuple[Reference, ...] = ()
    outputs: tuple[Output, ...] = ()
    jobs: int = 2
    no_cache: bool = False
    cache_from: tuple[CacheSource, ...] = ()
    cache_to: tuple[CacheTarget, ...] = ()
    epoch: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    name: str = ""
    version: str = ""
    host: Mapping[str, object] = field(default_factory=dict)
    offered: Offered = NOTHING
    offline: bool = False
    check: bool = False
    definition: Definition | None = None
    attest: tuple[Attest, ...] = ()


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a build would do: `checked` of `graph`, and what is `missing` here to do it."""

    graph: Graph
    checked: Checked
    missing: tuple[Missing, ...]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """`digest`: of the manifest or index of the first output that has one, `config` of its config or index; `ref`: the
    first result's id; `warnings`: the frontend's; `foreseen`: all there is when the build was only checked; `written`:
    the outputs."""

    ref: str
    digest: Digest | None
    config: Digest | None = None
    warnings: tuple[str, ...] = ()
    foreseen: Foreseen | None = None
    written: tuple[Written, ...] = ()


@dataclass(slots=True)
class Engine:
    """The collaborators of one build, put together by tools/bootstrap.py; `gate`: what keeps it to its policies, if it
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
    _pinned: dict[Any, Op] = field(default_factory=dict)

    async def build(self, request: BuildRequest) -> BuildResult:
        """Build `request`. Raises RefledgerError (its exit code is the process's), with the end already in the log."""
        vertex: Vertex | None = None
        try:
            self._start(request)
            if self.gate is not None:
                from engine.policy.building import check_request

                check_request(self.gate, request)
            request = await self._fetch_context(request)
            graph = await self._define(request)
            result = await self._solve(request, graph)
        except asyncio.CancelledError:
            await cancelled(self.ledger)
        except VertexError as failure:
            vertex, error = failure.vertex, failure.cause
            if isinstance(error, NotGranted) and vertex.lines[0]:
                error.where = f"{request.frontend.filename}:{vertex.lines[0]}"
            error.definition = (request.dockerfile, request.frontend.filename)  # type: ignore[attr-defined]
            error.vertex = vertex  # type: ignore[attr-defined]  # for the excerpt that the terminal shows
            await self._failed(error, vertex)
            raise error from failure
        except RefledgerError as error:
            await self._failed(error, None)
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

    async def _define(self, request: BuildRequest) -> Graph:
        graph = await self._compile(request)
        if len(graph.results) > 1 and any(output.kind == "docker" for output in request.outputs):
            raise InputError("type=docker holds one platform", hint="use type=oci for several, or name one: --platform")
        if self.gate is not None:
            from engine.policy.building import check_steps

            check_steps(self.gate, graph)
        if any(isinstance(vertex.op, FETCHED) for vertex in graph.vertices):
            from engine.pin import pin_graph

            graph, pinned = await pin_graph(graph, self.sources(), self.ledger)
            self._pinned = {**self._pinned, **pinned}
        stored = self.blobs.put(canonical_json(graph.to_json()))
        shown = [vertex for vertex in graph.vertices if not isinstance(vertex.op, Scratch)]
        plan = fitting([{"vertex": str(v.digest), "name": v.name, "lines": list(v.lines)} for v in shown[:PLAN_SHOWN]])
        self.ledger.post(
            GraphDefined(
                graph=str(stored),
                vertices=len(graph.vertices),
                plan=plan,
                target=str(graph.results[0].vertex),
            )
        )
        return graph

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

    async def _solve(self, request: BuildRequest, graph: Graph) -> BuildResult:
        """Solve and export. Layers that turn out to be gone only then are made again (I8), and exported anew."""
        async with AsyncExitStack() as stack:
            directories = await self._directories(request, graph, stack)
            solver = self._solver(request, directories)
            if request.check:
                return await self._foresee(request, graph, solver)
            solution = await solver.solve(graph)
            while True:
                try:
                    return await self._export(request, graph, solution)
                except MaterializationError as error:
                    solution = await solver.recover(error)

    async def _foresee(self, request: BuildRequest, graph: Graph, solver: Solver) -> BuildResult:
        checked = await solver.check(graph)
        missing = await self._lacking(request, graph, checked.plan)
        await conclude(self.ledger, BuildCompleted(results=()))
        return BuildResult("", None, None, graph.warnings, Foreseen(graph, checked, tuple(missing)))

    async def _lacking(self, request: BuildRequest, graph: Graph, todo: Plan) -> Sequence[Missing]:
        known = {vertex.digest: found.ref for vertex, found in todo.used}
        return await self.needs().lacking(graph, todo.run, known, outputs=request.outputs, epoch=request.epoch)

    async def _directories(
        self, request: BuildRequest, graph: Graph, stack: AsyncExitStack
    ) -> dict[Digest, Path]:
        """The directories of all contexts in `graph`, by vertex; those that are elsewhere are fetched now."""
        trees = {self._pinned.get(op, op) for op in (request.frontend.context, *request.frontend.named.values())}
        found: dict[Digest, Path] = {}
        lacks: list[tuple[Vertex, NotHere]] = []
        for vertex in graph.vertices:
            op = vertex.op
            if isinstance(op, ContextSource):
                found[vertex.digest] = self._directory(request.directories[op.name], stack)
            elif isinstance(op, FETCHED) and op in trees:
                from engine.context import fetch_tree

                try:
                    found[vertex.digest] = await fetch_tree(op, vertex, self.sources(), self.ledger)
                except VertexError as failure:
                    if not isinstance(failure.cause, NotHere):
                        raise
                    lacks.append((vertex, failure.cause))
        if lacks:
            raise VertexError(lacks[0][0], NotHere([item for _, lack in lacks for item in lack.missing]))
        return found

    def _directory(self, path: str, stack: AsyncExitStack) -> Path:
        if path:
            return Path(path)
        trees = self.sources().trees
        empty = trees.begin()
        stack.callback(lambda: trees.discard([empty]))
        return empty

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
            from engine.policy.building import check_layers

            await check_layers(self.gate, graph, refs, self.materializer)
        caching = self.caching(graph, solution, request.epoch) if request.cache_to else None
        if request.outputs:
            from engine.exporters.exporters import Built

            built = [Built(item, refs[item.vertex], _base_layers(graph, item.vertex)) for item in graph.results]
            inline = caching is not None and any(target.kind == "inline" for target in request.cache_to)
            extra = caching.inline if caching is not None and inline else None
            written = await self.exporters().export(
                built, request.outputs, request.epoch, extra, self._attach(request)
            )
            warnings += _told_repacked(graph, built, written)
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

    def _attach(self, request: BuildRequest) -> Attach | None:
        return partial(self.attester().attest, request.attest) if request.attest else None

    async def _failed(self, error: RefledgerError, vertex: Vertex | None) -> None:
        where = None if vertex is None else str(vertex.digest)
        text = str(error)
        if isinstance(error, DockerfileError) and error.excerpt:
            text += "\n" + error.excerpt
        if isinstance(error, NotHere):
            self.ledger.post(error.fact, vertex=where)
        await conclude(self.ledger, BuildFailed(vertex=where, error=text, exit_code=error.exit_code), where)


PLAN_SHOWN = 200
"""Vertices named in GraphDefined: an event is at most 64 KiB; the stored graph has them all."""


def _base_layers(graph: Graph, digest: Digest) -> int:
    """How many layers the result `digest` has from images: all of an image that is edited, and those of the source that
    first inputs lead down to."""
    vertex = graph.by_digest[digest]
    match vertex.op:
        case ImageSource(layers=layers):
            return len(layers)
        case Merge():
            return sum(_base_layers(graph, item) for item in vertex.inputs)
    return _base_layers(graph, vertex.inputs[0]) if vertex.inputs else 0


def _told_repacked(graph: Graph, built: Sequence[Built], written: Sequence[Written]) -> list[str]:
    """A warning when layers of base images are in other blobs than their registries have them in, unasked."""
    listed = {layer.blob.digest for v in graph.vertices if isinstance(v.op, ImageSource) for layer in v.op.layers}
    again = {
        layer.diff_id
        for one in written
        if one.made is not None and not one.output.form.compression.force
        for item, image in zip(built, one.made.images, strict=True)
        for layer in image.layers[: item.base_layers]
        if layer.blob and layer.blob.digest not in listed
    }
    if not again:
        return []
    return [
        (f"blobs of base layers ({len(again)}) are not here, and were made anew from what is: the image's digest is not"
         " what it would be online, its id is")
    ]
