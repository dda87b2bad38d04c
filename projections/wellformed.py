"""Is a log what an append-only log can be? Looks at every stored event once, in order, and keeps little. Pure.

What is checked: `seq` and the versions of each stream are without gaps, times never go back, every state is one, every
fact of a known type has its fields, causes lie before their effects, a fact is in the stream that it belongs to, and
builds begin before they do anything. (What a build says after its end is legal: a late result is recorded, never used,
and checkpoints follow the end.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engine.events import TYPES, needed_keys
from storage.digest import parse_json

Row = tuple[int, str, int, str, bytes]
Json = dict[str, Any]

MEANING = {
    "file": "the file itself is damaged: what lies there cannot be read",
    "gap": "events were taken out, or lost",
    "row": "it was not written by Refledger",
    "version": "an event of this stream was taken out, put in, or moved",
    "time": "it was backdated, or moved: a log never goes back in time",
    "state": "it was not written by Refledger, or damaged",
    "cause": "it was put in, moved, or changed: nothing is caused by what comes later",
    "stream": "it was moved or changed: this fact belongs elsewhere",
    "build": "the beginning of the build was taken out, or this is of another log",
    "end": "it was cut off; or the build had died, and nobody had said so, when it was bundled: then bundle it anew",
    "tree": "what was signed is not what is here",
    "checkpoint": "it was made or changed by hand",
    "signature": "whoever holds the key did not sign this",
    "origin": "events of another log were put in",
    "rollback": "an older copy was put in the place of the log, or its end was cut off",
    "fork": "this is not the log that was published, or another continuation of it",
    "blob": "what the event tells of cannot be shown any more",
    "payload": "what the event tells of cannot be shown any more",
    "layer": "steps that stand on it would see something else",
    "snapshot": "steps that stand on it would see something else",
    "views": "history, refs, why and du may tell something else than the log: run refledger rebuild",
    "kept": "it cannot say where the log was changed: delete it, it is made anew",
    "proof": "the events are not those of a log that was signed, or not all that it had there",
}
"""The closed list of faults, and what each means."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that cannot be in an honest log. `seq` to `until`: where, one event when they are equal; 0 where it is
    no event's. `kind`: a key of MEANING; `what` was found, one line."""

    seq: int
    until: int
    kind: str
    what: str

    @property
    def meaning(self) -> str:
        """What it means, one line."""
        return MEANING[self.kind]

    @property
    def where(self) -> str:
        """The position in words; "" for the whole."""
        if not self.seq:
            return {"views": "views.db", "kept": "tree.db"}.get(self.kind, "")
        return f"event {self.seq}" if self.seq == self.until else f"events {self.seq} to {self.until}"

    def to_json(self) -> Json:
        """`{seq, until, kind, what, meaning}`, `seq` and `until` null where it is no event's."""
        return {
            "seq": self.seq or None, "until": self.until or None, "kind": self.kind, "what": self.what,
            "meaning": self.meaning,
        }  # fmt: skip


def at(seq: int, kind: str, what: str) -> Fault:
    """A fault of one event."""
    return Fault(seq, seq, kind, what)


_NEEDED = {name: needed_keys(fact) for name, fact in TYPES.items()}


class Wellformed:
    """Give it every row, in order; it gives back the event's `data` (None when it has none) and notes the faults."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.seq = 0
        self.time = 0
        self.versions: dict[str, int] = {}
        self.unknown: dict[str, int] = {}
        self._started: set[str] = set()
        self.ended: set[str] = set()

    @property
    def builds(self) -> int:
        """How many began."""
        return len(self._started)

    def look(self, row: Row) -> Json | None:
        """One more row."""
        seq, stream, version, name, state = row
        if seq != self.seq + 1:
            missing = f"event {self.seq + 1} is" if seq == self.seq + 2 else f"events {self.seq + 1} to {seq - 1} are"
            self.faults.append(Fault(self.seq + 1, max(seq - 1, self.seq + 1), "gap", f"{missing} missing"))
        self.seq = seq
        if type(stream) is not str or type(version) is not int or type(name) is not str or type(state) is not bytes:
            self._fault("row", "its columns do not have the types that an event's have")
            return None
        expected = self.versions.get(stream, 0) + 1
        if version != expected:
            self._fault("version", f"it is number {version} of {stream}, where number {expected} should stand")
        self.versions[stream] = version
        try:
            said = parse_json(state)
            time: Any = said["t"]
            data: Json = said["d"]
        except (ValueError, KeyError, TypeError):
            self._fault("state", f"the {name} cannot be read")
            return None
        fits = type(time) is int and type(data) is dict and all(isinstance(said.get(key), str | None) for key in "bv")
        if not fits or len(said) != sum(key in said for key in "tbvcdx"):
            self._fault("state", f"the {name} is no event")
            return None
        if time < self.time:
            self._fault("time", f"it is {(self.time - time) / 1e9:.3f} s earlier than the event before it")
        else:
            self.time = time
        cause = said.get("c")
        if cause is not None and not (type(cause) is int and 0 < cause < seq):
            self._fault("cause", f"it says that event {cause!r:.30} led to it")
        self._place(name, stream, version, said.get("b"), data)
        return data

    def fits(self, name: str, stream: str, build: Any, data: Json) -> tuple[str, str] | None:
        """Kind and what, when it is not in its stream, or lacks fields."""
        fact = TYPES.get(name)
        if fact is None:
            self.unknown[name] = self.unknown.get(name, 0) + 1
        elif missing := _NEEDED[name] - data.keys():
            return "state", f"the {name} lacks {', '.join(sorted(missing))}"
        kind, _, own = stream.partition("/")
        if fact is not None and kind != fact.STREAM:
            return "stream", f"a {name} is in stream {stream}"
        if kind == "build" and own != build:
            return "stream", f"an event of build {build!r:.30} is in stream {stream}"
        if kind == "ref" and fact is not None and data.get("ref") != own:
            return "stream", f"a {name} of {data.get('ref')!r:.90} is in stream {stream}"
        return None

    def _place(self, name: str, stream: str, version: int, build: Any, data: Json) -> None:
        """Is it in its stream, with its fields, and of a build that began?"""
        if problem := self.fits(name, stream, build, data):
            self._fault(*problem)
            if problem[0] == "state":
                return
        own = stream.partition("/")[2]
        if name == "BuildStarted":
            if version != 1:
                self._fault("build", f"build {build} begins a second time")
            self._started.add(own)
        elif build is not None and build not in self._started:
            self._started.add(build)  # said once
            self._fault("build", f"a {name} of build {build!r:.30}, which has not begun")
        if name in _ENDS:
            self.ended.add(own)

    def _fault(self, kind: str, what: str) -> None:
        self.faults.append(at(self.seq, kind, what))


_ENDS = frozenset({"BuildCompleted", "BuildFailed", "BuildCancelled", "BuildInterrupted"})


def ordered(faults: list[Fault]) -> Iterator[Fault]:
    """The earliest first, what belongs to no event last; before all, that the file is damaged or is another log. Of one
    event, what says most of it."""
    kinds = list(MEANING)

    def place(fault: Fault) -> tuple[bool, bool, int, int, int]:
        whole = fault.kind == "file" or (fault.kind == "origin" and fault.seq == 1)
        return not whole, not fault.seq, fault.until, kinds.index(fault.kind), fault.seq

    yield from sorted(faults, key=place)
