"""What failed, was tried again or called off in a build; what differs from the one before; where the record ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from engine.events import TYPES
from projections.asked import Blobs, Build
from projections.audit.index import AuditIndex, Checkpoint
from projections.audit.statements import (
    BEGUN,
    DIGEST_ONLY,
    LAID_OUT,
    NEVER,
    PART,
    Attempt,
    Difference,
    Gap,
    Layer,
    Step,
)
from projections.audit.told import Told
from projections.changes import Change, Hides
from projections.difference import difference
from projections.fields import git_name, integer, mapping, objects, size, text, texts
from projections.steps import provider_name, provider_names
from storage.interfaces.log import Event

_FAILED = (
    "VertexFailed", "VertexCancelled", "PullFailed", "ProviderLost", "HitRevoked", "LocalLost", "MaterializationFailed",
    "CacheImportFailed", "CacheExportFailed", "BuildFailed", "BuildCancelled", "BuildInterrupted",
)  # fmt: skip


def attempts(told: Told) -> list[Attempt]:
    """In the log's order. Raises LogError."""
    found: list[Attempt] = []
    for event in told.all(*_FAILED, "VertexStarted", "SourceTried", "LayerPulled"):
        data = event.data
        attempt = integer(data, "attempt", 1) or 1
        resumed = size(data, "resumed_from") if event.type == "LayerPulled" else 0
        if event.type == "VertexStarted" and attempt < 2:
            continue
        if event.type == "SourceTried" and text(data, "outcome", "") == "ok":
            continue
        if event.type == "LayerPulled" and not resumed:
            continue
        detail = f"taken up again at byte {resumed}" if resumed else _detail(event)
        found.append(
            Attempt(event.type, _name(event), told.number(event.vertex or _at_fault(event)), attempt, detail,
                    event.time, (event.seq,))
        )  # fmt: skip
    return found


def _at_fault(event: Event) -> str | None:
    vertex = event.data.get("vertex")
    return vertex if isinstance(vertex, str) else None


def _name(event: Event) -> str:
    keys = ("digest", "name", "source", "target", "ref")
    return next((text(event.data, key) for key in keys if event.data.get(key)), "")


def _detail(event: Event) -> str:
    data = event.data
    if event.type == "VertexStarted":
        return "started again"
    if event.type == "HitRevoked":
        return f"{len(texts(data, 'reexecuted'))} steps are made anew: {text(data, 'error', '') or 'it is gone'}"
    who = provider_names(objects(data, "providers")) or provider_name(mapping(data, "provider"))
    why = text(data, "class", "") or text(data, "outcome", "") or text(data, "problem", "") or text(data, "kind", "")
    said = text(data, "error", "") or text(data, "reason", "") or text(data, "detail", "")
    status = integer(data, "status") if event.type == "SourceTried" else None
    return ": ".join(filter(None, (text(data, "verb", ""), who, f"{why} {status or ''}".strip(), said)))


# ---------------------------------------------------------------- the build before


def differences(told: Told, blobs: Blobs, hides: Hides) -> list[Difference]:
    """What differs from the build before of the same thing. Raises LogError, VerificationError."""
    old, new = told.why.against, told.why.build
    if old is None:
        return []
    found = difference(blobs, old, new, hides, told.why.records)
    before, after = _proofs(_events(told, old)), _proofs(told.all(*_PROVE))

    def proof(*names: str) -> tuple[int, ...]:
        return tuple(seq for side in (before, after) for name in names for seq in side.get(name, ()))

    out = [Difference("option", item.name, item.old, item.new, proof("BuildStarted")) for item in found.options]
    out += [Difference("source", item.name, item.old, item.new, proof(item.name)) for item in found.sources]
    if old.definition != new.definition:
        told_by = proof("BuildStarted", "DefinitionRead")
        out.append(Difference("definition", new.record.filename, old.definition, new.definition, told_by))
        out += [
            Difference("definition", "line", line[1:], None, told_by) if line.startswith("-")
            else Difference("definition", "line", None, line[1:], told_by)
            for line in found.definition if not line.startswith("@@")
        ]  # fmt: skip
    for step in found.steps:
        vertex = step.step.vertex
        seqs = tuple(answer.seq for side in (old, new) if (answer := side.answer(vertex)))
        out += [
            Difference("step", f"{step.step.name}: {_component(change)}", change.old, change.new, seqs)
            for change in step.changes if change.component != "input"
        ]  # fmt: skip
        if step.change != "changed":
            was, now = (None, step.change) if step.change == "added" else (step.change, None)
            out.append(Difference("step", step.step.name, was, now, seqs))
    out += [Difference("result", item.name, item.old, item.new, proof("BuildCompleted")) for item in found.results]
    return out


def _component(change: Change) -> str:
    files = ", ".join(f"{file.path} {file.change}" for file in change.files[:5])
    more = f" and {len(change.files) - 5} more" if len(change.files) > 5 else ""
    return f"{change.component} ({files}{more})" if files else change.component


_PROVE = ("BuildStarted", "DefinitionRead", "SourceResolved", "HttpResolved", "GitResolved", "BuildCompleted")


