"""Fakes around solver and replay, to inject what no real part repeats."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from engine.errors import MaterializationError
from engine.events import Fact, VertexStarted
from engine.graph import Graph, Run, Scratch, Vertex, vertex
from engine.ops.executor import Executor, Outcome, Task
from engine.refs.materializer import Materializer
from engine.refs.ref import Layer, Remote, of_step
from engine.solver.answers import Found
from engine.solver.solve import Solver
from storage.blobs import DirectoryBlobs
from storage.digest import Digest
from storage.locks import FileLocks


@dataclass
class Recorded:
    told: list[Fact] = field(default_factory=list)

    async def record(self, fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> int:
        self.told.append(fact)
        return len(self.told)

    def post(self, fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> None:
        self.told.append(fact)

    def started(self) -> list[str]:
        """Names of the steps that ran, in order."""
        return [fact.name for fact in self.of(VertexStarted)]

    def of(self, kind: type[Fact]) -> list[Any]:
        return [fact for fact in self.told if isinstance(fact, kind)]


class Losing:
    """Executes everything, but finds the base of `consumer` gone `times` times."""

    def __init__(self, consumer: str, times: int) -> None:
        self.consumer, self.times = consumer, times

    async def content(self, task: Task) -> Digest | None:
        return None

    async def execute(self, task: Task) -> Outcome:
        if task.vertex.name == self.consumer and self.times:
            self.times -= 1
            layer = task.inputs[0].layers[-1].name
            raise MaterializationError(f"layer {layer} cannot be had", kind="missing", layer=layer)
        return Outcome(of_step(task.execution, task.inputs[0], 1))


class Nothing:
    def lookup(self, key: Digest) -> Found | None:
        return None

    def let_go(self, name: str) -> bool:
        return False

    def keeps(self, listing: Digest) -> bool:
        return True

    def packs(self) -> Sequence[Digest]:
        return ()

    async def absent(self, layers: Sequence[Layer]) -> Mapping[str, str]:
        return {}


@dataclass
class Doors:
    """The part of the Materializer that the solver asks."""

    locks: FileLocks

    def obtainable(self, layer: Layer) -> bool:
        return True

    def here(self, layer: Layer) -> bool:
        return True


def vertex_of(name: str, *inputs: Vertex) -> Vertex:
    op = Run(argv=(name,), env=(), cwd="/") if inputs else Scratch()
    return vertex(op, tuple(v.digest for v in inputs), name)




def solve(
    tmp_path: Path, graph: Graph, executor: Executor, contexts: Mapping[Digest, Path] | None = None
) -> tuple[Recorded, dict[str, Remote]]:
    """What is told, and the results by step, of build `b`."""
    facts = Recorded()
    solver = Solver(
        build="b", facts=facts, executor=executor, materializer=cast("Materializer", Doors(FileLocks(tmp_path))),
        cache=Nothing(), presence=Nothing(), blobs=DirectoryBlobs(tmp_path, owner="b"), contexts=contexts or {}, jobs=2,
    )  # fmt: skip
    solution = asyncio.run(solver.solve(graph))
    return facts, {graph.by_digest[digest].name: ref for digest, ref in solution.refs.items()}
