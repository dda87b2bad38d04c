"""Graphs read from their stored form: those of this root, and those that come with a bundle, from whomever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.graph import OPS, Graph, HistoryStep, ImageLayer, InlineFile, Json, Mount, Op, Result, Vertex
from engine.record import R
from storage.digest import Digest
from storage.interfaces.images import Provider


def graph_from_json(data: Mapping[str, Any]) -> Graph:
    """The inverse of `Graph.to_json`. Raises KeyError, TypeError, ValueError or InputError on anything else."""
    vertices = tuple(
        Vertex(
            Digest(v["digest"]), op_from_json(v["op"]), tuple(Digest(i) for i in v["inputs"]),
            _text(v["name"]), _text(v["stage"]), _lines(*v["lines"]),
        )
        for v in data["vertices"]
    )  # fmt: skip
    results = tuple(
        Result(
            Digest(r["vertex"]), _text(r["platform"]), _object(r["image"]), tuple(map(_object, r["base_history"])),
            tuple(
                HistoryStep(_text(h["created_by"]), Digest(h["vertex"]) if h["vertex"] else None, _text(h["comment"]))
                for h in r["history"]
            ),
            _object(r.get("annotations", {})),
        )
        for r in data["results"]
    )  # fmt: skip
    return Graph(vertices, results)


def op_from_json(data: Mapping[str, Any]) -> Op:
    """The inverse of `op_to_json`. Raises KeyError, TypeError or InputError on anything else: graphs come with bundles,
    from whomever."""
    cls = OPS[data["op"]]
    values: Json = {key: data[key] for key in cls.FIELDS if key in data}
    decoders: dict[str, Any] = {
        "manifest": Digest,
        "provider": Provider.from_json,
        "layer": ImageLayer.from_json,
        "layers": lambda items: tuple(ImageLayer.from_json(item) for item in items),
        "files": lambda items: tuple(_typed(InlineFile(item["name"], item["data"])) for item in items),
        "scripts": lambda items: tuple(_typed(InlineFile(item["name"], item["data"])) for item in items),
        "env": lambda items: tuple((key, value) for key, value in items),
        "mounts": lambda items: tuple(_typed(Mount(**item)) for item in items),
    }
    for key, value in values.items():
        if key in decoders:
            values[key] = decoders[key](value)
        elif isinstance(value, list):
            values[key] = tuple(value)
    op: Op = _typed(cls(**values))
    return op


def _typed(record: R) -> R:
    """`record`, whose plain fields have the types that they promise. Raises TypeError."""
    for name, kind in type(record).__annotations__.items():
        value = getattr(record, name)
        plain = _PLAIN.get(kind, object)
        items = [*value] if kind.startswith("tuple[") else [value]
        if kind == "tuple[tuple[str, str], ...]":
            items = [part for pair in items for part in pair]
        if any(type(item) is not plain for item in items if plain is not object):
            raise TypeError(f"{name} is {value!r:.80}")
    return record


_PLAIN: Mapping[str, type] = {
    "str": str, "bool": bool, "int": int, "tuple[str, ...]": str, "tuple[tuple[str, str], ...]": str, "MountKind": str,
    "Sharing": str, 'Literal["host", "none"]': str, 'Literal["sandbox", "insecure"]': str,
}  # fmt: skip


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r:.80} is no text")
    return value


def _lines(first: Any, last: Any) -> tuple[int, int]:
    if type(first) is not int or type(last) is not int:
        raise TypeError(f"{first!r:.80} and {last!r:.80} are no lines")
    return first, last


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.80} is no object")
    return value
