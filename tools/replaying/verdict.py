"""What was then beside what is now. Pure: plain data in, a verdict out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from storage.tar.filelist import FileChange, FileFact, compare

SAME_FAILURE, OTHER_FAILURE, PASSES = "same failure", "different failure", "passes now"
SAME_RESULT, OTHER_RESULT, NO_RESULT = "same result", "different result", "nothing to compare with"
_BUILD_ID = re.compile(r"\b[0-9a-f]{12}\b")
_DIFF_LINES = 60


@dataclass(frozen=True, slots=True)
class End:
    """How an execution ended. `vertex` at fault ("" for none) and `error` of a failure, `exit_code` of the process,
    `status` of the command; `output`: its lines by stream; `files`: by vertex, in plan order, what each step changed,
    where that is known; `merges`: by vertex, the refs of those that only stack layers, which are named by these."""

    exit_code: int
    vertex: str = ""
    error: str = ""
    status: int | None = None
    output: Mapping[int, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, Sequence[FileFact]] = field(default_factory=dict)
    merges: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Did it?"""
        return self.exit_code != 0


@dataclass(frozen=True, slots=True)
class StepChange:
    """What differs in the result of the step `vertex`."""

    vertex: str
    files: tuple[FileChange, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`kind`: one of the constants above; `output`: a diff, empty when it is the same; `changed`: the steps whose
    result differs, the first one first; `compared`: how many results could be compared."""

    kind: str
    output: tuple[str, ...]
    changed: tuple[StepChange, ...]
    compared: int

    def to_json(self) -> dict[str, Any]:
        """The fields, by name."""
        return {
            "verdict": self.kind, "output": list(self.output), "compared": self.compared,
            "changed": [
                {"vertex": s.vertex, "files": [{"path": f.path, "how": list(f.how)} for f in s.files]}
                for s in self.changed
            ],
        }  # fmt: skip


def judge(before: End, now: End, epoch: int | None) -> Verdict:
    """`epoch`: SOURCE_DATE_EPOCH in seconds, which no time is later than; without one times do not count."""
    output = diff_output(before.output, now.output)
    changed, compared = changes(before.files, now.files, epoch)
    merged = [vertex for vertex in now.merges if vertex in before.merges]
    changed += tuple(StepChange(vertex, ()) for vertex in merged if now.merges[vertex] != before.merges[vertex])
    compared += len(merged)
    if before.failed:
        kind = PASSES if not now.failed else SAME_FAILURE if _same(before, now) else OTHER_FAILURE
    elif now.failed:
        kind = OTHER_RESULT
    else:
        kind = OTHER_RESULT if changed else SAME_RESULT if compared else NO_RESULT
    return Verdict(kind, output, changed, compared)


def _same(before: End, now: End) -> bool:
    """A command fails as before when it ends with the same status; everything else when it says the same."""
    if (before.vertex, before.exit_code, before.status) != (now.vertex, now.exit_code, now.status):
        return False
    return before.status is not None or _normal(before.error) == _normal(now.error)


def _normal(error: str) -> str:
    return _BUILD_ID.sub("-", error.partition("\n")[0])


def diff_output(before: Mapping[int, Sequence[str]], now: Mapping[int, Sequence[str]]) -> tuple[str, ...]:
    """Each stream by itself: how the lines of both were interleaved is chance."""
    lines: list[str] = []
    for fd, name in ((1, "stdout"), (2, "stderr")):
        old, new = list(before.get(fd, ())), list(now.get(fd, ()))
        lines += difflib.unified_diff(old, new, f"{name} then", f"{name} now", lineterm="", n=2)
    return tuple(lines[:_DIFF_LINES])


def changes(
    before: Mapping[str, Iterable[FileFact]], now: Mapping[str, Iterable[FileFact]], epoch: int | None
) -> tuple[tuple[StepChange, ...], int]:
    """The steps of `now` whose files differ, in its order, and how many were compared."""
    latest = None if epoch is None else epoch * 1_000_000_000
    changed = []
    common = [vertex for vertex in now if vertex in before]
    for vertex in common:
        old, new = (_clamped(files, latest) for files in (before[vertex], now[vertex]))
        if files := compare(old, new, times=latest is not None):
            changed.append(StepChange(vertex, tuple(files)))
    return tuple(changed), len(common)


def _clamped(files: Iterable[FileFact], latest: int | None) -> list[FileFact]:
    return [fact if latest is None else replace(fact, mtime=min(fact.mtime, latest)) for fact in files]
