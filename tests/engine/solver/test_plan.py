"""What must run is found in one walk, however often a step is taken."""

from __future__ import annotations

from engine.graph import Copy, Graph, Result, Scratch, Vertex, vertex
from engine.solver.plan import plan


def test_a_step_that_two_take_is_walked_once() -> None:
    """64 steps, each of which takes the one below twice: as a tree they would be 2^64."""
    steps: list[Vertex] = [vertex(Scratch(), (), "FROM scratch")]
    for number in range(64):
        below = steps[-1].digest
        steps.append(vertex(Copy(("/a",), f"/{number}", from_context=False), (below, below), f"COPY {number}"))
    graph = Graph(tuple(steps), (Result(steps[-1].digest, "linux/amd64", {}),))
    found = plan(graph, {})
    assert found.run == tuple(steps)
    assert (found.cached, found.skipped) == ((), ())
    assert found.needed == {step.digest for step in steps}
    rest = plan(graph, {}, done={steps[60].digest})
    assert rest.run == tuple(steps[61:]), "what is here from before ends the walk"
