"""Executing steps of a build that was, on the inputs that it had.

What a step stood on is given where its bytes can be had (here, then from a provider that says it has them); only what
cannot be had is made again. Nothing is taken from the cache, and nothing goes into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import MaterializationError
from engine.grants import Offered
from engine.graph import Graph, ImageSource, LayerSource, Scratch, Vertex
from engine.ledger import Facts
from engine.ops.executor import Executor, Outcome
from engine.record import Record
from engine.refs.ref import Layer, Remote, scratch
from engine.solver.answers import CacheLookup
from engine.solver.contexts import Taken
from engine.solver.plan import Plan
from engine.solver.refused import check_grants, check_platforms
from engine.solver.scheduler import Loss, Scheduler
from engine.solver.solve import tell_revoked
from storage.digest import Digest
from storage.interfaces.blobs import BlobStore
from storage.threads import in_thread

if TYPE_CHECKING:
    from engine.ops.emulation import Emulation

TRIES = 3
"""How often the result of one step may turn out to be gone after all."""


class Steps(Record):
    """`run`: what is executed, inputs first; `given`: results, by vertex, that are not; `again`: those of `run` that
    only run because their results cannot be had."""

    run: tuple[Vertex, ...]
    given: Mapping[Digest, Remote]
    again: tuple[Vertex, ...] = ()


def plan_replay(
    graph: Graph, wanted: Iterable[Digest], known: Mapping[Digest, Remote], contexts: Iterable[Digest]
) -> Steps:
    """Execute `wanted`, standing on results that are `known` to be obtainable, or on others made anew."""
    asked = set(wanted)
    run, given = set(asked), dict[Digest, Remote]()
    queue, idle = list(asked), set(contexts)
    while queue:
        for digest in graph.by_digest[queue.pop()].inputs:
            if digest in run or digest in given or digest in idle:
                continue
            if digest in known:
                given[digest] = known[digest]
            else:
                run.add(digest)
                queue.append(digest)
    order = tuple(vertex for vertex in graph.vertices if vertex.digest in run)
    return Steps(order, given, tuple(vertex for vertex in order if vertex.digest not in asked))


@dataclass(slots=True)
class Replayer:
    """Executes for the build `build`. `contexts`: the directories of contexts, by vertex, in which `restore` (blocking)
    makes what steps took, before they run."""

    build: str
    facts: Facts
    executor: Executor
    blobs: BlobStore
    cache: CacheLookup
    contexts: Mapping[Digest, Path]
    restore: Callable[[Sequence[Vertex]], None]
    jobs: int
    epoch: int | None
    offered: Offered
    emulation: Callable[[], Emulation]
    _graph: Graph = field(init=False)
    _taken: Taken = field(init=False)
    _known: dict[Digest, Remote] = field(default_factory=dict)
    """Results that can be had, as far as is known: those that were given, and those that were made."""
    _made: set[Digest] = field(default_factory=set)
    _restored: set[Digest] = field(default_factory=set)
    _lost: Counter[Digest] = field(default_factory=Counter)

    async def run(self, graph: Graph, wanted: Sequence[Digest], known: Mapping[Digest, Remote]) -> dict[Digest, Remote]:
        """Execute `wanted`; the results by vertex. Where the layers of a result cannot be had after all, that one is
        made anew, and what holds them. Raises VertexError, InputError, LogError, and what `restore` raises."""
        self._graph = graph
        self._known |= known
        scheduler = Scheduler(self.facts, self._step, _recall, self._recoverable, self.jobs)
        while True:
            left = [digest for digest in wanted if digest not in self._made]
            steps = plan_replay(graph, left, self._known, self.contexts)
            losses = await self._execute(scheduler, steps)
            if not losses:
                return {**steps.given, **{digest: self._known[digest] for digest in self._made}}
            for loss in losses:
                await self._revoke(loss.cause, loss.vertex)

    async def _execute(self, scheduler: Scheduler, steps: Steps) -> list[Loss]:
        """Execute them; what was lost meanwhile."""
        new = [vertex for vertex in steps.run if vertex.digest not in self._restored]
        await in_thread(lambda: self.restore(new))
        self._restored.update(vertex.digest for vertex in new)
        self._taken = Taken(self.contexts, self.facts, self.blobs, self.cache)
        check_grants(steps.run, self.offered)
        needed = {digest for vertex in steps.run for digest in vertex.inputs} & self.contexts.keys()
        part = [v for v in self._graph.vertices if v.digest in needed or v in steps.run]
        await self._taken.read(Graph(tuple(part), ()))
        await check_platforms(steps.run, self.facts, self.emulation)
        self._known |= {vertex.digest: scratch() for vertex in steps.run if isinstance(vertex.op, Scratch)}
        run = tuple(v for v in steps.run if not isinstance(v.op, Scratch) and v.digest not in self.contexts)
        return await scheduler.run(Plan(run, (), frozenset(), ()), self._known)

    async def _step(self, vertex: Vertex, inputs: tuple[Remote, ...], attempt: int) -> Outcome:
        task = self._taken.task(self.build, vertex, inputs, attempt, self.epoch)
        outcome = await self.executor.execute(task)
        self._made.add(vertex.digest)
        return outcome

    def _holders(self, layer: str) -> list[Digest]:
        """Vertices whose result holds `layer`, inputs first."""
        held = {digest for digest, ref in self._known.items() if any(item.name == layer for item in ref.layers)}
        return [vertex.digest for vertex in self._graph.vertices if vertex.digest in held]

    def _recoverable(self, error: MaterializationError) -> bool:
        """Can what was lost be made again? A layer of an image or of a file cannot, and a full disk is no loss."""
        holders = self._holders(error.layer) if error.layer and error.kind != "disk" else []
        if any(isinstance(self._graph.by_digest[digest].op, ImageSource | LayerSource) for digest in holders):
            return False
        return bool(holders) and all(self._lost[digest] < TRIES for digest in holders)

    async def _revoke(self, error: MaterializationError, vertex: Vertex) -> None:
        """Forget every result that holds what `vertex` found to be lost."""
        holders = self._holders(error.layer)
        if not holders:
            return  # another loss took them along
        ref = self._known[holders[0]]
        self._lost.update(holders)
        self._made.difference_update(holders)
        for digest in holders:
            del self._known[digest]
        attempt = max(self._lost[digest] for digest in holders)
        await tell_revoked(self.facts, error, ref, holders, attempt, vertex.digest)


async def _recall(_vertex: Vertex, _inputs: tuple[Remote, ...]) -> None:
    """Nothing is known: that is what a replay is for."""


# ---------------------------------------------------------------- where inputs come from


class Place(Record):
    """Where one layer comes from: `here`, `bundle`, `provider` or, when it cannot be had, `nowhere`."""

    layer: Layer
    kind: str


class Survey(Record):
    """Where the layers of one result come from."""

    ref: str
    places: tuple[Place, ...]

    @property
    def obtainable(self) -> bool:
        """Can all of them be had?"""
        return all(place.kind != "nowhere" for place in self.places)

    @property
    def remote(self) -> Remote:
        """The result as a pointer."""
        return Remote(self.ref, tuple(place.layer for place in self.places))


async def survey(
    ref: str,
    layers: Sequence[Layer],
    bundled: Mapping[str, Layer],
    mountable: Callable[[Layer], bool],
    stored: Callable[[Layer], bool],
    absent: Callable[[Sequence[Layer]], Awaitable[Mapping[str, str]]],
) -> Survey:
    """Ask for each layer: mountable or stored here, in the bundle (`bundled`, by name), or at a provider that says so
    when asked for its existence. No layer byte moves."""
    places = []
    asked = [layer for layer in layers if not mountable(layer) and not stored(layer) and layer.name not in bundled]
    missing = await absent(asked)
    for layer in layers:
        if mountable(layer) or stored(layer):
            places.append(Place(layer, "here"))
        elif layer.name in bundled:
            own = bundled[layer.name]
            places.append(Place(own, "here" if mountable(own) else "bundle"))
        else:
            places.append(Place(layer, "nowhere" if layer.name in missing else "provider"))
    return Survey(ref, tuple(places))
