"""What one build asked of the cache, in the open: its steps, their keys' components, and the files behind those.

Folded from the build's events and the blobs they name; everything is read, nothing is written (I13).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from projections.fields import BAD_EVENT, git_name, integer, malformed, mapping, maybe_text, objects, size, text, texts
from projections.history import BuildRecord
from projections.steps import provider_names
from storage.digest import Digest, parse_json
from storage.errors import VerificationError
from storage.interfaces.log import Event, EventLog, worded

Json = dict[str, Any]
Component = tuple[str, str]
T = TypeVar("T")
_PREFIX = re.compile(r"^\[[^\]]*\] ")
_KINDS = frozenset({
    "BuildStarted", "DefinitionRead", "GraphDefined", "SourceResolved", "HttpResolved", "GitResolved", "ContextScanned",
    "CacheQueried", "VertexCached", "VertexStarted", "VertexCompleted", "VertexFailed", "VertexCancelled",
    "BuildCompleted", "CacheImported", "CacheImportFailed", "ProviderLost", "MaterializationFailed", "LocalLost",
    "HitRevoked",
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
    """A CacheQueried of a step. `components`: digest of the plaintext key; `by` definition or content; `importer`: the
    cache source that knew a hit, "" for this root."""

    key: str
    components: str
    outcome: str
    reason: str
    ref: str
    origin_build: str
    seq: int
    by: str = "definition"
    importer: str = ""


@dataclass(frozen=True, slots=True)
class Loss:
    """Bytes that could not be had. `name`: digest of a blob or id of a snapshot; `provider` "" for this disk; `kind`
    missing, auth, transport, corrupt, disk or vanished, "" when it is not told."""

    name: str
    ref: str
    provider: str
    kind: str
    error: str
    seq: int


@dataclass(frozen=True, slots=True)
class Import:
    """A `--cache-from`: `source` as written, and the `records` it has, or the `error` that it could not be read for."""

    source: str
    records: int
    error: str = ""


@dataclass(slots=True)
class Build:
    """The facts of one build, by vertex. `asked` by definition, `by_content` what was asked later, when it was known
    what the step takes; `contexts`: the vertices that stand for directories; `targets` of the graph; `states`: how each
    step ended (cached, done, failed, cancelled, interrupted); `sources`: as in SourceResolved, HttpResolved,
    GitResolved; `losses`: what providers and this disk did not have; `revoked`: hits that could not be used for one."""

    record: BuildRecord
    options: Json = field(default_factory=dict)
    definition: str = ""
    steps: dict[str, Step] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)
    by_content: dict[str, Asked] = field(default_factory=dict)
    contexts: set[str] = field(default_factory=set)
    targets: list[str] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    sources: dict[tuple[str, str], str] = field(default_factory=dict)
    results: list[Json] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    revoked: dict[str, Loss] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The build's id."""
        return self.record.id

    @property
    def dry(self) -> bool:
        """Did it only tell what would run?"""
        return bool(self.options.get("cache_check"))

    def answer(self, vertex: str) -> Asked | None:
        """What the cache said last of the step."""
        return self.by_content.get(vertex) or self.asked.get(vertex)

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
            build.options, build.definition = worded(mapping(data, "options")), text(data, "definition", "")
        case "DefinitionRead":
            build.definition = text(data, "definition", "")
        case "GraphDefined":
            _read_graph(build, text(data, "graph"), blobs)
        case "ContextScanned":
            build.contexts.add(vertex)
        case "CacheQueried":
            asked = _asked(event)
            (build.by_content if asked.by == "content" else build.asked)[vertex] = asked
        case "CacheImported":
            build.imports.append(Import(text(data, "source"), size(data, "records")))
        case "CacheImportFailed":
            build.imports.append(Import(text(data, "source"), 0, text(data, "error", "") or text(data, "class", "")))
        case "SourceResolved" | "HttpResolved" | "GitResolved":
            _fold_source(build, event)
        case "ProviderLost" | "MaterializationFailed" | "LocalLost" | "HitRevoked":
            _fold_loss(build, event)
        case "BuildCompleted":
            build.results = objects(data, "results")
        case _ if event.type in _STATES:
            build.states[vertex] = _STATES[event.type]


