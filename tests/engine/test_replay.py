"""Replays that find what they were given gone after all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.errors import MaterializationError, RefledgerError, RegistryError
from engine.events import HitRevoked, VertexFailed, VertexStarted
from engine.grants import NOTHING
from engine.graph import Graph, ImageSource, Vertex, VertexError, vertex
from engine.ops.executor import Outcome, Task
from engine.refs.ref import Layer, Remote
from engine.replay import TRIES, Replayer, survey
from storage.blobs import DirectoryBlobs
from storage.digest import sha256
from storage.interfaces.images import Provider
from tests.engine.solver.kit import Losing, Nothing, Recorded, vertex_of


def nothing(_steps: Sequence[Vertex]) -> None:
    """No step took anything of a context."""


def replay(tmp_path: Path, times: int, *, image: bool = False) -> tuple[list[str], dict[str, str]]:
    """Replay `last`, which stands on `made`, or on an image, whose layer is lost so many times, and takes of `beside`;
    what ran, and the results by step."""
    base = vertex_of("scratch")
    made, beside = vertex_of("made", base), vertex_of("beside", base)
    if image:
        made = vertex(ImageSource("i", sha256(b"m"), "linux/amd64", Provider.of("h.example", "i"), ()), (), "made")
    last = vertex_of("last", made, beside)
    graph = Graph((base, made, beside, last), ())
    known = {one.digest: Remote(ref := f"b0-{one.name}-1", (Layer(snapshot=ref),)) for one in (made, beside)}
    facts = Recorded()
    replayer = Replayer(
        "b1", facts, Losing("last", times), DirectoryBlobs(tmp_path, owner="b1"), Nothing(), {}, nothing, 2, None,
        NOTHING, lambda: pytest.fail("nothing is emulated"),
    )  # fmt: skip
    refs = asyncio.run(replayer.run(graph, [last.digest], known))
    return facts.started(), {graph.by_digest[digest].name: ref.id for digest, ref in refs.items()}


def test_what_is_here_is_not_made_again(tmp_path: Path) -> None:
    ran, refs = replay(tmp_path, 0)
    assert (ran, refs["made"]) == (["last"], "b0-made-1")


def test_I8_a_given_result_that_is_lost_is_made_again(tmp_path: Path) -> None:
    ran, refs = replay(tmp_path, 1)
    assert ran == ["last", "made", "last"]
    assert refs["made"].startswith("b1-")
    assert refs["beside"] == "b0-beside-1"


def test_what_is_lost_again_though_it_was_just_made_ends_the_replay(tmp_path: Path) -> None:
    with pytest.raises(VertexError) as caught:
        replay(tmp_path, 4)
    assert isinstance(caught.value.cause, MaterializationError)


def test_an_image_cannot_be_made_again(tmp_path: Path) -> None:
    with pytest.raises(VertexError):
        replay(tmp_path, 1, image=True)


class LosingEach(Losing):
    """Finds every given result gone, one after the other."""

    async def execute(self, task: Task) -> Outcome:
        for ref in task.inputs:
            if ref.id.startswith("b0-"):
                raise MaterializationError(f"{ref.id} is gone", kind="missing", layer=ref.layers[-1].name)
        return await super().execute(task)


def test_I8_of_several_given_results_that_are_lost_each_is_made_once(tmp_path: Path) -> None:
    base = vertex_of("scratch")
    given = [vertex_of(f"given {number}", base) for number in range(TRIES + 2)]
    last = vertex_of("last", *given)
    known = {one.digest: Remote(name := f"b0-{number}-1", (Layer(snapshot=name),)) for number, one in enumerate(given)}
    facts, restored = Recorded(), list[str]()
    replayer = Replayer(
        "b1", facts, LosingEach("", 0), DirectoryBlobs(tmp_path, owner="b1"), Nothing(), {},
        lambda steps: restored.extend(step.name for step in steps), 2, None, NOTHING,
        lambda: pytest.fail("nothing is emulated"),
    )  # fmt: skip
    refs = asyncio.run(replayer.run(Graph((base, *given, last), ()), [last.digest], known))
    names = sorted(one.name for one in given)
    assert sorted(name for name in facts.started() if name != "last") == names
    assert sorted(name for name in restored if name.startswith("given")) == names  # what they take, before they run
    assert restored.count("last") == 1
    assert facts.started().count("last") == len(given) + 1
    assert all(refs[one.digest].id.startswith("b1-") for one in given)
    assert [fact.attempt for fact in facts.of(VertexStarted) if fact.name == "last"] == [*range(1, len(given) + 2)]
    assert [fact.ref for fact in facts.of(HitRevoked)] == [known[one.digest].id for one in given]
    assert facts.of(VertexFailed) == []


def test_I8_what_was_made_and_holds_what_is_lost_is_made_again_too(tmp_path: Path) -> None:
    base = vertex_of("scratch")
    first, other = vertex_of("first", base), vertex_of("other", base)
    second = vertex_of("second", first)
    last = vertex_of("last", second, other)
    facts = Recorded()

    class Bottom(Losing):
        async def execute(self, task: Task) -> Outcome:
            if task.vertex.name == self.consumer and self.times:
                self.times -= 1
                layer = task.inputs[0].layers[0].name
                raise MaterializationError(f"{layer} is gone", kind="missing", layer=layer)
            return await super().execute(task)

    replayer = Replayer(
        "b1", facts, Bottom("last", 1), DirectoryBlobs(tmp_path, owner="b1"), Nothing(), {}, nothing, 2, None, NOTHING,
        lambda: pytest.fail("nothing is emulated"),
    )  # fmt: skip
    graph = Graph((base, first, second, other, last), ())
    wanted = [first.digest, second.digest, other.digest, last.digest]
    refs = asyncio.run(replayer.run(graph, wanted, {}))
    ran = facts.started()
    assert {name: ran.count(name) for name in ran} == {"first": 2, "second": 2, "other": 1, "last": 2}
    assert refs.keys() >= set(wanted)
    assert refs[first.digest].id.endswith("-2")  # an execution of its own




@pytest.mark.parametrize(
    "error",
    [MaterializationError("the disk is full", kind="disk", layer="b0-made-1"), RegistryError("no", kind="transport")],
)
def test_a_failure_that_is_no_loss_is_not_tried_again(tmp_path: Path, error: RefledgerError) -> None:
    class Failing(Losing):
        async def execute(self, task: Task) -> Outcome:
            raise error

    made = vertex_of("made", vertex_of("scratch"))
    last, facts = vertex_of("last", made), Recorded()
    replayer = Replayer(
        "b1", facts, Failing("", 0), DirectoryBlobs(tmp_path, owner="b1"), Nothing(), {}, nothing, 2, None, NOTHING,
        lambda: pytest.fail("nothing is emulated"),
    )  # fmt: skip
    known = {made.digest: Remote("b0-made-1", (Layer(snapshot="b0-made-1"),))}
    with pytest.raises(VertexError) as caught:
        asyncio.run(replayer.run(Graph((made, last), ()), [last.digest], known))
    assert (caught.value.cause, facts.started()) == (error, ["last"])


def test_where_the_layers_of_a_result_come_from_and_who_is_asked() -> None:
    """A layer's own place first; of what is nowhere near, its providers are asked, together."""
    names = ("mountable", "stored", "bundled", "unpacked", "elsewhere", "gone")
    layers = {name: Layer(snapshot=name) for name in names}
    bundled = {name: Layer(snapshot=name, created=7) for name in ("bundled", "unpacked", "mountable")}
    asked: list[Layer] = []

    async def absent(wanted: Sequence[Layer]) -> dict[str, str]:
        asked.extend(wanted)
        return {"gone": "404"}

    found = asyncio.run(
        survey(
            "ref", tuple(layers.values()), bundled, lambda layer: layer in (layers["mountable"], bundled["unpacked"]),
            lambda layer: layer == layers["stored"], absent,
        )
    )  # fmt: skip
    assert [(place.layer, place.kind) for place in found.places] == [
        (layers["mountable"], "here"), (layers["stored"], "here"), (bundled["bundled"], "bundle"),
        (bundled["unpacked"], "here"), (layers["elsewhere"], "provider"), (layers["gone"], "nowhere"),
    ]  # fmt: skip
    assert asked == [layers["elsewhere"], layers["gone"]]
    assert (found.obtainable, found.remote.id, len(found.remote.layers)) == (False, "ref", 6)
