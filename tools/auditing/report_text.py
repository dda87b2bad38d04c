"""The audit report as lines for people: sections, each statement with the events that prove it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from textwrap import wrap

from projections.audit.statements import (
    BEGUN,
    DIGEST_ONLY,
    LAID_OUT,
    MADE,
    NEVER,
    PART,
    WHOLE,
    BuildReport,
    Layer,
    Report,
    Step,
    Taint,
)
from tools.format import count, human_bytes, local_time, short_id
from tools.text import clean

Section = tuple[str, list[str]]
_FULL = 100
"""Columns from which on digests are written whole."""
_SEQS = 6
_STUCK = "\u00a0"
"""A blank at which no line ends."""
_KINDS = {"cache": "cache mount", "ssh": "ssh agent", "security": "privilege"}


class _Page:
    """Lines of at most `width` columns, where words allow it."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines: list[str] = []

    def id(self, name: str) -> str:
        """A digest or id, as long as there is room for it."""
        return clean(name) if self.width >= _FULL or not name.startswith("sha256:") else clean(short_id(name))

    def say(self, text: str, seqs: Sequence[int] = (), indent: int = 0) -> None:
        """One statement, from cleaned `text`, and its proof."""
        proof = f" (seq{_STUCK}{_numbers(seqs)})" if seqs else ""
        first, rest = " " * indent, " " * (indent + 2)
        lines = wrap(
            text + proof, self.width, initial_indent=first, subsequent_indent=rest, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
        self.lines += [line.replace(_STUCK, " ") for line in lines]

    def taken(self) -> list[str]:
        """The lines so far, which are its no more."""
        lines, self.lines = self.lines, []
        return lines


def _numbers(seqs: Sequence[int]) -> str:
    shown = ", ".join(map(str, seqs[:_SEQS]))
    return f"{shown} and {len(seqs) - _SEQS} more" if len(seqs) > _SEQS else shown


def sections(report: Report, width: int) -> Iterator[Section]:
    """The whole report."""
    page = _Page(width)
    if report.kind == "digest":
        page.say(f"{page.id(report.subject)}", indent=2)
        _made(page, report)
        yield "Digest", page.taken()
    if report.report is not None:
        yield from build_sections(report.report, width)
    if report.reverse is not None:
        _reverse(page, report)
        yield f"Built from it: {count(len(report.reverse), 'build')}", page.taken()


def build_sections(told: BuildReport, width: int) -> Iterator[Section]:
    """What there is to say of one build; sections with nothing to say are left out, but for those whose silence is an
    answer."""
    page = _Page(width)
    parts: tuple[tuple[str, Callable[[_Page, BuildReport], None], str], ...] = (
        ("Build", _build, ""),
        ("Results", _results, "none"),
        ("Inputs", _inputs, "none"),
        ("Names over time", _resolutions, ""),
        ("Steps", _steps, "none"),
        ("Taint", _taints, "no step had network, secrets, ssh, privilege or cache mounts"),
        ("Layers", _layers, "none"),
        ("Served by", _served, "nothing came from anywhere"),
        ("Policy", _decisions, ""),
        ("Attestations", _attestations, ""),
        ("Tried again, failed, called off", _attempts, "nothing"),
        ("Let go", _let_go, "nothing"),
        ("Against the build before", _differences, ""),
        ("Where the record is incomplete", _gaps, "nowhere that the log knows of"),
    )
    for title, write, silence in parts:
        write(page, told)
        lines = page.taken() or ([f"  {silence}"] if silence else [])
        if lines:
            yield title, lines


def _made(page: _Page, report: Report) -> None:
    if not report.made:
        page.say("no build of this log made it", indent=2)
    for item in report.made:
        to = f" to {clean(item.target)}" if item.target else ""
        host = clean(str(item.host.get("hostname") or "?"))
        page.say(
            f"build {clean(item.build)} {clean(item.name)} ({item.status}): {clean(item.how)}{to},"
            f" {local_time(item.time)}, refledger {clean(item.engine_version) or '?'} on {host}",
            item.seqs, 2,
        )  # fmt: skip
    told = len({item.build for item in report.made})
    if report.makers > told:
        page.say(f"and {report.makers - told} builds between them", indent=2)


def _build(page: _Page, told: BuildReport) -> None:
    build = told.build
    ended = f", ended {local_time(build.ended)}" if build.ended else ""
    page.say(f"{clean(build.id)} {clean(build.name)}: {build.status}, began {local_time(build.started)}{ended}",
             build.seqs, 2)  # fmt: skip
    host = ", ".join(f"{clean(str(key))} {clean(str(value))}" for key, value in build.host.items())
    page.say(f"refledger {clean(build.engine_version) or '?'} ({clean(build.frontend)}) on {host or 'a host not told'}",
             build.seqs[:1], 2)  # fmt: skip
    if build.runtime:
        page.say(f"runtime {clean(build.runtime)}", build.seqs[1:2], 2)
    if build.error:
        page.say(f"error: {clean(build.error)}", build.seqs[-1:], 2)
    if told.checkpoint is not None:
        point = told.checkpoint
        sent = f", published to {clean(point.published[0])}" if point.published else ""
        page.say(f"covered by the checkpoint of {clean(point.origin)} at {point.size} events{sent}", point.seqs, 2)


def _results(page: _Page, told: BuildReport) -> None:
    for item in told.results:
        name = " ".join(filter(None, (clean(item.kind), clean(item.target), clean(item.platform))))
        page.say(f"{name}: {page.id(item.digest or item.ref)}", item.seqs, 2)


def _inputs(page: _Page, told: BuildReport) -> None:
    for item in told.inputs:
        value = f" = {page.id(item.value)}" if item.value else ""
        page.say(f"{clean(item.kind)} {clean(item.name)}{value}", item.seqs, 2)
        if item.detail:
            page.say(clean(item.detail), indent=4)
        if item.made_by:
            page.say(f"made by build {clean(item.made_by)} of this log", item.seqs[1:], 4)
        _taint(page, item.taint, 6)


def _resolutions(page: _Page, told: BuildReport) -> None:
    for item in told.resolutions:
        name = f"{clean(item.name)} {clean(item.platform)}".rstrip()
        until = f" until {local_time(item.last)}" if item.last != item.first else ""
        page.say(f"{name} = {page.id(item.digest)}, {count(item.count, 'time')} from {local_time(item.first)}{until}",
                 item.seqs, 2)  # fmt: skip


def _steps(page: _Page, told: BuildReport) -> None:
    for step in told.steps:
        page.say(f"#{step.number} {clean(step.name)}", indent=2)
        again = f" in {step.attempts} attempts" if step.attempts > 1 else ""
        code = f", exit code {step.exit_code}" if step.exit_code else ""
        reason = f" ({clean(step.reason)})" if step.reason and step.outcome == "executed" else ""
        page.say(f"{step.outcome}{again}{code}{reason}", step.seqs, 4)
        if step.origin is not None:
            page.say(*_origin(step), indent=4)


def _origin(step: Step) -> tuple[str, Sequence[int]]:
    origin = step.origin
    assert origin is not None
    via = f", known from cache {clean(origin.importer)}" if origin.importer else ""
    if not origin.build:
        return f"nobody says which build executed it{via}", origin.seqs
    here = "in this log" if origin.here else "NOT in this log"
    return f"executed by build {clean(origin.build)}, {here}{via}", origin.seqs


def _taints(page: _Page, told: BuildReport) -> None:
    for step in told.steps:
        if step.taint:
            page.say(f"#{step.number} {clean(step.name)}", indent=2)
            _taint(page, step.taint, 4)
    heirs: dict[tuple[int, ...], list[int]] = {}
    for step in told.steps:
        if step.inherits:
            heirs.setdefault(step.inherits, []).append(step.number)
    for above, numbers in heirs.items():
        who = ", ".join(f"#{number}" for number in numbers)
        verb = "inherits" if len(numbers) == 1 else "inherit"
        page.say(f"{who} {verb} that of {', '.join(f'#{number}' for number in above)}", indent=2)


def _taint(page: _Page, items: Iterable[Taint], indent: int) -> None:
    for item in items:
        name = f"{_KINDS.get(item.kind, item.kind)} {clean(item.id)}"
        where = f" at {clean(item.target)}" if item.target else ""
        seen = clean(item.seen) or "whether it was given is in no log here"
        by = f" by build {clean(item.build)}" if item.build else ""
        page.say(f"{name}{where}: {seen}{by}", item.seqs, indent)


def _layers(page: _Page, told: BuildReport) -> None:
    for state, title in _STATES.items():
        found = [layer for layer in told.layers if layer.state == state]
        if found:
            page.say(f"{title}: {len(found)}", indent=2)
        for layer in found:
            _layer(page, layer)


_STATES = {
    NEVER: "NEVER byte-verified here", BEGUN: "a pull began, and the log does not tell how it ended",
    LAID_OUT: "laid out here by no pull of them that the log tells of",
    DIGEST_ONLY: "digest verified in passing, diff ID never", PART: "parts verified",
    WHOLE: "digest and diff ID verified", MADE: "made here",
}  # fmt: skip


def _layer(page: _Page, layer: Layer) -> None:
    name = page.id(layer.digest or layer.snapshot or layer.diff_id)
    other = "" if layer.result else ", not part of a result"
    by = f", by build {clean(layer.build)}" if layer.build else ""
    of = f" of {clean(layer.provider)}" if layer.provider else ""
    page.say(f"{name}{of}{by}{other}", layer.seqs, 4)
    if layer.detail:
        page.say(clean(layer.detail), indent=6)


def _served(page: _Page, told: BuildReport) -> None:
    for item in told.served:
        mirror = f", a mirror of {clean(item.mirror_of)}," if item.mirror_of else ""
        checked = f"verified: {', '.join(map(clean, item.verified))}" if item.verified else "nothing to verify it by"
        page.say(
            f"{page.id(item.digest or item.name)} by {clean(item.provider)}{mirror} {local_time(item.time)}, for build"
            f" {clean(item.build)}: {clean(item.how)}, {human_bytes(item.bytes)}, {checked}",
            item.seqs, 2,
        )  # fmt: skip


def _decisions(page: _Page, told: BuildReport) -> None:
    for item in told.decisions:
        rule = f" by rule {clean(item.rule)}" if item.rule else ""
        detail = f": {clean(item.detail)}" if item.detail else ""
        page.say(f"{clean(item.decision)}{rule} {page.id(item.subject)}{detail}", item.seqs, 2)


def _attestations(page: _Page, told: BuildReport) -> None:
    for item in told.attestations:
        signed = f"signed by {clean(item.key)}" if item.key else "not signed"
        of = " ".join(filter(None, (page.id(item.image), clean(item.platform))))
        page.say(f"{clean(item.predicate_type)} of {of}: {page.id(item.statement)}, {signed}", item.seqs, 2)


def _attempts(page: _Page, told: BuildReport) -> None:
    for item in told.attempts:
        step = f" #{item.step}" if item.step else ""
        name = f" {page.id(item.name)}" if item.name else ""
        attempt = f", attempt {item.attempt}" if item.attempt > 1 else ""
        detail = f": {clean(item.detail)}" if item.detail else ""
        page.say(f"{clean(item.what)}{step}{name}{attempt}{detail}", item.seqs, 2)


def _let_go(page: _Page, told: BuildReport) -> None:
    for item in told.let_go:
        when = "WHILE THE BUILD RAN" if item.in_use else "afterwards"
        had = f", {clean(item.providers)} had it" if item.providers else ", nobody else was known to have it"
        page.say(
            f"{clean(item.kind)} {page.id(item.name)} {when}, {local_time(item.time)}, by {clean(item.policy) or '?'}"
            f" {clean(item.by)}{had}",
            item.seqs, 2,
        )  # fmt: skip


def _differences(page: _Page, told: BuildReport) -> None:
    if not told.against:
        page.say("no earlier build of the same thing", indent=2)
        return
    page.say(f"build {clean(told.against)}: {count(len(told.differences), 'difference')}", indent=2)
    for item in told.differences:
        old, new = (None if value is None else page.id(value) for value in (item.old, item.new))
        change = f"- {old}" if new is None else f"+ {new}" if old is None else f"{old} -> {new}"
        page.say(f"{item.what} {clean(item.name)}: {change}", item.seqs, 4)


def _gaps(page: _Page, told: BuildReport) -> None:
    for item in told.gaps:
        page.say(clean(item.detail), item.seqs, 2)


def _reverse(page: _Page, report: Report) -> None:
    for item in report.reverse or ():
        gave = f", gave {', '.join(map(page.id, item.digests))}" if item.digests else ""
        page.say(
            f"build {clean(item.build)} {clean(item.name)} ({item.status}, {local_time(item.time)}) used"
            f" {page.id(item.of)} as {item.how}{gave}",
            item.seqs, 2 * item.depth,
        )  # fmt: skip