def _asked(event: Event) -> Asked:
    data = event.data
    key = text(data, "key")
    return Asked(
        key, text(data, "components", "") or key,  # older logs name no components: their digest is the key's
        text(data, "outcome"), maybe_text(data, "reason") or "", maybe_text(data, "ref") or "",
        maybe_text(data, "origin_build") or "", event.seq, text(data, "by", "definition"), text(data, "importer", ""),
    )  # fmt: skip


def _fold_source(build: Build, event: Event) -> None:
    data = event.data
    match event.type:
        case "SourceResolved":
            build.sources[text(data, "reference"), text(data, "platform", "")] = text(data, "digest")
        case "HttpResolved":
            build.sources[text(data, "url"), ""] = text(data, "digest")
        case "GitResolved":
            build.sources[git_name(data), ""] = text(data, "commit")


def _fold_loss(build: Build, event: Event) -> None:
    data = event.data
    provider = provider_names(objects(data, "providers") or [mapping(data, "provider")])
    kind = text(data, "problem", "") if event.type == "LocalLost" else text(data, "class", "")
    name = text(data, "digest", "") or text(data, "name", "")
    loss = Loss(name, text(data, "ref", ""), provider, kind, text(data, "error", ""), event.seq)
    if event.type != "HitRevoked":
        build.losses.append(loss)
        return
    for vertex in texts(data, "reexecuted"):
        answer = build.answer(vertex)
        if answer is not None and answer.outcome == "hit":
            build.revoked[vertex] = loss


def _read_graph(build: Build, digest: str, blobs: Blobs) -> None:
    graph, build.targets = stored(blobs, digest, _vertices) or ([], [])
    number = 0
    for item in graph:
        op, (first, last) = mapping(item, "op"), item.get("lines") or (0, 0)
        _check_op(op)
        shown = op.get("op") != "scratch"
        number += shown
        vertex = text(item, "digest")
        build.steps[vertex] = Step(
            vertex, text(item, "name"), text(item, "stage", ""), (int(first), int(last)), op,
            tuple(texts(item, "inputs")), number if shown else 0,
        )  # fmt: skip
        if op.get("op") == "context":
            build.contexts.add(vertex)


def _check_op(op: Json) -> None:
    """What is asked of an op later has its shape. Raises Malformed: the graph may be a stranger's."""
    for mount in objects(op, "mounts"):
        integer(mount, "input")
    objects(op, "layers")
    texts(op, "excludes")


def _vertices(data: bytes) -> tuple[list[Json], list[str]]:
    graph = parse_json(data)
    return objects(graph, "vertices"), [text(item, "vertex") for item in objects(graph, "results")]


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


@dataclass(frozen=True, slots=True)
class Key:
    """A key that was asked for, `by` definition or content; `components` None when its plaintext is not here."""

    by: str
    digest: str
    components: tuple[Component, ...] | None


def step_keys(blobs: Blobs, build: Build, vertex: str) -> list[Key]:
    """The keys of a step, as they were asked for. Raises VerificationError."""
    found = []
    for asked in filter(None, (build.asked.get(vertex), build.by_content.get(vertex))):
        components = read_components(blobs, asked.components)
        found.append(Key(asked.by, asked.key, None if components is None else tuple(components)))
    return found


def read_listing(blobs: Blobs, digest: str) -> Mapping[str, tuple[str, ...]] | None:
    """Type, mode, content and what else a listing (ContextScanned) says, by path; None when it is not here."""
    return stored(blobs, digest, _listing)


def _listing(data: bytes) -> Mapping[str, tuple[str, ...]]:
    rows = (line.split("\t") for line in data.decode("utf-8", "replace").split("\n") if line)
    return {row[0]: tuple((*row[1:], "", "", "")[: max(len(row) - 1, 3)]) for row in rows}


def definition_text(blobs: Blobs, digest: str) -> list[str] | None:
    """The lines of a stored Dockerfile; None when it is not here."""
    return stored(blobs, digest, lambda data: data.decode("utf-8", "replace").splitlines()) if digest else []