def _events(told: Told, build: Build) -> list[Event]:
    record = build.record
    read = told.log.read(after=record.first_seq - 1, until=record.last_seq, types=frozenset(_PROVE))
    return [event for event in read if event.build == record.id]


def _proofs(events: Sequence[Event]) -> Mapping[str, list[int]]:
    """Events by type, and those of sources by name, as projections.difference calls them."""
    found: dict[str, list[int]] = {}
    for event in events:
        data = event.data
        match event.type:
            case "SourceResolved":
                name = " ".join(filter(None, (text(data, "reference"), text(data, "platform", ""))))
            case "HttpResolved":
                name = text(data, "url")
            case "GitResolved":
                name = git_name(data)
            case _:
                name = event.type
        found.setdefault(name, []).append(event.seq)
    return found


# ---------------------------------------------------------------- gaps


def gaps(told: Told, steps: Sequence[Step], layers: Sequence[Layer], checkpoint: Checkpoint | None) -> list[Gap]:
    """Where the record is incomplete, or proves less than one may think. Raises LogError."""
    believed = _unproven(told, steps, layers)
    return [*_ends(told), *_redacted(told), *_unread(told), *believed, *_uncovered(told, checkpoint)]


def _ends(told: Told) -> Iterator[Gap]:
    record = told.record
    if record.last_seq is None:
        yield Gap("unfinished", "it has no end in this log: it runs, or died without a word", (record.first_seq,))
    for event in told.all("BuildInterrupted"):
        yield Gap("interrupted", "its process died; what it did last may not be in the log", (event.seq,))
    for vertex, events in told.dropped.items():
        count = sum(size(event.data, "dropped") for event in events)
        what = f"step {told.number(vertex)} printed {count} bytes too fast to be kept"
        yield Gap("output", what, tuple(event.seq for event in events))


def _redacted(told: Told) -> Iterator[Gap]:
    for item in AuditIndex(told.views).redactions(told.record.id):
        values = "1 value was" if item.count == 1 else f"{item.count} values were"
        when = datetime.fromtimestamp(item.time / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")
        yield Gap("redacted", f"{values} redacted by {item.by or '?'} at {when} UTC: {item.reason}", (item.seq,))


def _unread(told: Told) -> Iterator[Gap]:
    unknown: dict[str, list[int]] = {}
    for event in told.events:
        if event.type not in TYPES:
            unknown.setdefault(event.type, []).append(event.seq)
    for name, known in unknown.items():
        yield Gap("unknown-event", f"{name} is of another version: nothing here says what it means", tuple(known))
    graphs = told.all("GraphDefined")
    if graphs and not told.why.build.steps:
        seqs = tuple(event.seq for event in graphs)
        yield Gap("graph", "the stored graph is not here: steps are told by their events, taint is not", seqs)
    for event in told.all("SourceResolved", "HttpResolved", "GitResolved"):
        if event.data.get("recalled") is True:
            name = text(event.data, "reference", "") or text(event.data, "url", "") or text(event.data, "remote", "")
            yield Gap("recalled", f"{name}: nobody was asked, an earlier event said so", (event.seq,))


def _unproven(told: Told, steps: Sequence[Step], layers: Sequence[Layer]) -> Iterator[Gap]:
    ran = [step for step in steps if step.outcome in {"executed", "failed"}]
    if ran and not told.all("RuntimeChosen") and any(step.taint for step in ran):
        seqs = tuple(seq for step in ran for seq in step.seqs[-1:])
        yield Gap("runtime", "the log does not say which OCI runtime ran these steps", seqs)
    for step in steps:
        if step.origin is not None and not step.origin.here:
            who = f"build {step.origin.build}" if step.origin.build else "a build that nobody names"
            came = f", known from {step.origin.importer}" if step.origin.importer else ""
            what = f"step {step.number} is a result of {who}{came}, which is not in this log"
            yield Gap("origin", what, step.origin.seqs or step.seqs)
    for state, name, what in (
        (NEVER, "believed", "layers never byte-verified here: {}"),
        (BEGUN, "begun", "layers whose pull began, and whose end the log does not tell: {}"),
        (LAID_OUT, "laid-out", "layers laid out here by no pull of them that the log tells of: {}"),
        (DIGEST_ONLY, "digest-only", "layers of which the digest was verified, but not the diff ID: {}"),
        (PART, "part", "layers of which only parts were verified: {}"),
    ):
        found = [layer for layer in layers if layer.state == state]
        if found:
            named = sorted({seq for layer in found for seq in layer.seqs})
            yield Gap(name, what.format(len(found)), tuple(named))


def _uncovered(told: Told, checkpoint: Checkpoint | None) -> Iterator[Gap]:
    end = told.record.last_seq or told.record.first_seq
    if checkpoint is None:
        yield Gap("checkpoint", "no signed checkpoint covers this build: whoever has the disk can rewrite it", (end,))
    elif not checkpoint.published:
        what = "no checkpoint that covers this build was published: whoever has the key can rewrite it"
        yield Gap("publication", what, checkpoint.seqs)
