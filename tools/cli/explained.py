"""Why steps ran or were cached, in words (`refledger why`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap

from projections.asked import Build, Key, Step
from projections.history import BuildRecord
from projections.origin import Origin
from projections.taint import Taint
from projections.verdict import Gone, Verdict, Why
from projections.why import unreadable
from tools.cli.differing import change_lines, named, title
from tools.format import count, human_bytes, local_time, short_id
from tools.text import cells, clean, shortened

_REASONS = {
    "never-built": "never built",
    "no-cache": "--no-cache",
    "bytes-lost": "its result is recorded, but its bytes are gone",
    "evicted": "evicted: its result was let go on purpose",
    "provider-unreachable": "its result is recorded, but nobody could be asked for its bytes",
    "importer-failed": "a cache could not be read",
}


def all_steps(found: Why, known: Mapping[str, BuildRecord], width: int) -> Iterator[str]:
    """The lines about a whole build, headings for `width` columns; `known` builds of this log, by id."""
    build = found.build
    yield named(build.record)
    if not found.verdicts:
        reached = "it has no steps" if build.record.status == "completed" else "no step was reached"
        yield f"the cache was not asked: {reached} ({build.record.status})"
        return
    hits = [item for item in found.verdicts if item.outcome == "hit"]
    rest = "would run" if build.dry else "not"
    yield f"{count(len(found.verdicts), 'step')}: {len(hits)} cached, {len(found.verdicts) - len(hits)} {rest}"
    yield from _origins(hits, known)
    by_content = [item for item in hits if item.origin and item.origin.by == "content"]
    if by_content:
        take = "they take" if len(by_content) > 1 else "it takes"
        told = f"{len(by_content)} by content: what {take} is unchanged, though steps before ran again"
        yield from _prose(told, "  ", width)
    for failed in build.imports:
        if failed.error:
            yield from _prose(clean(unreadable(failed)), "", width)
    causes = found.causes
    if found.against and any(item.changes for item in causes):
        yield compared(found.against)
    for number, item in enumerate(causes):
        yield ""
        yield _heading(build, item.step, width)
        yield from miss_lines(item, width, whole=not number)
    if causes and found.followed:
        yield f"{count(len(found.followed), 'later step')} followed"
    if causes and found.alike:
        yield f"{count(len(found.alike), 'later step')} {'differ' if len(found.alike) > 1 else 'differs'} in the same"
    yield from _all_taint(found.verdicts, width, gap=bool(causes))


def one_step(found: Why, step: Step, verdict: Verdict | None, width: int) -> Iterator[str]:
    """The lines about one step, as above; `verdict` None: the cache was not asked for it."""
    yield _heading(found.build, step, width)
    if verdict is None:
        yield "  a source: every build looks it up anew" if found.build.asked else "  the cache was not asked for it"
        for (name, platform), digest in found.build.sources.items():
            if name in (step.op.get("reference"), step.op.get("url")) and platform in (step.op.get("platform"), ""):
                yield f"  {clean(name)} was {digest}"
        return
    if verdict.outcome == "hit":
        yield from _hit(found, verdict, verdict.origin, width)
    else:
        if verdict.changes and found.against:
            yield f"  {compared(found.against)}"
        if verdict.follows:
            cause = found.cause_of(verdict)
            yield f"  it followed step {cause.step.number}" if cause else "  it followed an earlier step"
        if verdict.same_as:
            yield f"  it differs in the same as step {verdict.same_as}"
        yield from miss_lines(verdict, width, whole=True)
    yield from _taint(verdict, width)


def key_lines(keys: Sequence[Key]) -> Iterator[str]:
    """The cache keys of a step, a component a line."""
    for key in keys:
        yield f"  key by {clean(key.by)} {clean(key.digest)}"
        for name, value in key.components or ():
            yield f"    {clean(name)}  {clean(value)}"
        if key.components is None:
            yield "    its plaintext is not here any more"


def compared(build: Build) -> str:
    """Names the build that another one is compared with."""
    return f"compared with build {build.id} ({local_time(build.record.started)})"


def _heading(build: Build, step: Step, width: int) -> str:
    where = f"{clean(build.record.filename)}:{step.lines[0]}  " if step.lines[0] else ""
    before = f"{step.number}  {where}"
    return before + shortened(clean(step.name), width - cells(before))


def _prose(text: str, indent: str, width: int) -> Iterator[str]:
    """A sentence of ours: broken into lines, where values are cut."""
    yield from wrap(
        text, width, initial_indent=indent, subsequent_indent=f"{indent}  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


# ---------------------------------------------------------------- hits


def _origins(hits: Sequence[Verdict], known: Mapping[str, BuildRecord]) -> Iterator[str]:
    came: dict[tuple[str, str], int] = {}
    for item in hits:
        if item.origin:
            key = (item.origin.build, item.origin.importer)
            came[key] = came.get(key, 0) + 1
    for (build, importer), number in came.items():
        where = named(known[build]) if build in known else f"build {clean(build) or '?'}, not in this log"
        yield f"  {number} from {where}"
        if importer:
            yield f"    known from cache {clean(importer)}"


def _hit(found: Why, verdict: Verdict, came: Origin | None, width: int) -> Iterator[str]:
    used = "" if verdict.state or found.build.dry else ", and not needed"
    if came is None:
        yield f"  cached{used}"
        return
    if came.by == "content":
        cause = found.cause_of(verdict)
        what = "what it copies" if verdict.step.kind == "copy" else "what it takes"
        again = f"step {cause.step.number}" if cause else "a step before"
        yield from _prose(f"{what} is unchanged, though {again} ran again", "  ", width)
    if came.started:
        yield f"  cached{used}: made by build {came.build}"
        yield f"    {clean(came.name) or '-'}, {local_time(came.started)}"
    elif came.build:
        yield f"  cached{used}: made by build {clean(came.build)}, which is not in this log"
    else:
        yield f"  cached{used}: nobody says which build made it"
    if came.importer:
        yield f"    known from cache {clean(came.importer)}"
    for layer in came.layers:
        if layer.build:
            yield f"    layer {clean(layer.digest)}  made here"
        else:
            checked = f"verified here ({', '.join(layer.verified)})" if layer.verified else "never fetched whole here"
            yield f"    layer {short_id(layer.digest)}  {checked}"
            yield f"      from {clean(layer.provider) or 'no known provider'}"


# ---------------------------------------------------------------- misses


def miss_lines(item: Verdict, width: int, *, whole: bool) -> Iterator[str]:
    """Why a step was not in the cache: the first reason, and, of the `whole`, the names of all others."""
    if not item.changes:
        if item.gone:
            yield from _gone(item.reason, item.gone, width)
            return
        yield f"  {_REASONS.get(item.reason, clean(item.reason))}"
        if item.detail:
            yield from _prose(clean(item.detail), "    ", width)
        return
    first, *more = item.changes
    yield from change_lines(first, "  ")
    others = [change for change in more if change.component != "input"]
    if whole and others:
        yield from _prose(f"also: {', '.join(dict.fromkeys(title(change) for change in others))}", "  ", width)


def _gone(reason: str, gone: Gone, width: int) -> Iterator[str]:
    what = f"layer {short_id(gone.name) if gone.name.startswith('sha256:') else clean(gone.name)}"
    if reason == "evicted":
        yield f"  {_REASONS[reason]}"
        size = f" ({human_bytes(gone.bytes)})" if gone.bytes else ""
        yield f"    {what}{size}"
        yield f"    {local_time(gone.time)} by {clean(gone.policy) or '?'}{f', {clean(gone.by)}' if gone.by else ''}"
        if gone.providers:
            yield from _prose(f"{clean(gone.providers)} had it then, and has it no more", "    ", width)
        return
    state = _STATES.get(gone.kind, "is gone from") if reason == "bytes-lost" else "could not be asked for at"
    lost = f"{what} {state} {clean(gone.provider) or 'this disk'}"
    if gone.revoked:
        yield from _prose(f"its result was cached, but {lost}: made again", "  ", width)
    else:
        yield from _prose(_REASONS[reason], "  ", width)
        yield from _prose(lost, "    ", width)
    if gone.error and gone.kind != "missing":
        yield from _prose(clean(gone.error), "    ", width)


_STATES = {"auth": "is not given any more by", "corrupt": "is not what its digest says at"}


# ---------------------------------------------------------------- taint


_KINDS = {"cache": "cache mount", "secret": "secret", "ssh": "ssh agent", "security": "security"}


def _name(item: Taint) -> str:
    return "network" if item.kind == "network" else f"{_KINDS.get(item.kind, item.kind)} {clean(item.id)}".rstrip()


def _all_taint(verdicts: Sequence[Verdict], width: int, *, gap: bool) -> Iterator[str]:
    """One line: what results may hold beside what their keys say, and which steps'."""
    steps: dict[str, list[str]] = {}
    for verdict in verdicts:
        for item in verdict.taint if verdict.needed else ():
            if item.seen != "absent":
                steps.setdefault(_name(item), []).append(str(verdict.step.number))
    if steps:
        yield from [""] * gap
        told = (f"{name} of {', '.join(dict.fromkeys(numbers))}" for name, numbers in steps.items())
        yield from _prose(f"results may also depend on (by step): {'; '.join(told)}", "", width)


def _taint(verdict: Verdict, width: int) -> Iterator[str]:
    if verdict.taint:
        yield "  its result may depend on more than its key says"
    for item in verdict.taint:
        where = f" at {clean(item.target)}" if item.target else ""
        yield from _prose(f"{_name(item)}{where}: {_told(item)}", "    ", width)


def _told(item: Taint) -> str:
    if item.seen == "absent":
        return "it was not given"
    match item.kind:
        case "network":
            return "whatever it fetched"
        case "cache":
            was = {"empty": "it was empty", "filled": "filled by steps before"}.get(item.seen, "")
            return f"{was}{', ' if was else ''}its content is no part of the key"
        case "secret":
            return "its value is no part of the key, another one is no miss"
        case "ssh":
            return "it could sign for the step"
    return "it could reach the host"
