"""`refledger why` and `refledger diff`: what the log says about hits and misses, for people and as JSON (I13)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from projections.asked import Build, Step, read_build
from projections.changes import Change
from projections.difference import Difference, Value, difference
from projections.history import BuildRecord, History
from projections.why import Origin, Verdict, Why, explain, origin, origin_json
from storage.errors import InputError
from tools import bootstrap
from tools.cli.format import short_id
from tools.cli.text import clean
from tools.cli.writing import as_json_option, columns, local_time, print_cut, print_json

FILES = 10
"""Files of one step that the text names; `--json` has them all."""

_TITLES = {
    "content": "files that it copies differ",
    "argv": "its command differs",
    "source": "what it takes is another",
    "input": "it stands on another result",
    "script": "its script differs",
    "file": "its inline file differs",
    "cwd": "its working directory differs",
    "dest": "its destination differs",
    "env order": "the order of its variables differs",
    "schema": "keys are made otherwise since then",
}
_REASONS = {
    "never-built": "never built",
    "no-cache": "--no-cache",
    "bytes-lost": "bytes lost",
}


@click.command()
@click.argument("build_id", metavar="BUILD")
@click.argument("step", required=False)
@click.option("--against", metavar="BUILD", help="Compare with this build, not the one before of this definition.")
@as_json_option
def why(build_id: str, step: str | None, against: str | None, as_json: bool) -> None:
    """Tell why BUILD's steps ran or were cached, or only STEP (its number, or a part of its name)."""
    path = bootstrap.root_directory()
    with bootstrap.read_root(path) as (log, views):
        history = History(views)
        found = explain(log, bootstrap.read_blobs(path), history, history.get(build_id), against)
        if step is None:
            if as_json:
                print_json(found.to_json())
            else:
                _write(_all_steps(found, history))
            return
        chosen = _choose(found.build, step)
        verdict = next((item for item in found.verdicts if item.step.vertex == chosen.vertex), None)
        hit = verdict is not None and verdict.outcome == "hit"
        came = origin(log, history, found.build.asked[chosen.vertex]) if hit else None
    if as_json:
        told = verdict.to_json() if verdict else {"number": chosen.number, "name": chosen.name, "outcome": "source"}
        ids = {"build": found.build.id, "against": found.against.id if found.against else None}
        print_json({**ids, **told, "origin": origin_json(came) if came else None})
    else:
        _write(_one_step(found, chosen, verdict, came))


@click.command()
@click.argument("old", metavar="BUILD")
@click.argument("new", metavar="BUILD")
@as_json_option
def diff(old: str, new: str, as_json: bool) -> None:
    """Tell what differs between two builds: options, sources, definition, steps and results."""
    path = bootstrap.root_directory()
    with bootstrap.read_root(path) as (log, views):
        history, blobs = History(views), bootstrap.read_blobs(path)
        one, two = (read_build(log, blobs, history.get(name)) for name in (old, new))
        found = difference(blobs, one, two)
    if as_json:
        print_json(found.to_json())
    else:
        _write(_difference(found))


def _write(lines: Iterator[str]) -> None:
    limit = columns(10_000)
    for line in lines:
        print_cut(line, limit)


def _choose(build: Build, step: str) -> Step:
    shown = [item for item in build.steps.values() if item.number]
    found = [item for item in shown if str(item.number) == step] or [item for item in shown if step in item.name]
    if len(found) != 1:
        which = "several steps match" if found else "no step matches"
        raise InputError(f"{which} {step!r} in build {build.id}", hint="refledger show lists the steps")
    return found[0]


def _named(record: BuildRecord) -> str:
    return f"build {record.id} ({clean(record.name) or '-'}, {local_time(record.started)})"


def _compared(build: Build) -> str:
    return f"compared with build {build.id} ({local_time(build.record.started)})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# ---------------------------------------------------------------- why


def _all_steps(found: Why, history: History) -> Iterator[str]:
    yield _named(found.build.record)
    if not found.verdicts:
        yield f"the cache was not asked: no step was reached ({found.build.record.status})"
        return
    hits = [item for item in found.verdicts if item.outcome == "hit"]
    yield f"{_count(len(found.verdicts), 'step')}: {len(hits)} cached, {len(found.verdicts) - len(hits)} not"
    yield from _origins(hits, history)
    causes = found.causes
    if causes and found.against:
        yield _compared(found.against)
    for number, item in enumerate(causes):
        yield ""
        yield _heading(found, item.step)
        yield from _miss(item, whole=not number)
    if causes and found.followed:
        yield f"{_count(len(found.followed), 'later step')} followed"


def _origins(hits: Sequence[Verdict], history: History) -> Iterator[str]:
    builds: dict[str, int] = {}
    for item in hits:
        builds[item.origin_build] = builds.get(item.origin_build, 0) + 1
    known = {record.id: record for record in history.list()} if builds else {}
    for build, count in builds.items():
        yield f"  {count} from {_named(known[build]) if build in known else f'build {build}, not in this log'}"


