"""A root or a bundle as a tree to walk: builds, their steps, refs, layers, files. Plain data, for `refledger browse`.

Everything is read when somebody looks at it, and every text in a node is cleaned: the log holds what builds printed.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice

from projections.asked import Blobs
from projections.history import BuildRecord, History
from projections.mentions import Mentions
from projections.progress import ProgressView, fold
from projections.refs import RefRecord, Refs, life
from projections.runner import Views
from projections.steps import Step as Shown
from projections.steps import provider_names
from projections.verdict import Verdict, Why
from projections.why import explain
from storage.errors import InputError
from storage.interfaces.log import Event, EventLog
from tools.cli.explained import all_steps, one_step
from tools.cli.missing import missing_lines
from tools.cli.why import hides
from tools.format import human_bytes, human_duration, local_time, short_id
from tools.layer_files import LIMIT, LayerFile, LayerFiles
from tools.text import clean

OUTPUT = 200
"""Last lines of a step's output that are shown."""
_REFS = frozenset({"VertexCached", "VertexCompleted", "RemoteCreated", "CacheQueried"})

Json = dict[str, object]


def _nothing() -> Sequence[Node]:
    return ()


def _no_lines(_width: int) -> Iterable[str]:
    return ()


@dataclass(frozen=True, slots=True)
class Node:
    """One thing. `title`: a line; `name`: what the way to it is called; `children`: what is in it, `lines` (for so many
    columns): what is said of it; both read what they need when they are called, and raise RefledgerError."""

    title: str
    name: str
    children: Callable[[], Sequence[Node]] = _nothing
    lines: Callable[[int], Iterable[str]] = _no_lines
    leaf: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """What is looked at: `name` for people; `only`: id of the one build that is told, None for all."""

    name: str
    log: EventLog
    views: Views
    blobs: Blobs
    files: LayerFiles
    only: str | None = None
    mentions: Mentions | None = None


def tree(source: Source) -> Node:
    """The root node: its children are the builds, the newest first."""

    def builds() -> Sequence[Node]:
        records = History(source.views).list()
        return [_Build(source, record).node() for record in records if source.only in (None, record.id)]

    return Node(clean(source.name), clean(source.name), builds)


def matching(nodes: Iterable[Node], text: str) -> list[Node]:
    """Those whose titles have every word of `text`, whatever its case."""
    words = text.casefold().split()
    return [node for node in nodes if all(word in node.title.casefold() for word in words)]


@dataclass(slots=True)
class _Build:
    """The parts of one build, each read once."""

    source: Source
    record: BuildRecord
    _why: Why | None = None
    _view: ProgressView | None = None
    _made: dict[str, list[str]] | None = field(default=None)

    def node(self) -> Node:
        record = self.record
        took = human_duration(record.ended - record.started) if record.ended else ""
        name, began = clean(record.name), local_time(record.started)
        words = [clean(short_id(record.id)), f"{record.status:<11}", began, took, name]
        return Node("  ".join(filter(None, words)), f"build {clean(short_id(record.id))}", self._children, self._lines)

    def _children(self) -> Sequence[Node]:
        steps = [_Step(self, step).node() for step in self.view().steps]
        events = Node("events", "events", lambda: [_event(event) for event in self.events()], self._event_lines)
        return [*steps, events]

    def _lines(self, width: int) -> Iterator[str]:
        if self.record.error:
            yield f"error: {clean(self.record.error)}"
        yield from missing_lines(self.view().missing)
        yield from all_steps(self.why(), self._known(), width)

    def _event_lines(self, _width: int) -> Iterator[str]:
        yield f"{len(self.events())} events of build {clean(self.record.id)}"

    def _known(self) -> dict[str, BuildRecord]:
        return {record.id: record for record in History(self.source.views).list()}

    def why(self) -> Why:
        source = self.source
        if self._why is None:
            history = History(source.views)
            self._why = explain(source.log, source.blobs, history, self.record, None, hides, source.mentions)
        return self._why

    def view(self) -> ProgressView:
        if self._view is None:
            record = self.record
            self._view = fold(
                self.source.log, record.id, after=record.first_seq - 1, until=record.last_seq, tail=OUTPUT
            )
        return self._view

    def events(self) -> list[Event]:
        log, record = self.source.log, self.record
        told = log.read(after=record.first_seq - 1, until=record.last_seq)
        return [event for event in told if event.build == record.id]

    def refs_of(self, vertex: str) -> list[str]:
        """Ids of the refs that a step gave or was found as."""
        if self._made is None:
            log, record = self.source.log, self.record
            self._made = {}
            for event in log.read(after=record.first_seq - 1, until=record.last_seq, types=_REFS):
                if event.build == record.id and event.vertex:
                    outputs = event.data.get("outputs")
                    found = outputs if isinstance(outputs, list) else [event.data.get("ref")]
                    self._made.setdefault(event.vertex, []).extend(ref for ref in found if isinstance(ref, str))
        return list(dict.fromkeys(self._made.get(vertex, ())))


