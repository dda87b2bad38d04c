"""Replaying a recorded build in this root, as a new build of its own."""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.build import DOCKERFILE, Engine
from engine.errors import NotGranted, RefledgerError, StepFailed
from engine.events import (
    BuildCompleted,
    BuildStarted,
    RemoteCreated,
)
from engine.frontend.compile import FrontendOptions, compile_dockerfile
from engine.grants import Offered
from engine.graph import ContextSource, Graph, ImageSource, LayerSource, Scratch, Vertex, VertexError
from engine.operation import build_failed, cancelled, conclude, graph_defined
from engine.refs.ref import Layer, Remote
from engine.replay import Replayer, Steps, Survey, plan_replay, survey
from projections.output import output_lines
from storage.digest import Digest, canonical_json
from storage.errors import InputError
from storage.interfaces.log import EventLog, redacted, worded
from storage.tar.filelist import FileFact, list_tar
from tools import __version__, known, roots
from tools.replaying.recorded import Recorded, restore_contexts
from tools.replaying.story import closure
from tools.replaying.verdict import End, Verdict, judge


@dataclass(frozen=True, slots=True)
class Choice:
    """Which steps to execute: `steps` and nothing else, unless `all`, of which `steps` are the last ones; `verify`: and
    compare with a build that went well."""

    steps: tuple[Digest, ...]
    all: bool = False
    verify: bool = False


@dataclass(frozen=True, slots=True)
class Replayed:
    """`error`: how the replay failed, if it did."""

    verdict: Verdict
    before: End
    now: End
    error: RefledgerError | None = None


