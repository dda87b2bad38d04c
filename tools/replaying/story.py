"""What the log says of one build, as whoever bundles or replays it needs it. Reads events only: no file, no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from engine.graph import ContextSource, Graph, Vertex, vertex
from engine.refs.ref import SCRATCH, Layer, layers_from_json
from engine.refs.source import of_source
from engine.stored import graph_from_json
from projections.fields import BAD_EVENT
from projections.history import BuildRecord
from storage.digest import Digest, parse_json
from storage.errors import InputError, VerificationError
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.log import Event, EventLog

Json = dict[str, Any]
_BEHIND = frozenset({"LocalCreated", "RemoteCreated", "BlobCreated", "ContextKept", "CacheRecorded"})


@dataclass(frozen=True, slots=True)
class Execution:
    """The last attempt of one step. `state`: running, done, failed or cancelled; `inputs` and `outputs`: ref ids."""

    vertex: str
    name: str
    inputs: tuple[str, ...]
    attempt: int
    seq: int
    state: str = "running"
    outputs: tuple[str, ...] = ()
    error: str = ""
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """Where contents of context files stay (see the event ContextKept)."""

    layer: Layer | None
    packs: tuple[Digest, ...]


@dataclass(slots=True)
class Story:
    """One build. `events`: its own, in order; `behind`: those of others that say what its refs and kept files are;
    `executions` by vertex; `results`: ref ids by vertex, executed or cached; `listings`: by step and context vertex,
    what the step took of it; `refs`: layers by ref id; `packed`: by snapshot, its diff ID and
    the blob that holds it as it was; `kept`: by listing, where its files are."""

    record: BuildRecord
    events: list[Event]
    behind: list[Event] = field(default_factory=list)
    started: Json = field(default_factory=dict)
    definition: str = ""
    filename: str = "Dockerfile"
    graph: str = ""
    executions: dict[str, Execution] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)
    listings: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    refs: dict[str, tuple[Layer, ...]] = field(default_factory=dict)
    packed: dict[str, tuple[Digest, Descriptor]] = field(default_factory=dict)
    kept: dict[str, list[Kept]] = field(default_factory=dict)
    failed: str | None = None
    error: str = ""
    exit_code: int | None = None
    taints: dict[str, list[str]] = field(default_factory=dict)

    @property
    def told(self) -> list[Event]:
        """All of its events, also those of others, in order: what travels with the build."""
        return sorted((*self.events, *self.behind), key=lambda event: event.seq)

    @property
    def unfinished(self) -> list[Execution]:
        """The step at fault; where the build ended otherwise, those that it did not end."""
        failed = [item for item in self.executions.values() if item.state == "failed"]
        if failed or self.record.status in {"completed", "failed"}:
            return failed
        return [item for item in self.executions.values() if item.state in {"running", "cancelled"}]


def read_story(log: EventLog, record: BuildRecord) -> Story:
    """Fold the events of the build. Raises LogError, VerificationError for events that are not what they should be."""
    own = log.read(after=record.first_seq - 1, until=record.last_seq)
    story = Story(record, [event for event in own if event.build == record.id])
    try:
        for event in story.events:
            _apply(story, event)
        wanted = _named(story)
        for event in log.read(types=_BEHIND):
            if event.build != record.id and _concerns(event, wanted):
                story.behind.append(event)
            if _concerns(event, wanted) or event.build == record.id:
                _learn(story, event)
    except BAD_EVENT as error:
        raise VerificationError(f"build {record.id}: an event is not what it should be: {error!r}") from error
    return story


# ---------------------------------------------------------------- folding


def _apply(story: Story, event: Event) -> None:
    data, where = event.data, event.vertex or ""
    match event.type:
        case "BuildStarted":
            options = data.get("options", {})
            if not all(isinstance(one, dict) for one in (options, data.get("host", {}), options.get("args", {}))):
                raise TypeError("its options or its host are none")
            story.started, story.definition = {**data, "frontend": _text(data["frontend"])}, _text(data["definition"])
            story.filename = _text(data.get("filename", ""))
        case "DefinitionRead":
            story.definition, story.filename = _text(data["definition"]), _text(data["filename"])
        case "GraphDefined":
            story.graph = _text(data["graph"])
        case "VertexStarted":
            story.executions[where] = Execution(
                where, _text(data["name"]), _texts(data["inputs"]), _number(data.get("attempt", 1)), event.seq
            )
        case "VertexCompleted" | "VertexFailed" | "VertexCancelled":
            _ended(story, event)
        case "VertexCached":
            story.results[where] = _texts(data["outputs"])[0]
        case "ContextScanned":
            story.listings.setdefault(_text(data.get("step", "")), []).append((where, _text(data["listing"])))
        case "BuildFailed":
            story.failed = None if data["vertex"] is None else _text(data["vertex"])
            story.error, story.exit_code = _text(data["error"]), _number(data.get("exit_code", 1))
        case "SecretMounted" | "AgentForwarded" | "CacheMountUsed":
            story.taints.setdefault(where, []).append(f"{event.type}:{data['id']}")
        case _:
            pass


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("what should be text is none")
    return value


def _texts(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(map(_text, values))


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError("what should be a number is none")
    return value


def _ended(story: Story, event: Event) -> None:
    where, data = event.vertex or "", event.data
    begun = story.executions.get(where) or Execution(where, _text(data["name"]), (), 1, event.seq)
    outputs, status = _texts(data.get("outputs", ())), data.get("exit_code")
    state = {"VertexCompleted": "done", "VertexFailed": "failed"}.get(event.type, "cancelled")
    story.executions[where] = Execution(
        where, begun.name, begun.inputs, begun.attempt, begun.seq, state, outputs,
        _text(data.get("error", "")), None if status is None else _number(status),
    )  # fmt: skip
    if state == "done" and outputs:
        story.results[where] = outputs[0]


def _named(story: Story) -> frozenset[str]:
    """Refs and listings that the build speaks of."""
    names = {ref for item in story.executions.values() for ref in (*item.inputs, *item.outputs)}
    names |= set(story.results.values())
    return frozenset(names | {listing for taken in story.listings.values() for _, listing in taken})


def _concerns(event: Event, wanted: frozenset[str]) -> bool:
    return event.data.get("ref") in wanted or event.data.get("listing") in wanted


def _learn(story: Story, event: Event) -> None:
    data = event.data
    match event.type:
        case "RemoteCreated":
            providers = tuple(Provider.from_json(item) for item in data["providers"])
            layers = layers_from_json(data["layers"])
            story.refs[data["ref"]] = tuple(replace(item, providers=item.providers or providers) for item in layers)
        case "LocalCreated":
            story.refs[data["ref"]] = layers_from_json(data["layers"])
        case "CacheRecorded":
            story.refs.setdefault(data["ref"], layers_from_json(data["layers"]))
        case "BlobCreated" if data.get("snapshot") and data.get("epoch") is None:
            # an eStargz has files beside the step's: only where there is nothing else
            if not str(data.get("compression", "")).startswith("estargz") or data["snapshot"] not in story.packed:
                blob = {"mediaType": data["media_type"], "digest": data["digest"], "size": data["bytes"]}
                story.packed[data["snapshot"]] = Digest(data["diff_id"]), Descriptor.from_json(blob)
        case "ContextKept":
            packs = tuple(map(Digest, _texts(data.get("packs", ()))))
            story.kept.setdefault(data["listing"], []).append(Kept(_layer(_text(data["layer"])), packs))
        case _:
            pass


def _layer(name: str) -> Layer | None:
    """The layer that ContextKept names: a snapshot, or a diff ID; "" for none."""
    if not name:
        return None
    return Layer(diff_id=Digest(name)) if name.startswith(("sha256:", "sha512:")) else Layer(snapshot=name)


def as_packed(story: Story, layer: Layer) -> Layer:
    """`layer` with the blob it was packed into as it was, if the log knows one."""
    packed = story.packed.get(layer.snapshot) if layer.snapshot and layer.blob is None else None
    return layer if packed is None else replace(layer, diff_id=packed[0], blob=packed[1])


def layers_of(story: Story, ref: str) -> tuple[Layer, ...]:
    """The layers of a ref that the build speaks of. Raises InputError."""
    if ref == SCRATCH:
        return ()
    if ref not in story.refs:
        raise InputError(f"the log does not say what ref {ref[:80]!r} is made of", where=f"build {story.record.id}")
    return story.refs[ref]


# ---------------------------------------------------------------- its graph


def read_graph(story: Story, blob: Callable[[Digest], bytes]) -> Graph | None:
    """The stored graph, each vertex checked against its digest; None when the build ended before it had one. The story
    learns what its sources are made of. Raises VerificationError."""
    if not story.graph:
        return None
    try:
        graph = graph_from_json(parse_json(blob(Digest(story.graph))))
    except FileNotFoundError as error:
        raise VerificationError(
            f"the graph of build {story.record.id} is not here: {story.graph}",
            hint="if it was redacted or pruned, `refledger events --type Pruned` says by whom",
        ) from error
    except BAD_EVENT as error:
        raise VerificationError(f"the graph of build {story.record.id} is damaged: {error!r}") from error
    seen: set[Digest] = set()
    for item in graph.vertices:
        if vertex(item.op, item.inputs, item.name).digest != item.digest or not seen.issuperset(item.inputs):
            raise VerificationError(f"the graph of build {story.record.id} has a vertex that is not its digest's")
        seen.add(item.digest)
        if (ref := of_source(item.op)) is not None:  # reason: the log says it of those only that a step asked for
            story.refs.setdefault(ref.id, ref.layers)
    if any(result.vertex not in seen for result in graph.results):
        raise VerificationError(f"the graph of build {story.record.id} has a result without a vertex")
    return graph


def learn_results(story: Story, graph: Graph) -> None:
    """Results that the build did not make but stood on, as one that replays another does: its steps name them."""
    contexts = {context for taken in story.listings.values() for context, _ in taken}
    steps = {str(step.digest): step for step in graph.vertices}
    for item in story.executions.values():
        step = steps.get(item.vertex)  # fetching a context, or storing a layer, is no step of the graph
        if step is None:
            continue
        inputs = [digest for digest in step.inputs if digest not in contexts and not _is_context(graph, digest)]
        if len(inputs) == len(item.inputs):
            for digest, ref in zip(inputs, item.inputs, strict=True):
                story.results.setdefault(str(digest), ref)


def _is_context(graph: Graph, digest: Digest) -> bool:
    return isinstance(graph.by_digest[digest].op, ContextSource)


def closure(graph: Graph, roots: Iterable[Digest]) -> list[Vertex]:
    """`roots` and all they stand on, inputs first."""
    wanted, queue = set[Digest](), list(roots)
    while queue:
        digest = queue.pop()
        if digest not in wanted:
            wanted.add(digest)
            queue.extend(graph.by_digest[digest].inputs)
    return [item for item in graph.vertices if item.digest in wanted]
