"""What is to be erased of a build's record, found and erased (see storage.log.detached)."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from engine.events import PayloadRedacted, Pruned, to_data
from projections.history import BuildRecord
from storage.blobs import DirectoryBlobs
from storage.digest import Digest, canonical_json, parse_json
from storage.durable import fsync_directory
from storage.errors import DiskError, InputError
from storage.interfaces.log import EventLog, NewEvent, Payload, StoredPayloads

_EVENT = 500  # digests that one event has room for
_SHORTEST = 4  # characters of a value that is looked for in blobs: shorter ones are everywhere
_TOLD = (("GraphDefined", "graph"), ("BuildStarted", "definition"), ("DefinitionRead", "definition"),
         ("CacheQueried", "components"), ("CacheRecorded", "components"))  # fmt: skip


@dataclass(slots=True)
class Found:
    """What is to be erased: `output` of steps, values of `args`. `gone`: as much of it was erased earlier; `fixed`: as
    much lies in the events themselves, where it stays: an older Refledger wrote them, or no pattern matched a name."""

    output: list[Payload] = field(default_factory=list)
    args: list[Payload] = field(default_factory=list)
    gone: int = 0
    fixed: int = 0

    @property
    def payloads(self) -> list[Payload]:
        """All of it, in order."""
        return sorted((*self.args, *self.output), key=lambda payload: payload.id)


def find(
    log: EventLog, payloads: StoredPayloads, record: BuildRecord, vertex: str | None, names: Collection[str],
    pattern: re.Pattern[str] | None, *, output: bool,
) -> Found:  # fmt: skip
    """With `output`, what steps of the build printed (`vertex`: that one only), and the values of the args `names`;
    with a `pattern`, only values in which it is found: in output, chunks that a match lies in. Raises LogError."""
    found, texts = Found(), _Texts()
    until = record.last_seq or log.last_seq()
    stored: dict[int, list[Payload]] = {}
    for payload in payloads.payloads(record.first_seq - 1, until):
        stored.setdefault(payload.seq, []).append(payload)
    kinds = frozenset({"VertexOutput", "BuildStarted"})
    for event in log.read(after=record.first_seq - 1, until=until, types=kinds):
        if event.build != record.id:
            continue
        own = stored.get(event.seq, [])
        if event.type == "BuildStarted":
            _find_args(found, event.data, own, names, pattern)
        elif output and vertex in (None, event.vertex):
            for payload in own:
                texts.add((event.vertex or "", int(event.data.get("fd") or 1)), payload)
            found.gone += sum(not payload.data for payload in own)
            found.fixed += not own
    found.output = list(texts.matching(pattern))
    return found


def _find_args(
    found: Found, data: dict[str, object], own: Sequence[Payload], names: Collection[str],
    pattern: re.Pattern[str] | None,
) -> None:  # fmt: skip
    options = data.get("options")
    args = options.get("args") if isinstance(options, dict) else None
    places = {payload.pointer: payload for payload in own}
    for name in names:
        quoted = "/options/args/" + name.replace("~", "~0").replace("/", "~1")
        payload = places.get(quoted) or places.get("/options/args")
        if payload is None:
            found.fixed += isinstance(args, dict) and name in args
        elif not payload.data:
            found.gone += 1
        elif (pattern is None or pattern.search(payload.data.decode())) and payload not in found.args:
            found.args.append(payload)


class _Texts:
    """What was printed, stream by stream, so that a match is found that lies in several chunks."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, int], list[Payload]] = {}

    def add(self, stream: tuple[str, int], payload: Payload) -> None:
        if payload.data:
            self._streams.setdefault(stream, []).append(payload)

    def matching(self, pattern: re.Pattern[str] | None) -> Iterator[Payload]:
        for chunks in self._streams.values():
            if pattern is None:
                yield from chunks
                continue
            texts = [str(parse_json(chunk.data)) for chunk in chunks]
            starts = [0]
            for text in texts:
                starts.append(starts[-1] + len(text))
            wanted: set[int] = set()
            for match in pattern.finditer("".join(texts)):
                if match.end() > match.start():
                    first = bisect_right(starts, match.start()) - 1
                    wanted.update(range(first, bisect_right(starts, match.end() - 1)))
            yield from (chunks[number] for number in sorted(wanted))


def erase(
    payloads: StoredPayloads, record: BuildRecord, vertex: str | None, gone: Sequence[Payload], by: str, reason: str
) -> list[int]:
    """Erase `gone`, and say so in the log; returns the events that do. Raises LogError, DiskError."""
    said = []
    for start in range(0, len(gone), _EVENT):
        some = gone[start : start + _EVENT]
        fact = PayloadRedacted(
            digests=tuple(payload.digest for payload in some), by=by, reason=reason, build=record.id,
            vertex=vertex or "",
        )  # fmt: skip
        said.append((NewEvent(fact.STREAM, type(fact).__name__, to_data(fact), record.id, vertex), some))
    return [event.seq for event in payloads.redact(*said)]


# ---------------------------------------------------------------- blobs


def holding(log: EventLog, record: BuildRecord, blobs: DirectoryBlobs, gone: Sequence[Payload]) -> list[Digest]:
    """The blobs that tell of the build (its graph, its definition, the components of its cache keys) and have one of
    these values in them. Raises LogError, VerificationError, InputError for a value that is too short."""
    needles = []
    for value in _values([parse_json(payload.data) for payload in gone]):
        if len(value) < _SHORTEST:
            raise InputError("a value of so few characters is in blobs by chance", hint="leave out --blobs")
        needles += [value.encode(), canonical_json(value)[1:-1]]
    told: dict[str, None] = {}
    kinds = frozenset(kind for kind, _ in _TOLD)
    for event in log.read(after=record.first_seq - 1, until=record.last_seq, types=kinds):
        if event.build == record.id:
            names = (event.data.get(field) for kind, field in _TOLD if kind == event.type)
            told |= {name: None for name in names if isinstance(name, str) and name}
    here = (digest for digest in map(Digest, told) if blobs.size(digest) is not None)
    return [digest for digest in here if (data := blobs.get(digest)) and any(needle in data for needle in needles)]


def _values(items: Sequence[object]) -> Iterator[str]:
    """Every text in them: of all args, when they were too many to be stored one by one."""
    for item in items:
        if isinstance(item, dict):
            yield from _values(list(item.values()))
        elif item:
            yield str(item)


def erase_blobs(log: EventLog, blobs: DirectoryBlobs, digests: Sequence[Digest], by: str) -> None:
    """Remove these blobs, which the log says first: a later command that misses one is told. Raises LogError,
    DiskError."""
    facts = [
        Pruned(kind="blob", name=str(digest), policy="redaction", bytes=blobs.size(digest) or 0, by=by)
        for digest in digests
    ]  # fmt: skip
    log.append(*(NewEvent(fact.STREAM, type(fact).__name__, to_data(fact)) for fact in facts))
    try:
        for digest in digests:
            path = blobs.path(digest)
            path.unlink(missing_ok=True)
            fsync_directory(path.parent)
    except OSError as error:
        raise DiskError.of(error, "erasing a blob") from error