@dataclass(frozen=True, slots=True)
class _Step:
    build: _Build
    step: Shown

    def node(self) -> Node:
        step = self.step
        took = human_duration(step.ended - step.started) if step.started and step.ended else ""
        words = [f"#{step.number:<3}", f"{step.state:<9}", f"{took:>6}", clean(step.name)]
        return Node(" ".join(words), f"step {step.number}", self._children, self._lines)

    def _children(self) -> Sequence[Node]:
        build, vertex = self.build, self.step.vertex
        refs = [_ref(build.source, ref) for ref in build.refs_of(vertex)]
        events = [_event(event) for event in build.events() if event.vertex == vertex]
        return [*refs, *events]

    def _lines(self, width: int) -> Iterator[str]:
        found, vertex = self.build.why(), self.step.vertex
        verdict: Verdict | None = next((item for item in found.verdicts if item.step.vertex == vertex), None)
        if vertex in found.build.steps:
            yield from one_step(found, found.build.steps[vertex], verdict, width)
        if self.step.error:
            yield f"error: {clean(self.step.error)}"
        output = [clean(line.text) for line in (*self.step.output, *self.step.rest)]
        if output:
            yield "output:"
            yield from (f"  {line}" for line in output)


def _event(event: Event) -> Node:
    shown = {key: value for key, value in event.data.items() if value not in (None, [], {}, "")}
    text = clean(json.dumps(shown, ensure_ascii=False))
    time = local_time(event.time)[11:]

    def lines(_width: int) -> Iterator[str]:
        yield f"event {event.seq}, {clean(event.type)}, {local_time(event.time)}"
        yield from (clean(line) for line in json.dumps(event.data, ensure_ascii=False, indent=2).splitlines())

    name = f"event {event.seq}"
    return Node(f"{event.seq:>6} {time} {clean(event.type)} {text}"[:2000], name, lines=lines, leaf=True)


def _short(name: str) -> str:
    """A digest in twelve characters; other ids whole: those of one build begin alike."""
    return short_id(name) if ":" in name else name


def _ref(source: Source, ref: str) -> Node:
    name = f"ref {clean(_short(ref))}"
    try:
        record = Refs(source.views).get(ref)
    except InputError:
        return Node(f"{name}  made by a build that is not told here", name, leaf=True)
    count = "1 layer" if len(record.layers) == 1 else f"{len(record.layers)} layers"
    title = f"{name}  {record.kind}, {count}, {human_bytes(record.bytes)}"

    def lines(_width: int) -> Iterator[str]:
        yield clean(record.ref)
        if record.parent:
            yield f"stands on {clean(record.parent)}"
        for item in life(source.log, record, mentions=source.mentions):
            yield f"{item.seq:>6} {local_time(item.time)[11:]} {item.type} {clean(item.summary)}"

    return Node(title, name, lambda: [_layer(source, record, at) for at in range(len(record.layers))], lines)


def _layer(source: Source, record: RefRecord, at: int) -> Node:
    layer = record.layers[at]
    name = str(layer.get("snapshot") or layer.get("diff_id") or layer.get("digest") or "?")
    form = source.files.where(layer)
    elsewhere = clean(provider_names(layer.get("providers") or record.providers))
    place = form or (f"not here: at {elsewhere}" if elsewhere else "not here")
    size = f"{human_bytes(layer['size'])}, " if isinstance(layer.get("size"), int) else ""

    @cache
    def files() -> Sequence[Node]:
        return [_file(file) for file in islice(source.files.files(layer), LIMIT)] if form else []

    def lines(_width: int) -> Iterator[str]:
        for key in ("snapshot", "digest", "diff_id", "mediaType", "created"):
            if layer.get(key):
                yield f"{key:<10} {clean(str(layer[key]))}"
        if form:
            yield f"here       as {form}"
        else:
            yield "here       no: its files cannot be listed"
        if elsewhere:
            yield f"lies at    {elsewhere}"
        elif not form:
            yield "lies at    this ref names no registry that has it"

    label = f"layer {at + 1}"
    return Node(f"{label}  {clean(_short(name))}  {size}{place}", label, files, lines, leaf=not form)


def _file(file: LayerFile) -> Node:
    path = clean(file.path) or "."
    link = f" -> {clean(file.target)}" if file.target else ""
    size = human_bytes(file.size) if file.kind == "file" else file.kind

    def lines(_width: int) -> Iterator[str]:
        yield path + link
        yield f"{file.kind}, mode {stat.S_IMODE(file.mode):04o}, owner {clean(file.owner)}, {file.size} bytes"

    return Node(f"{file.mode:04o} {size:>9} {path}{link}", path, lines=lines, leaf=True)
