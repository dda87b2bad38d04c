"""What differs between two whole builds: options, sources, definition, steps, results."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import unified_diff
from typing import Any

from projections.asked import Blobs, Build, Step, definition_text
from projections.changes import Change, Hides, pair_steps, step_changes
from projections.records import Records

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Value:
    """Something with a name that differs; None for a side without it."""

    name: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class StepChange:
    """A step that differs. `change`: added, removed or changed; `changes`: of its key; empty when one key is not stored
    here. A step that only stands on another result has but `input` changes."""

    step: Step
    change: str
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """`definition`: the lines of a unified diff; `sources` by reference: what it named then and now."""

    old: Build
    new: Build
    options: tuple[Value, ...]
    sources: tuple[Value, ...]
    definition: tuple[str, ...]
    steps: tuple[StepChange, ...]
    results: tuple[Value, ...]

    def to_json(self) -> Json:
        """Plain data."""
        values = {
            name: [{"name": item.name, "old": item.old, "new": item.new} for item in getattr(self, name)]
            for name in ("options", "sources", "results")
        }
        return {
            "old": self.old.id,
            "new": self.new.id,
            **values,
            "definition": list(self.definition),
            "steps": [
                {
                    "number": item.step.number, "name": item.step.name, "vertex": item.step.vertex,
                    "change": item.change, "changes": [change.to_json() for change in item.changes],
                }
                for item in self.steps
            ],
        }  # fmt: skip


def difference(blobs: Blobs, old: Build, new: Build, hides: Hides, records: Records) -> Difference:
    """Compare two builds of the log that `records` are of. Raises VerificationError."""
    return Difference(
        old,
        new,
        tuple(_values(_options(old), _options(new))),
        tuple(_values(_sources(old), _sources(new))),
        tuple(_definition(blobs, old, new)),
        tuple(_steps(blobs, old, new, hides, records)),
        tuple(_values(_results(old), _results(new))),
    )


def _values(old: dict[str, str], new: dict[str, str]) -> list[Value]:
    names = dict.fromkeys((*old, *new))
    return [Value(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _options(build: Build) -> dict[str, str]:
    """`args` one by one, lists as text."""
    found: dict[str, str] = {}
    for name, value in build.options.items():
        if isinstance(value, dict):
            found |= {f"{name} {key}": str(item) for key, item in value.items()}
        elif isinstance(value, list):
            found[name] = ", ".join(map(str, value))
        else:
            found[name] = str(value)
    return found


def _sources(build: Build) -> dict[str, str]:
    return {" ".join(filter(None, key)): digest for key, digest in build.sources.items()}


def _results(build: Build) -> dict[str, str]:
    return {
        str(item.get("platform") or number): str(item.get("digest") or item.get("ref"))
        for number, item in enumerate(build.results)
    }


def _definition(blobs: Blobs, old: Build, new: Build) -> list[str]:
    if old.definition == new.definition:
        return []
    before, after = definition_text(blobs, old.definition), definition_text(blobs, new.definition)
    if before is None or after is None:
        return []
    return list(unified_diff(before, after, old.record.filename, new.record.filename, n=0, lineterm=""))[2:]


def _steps(blobs: Blobs, old: Build, new: Build, hides: Hides, records: Records) -> list[StepChange]:
    pairs = pair_steps(old, new)
    kept = set(pairs.values())
    found = [StepChange(old.steps[one], "removed") for one in old.asked if one in old.steps and one not in kept]
    for two in new.asked:
        if two not in new.steps:
            continue
        one = pairs.get(two)
        if one is None:
            found.append(StepChange(new.steps[two], "added"))
        elif (changes := step_changes(blobs, old, one, new, two, hides, records)) != []:
            found.append(StepChange(new.steps[two], "changed", tuple(changes or ())))
    return found
