"""What one build asked of the cache, in the open: its steps, their keys' components, and the files behind those.

Folded from the build's events and the blobs they name; everything is read, nothing is written (I13).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from projections.fields import BAD_EVENT, malformed, mapping, maybe_text, objects, text
from projections.history import BuildRecord
from storage.digest import Digest, parse_json
from storage.errors import VerificationError
from storage.interfaces import Event, EventLog

Json = dict[str, Any]
Component = tuple[str, str]
T = TypeVar("T")
_PREFIX = re.compile(r"^\[[^\]]*\] ")
_KINDS = frozenset({
    "BuildStarted", "DefinitionRead", "GraphDefined", "SourceResolved", "HttpResolved", "GitResolved", "ContextScanned",
    "CacheQueried", "VertexCached", "VertexStarted", "VertexCompleted", "VertexFailed", "VertexCancelled",
    "BuildCompleted",
})  # fmt: skip
_STATES = {
    "VertexCached": "cached", "VertexStarted": "interrupted", "VertexCompleted": "done", "VertexFailed": "failed",
    "VertexCancelled": "cancelled",
}  # fmt: skip


class Blobs(Protocol):
    """The part of BlobStore that reading needs."""

    def get(self, digest: Digest) -> bytes:
        """All bytes, verified. Raises FileNotFoundError, VerificationError."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One vertex of the stored graph. `number` counts from 1 in the graph's order, as `refledger show` does, 0 for what
    it does not show; `title`: the name without its place (`RUN make`)."""

    vertex: str
    name: str
    stage: str
    lines: tuple[int, int]
    op: Json
    inputs: tuple[str, ...]
    number: int

    @property
    def title(self) -> str:
        """The name without `[stage 2/3]`."""
        return _PREFIX.sub("", self.name)

    @property
    def kind(self) -> str:
        """`run`, `copy`, … as in the graph."""
        return str(self.op.get("op", ""))


@dataclass(frozen=True, slots=True)
class Asked:
    """A CacheQueried of a step. `components`: digest of the plaintext key."""

    key: str
    components: str
    outcome: str
    reason: str
    ref: str
    origin_build: str
    seq: int


@dataclass(slots=True)
class Build:
    """The facts of one build, by vertex. `contexts`: the vertices that stand for directories; `states`: how each step
    ended (cached, done, failed, cancelled, interrupted); `sources`: as in SourceResolved, HttpResolved, GitResolved."""

    record: BuildRecord
    options: Json = field(default_factory=dict)
    definition: str = ""
    steps: dict[str, Step] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)
    contexts: set[str] = field(default_factory=set)
    states: dict[str, str] = field(default_factory=dict)
    sources: dict[tuple[str, str], str] = field(default_factory=dict)
    results: list[Json] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The build's id."""
        return self.record.id

    def inputs(self, vertex: str) -> list[str]:
        """The inputs whose keys are `input` components of the step's key, in that order."""
        return [item for item in self.steps[vertex].inputs if item not in self.contexts]


def read_build(log: EventLog, blobs: Blobs, record: BuildRecord) -> Build:
    """Fold the events of `record`. Raises LogError, VerificationError (a blob that is not what it is called)."""
    build = Build(record)
    for event in log.read(after=record.first_seq - 1, until=record.last_seq, types=_KINDS):
        if event.build == record.id:
            try:
                _fold(build, event, blobs)
            except BAD_EVENT as error:
                raise malformed(event, error) from error
    return build


def _fold(build: Build, event: Event, blobs: Blobs) -> None:
    data, vertex = event.data, event.vertex or ""
    match event.type:
        case "BuildStarted":
            build.options, build.definition = mapping(data, "options"), text(data, "definition", "")
        case "DefinitionRead":
            build.definition = text(data, "definition", "")
        case "GraphDefined":
            _read_graph(build, text(data, "graph"), blobs)
        case "SourceResolved":
            build.sources[text(data, "reference"), text(data, "platform", "")] = text(data, "digest")
        case "HttpResolved":
            build.sources[text(data, "url"), ""] = text(data, "digest")
        case "GitResolved":
            build.sources[f"{text(data, 'remote')}#{text(data, 'ref', '')}".rstrip("#"), ""] = text(data, "commit")
        case "ContextScanned":
            build.contexts.add(vertex)
        case "CacheQueried":
            key = text(data, "key")
            build.asked[vertex] = Asked(
                key, text(data, "components", "") or key, text(data, "outcome"), maybe_text(data, "reason") or "",
                maybe_text(data, "ref") or "", maybe_text(data, "origin_build") or "", event.seq,
            )  # fmt: skip  # older logs name no components: their digest is the key's
        case "BuildCompleted":
            build.results = objects(data, "results")
        case _ if event.type in _STATES:
            build.states[vertex] = _STATES[event.type]


def _read_graph(build: Build, digest: str, blobs: Blobs) -> None:
    graph = stored(blobs, digest, _vertices)
    number = 0
    for item in graph or []:
        op, lines = mapping(item, "op"), item.get("lines") or (0, 0)
        shown = op.get("op") != "scratch"
        number += shown
        vertex = text(item, "digest")
        build.steps[vertex] = Step(
            vertex, text(item, "name"), text(item, "stage", ""), (int(lines[0]), int(lines[1])), op,
            tuple(map(str, item.get("inputs", ()))), number if shown else 0,
        )  # fmt: skip
        if op.get("op") == "context":
            build.contexts.add(vertex)


def _vertices(data: bytes) -> list[Json]:
    return objects(parse_json(data), "vertices")


# ---------------------------------------------------------------- blobs


def stored(blobs: Blobs, digest: str, read: Callable[[bytes], T]) -> T | None:
    """What `read` makes of blob `digest`; None when it is not here. Raises VerificationError."""
    try:
        data = blobs.get(Digest(digest))
    except FileNotFoundError:
        return None
    try:
        return read(data)
    except BAD_EVENT as error:
        raise VerificationError("a stored fact cannot be read", where=digest, hint="use an intact root") from error


def read_components(blobs: Blobs, digest: str) -> list[Component] | None:
    """The ordered components of a key; None when they are not here. Raises VerificationError."""
    return stored(blobs, digest, lambda data: [(str(name), str(value)) for name, value in parse_json(data)])


def read_listing(blobs: Blobs, digest: str) -> Mapping[str, tuple[str, ...]] | None:
    """Type, mode, content and what else a listing (ContextScanned) says, by path; None when it is not here."""
    return stored(blobs, digest, _listing)


def _listing(data: bytes) -> Mapping[str, tuple[str, ...]]:
    rows = (line.split("\t") for line in data.decode("utf-8", "replace").split("\n") if line)
    return {row[0]: tuple((*row[1:], "", "", "")[: max(len(row) - 1, 3)]) for row in rows}


def definition_text(blobs: Blobs, digest: str) -> list[str] | None:
    """The lines of a stored Dockerfile; None when it is not here."""
    return stored(blobs, digest, lambda data: data.decode("utf-8", "replace").splitlines()) if digest else []
