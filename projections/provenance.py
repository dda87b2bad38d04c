"""How a build made what it made, from the log: SLSA provenance v1. Folded when asked for; nothing is written (I13).

Source: slsa.dev/spec/v1.0/provenance, in-toto resource_descriptor.md and digest_set.md, purl-spec (docker, generic).
What the predicate has no field for stands in fields of our own, `refledger_…`, as SLSA's parsing rules ask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from projections.asked import Blobs, Build, Step, read_build
from projections.fields import BAD_EVENT, malformed, mapping, size, text
from projections.history import BuildRecord, History
from projections.mentions import Mentions
from projections.origin import Origin, origin_of
from projections.records import Records, records_of
from projections.taint import Taint, taint_of
from storage.interfaces.log import Event, EventLog

Json = dict[str, Any]
BUILD_TYPE = "urn:refledger:build:"
"""Followed by the frontend: `dockerfile.v0` for Dockerfiles, `rebase.v0` and `append.v0` for edits of images."""
BUILDER = "urn:refledger:builder"
_SOURCES = frozenset({
    "BuildStarted", "GraphDefined", "SourceResolved", "HttpResolved", "GitResolved", "ContextScanned",
})  # fmt: skip
_PLAIN = ("target", "platforms", "network", "secrets", "ssh", "allow", "no_cache", "epoch")
_PRIVATE = ("args", "context", "contexts")
_NAMES = {"epoch": "sourceDateEpoch", "no_cache": "noCache"}


@dataclass(frozen=True, slots=True)
class _Made:
    """What became of a step: `taint` of its result; of a hit its `origin`, and whether that build is in this log."""

    step: Step
    state: str
    taint: tuple[Taint, ...]
    origin: Origin | None
    known: bool


def provenance(
    log: EventLog, blobs: Blobs, history: History, mentions: Mentions, record: BuildRecord, *, whole: bool = True,
    builder: str = BUILDER,
) -> Json:  # fmt: skip
    """The predicate of `record`, for all its images; without `whole` no arguments and steps (BuildKit's mode=min).
    Raises LogError, VerificationError (a blob that is not what it is called)."""
    build = read_build(log, blobs, record)
    events = [
        event for event in log.read(after=record.first_seq - 1, until=record.last_seq, types=_SOURCES)
        if event.build == record.id
    ]  # fmt: skip
    keys = {asked.key for found in (build.asked, build.by_content) for asked in found.values()}
    made = _steps(build, records_of(log, mentions, keys, record.last_seq), history)
    started = next((event for event in events if event.type == "BuildStarted"), None)
    assert started is not None, "a build of the history was started"
    frontend, version, options = _told(started)
    reasons = _gaps(build, events, made, whole=whole)
    dependencies = [one for event in events if (one := _dependency(event)) is not None]
    definition: Json = {"filename": record.filename}
    if build.definition:
        definition["digest"] = _digests(build.definition)
    given = (*_PLAIN, *(_PRIVATE if whole else ()))
    parameters = {_NAMES.get(key, key): options[key] for key in given if options.get(key) not in (None, "", [], {})}
    internal: Json = {"graph": _digest_text(events)} if whole else {}
    if whole:
        internal["steps"] = [_step(one) for one in made]
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE + frontend,
            "externalParameters": {"definition": definition, **parameters},
            "internalParameters": internal,
            "resolvedDependencies": list({str(one): one for one in dependencies}.values()),
        },
        "runDetails": {
            "builder": {"id": builder, "version": {"refledger": version}},
            "metadata": {
                "invocationId": record.id,
                "startedOn": _time(record.started),
                "finishedOn": _time(record.ended or _last(log, record)),
                "refledger_completeness": {
                    "parameters": whole,
                    "resolvedDependencies": not any(one["about"] == "dependencies" for one in reasons),
                    "steps": not any(one["about"] == "steps" for one in reasons),
                    "reasons": reasons,
                },
            },
        },
    }


def _told(started: Event) -> tuple[str, str, Json]:
    """Frontend, version of the engine, and options."""
    try:
        data = started.data
        return text(data, "frontend"), text(data, "engine_version", ""), mapping(data, "options")
    except BAD_EVENT as error:
        raise malformed(started, error) from error


def _last(log: EventLog, record: BuildRecord) -> int:
    """The time of the last event: of a build that goes on, what is said is said now."""
    return next((event.time for event in log.read(after=log.last_seq() - 1)), record.started)


# ---------------------------------------------------------------- steps


def _steps(build: Build, records: Records, history: History) -> list[_Made]:
    builds = {record.id: record for record in history.list()}
    found = []
    for vertex, step in build.steps.items():
        state = build.states.get(vertex, "")
        asked = build.answer(vertex)
        if not state or asked is None:
            continue
        origin, ran = None, (build.id, vertex)
        execution: tuple[str, str] | None = ran
        if state == "cached":
            record = records.of_hit(asked.key, asked.seq)
            execution = records.execution(record) if record else None
            origin = origin_of(asked, records, builds)
        lent = records.lent.get(execution, []) if execution else None
        found.append(_Made(step, state, taint_of(step, lent), origin, origin is None or origin.build in builds))
    return found


def _step(made: _Made) -> Json:
    out: Json = {"name": made.step.name, "vertex": made.step.vertex, "outcome": made.state}
    if made.origin is not None:
        out["originBuild"] = made.origin.build
        out["originInLog"] = made.known
        if made.origin.importer:
            out["importer"] = made.origin.importer
    if made.taint:
        out["taint"] = [{key: value for key, value in one.to_json().items() if value} for one in made.taint]
    return out


def _gaps(build: Build, events: Sequence[Event], made: Sequence[_Made], *, whole: bool) -> list[Json]:
    """Why this is not all there is to know. `about`: dependencies or steps. Without `whole` a step is named by its line
    only: its text holds values of arguments."""
    found: list[Json] = []

    def tell(about: str, reason: str, step: str = "") -> None:
        found.append({"about": about, "reason": reason, **({"step": step} if step else {})})

    if not build.steps:
        tell("steps", "the stored graph of the build is not here")
    for one in made:
        name = one.step.title if whole else f"step {one.step.number}, line {one.step.lines[0]}"
        if not one.known:
            who = one.origin.build if one.origin and one.origin.build else "unknown"
            tell("steps", f"cached: made by build {who}, which is not in this log", name)
        for taint in one.taint:
            if taint.kind == "network":
                tell("dependencies", "ran with network: what it fetched is not recorded", name)
            elif taint.seen != "absent":
                tell("dependencies", f"could use {taint.kind} {taint.id}, whose content is not recorded", name)
    for event in events:
        if event.data.get("recalled"):
            what = event.data.get("reference") or event.data.get("url") or event.data.get("remote")
            tell("dependencies", f"{what} was not asked for: an earlier build had resolved it")
    for vertex in build.contexts:
        step = build.steps.get(vertex)
        if step is not None and step.op.get("op") == "context":
            name = str(step.op.get("name") or "context")
            tell("dependencies", f"context {name} is a directory: only what steps took of it is named, by content")
    return found


# ---------------------------------------------------------------- what went in


def _dependency(event: Event) -> Json | None:
    """A resource descriptor, with the event that tells of it."""
    data = event.data
    noted: Json = {"seq": event.seq}
    try:
        match event.type:
            case "SourceResolved":
                return _image(data, noted)
            case "HttpResolved":
                return {"uri": text(data, "url"), "digest": _digests(text(data, "digest")), "annotations": noted}
            case "GitResolved":
                uri = f"git+{text(data, 'remote')}" + (f"@{name}" if (name := text(data, "name", "")) else "")
                return {"uri": uri, "digest": {"gitCommit": text(data, "commit")}, "annotations": noted}
            case "ContextScanned":
                noted |= {"files": size(data, "files"), "bytes": size(data, "bytes"), "step": text(data, "step", "")}
                noted["digestOf"] = "the list of what the step took: path, type, mode and digest of each file"
                digest = _digests(text(data, "listing"))
                return {"name": text(data, "name"), "digest": digest, "annotations": noted}
    except BAD_EVENT as error:
        raise malformed(event, error) from error
    return None


def _image(data: Mapping[str, Any], noted: Json) -> Json:
    """`digest` is what the name meant then, mostly an index; the one image of it that was used is noted."""
    digest, manifest = text(data, "digest"), text(data, "manifest", "")
    if manifest and manifest != digest:
        noted["manifest"] = manifest
    purl = image_purl(text(data, "reference"), text(data, "platform", ""))
    return {"uri": purl, "digest": _digests(digest), "annotations": noted}


def image_purl(reference: str, platform: str) -> str:
    """The package URL of an image, as BuildKit writes it: `pkg:docker/NAME@TAG?platform=…`."""
    name, _, digest = reference.partition("@")
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    full = f"{head}{slash}{last}".removeprefix("docker.io/").removeprefix("library/")
    query = [f"digest={quote(digest, safe=':')}"] if digest else []
    query += [f"platform={quote(platform, safe='')}"] if platform else []
    version = f"@{quote(tag, safe='')}" if tag or not digest else ""
    if not tag and not digest:
        version = "@latest"
    return f"pkg:docker/{quote(full, safe='/:')}{version}" + (f"?{'&'.join(query)}" if query else "")


def _digest_text(events: Sequence[Event]) -> Json:
    graph = next((text(event.data, "graph") for event in events if event.type == "GraphDefined"), "")
    return {"digest": _digests(graph)} if graph else {}


def _digests(digest: str) -> dict[str, str]:
    algorithm, _, value = digest.partition(":")
    return {algorithm: value}


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
