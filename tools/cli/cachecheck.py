"""`refledger build --cache-check`: which steps would run, why, and what would have to come, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from projections.asked import Step
from projections.history import History
from projections.verdict import Verdict, Why
from projections.why import explain
from tools import roots
from tools.cli.differing import named
from tools.cli.explained import compared, miss_lines
from tools.cli.missing import missing_lines
from tools.cli.why import hides
from tools.cli.writing import columns, print_cut, print_json
from tools.format import count, human_bytes
from tools.text import clean

if TYPE_CHECKING:
    from engine.request import Foreseen

Json = dict[str, Any]

_WORDS = {"cached": "cached", "run": "would run", "run-unless": "would run", "nothing": "not needed"}


def answer(root: roots.Root, build_id: str, foreseen: Foreseen, *, as_json: bool, offline: bool) -> None:
    """Print what `foreseen` of the check `build_id` means. Raises LogError, VerificationError."""
    root.views.catch_up(root.log)
    history = History(root.views)
    found = explain(root.log, roots.read_blobs(root.path), history, history.get(build_id), None, hides)
    if as_json:
        print_json(_facts(found, foreseen))
        return
    limit = columns(10_000)
    for line in _lines(found, foreseen, limit, offline=offline):
        print_cut(line, limit)


def _would(found: Why, foreseen: Foreseen, vertex: str) -> str:
    """`cached`; `run`, `run-unless` it turns out to be known by what it takes (if anything was ever built that it could
    be the same as); `nothing`, as nothing needs it."""
    plan = foreseen.checked.plan
    if any(str(item.digest) == vertex for item, _ in plan.cached):
        return "cached"
    if not any(str(item.digest) == vertex for item in plan.run):
        return "nothing"
    return "run-unless" if found.against and vertex in map(str, foreseen.checked.unsure) else "run"


def _facts(found: Why, foreseen: Foreseen) -> Json:
    steps = [{**item.to_json(), "would": _would(found, foreseen, item.step.vertex)} for item in found.verdicts]
    return {
        "build": found.build.id,
        "against": found.against.id if found.against else None,
        "would_run": sum(step["would"].startswith("run") for step in steps),
        "steps": steps,
        "lacking": [item.to_json() for item in foreseen.missing],
        "bytes": sum(item.size for item in foreseen.missing),
    }


def _lines(found: Why, foreseen: Foreseen, limit: int, *, offline: bool) -> Iterator[str]:
    would = {item.step.vertex: _would(found, foreseen, item.step.vertex) for item in found.verdicts}
    surely, maybe = (list(would.values()).count(word) for word in ("run", "run-unless"))
    yield named(found.build.record)
    perhaps = f", {maybe} of them perhaps not" if maybe else ""
    yield f"{surely + maybe} of {count(len(would), 'step')} would run{perhaps}"
    if found.against and any(item.changes for item in found.causes):
        yield compared(found.against)
    if would:
        yield ""
    width = max((len(str(item.step.number)) for item in found.verdicts), default=1)
    for item in found.verdicts:
        word = would[item.step.vertex]
        yield f"{_WORDS[word]:<10}  {item.step.number:>{width}}  {clean(item.step.name)}"
        if word.startswith("run"):
            reason = _reason(found, item, limit - 12 - width, sure=word == "run")
            yield from (" " * (12 + width) + line for line in reason)
    yield ""
    yield from _to_come(foreseen, offline=offline)


def _reason(found: Why, item: Verdict, width: int, *, sure: bool) -> Iterator[str]:
    """The first reason, each line indented by two columns."""
    before = _step_before(found, item.step) if item.follows else None
    if before is not None:
        yield f"  it follows step {before.number}"
    else:
        yield from miss_lines(item, width, whole=False)
    if not sure:
        yield f"  unless {_unless(found, item.step)}"


def _step_before(found: Why, step: Step) -> Step | None:
    """The last step that `step` stands on and that was not in the cache either."""
    missed = {item.step.vertex for item in found.verdicts if item.outcome == "miss"}
    before = [found.build.steps[vertex] for vertex in step.inputs if vertex in missed]
    return max(before, key=lambda item: item.number, default=None)


def _unless(found: Why, step: Step) -> str:
    takes = step.kind == "copy" and len(found.build.inputs(step.vertex)) > 1
    return "what it copies turns out the same" if takes else "what it stands on turns out the same"


def _to_come(foreseen: Foreseen, *, offline: bool) -> Iterator[str]:
    items = [item.to_json() for item in foreseen.missing]
    total = human_bytes(sum(item.size for item in foreseen.missing))
    if not items:
        yield "nothing would be pulled" if not offline else "all that it needs is here"
    elif offline:
        yield from missing_lines(items, "not here, and --offline asks nobody:")
    else:
        yield from missing_lines(items, f"would be pulled, at most {total}:")
