"""What differs, in words: changes of a step, and of whole builds (`refledger diff`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import unified_diff

from projections.changes import Change, FileChange
from projections.difference import Difference, StepChange, Value
from projections.history import BuildRecord
from tools.format import count, local_time, short_id
from tools.text import clean

FILES = 10
"""Files of one step that the text names; `--json` has them all."""

_TITLES = {
    "content": "files that it copies differ",
    "argv": "its command differs",
    "source": "what it takes differs",
    "input": "it stands on another result",
    "script": "its script differs",
    "file": "its inline file differs",
    "cwd": "its working directory differs",
    "dest": "its destination differs",
    "env order": "the order of its variables differs",
    "schema": "keys are made otherwise since then",
    "path": "the directory that it makes differs",
    "user": "its user differs",
    "network": "its network differs",
    "platform": "its platform differs",
    "chown": "--chown differs",
    "chmod": "--chmod differs",
    "link": "--link differs",
    "parents": "--parents differs",
    "exclude": "--exclude differs",
}


def named(record: BuildRecord) -> str:
    """A build as a heading has it."""
    return f"build {record.id} ({clean(record.name) or '-'}, {local_time(record.started)})"


def title(change: Change) -> str:
    """What differs, in a few words."""
    name = change.component
    if change.patterns and all(file.ignored for file in change.files):
        return ".dockerignore hides other files of what it copies"
    if change.patterns:
        return "files that it copies differ, some because of .dockerignore"
    if name == "source" and "] FROM " in change.old_step + change.new_step:
        return "the image that it takes differs"
    if name in _TITLES:
        return _TITLES[name]
    if name.startswith("env "):
        return f"variable {clean(name[4:])} differs"
    if name.startswith("mount ") and not name.endswith(" content"):
        _, number, what = name.split(maxsplit=2)
        return f"the {what} of its mount {int(number) + 1} differs"
    if name.endswith(" content"):
        return "files that it mounts differ"
    return f"{clean(name)} differs"


def change_lines(change: Change, indent: str) -> Iterator[str]:
    """What differs, then both values, or the files."""
    yield f"{indent}{title(change)}"
    yield from _pattern_lines(change.patterns, f"{indent}  ")
    if change.files:
        for file in change.files[:FILES]:
            yield f"{indent}  {_file(file)}"
        if len(change.files) > FILES:
            yield f"{indent}  and {len(change.files) - FILES} more (--json names them all)"
        return
    if change.old and change.new and "\n" in change.old + change.new:
        yield from _text_lines(change.old, change.new, f"{indent}  ")
        return
    for label, value, step in (("was", change.old, change.old_step), ("now", change.new, change.new_step)):
        if value is None:
            yield f"{indent}  {label}  nothing"
        elif change.component == "input":
            yield f"{indent}  {label}  {clean(step) or '?'}  {short_id(value)}"
        else:
            yield f"{indent}  {label}  {_shortened(clean(value)) or '(empty)'}"


def _text_lines(old: str, new: str, indent: str) -> Iterator[str]:
    lines = list(unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""))[2:]
    lines = [line for line in lines if not line.startswith("@@")]
    yield from (f"{indent}{clean(line)}" for line in lines[:FILES])
    if len(lines) > FILES:
        yield f"{indent}and {len(lines) - FILES} more (--json has both texts)"


def _pattern_lines(patterns: Sequence[str], indent: str) -> Iterator[str]:
    for sign, what in (("-", "line removed"), ("+", "line added")):
        lines = [clean(line[1:]) for line in patterns if line[0] == sign]
        for line in lines[:FILES]:
            yield f"{indent}{what}  {line}"
        if len(lines) > FILES:
            yield f"{indent}and {len(lines) - FILES} more (--json names them all)"


def _file(file: FileChange) -> str:
    old, new = _short(file.old), _short(file.new)
    if file.change == "added":
        return f"{clean(file.path)}  {'no longer ignored' if file.ignored else 'added'} {new}"
    if file.change == "removed":
        return f"{clean(file.path)}  {'now ignored' if file.ignored else 'removed'} {old}"
    return f"{clean(file.path)}  {file.change}: was {old or '-'}, now {new or '-'}"


def _short(value: str) -> str:
    return short_id(value) if value.startswith("sha256:") else clean(value)


def _shortened(value: str) -> str:
    """The digest of `name@digest` as a person reads it."""
    name, at, digest = value.rpartition("@")
    if at and digest.startswith("sha256:"):
        return f"{name}@{short_id(digest)}"
    return _short(value)


# ---------------------------------------------------------------- diff


def whole_difference(found: Difference) -> Iterator[str]:
    """The lines of `refledger diff`."""
    yield f"old: {named(found.old.record)}"
    yield f"new: {named(found.new.record)}"
    if not any((found.options, found.sources, found.definition, found.steps, found.results)):
        yield "no difference"
    yield from _values("options", found.options)
    yield from _values("sources", found.sources)
    if found.definition:
        yield ""
        yield clean(found.new.record.filename)
        yield from (f"  {clean(line)}" for line in found.definition)
    if found.steps:
        yield ""
        yield "steps"
        yield from _steps(found.steps)
    yield from _values("results", found.results)


def _steps(steps: Sequence[StepChange]) -> Iterator[str]:
    followed = alike = 0
    told: set[Change] = set()
    for item in steps:
        own = [change for change in item.changes if change.component != "input"]
        if item.change == "changed" and item.changes and told.issuperset(own):
            followed, alike = followed + (not own), alike + bool(own)
            continue
        told.update(own)
        yield f"  {item.change:<8} {clean(item.step.name)}"
        for change in own:
            yield from change_lines(change, "    ")
    if alike:
        yield f"  {count(alike, 'step')} {'differ' if alike > 1 else 'differs'} in the same"
    if followed:
        yield f"  {count(followed, 'step')} only {'stand' if followed > 1 else 'stands'} on other results"


def _values(title: str, values: Sequence[Value]) -> Iterator[str]:
    if values:
        yield ""
        yield title
    for item in values:
        yield f"  {clean(item.name)}"
        yield f"    was  {'nothing' if item.old is None else _short(item.old) or '(empty)'}"
        yield f"    now  {'nothing' if item.new is None else _short(item.new) or '(empty)'}"
