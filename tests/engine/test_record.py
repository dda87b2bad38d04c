"""Records behave as frozen dataclasses do."""

from __future__ import annotations

from typing import ClassVar

import pytest

from engine.events import VertexStarted, to_data
from engine.graph import Graph, Result, Scratch, vertex
from engine.record import Record
from engine.stored import graph_from_json


class Point(Record):
    KIND: ClassVar[str] = "point"
    x: int
    y: int = 2


def test_fields_come_by_position_and_by_name_with_defaults() -> None:
    assert Point(1) == Point(x=1, y=2)
    assert Point(1, 3) != Point(1)
    assert hash(Point(1)) == hash(Point(1, 2))
    assert repr(Point(1)) == "Point(x=1, y=2)"


@pytest.mark.parametrize("given", [((), {}), ((1, 2, 3), {}), ((1,), {"z": 1})])
def test_missing_and_unknown_fields_are_refused(given: tuple[tuple[int, ...], dict[str, int]]) -> None:
    with pytest.raises(TypeError):
        Point(*given[0], **given[1])


def test_nothing_can_be_set_again() -> None:
    with pytest.raises(AttributeError):
        Point(1).x = 2


def test_the_data_of_a_fact_has_its_fields_by_name() -> None:
    assert to_data(VertexStarted(name="n", inputs=("a",))) == {"name": "n", "inputs": ["a"], "attempt": 1}


@pytest.mark.parametrize("field", ["name", "stage"])
def test_a_stored_graph_whose_names_are_no_text_is_refused(field: str) -> None:
    data = Graph((vertex(Scratch(), (), "s"),), ()).to_json()
    data["vertices"][0][field] = 7
    with pytest.raises(TypeError, match="7 is no text"):
        graph_from_json(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [("platform", 7), ("image", ["a"]), ("base_history", ["a"]), ("annotations", "a"), ("history", [{}]),
     ("history", [{"created_by": 1, "vertex": None, "comment": ""}])],
)  # fmt: skip
def test_a_stored_graph_whose_results_cannot_be_is_refused(field: str, value: object) -> None:
    scratch = vertex(Scratch(), (), "s")
    data = Graph((scratch,), (Result(scratch.digest, "linux/amd64", {}),)).to_json()
    assert graph_from_json(data).to_json() == data
    data["results"][0][field] = value
    with pytest.raises((TypeError, KeyError)):
        graph_from_json(data)


@pytest.mark.parametrize("lines", [[1], [1, 2, 3], [1, "2"], [1, 1e300], None])
def test_a_stored_graph_whose_lines_are_none_is_refused(lines: object) -> None:
    data = Graph((vertex(Scratch(), (), "s"),), ()).to_json()
    data["vertices"][0]["lines"] = lines
    with pytest.raises(TypeError):
        graph_from_json(data)
