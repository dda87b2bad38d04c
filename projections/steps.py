"""The plain data of the progress view: steps, lines of output, bytes on their way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

Json = dict[str, Any]

LONGEST_LINE: Final = 32 * 1024
"""Characters after which a line without an end is ended: a step may print for ever without a newline."""

_CLOSED = frozenset({"cached", "done", "failed", "cancelled", "interrupted"})


def provider_name(provider: Mapping[str, Any]) -> str:
    """`registry/repository` of a provider as events have it."""
    return "/".join(str(provider[key]) for key in ("registry", "repository") if provider.get(key))


def provider_names(providers: Iterable[Mapping[str, Any]]) -> str:
    """The same of several, "" for none."""
    return ", ".join(filter(None, map(provider_name, providers)))


@dataclass(frozen=True, slots=True)
class Line:
    """A line of output: when its end came (UTC ns), from which stream (1 or 2; 0: a remark of ours), without "\\n"."""

    time: int
    fd: int
    text: str


@dataclass(frozen=True, slots=True)
class Source:
    """What a name in the definition turned out to be; `recalled`: what it was before, as nobody was asked;
    `resolved_by`: the mirror that said so, "" when its own registry did."""

    reference: str
    digest: str
    platform: str
    vertex: str | None
    recalled: bool = False
    resolved_by: str = ""

    @property
    def how(self) -> str:
        """For people."""
        return "recalled" if self.recalled else "resolved"

    @property
    def became(self) -> str:
        """The same: the digest, and the mirror that said so."""
        return f"{self.digest}, says {self.resolved_by}" if self.resolved_by else self.digest

    def to_json(self) -> Json:
        """The fields, by name."""
        return asdict(self)


@dataclass(slots=True)
class Transfer:
    """A blob on its way to a step or an export. `state`: waiting, pulling, done, failed, or waited (somebody else's
    pull brought it; `puller` is the build). A failed pull is open: the next provider may have the blob."""

    digest: str
    requested: int
    state: str = "waiting"
    done: int = 0
    total: int = 0
    provider: str = ""
    transport: str = ""
    puller: str = ""
    error: str = ""
    started: int | None = None
    ended: int | None = None
    updated: int = 0

    @property
    def open(self) -> bool:
        """May more happen to it?"""
        return self.ended is None

    @property
    def rate(self) -> float:
        """Bytes a second since it began, 0.0 while that says nothing."""
        if self.started is None or self.updated <= self.started:
            return 0.0
        return self.done * 1e9 / (self.updated - self.started)

    def begin(self, time: int, total: int, provider: str) -> None:
        """A pull starts, or starts again from another provider."""
        self.state, self.started, self.updated, self.provider, self.error = "pulling", time, time, provider, ""
        self.done, self.total = 0, total or self.total

    def advance(self, time: int, done: int, total: int) -> None:
        """`done` bytes are here."""
        if self.started is None:
            self.started = time
        self.state, self.done, self.total, self.updated = "pulling", done, max(total, done), time
        self.ended = None

    def fail(self, time: int, error: str) -> None:
        """One provider failed."""
        self.state, self.error, self.updated = "failed", error, time

    def finish(self, time: int, count: int) -> None:
        """All of it is here; `count` bytes moved, which a resumed pull or a mount makes differ from the size."""
        self.state, self.error, self.updated, self.ended = "done", "", time, time
        self.done = self.total = self.total or count

    def follow(self, pull: Transfer) -> None:
        """Show what `pull`, of whomever, shows."""
        self.state, self.done, self.total, self.provider = pull.state, pull.done, pull.total, pull.provider
        self.error, self.started, self.ended, self.updated = pull.error, pull.started, pull.ended, pull.updated

    def to_json(self) -> Json:
        """The fields, by name, and `rate`."""
        return {**asdict(self), "rate": self.rate}


@dataclass(slots=True)
class Step:
    """One vertex, one export or one cache that is read (`kind`: step, fetch, export, cache). `state`: pending, running,
    cached, done, failed, cancelled or interrupted. `lines` of the Dockerfile; `output`: its last lines; `dropped`:
    bytes the engine left out of the log; `result`: digest that an export made; `number` counts from 1 in plan order;
    `avoided`: bytes of layers that did not have to come, as the step asked for some files only."""

    vertex: str
    name: str
    number: int
    kind: str = "step"
    tail: int | None = 50
    planned: bool = False
    lines: list[int] = field(default_factory=list)
    state: str = "pending"
    started: int | None = None
    ended: int | None = None
    attempt: int = 0
    exit_code: int | None = None
    error: str = ""
    origin_build: str | None = None
    result: str = ""
    dropped: int = 0
    avoided: int = 0
    transfers: dict[str, Transfer] = field(default_factory=dict)
    output: deque[Line] = field(default_factory=deque)
    _rest: dict[int, Line] = field(default_factory=dict)
    _redacted: str = ""

    def __post_init__(self) -> None:
        self.output = deque(self.output, maxlen=self.tail)

    @property
    def open(self) -> bool:
        """May more happen to it?"""
        return self.state not in _CLOSED

    @property
    def rest(self) -> list[Line]:
        """Begun lines without an end yet, one a stream."""
        return list(self._rest.values())

    def close(self, state: str, time: int) -> None:
        """It ended as `state`. Bars under it stay as they are from here on."""
        self.state, self.ended = state, time
        if self.started is None:
            self.started = time
        self.flush()

    def print(self, time: int, fd: int, chunk: str, dropped: int) -> list[Line]:
        """Take in `chunk` of stream `fd`, before which `dropped` bytes were left out; returns the lines it ends."""
        lines = []
        self._redacted = ""
        if dropped:
            self.dropped += dropped
            lines += [rest for rest in (self._rest.pop(fd, None),) if rest is not None]
            lines.append(Line(time, 0, f"[{dropped} bytes of output were dropped: printed too fast]"))
        begun = self._rest.pop(fd, None)
        *ended, rest = ((begun.text if begun else "") + chunk).split("\n")
        lines += [Line(time, fd, line.removesuffix("\r")) for line in ended]
        if len(rest) > LONGEST_LINE:
            lines.append(Line(time, fd, rest))
        elif rest:
            self._rest[fd] = Line(time, fd, rest)
        self.output.extend(lines)
        return lines

    def redact(self, time: int, words: str) -> list[Line]:
        """Take in a chunk that was erased: `words`, once for all that lie together; returns the lines."""
        lines = self.flush()
        if words != self._redacted:
            self._redacted = words
            self.remark(time, words)
            lines.append(Line(time, 0, words))
        return lines

    def remark(self, time: int, text: str) -> None:
        """Take in a line of ours."""
        self.output.append(Line(time, 0, text))

    def flush(self) -> list[Line]:
        """End the begun lines; returns them."""
        lines = list(self._rest.values())
        self._rest.clear()
        self.output.extend(lines)
        return lines

    def to_json(self) -> Json:
        """The step as plain data; `output` with begun lines at its end."""
        return {
            "vertex": self.vertex, "name": self.name, "kind": self.kind, "number": self.number, "lines": self.lines,
            "state": self.state, "started": self.started, "ended": self.ended, "attempt": self.attempt,
            "exit_code": self.exit_code, "error": self.error, "origin_build": self.origin_build,
            "result": self.result, "dropped": self.dropped, "avoided": self.avoided,
            "output": [asdict(line) for line in (*self.output, *self.rest)],
            "transfers": [transfer.to_json() for transfer in self.transfers.values()],
        }  # fmt: skip


class Steps:
    """The steps of one build, by vertex; `tail`: lines of output kept of each (None: all)."""

    def __init__(self, tail: int | None) -> None:
        self._tail = tail
        self._steps: dict[str, Step] = {}

    def __iter__(self) -> Iterator[Step]:
        return iter(self._steps.values())

    def get(self, vertex: str | None) -> Step | None:
        """The step of `vertex`, if there is one."""
        return self._steps.get(vertex or "")

    def named(self, vertex: str, name: str = "", kind: str = "step") -> Step:
        """The step of `vertex`; made now when there is none."""
        step = self._steps.get(vertex)
        if step is None:
            number = len(self._steps) + 1
            step = self._steps[vertex] = Step(vertex, name, number=number, kind=kind, tail=self._tail)
        elif name and not step.name:
            step.name = name
        return step
