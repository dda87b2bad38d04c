"""What differs between two builds' steps: components by name, files by path. Pure but for reading stored listings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from itertools import count
from typing import Any

from projections.asked import Asked, Blobs, Build, Component, Step, read_components, read_listing
from projections.records import Records

Json = dict[str, Any]
Hides = Callable[[Sequence[str], str], bool]
"""Do these `.dockerignore` patterns hide that path of the context?"""
_CAME = frozenset({"added", "removed"})
_PAIRS = frozenset({"env"})
"""Components whose value is `name=value`, compared by that name."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """`change`: added, removed, changed (content or type), mode, or owner (owner or attributes); `old` and `new`:
    digest, link target or device, octal mode, or owner; "" for a side that has none. `ignored`: it came or went because
    `.dockerignore` shows or hides it now."""

    path: str
    change: str
    old: str
    new: str
    ignored: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """A component that differs: `old` and `new` values, None for a side without it. `files`: for a listing, what is in
    it, `patterns`: lines that `.dockerignore` has more (`+x`) or less (`-x`), when that is why files came or went. An
    `input` is the result of a step, `source` an image, file or commit from outside: `old_step` and `new_step` name what
    gives it."""

    component: str
    old: str | None
    new: str | None
    files: tuple[FileChange, ...] = ()
    old_step: str = ""
    new_step: str = ""
    patterns: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """The fields, by name."""
        return {**asdict(self), "files": [asdict(item) for item in self.files], "patterns": list(self.patterns)}


def pair_steps(old: Build, new: Build) -> dict[str, str]:
    """For each step of `new`, by vertex, the one of `old` it stands for: the same vertex, else what stands in its place
    among the steps of its stage. A stage without a namesake stands for the one left over in its place."""
    pairs = {vertex: vertex for vertex in new.steps if vertex in old.steps}
    before, after = _stages(old.steps.values()), _stages(new.steps.values())
    left = [name for name in before if name not in after]
    for name in after:
        other = name if name in before else _likest(after[name], [(item, before[item]) for item in left])
        if other is None:
            continue
        if other in left:
            left.remove(other)
        taken = set(pairs.values())
        for one, two in _aligned(before[other], after[name]):
            if two.vertex not in pairs and one.vertex not in taken:
                pairs[two.vertex] = one.vertex
    return pairs


def _stages(steps: Iterable[Step]) -> dict[str, list[Step]]:
    found: dict[str, list[Step]] = {}
    for step in steps:
        found.setdefault(step.stage, []).append(step)
    return found


def _likest(steps: Sequence[Step], candidates: Sequence[tuple[str, list[Step]]]) -> str | None:
    titles = {step.title for step in steps}
    scored = [(len(titles & {step.title for step in others}), -n) for n, (_, others) in enumerate(candidates)]
    return candidates[-max(scored)[1]][0] if scored else None


def _aligned(old: Sequence[Step], new: Sequence[Step]) -> list[tuple[Step, Step]]:
    matcher = SequenceMatcher(None, [s.title for s in old], [s.title for s in new], autojunk=False)
    found: list[tuple[Step, Step]] = []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            found += zip(old[i1:i2], new[j1:j2], strict=True)
        elif tag == "replace":
            rest = list(old[i1:i2])
            for step in new[j1:j2]:
                same = next((item for item in rest if item.kind == step.kind), None)
                if same is not None:
                    found.append((same, step))
                    rest = rest[rest.index(same) + 1 :]
    return found + _moved(old, new, found)


def _moved(old: Sequence[Step], new: Sequence[Step], paired: Sequence[tuple[Step, Step]]) -> list[tuple[Step, Step]]:
    """Steps that are called the same, but stand elsewhere among the others."""
    before, after = {one.vertex for one, _ in paired}, {two.vertex for _, two in paired}
    left = {step.title: step for step in reversed(old) if step.vertex not in before}
    return [(left.pop(step.title), step) for step in new if step.vertex not in after and step.title in left]


# ---------------------------------------------------------------- components


def step_changes(
    blobs: Blobs, old: Build, one: str, new: Build, two: str, hides: Hides, records: Records
) -> list[Change] | None:
    """How the key of step `two` of `new` differs from that of `one` of `old`, own components before inputs; None when
    one of the two is not stored here. What a step takes from others' results counts where it is known of both builds.
    Raises VerificationError."""
    if one not in old.asked or two not in new.asked:
        return None
    if old.asked[one].key == new.asked[two].key:
        return []
    before = read_components(blobs, old.asked[one].components)
    after = read_components(blobs, new.asked[two].components)
    if before is None or after is None:
        return None
    own = component_changes(before, after)
    taken = _content_changes(blobs, records.by_content(old, one), records.by_content(new, two))
    named = {change.component for change in own}
    own = [_with_files(blobs, item) for item in (*own, *(item for item in taken if item.component not in named))]
    own = [_with_patterns(item, old, one, new, two, hides) for item in own]
    return own + _input_changes(old, one, before, new, two, after)


def _content_changes(blobs: Blobs, old: Asked | None, new: Asked | None) -> list[Change]:
    """What differs of the files that a step takes from results: like is compared with like, and nothing else."""
    if old is None or new is None or old.key == new.key:
        return []
    before, after = read_components(blobs, old.components), read_components(blobs, new.components)
    if before is None or after is None:
        return []
    return [change for change in component_changes(before, after) if is_content(change)]


def is_content(change: Change) -> bool:
    """Is it about files that the step takes?"""
    return change.component == "content" or change.component.endswith(" content")


def _with_patterns(change: Change, old: Build, one: str, new: Build, two: str, hides: Hides) -> Change:
    if not change.files:
        return change
    before, after = _excludes(old, one, change.component), _excludes(new, two, change.component)
    if before is None or after is None or before == after:
        return change
    files = tuple(
        replace(file, ignored=file.change in _CAME and hides(before if file.change == "added" else after, file.path))
        for file in change.files
    )
    if not any(file.ignored for file in files):
        return change
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    lines = [
        line for tag, i1, i2, j1, j2 in matcher.get_opcodes() if tag != "equal"
        for line in (*(f"-{item}" for item in before[i1:i2]), *(f"+{item}" for item in after[j1:j2]))
    ]  # fmt: skip
    return replace(change, files=files, patterns=tuple(lines))


def _excludes(build: Build, vertex: str, component: str) -> list[str] | None:
    """The patterns of the context that a listing was taken from; None when it was none, or has no patterns."""
    step = build.steps[vertex]
    place = 1
    if component.startswith("mount "):
        number = component.split()[1]
        mounts = dict(zip(map(str, count()), step.op.get("mounts") or (), strict=False))
        given = mounts.get(number, {}).get("input")
        place = -1 if given is None else given
    source = build.steps.get(step.inputs[place]) if 0 <= place < len(step.inputs) else None
    if source is None or source.kind != "context":
        return None
    return list(map(str, source.op.get("excludes") or ()))


def component_changes(old: Sequence[Component], new: Sequence[Component]) -> list[Change]:
    """What differs but for `input`, in the order of the key; the id of a mount before what follows from it."""
    found: list[Change] = []
    names = list(dict.fromkeys(name for name, _ in (*new, *old)))
    for name in sorted(names, key=lambda name: (names.index(_group(name, names)), not name.endswith(" id"))):
        if name == "input":
            continue
        before = [value for item, value in old if item == name]
        after = [value for item, value in new if item == name]
        if before == after:
            continue
        if name in _PAIRS:
            found += _pair_changes(name, before, after)
        elif len(before) <= 1 and len(after) <= 1:
            found.append(Change(name, before[0] if before else None, after[0] if after else None))
        else:
            found += _list_changes(name, before, after)
    return found


def _group(name: str, names: Sequence[str]) -> str:
    """The first of `names` that is about the same mount; `name` itself when it is about none."""
    mount = " ".join(name.split()[:2]) + " " if name.startswith("mount ") else name
    return next((item for item in names if item.startswith(mount)), name)


def _pair_changes(name: str, old: Sequence[str], new: Sequence[str]) -> list[Change]:
    before, after = (dict(item.partition("=")[::2] for item in items) for items in (old, new))
    found = [
        Change(f"{name} {key}", before.get(key), after.get(key))
        for key in dict.fromkeys((*after, *before))
        if before.get(key) != after.get(key)
    ]
    return found or [Change(f"{name} order", " ".join(before), " ".join(after))]


def _list_changes(name: str, old: Sequence[str], new: Sequence[str]) -> list[Change]:
    if sorted(old) == sorted(new):
        return [Change(f"{name} order", " ".join(old), " ".join(new))]
    longest = max(len(old), len(new))
    before = [*old, *[None] * (longest - len(old))]
    after = [*new, *[None] * (longest - len(new))]
    return [Change(name, one, two) for one, two in zip(before, after, strict=True) if one != two]


def _with_files(blobs: Blobs, change: Change) -> Change:
    if not is_content(change):
        return change
    before = read_listing(blobs, change.old) if change.old else {}
    after = read_listing(blobs, change.new) if change.new else {}
    if before is None or after is None:
        return change
    return replace(change, files=tuple(file_changes(before, after)))


def file_changes(old: Mapping[str, tuple[str, ...]], new: Mapping[str, tuple[str, ...]]) -> list[FileChange]:
    """What differs between two listings, by path."""
    found = []
    for path in sorted({*old, *new}):
        before, after = old.get(path), new.get(path)
        if before == after:
            continue
        if before is None or after is None:
            found.append(FileChange(path, "removed" if after is None else "added", _content(before), _content(after)))
        elif (before[0], before[2]) != (after[0], after[2]):
            found.append(FileChange(path, "changed", _content(before), _content(after)))
        elif before[1] != after[1]:
            found.append(FileChange(path, "mode", before[1], after[1]))
        else:
            found.append(FileChange(path, "owner", " ".join(before[3:]).strip(), " ".join(after[3:]).strip()))
    return found


def _content(entry: tuple[str, ...] | None) -> str:
    return "" if entry is None else entry[2] or entry[0]


def _input_changes(
    old: Build, one: str, before: Sequence[Component], new: Build, two: str, after: Sequence[Component]
) -> list[Change]:
    """Inputs by their place; what is no step that was asked for is a source and tells where it came from."""
    was = [value for name, value in before if name == "input"]
    now = [value for name, value in after if name == "input"]
    found = []
    for place in range(max(len(was), len(now))):
        left, gone = _input(old, one, was, place)
        right, here = _input(new, two, now, place)
        if left == right:
            continue
        if (gone is None or gone.vertex not in old.asked) and (here is None or here.vertex not in new.asked):
            change = Change("source", (gone and _origin(old, gone)) or left, (here and _origin(new, here)) or right)
        else:
            change = Change("input", left, right)
        found.append(replace(change, old_step=gone.name if gone else "", new_step=here.name if here else ""))
    return found


def _input(build: Build, vertex: str, keys: Sequence[str], place: int) -> tuple[str | None, Step | None]:
    inputs = build.inputs(vertex)
    key = keys[place] if place < len(keys) else None
    return key, build.steps.get(inputs[place]) if place < len(inputs) else None


def _origin(build: Build, step: Step) -> str:
    """`reference@digest` (of a tag: what the tag named then), `url@digest`, `remote@commit`, or the kind."""
    op = step.op
    match step.kind:
        case "image":
            name, platform = str(op.get("reference")), str(op.get("platform", ""))
            return f"{name.partition('@')[0]}@{build.sources.get((name, platform)) or op.get('manifest')}"
        case "http":
            return f"{op.get('url')}@{op.get('digest')}"
        case "git":
            return f"{op.get('remote')}@{op.get('commit')}"
        case "archive":
            return str(op.get("digest"))
        case "layer":
            layer = op.get("layer")
            return str(layer.get("digest")) if isinstance(layer, dict) else step.kind
    return step.kind