def _heading(found: Why, step: Step) -> str:
    where = f"{found.build.record.filename}:{step.lines[0]}  " if step.lines[0] else ""
    return f"{step.number}  {where}{clean(step.name)}"


def _one_step(found: Why, step: Step, verdict: Verdict | None, came: Origin | None) -> Iterator[str]:
    yield _heading(found, step)
    if verdict is None:
        yield "  a source: every build looks it up anew" if found.build.asked else "  the cache was not asked for it"
        for (name, platform), digest in found.build.sources.items():
            if name in (step.op.get("reference"), step.op.get("url")) and platform in (step.op.get("platform"), ""):
                yield f"  {clean(name)} was {digest}"
    elif came is not None:
        yield from _hit(verdict, came)
    else:
        if verdict.changes and found.against:
            yield f"  {_compared(found.against)}"
        if verdict.follows:
            cause = found.cause_of(verdict)
            yield f"  it followed step {cause.step.number}" if cause else "  it followed an earlier step"
        yield from _miss(verdict, whole=True)


def _hit(verdict: Verdict, came: Origin) -> Iterator[str]:
    used = "" if verdict.state else ", and not needed"
    if not came.started:
        yield f"  cached{used}: made by build {came.build or '?'}, which is not in this log"
        return
    yield f"  cached{used}: made by build {came.build}"
    yield f"    {clean(came.name) or '-'}, {local_time(came.started)}"
    for layer in came.layers:
        if layer.build:
            yield f"    layer {layer.digest}  made here"
        else:
            checked = f"verified here ({', '.join(layer.verified)})" if layer.verified else "never fetched whole here"
            yield f"    layer {short_id(layer.digest)}  {checked}"
            yield f"      from {clean(layer.provider) or 'no known provider'}"


def _miss(item: Verdict, *, whole: bool) -> Iterator[str]:
    if not item.changes:
        yield f"  {_REASONS.get(item.reason, clean(item.reason))}"
        if item.detail:
            yield f"    {clean(item.detail)}"
        return
    first, *more = item.changes
    yield from _change(first, "  ")
    others = [change for change in more if change.component != "input"]
    if whole and others:
        yield f"  also: {', '.join(dict.fromkeys(_title(change) for change in others))}"


def _title(change: Change) -> str:
    name = change.component
    if name in _TITLES:
        return _TITLES[name]
    if name.startswith("env "):
        return f"variable {clean(name[4:])} differs"
    return f"{clean(name)} differs"


def _change(change: Change, indent: str) -> Iterator[str]:
    yield f"{indent}{_title(change)}"
    if change.files:
        for file in change.files[:FILES]:
            yield f"{indent}  {clean(file.path)}  {_file(file.change, _short(file.old), _short(file.new))}"
        if len(change.files) > FILES:
            yield f"{indent}  and {len(change.files) - FILES} more (--json names them all)"
        return
    for label, value, step in (("was", change.old, change.old_step), ("now", change.new, change.new_step)):
        if value is None:
            yield f"{indent}  {label}  nothing"
        elif change.component == "input":
            yield f"{indent}  {label}  {clean(step) or '?'}  {short_id(value)}"
        else:
            yield f"{indent}  {label}  {_shortened(clean(value)) or '(empty)'}"


def _file(change: str, old: str, new: str) -> str:
    if change in {"added", "removed"}:
        return f"{change} {old or new}"
    return f"{change}: was {old or '-'}, now {new or '-'}"


def _short(value: str) -> str:
    return short_id(value) if value.startswith("sha256:") else clean(value)


def _shortened(value: str) -> str:
    """The digest of `name@digest` as a person reads it."""
    name, at, digest = value.rpartition("@")
    if at and digest.startswith("sha256:"):
        return f"{name}@{short_id(digest)}"
    return _short(value)


# ---------------------------------------------------------------- diff


def _difference(found: Difference) -> Iterator[str]:
    yield f"old: {_named(found.old.record)}"
    yield f"new: {_named(found.new.record)}"
    if not any((found.options, found.sources, found.definition, found.steps, found.results)):
        yield "no difference"
    yield from _values("options", found.options)
    yield from _values("sources", found.sources)
    if found.definition:
        yield ""
        yield found.new.record.filename
        yield from (f"  {clean(line)}" for line in found.definition)
    if found.steps:
        yield ""
        yield "steps"
    followed = 0
    for item in found.steps:
        own = [change for change in item.changes if change.component != "input"]
        if item.change == "changed" and item.changes and not own:
            followed += 1
            continue
        yield f"  {item.change:<8} {clean(item.step.name)}"
        for change in own:
            yield from _change(change, "    ")
    if followed:
        yield f"  {_count(followed, 'step')} only {'stand' if followed > 1 else 'stands'} on other results"
    yield from _values("results", found.results)


def _values(title: str, values: Sequence[Value]) -> Iterator[str]:
    if values:
        yield ""
        yield title
    for item in values:
        yield f"  {clean(item.name)}"
        yield f"    was  {'nothing' if item.old is None else _short(item.old) or '(empty)'}"
        yield f"    now  {'nothing' if item.new is None else _short(item.new) or '(empty)'}"