@dataclass(slots=True)
class Replay:
    """One replay. `place`: a directory for restored contexts; `tell` gets what is announced before anything runs."""

    root: roots.Root
    build: str
    engine: Engine
    recorded: Recorded
    choice: Choice
    offered: Offered
    place: Path
    tell: Callable[[Announcement], None]
    _graph: Graph | None = None
    _surveys: dict[Digest, Survey] = field(default_factory=dict)

    async def run(self) -> Replayed:
        """Execute and judge. Raises InputError, VerificationError, DiskError, Cancelled for what keeps it from that."""
        recorded, error = self.recorded, None
        self._start()
        try:
            if recorded.graph is None:
                now = await self._define()
            else:
                now, error = await self._execute(recorded.graph)
        except asyncio.CancelledError:
            await cancelled(self.engine.ledger)
        except RefledgerError as failure:
            await self._failed(failure, None)
            raise
        before = self._before()
        return Replayed(judge(before, now, recorded.epoch()), before, now, error)

    def _start(self) -> None:
        story = self.recorded.story
        lent = self.offered
        options = {
            **worded(story.started.get("options", {})), "replay_of": story.record.id, "bundle": self.recorded.source,
            "secrets": list(lent.secrets), "ssh": list(lent.agents), "allow": list(lent.allowed),
        }  # fmt: skip
        self.engine.ledger.post(
            BuildStarted(
                frontend=str(story.started.get("frontend", "")),
                definition=str(self.engine.blobs.put(self.recorded.dockerfile.encode())),
                options=options, context=None, engine_version=__version__, host=roots.host_facts(),
                name=story.record.name, filename=story.filename,
            )
        )  # fmt: skip

    # ------------------------------------------------------------ a failure before there was a graph

    async def _define(self) -> End:
        """Compile the definition again, which is all that the build came to."""
        story = self.recorded.story
        options = story.started.get("options", {})
        if options.get("contexts") or not self.recorded.dockerfile:
            raise InputError(
                f"build {story.record.id} ended before it had a graph, and its definition cannot be read anew here",
                hint="its named contexts, or the Dockerfile itself, are not in the record",
            )
        self.tell(Announcement(self.recorded, Steps((), {}), {}, self.offered))
        try:
            await self._compile(options)
        except RefledgerError as error:
            text = await self._failed(error, None)
            return End(error.exit_code, error=text)
        await conclude(self.engine.ledger, BuildCompleted(results=()))
        return End(0)

    async def _compile(self, options: Mapping[str, Any]) -> None:
        story, text = self.recorded.story, self.recorded.dockerfile
        args = options.get("args", {})
        for words in filter(None, (redacted(args), *map(redacted, args.values()))):
            raise InputError(
                f"build {story.record.id} had a build arg that is not in its record any more: {words}",
                hint="it ended before it had a graph: build it anew, with that arg",
            )
        frontend = str(story.started.get("frontend", ""))
        if frontend != DOCKERFILE:
            from engine.images.definition import parse_definition

            definition = await parse_definition(frontend, text).read(self.engine.files().take)
            await definition.compile(self.engine.resolver)
            return
        host = str(_host_platform())
        platforms = options.get("platforms") or [host]
        for platform in platforms:
            await compile_dockerfile(
                text,
                FrontendOptions(
                    filename=story.filename, build_args=options.get("args", {}), target=options.get("target", ""),
                    platform=platform, build_platform=host, network=options.get("network", "host"),
                    entitlements=frozenset(self.offered.allowed), several=len(platforms) > 1,
                ),
                self.engine.resolver.resolve,
            )  # fmt: skip

    # ------------------------------------------------------------ steps

    async def _execute(self, graph: Graph) -> tuple[End, RefledgerError | None]:
        wanted = self._wanted(graph)
        contexts = [v.digest for v in graph.vertices if self._is_context(v)]
        known = await self._known(graph, wanted, contexts)
        steps = plan_replay(graph, wanted, known, contexts)
        self._define_graph(graph, steps)
        self.tell(Announcement(self.recorded, steps, self._surveys, self.offered))
        replayer = Replayer(
            self.build, self.engine.ledger, self.engine.executor, self.engine.blobs, self.engine.cache,
            self._directories(contexts), self._restore, os.cpu_count() or 1, self.recorded.epoch(), self.offered,
            self.engine.emulation,
        )  # fmt: skip
        try:
            refs = await replayer.run(graph, wanted, known)
        except VertexError as failure:
            error = failure.cause
            if isinstance(error, NotGranted) and failure.vertex.lines[0]:
                error.where = f"{self.recorded.story.filename}:{failure.vertex.lines[0]}"
            error.vertex = failure.vertex  # type: ignore[attr-defined]  # for the excerpt that the terminal shows
            text = await self._failed(error, failure.vertex)
            status = error.status if isinstance(error, StepFailed) else None
            where = str(failure.vertex.digest)
            return End(error.exit_code, where, text, status, self._output(self.root.log, self.build, where)), error
        results = [{"ref": refs[digest].id, "vertex": str(digest)} for digest in wanted if digest in refs]
        done = [digest for digest in wanted if digest in refs]
        where = str(done[-1]) if len(done) == 1 else ""
        files = await asyncio.to_thread(lambda: dict(self._files_now(graph, done, refs)))
        merges = _merges({str(digest): refs[digest].id for digest in done})
        await conclude(self.engine.ledger, BuildCompleted(results=tuple(results[-50:])))
        return End(0, where, output=self._output(self.root.log, self.build, where), files=files, merges=merges), None

    def _is_context(self, vertex: Vertex) -> bool:
        taken = self.recorded.story.listings.values()
        return isinstance(vertex.op, ContextSource) or any(c == vertex.digest for uses in taken for c, _ in uses)

    def _wanted(self, graph: Graph) -> list[Digest]:
        if not self.choice.all:
            return list(self.choice.steps)
        # reason: an image is what its manifest lists; there is nothing to execute, and its layers may lie in the bundle
        return [
            vertex.digest
            for vertex in closure(graph, self.choice.steps)
            if not isinstance(vertex.op, Scratch | ImageSource | LayerSource) and not self._is_context(vertex)
        ]

    async def _known(self, graph: Graph, wanted: Iterable[Digest], contexts: Iterable[Digest]) -> dict[Digest, Remote]:
        """Results that `wanted` stand on and that can be had; where one cannot, what that stood on."""
        skip = {*wanted, *contexts}
        queue = [digest for item in wanted for digest in graph.by_digest[item].inputs]
        known: dict[Digest, Remote] = {}
        while queue:
            digest = queue.pop()
            if digest in skip:
                continue
            skip.add(digest)
            ref = self.recorded.story.results.get(str(digest))
            if ref is not None:
                found = self._surveys[digest] = await self._survey(ref)
                if found.obtainable:
                    known[digest] = found.remote
                    continue
            queue.extend(graph.by_digest[digest].inputs)
        return known

    async def _survey(self, ref: str) -> Survey:
        engine, recorded = self.engine, self.recorded
        own = roots.read_blobs(self.root.path)
        layers = recorded.layers(ref, lambda digest: known.known_providers(self.root.views, digest))
        found = await survey(
            ref, layers, recorded.bundled, engine.materializer.kept.mountable,
            lambda layer: layer.blob is not None and own.size(layer.blob.digest) is not None, engine.presence.absent,
        )  # fmt: skip
        if recorded.source and found.obtainable and found.places:
            providers = {provider: None for place in found.places for provider in place.layer.providers}
            await engine.ledger.record(
                RemoteCreated(
                    ref=ref, layers=tuple(layer.to_json() for layer in found.remote.layers),
                    providers=tuple(provider.to_json() for provider in providers),
                )
            )  # fmt: skip
        return found

    def _define_graph(self, graph: Graph, steps: Steps) -> None:
        stored = self.engine.blobs.put(canonical_json(graph.to_json()))
        shown = [v for v in steps.run if not isinstance(v.op, Scratch)]
        target = steps.run[-1].digest if steps.run else None
        self.engine.ledger.post(graph_defined(graph, stored, shown, target))

    def _directories(self, contexts: Iterable[Digest]) -> dict[Digest, Path]:
        """Of each context one that is empty: what a step could not find then is not found now either."""
        found = {digest: self.place / digest.hex for digest in contexts}
        for path in found.values():
            path.mkdir(parents=True, exist_ok=True)
        return found

    def _restore(self, steps: Sequence[Vertex]) -> None:
        kept = self.engine.materializer.kept

        def lower(layer: Layer) -> Path | None:
            return kept.lower(layer) if kept.mountable(layer) else None

        restore_contexts(self.recorded, steps, self.place, self.engine.blobs, lower)

    async def _failed(self, error: RefledgerError, vertex: Vertex | None) -> str:
        where = None if vertex is None else str(vertex.digest)
        end = build_failed(error, where)
        await conclude(self.engine.ledger, end, where)
        return end.error

    # ------------------------------------------------------------ then and now

    def _before(self) -> End:
        """How the steps ended in the recorded build."""
        story, chosen = self.recorded.story, set(map(str, self.choice.steps))
        if self.recorded.graph is None:
            return End(story.exit_code or 1, error=story.error)
        failed = [item.vertex for item in story.executions.values() if item.state == "failed"]
        at_fault = [vertex for vertex in (story.failed, *failed) if vertex in chosen]
        if at_fault:
            return self._failure(at_fault[0])
        open_ = [item.vertex for item in story.unfinished if item.vertex in chosen]
        if open_:
            return End(130, open_[0], f"the build ended before it: {story.record.status}")
        one = self._one()
        merges = _merges(story.results)
        return End(0, one, output=self._recorded_output(one), files=dict(self._files_then()), merges=merges)

    def _failure(self, vertex: str) -> End:
        story = self.recorded.story
        step = story.executions.get(vertex)
        code = (story.exit_code or 1) if vertex == story.failed else 1
        failed = step if step is not None and step.state == "failed" else None
        error = story.error if vertex == story.failed or failed is None else failed.error
        return End(code, vertex, error, failed.exit_code if failed else None, self._recorded_output(vertex))

    def _one(self) -> str:
        return str(self.choice.steps[-1]) if len(self.choice.steps) == 1 and not self.choice.all else ""

    def _recorded_output(self, vertex: str) -> Mapping[int, Sequence[str]]:
        record = self.recorded.story.record
        return self._output(self.recorded.log, record.id, vertex, record.first_seq - 1, record.last_seq)

    @staticmethod
    def _output(
        log: EventLog, build: str, vertex: str, after: int = 0, until: int | None = None
    ) -> Mapping[int, Sequence[str]]:
        found: dict[int, list[str]] = {}
        if vertex:
            for _, line in output_lines(log, build, vertex, after=after, until=until):
                found.setdefault(line.fd, []).append(line.text)
        return found

    def _files_then(self) -> Iterable[tuple[str, Sequence[FileFact]]]:
        for vertex, ref in self.recorded.story.results.items():
            if ref in self.recorded.files:
                yield vertex, self.recorded.files[ref]
            elif not self.recorded.source and (facts := self._facts(ref)) is not None:
                yield vertex, facts

    def _files_now(
        self, graph: Graph, done: Sequence[Digest], refs: Mapping[Digest, Remote]
    ) -> Iterable[tuple[str, Sequence[FileFact]]]:
        for vertex in graph.vertices:
            if vertex.digest in done and (facts := self._facts(refs[vertex.digest].id)) is not None:
                yield str(vertex.digest), facts

    def _facts(self, snapshot: str) -> list[FileFact] | None:
        """What the step that made `snapshot` changed; None when that is not here, or no step's."""
        if snapshot.startswith(("sha256:", "merge-", "source-", "scratch")):
            return None
        with tempfile.TemporaryFile(dir=self.root.tmp) as file:
            tars = roots.stored_tars(self.root.path, self.root.tmp)
            if not tars.write(file.write, snapshot=snapshot):
                return None
            file.seek(0, io.SEEK_SET)
            return list(list_tar(file))


def _merges(results: Mapping[str, str]) -> dict[str, str]:
    return {vertex: ref for vertex, ref in results.items() if ref.startswith("merge-")}


def _host_platform() -> object:
    from storage.platform import host_platform

    return host_platform()


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is known before anything runs: the `steps`, and where what they stand on comes from."""

    recorded: Recorded
    steps: Steps
    surveys: Mapping[Digest, Survey]
    offered: Offered
