"""The file format of a bundle: one build, in a tar, compressed with zstd.

    index.json                what is in it (below); everything else is named, sized and hashed here
    events.jsonl              the build's slice of a log, each line as `refledger events --json` prints it, keys of
                              `data` in the order that the log has: its leaves can be made of them (storage/leaves.py)
    blobs/sha256/<hex>        blobs, small ones first

Nothing in a bundle says when or where it was made, so the same build gives the same bytes. Whoever reads one trusts
nothing of it: every size is bounded before it is read, every member checked against the index, the index against the
checksum of its frame. Index, events, small blobs and each larger one are frames of their own: damage in one leaves all
before it readable. A skippable frame (RFC 8878, 3.1.2) ends the file: the digest of all bytes before it, as not every
flipped bit of compressed data changes what it expands to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from storage.archive import TarArchive
from storage.compression import compressor
from storage.decompression import ZstdFrames
from storage.digest import Digest, Hasher, canonical_json, parse_json, plain_json, sha256
from storage.errors import DiskError, InputError, LogError, VerificationError
from storage.interfaces.blobs import BlobWriter, ByteSource
from storage.interfaces.log import Event, NewEvent
from storage.tar import BLOCK, REGULAR, TarReader

FORMAT, VERSION = "refledger-bundle", 1
LIMIT = 64 << 30
"""Bytes that all members may have together."""
SMALL = frozenset({"definition", "graph", "components", "listing", "files", "manifest", "config", "proof"})
"""Roles of blobs that are held in memory when a bundle is read."""
_SMALL_LIMIT = 64 << 20
_INDEX_LIMIT = 32 << 20
_EVENTS_LIMIT = 512 << 20
_LINE_LIMIT = 256 << 10
_OBJECTS = 20_000_000
"""In the events of a bundle: a few bytes of text become a hundred of memory."""
_INDEX, _EVENTS, _BLOBS = "index.json", "events.jsonl", "blobs/sha256/"
_READ = 1 << 20
_TRAILER = b"\x50\x2a\x4d\x18" + (32).to_bytes(4, "little")
_TRAILER_SIZE = len(_TRAILER) + 32
_ROLE = re.compile(r"[a-z][a-z-]{0,30}")
_BUILD = re.compile(r"[0-9a-f]{1,64}")
_HINT = "have it sent again, or bundle the build anew"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Member:
    """One blob of a bundle; `size` in bytes; `role`: what it is there for (one of SMALL, `pack` or `layer`)."""

    digest: Digest
    size: int
    role: str

    def to_json(self) -> Json:
        """Its entry in the index."""
        return {"digest": str(self.digest), "bytes": self.size, "role": self.role}


@dataclass(frozen=True, slots=True)
class Index:
    """What a bundle holds. `layers`: by the name of a layer (Layer.name), what is known of it, as `Layer.to_json` has
    it, and `bundled`, the descriptor of the blob in here that is its tar; `kept`: by the digest of a listing, the packs
    that have its files; `files`: by the name of a step's layer, the digest of the list of what it changed; `withheld`:
    what was left out on purpose or could not be had, each `kind`, `name` and `why`."""

    build: str
    engine_version: str
    blobs: tuple[Member, ...]
    layers: Mapping[str, Json] = field(default_factory=dict)
    kept: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    withheld: tuple[Json, ...] = ()
    full: bool = False

    def to_json(self, events: Json) -> Json:
        """The content of index.json; `events`: `count`, `bytes` and `digest` of events.jsonl."""
        return {
            "format": FORMAT, "version": VERSION, "build": self.build, "engine_version": self.engine_version,
            "full": self.full, "events": events, "blobs": [member.to_json() for member in self.blobs],
            "layers": dict(self.layers), "kept": {key: list(packs) for key, packs in self.kept.items()},
            "files": dict(self.files), "withheld": list(self.withheld),
        }  # fmt: skip


# ---------------------------------------------------------------- writing


def write_bundle(
    dest: str, index: Index, events: Iterable[Event], open_blob: Callable[[Digest], BinaryIO]
) -> int:
    """Write the bundle `dest` (complete, or not there at all); returns its size in bytes. Raises DiskError,
    VerificationError when a blob is not what the index says, and what `open_blob` raises."""
    lines = b"".join(plain_json(event.to_json()) + b"\n" for event in events)
    about = {"count": lines.count(b"\n"), "bytes": len(lines), "digest": str(sha256(lines))}
    tar = _Compressed(dest)
    try:
        for name, data in ((_INDEX, canonical_json(index.to_json(about))), (_EVENTS, lines)):
            tar.add(name, data)
            tar.end_frame()
        for member in index.blobs:
            if member.role not in SMALL:
                tar.end_frame()
            with open_blob(member.digest) as file:
                tar.begin(_BLOBS + member.digest.hex, member.size)
                _copy(file, member, tar.write)
        tar.commit()
        return tar.size
    finally:
        tar.abort()


def _copy(file: BinaryIO, member: Member, write: Callable[[bytes], None]) -> None:
    hasher = Hasher()
    while data := file.read(_READ):
        if hasher.size + len(data) > member.size:
            break
        hasher.update(data)
        write(data)
    if data or hasher.size != member.size or hasher.digest() != member.digest:
        raise VerificationError(f"a blob changed while it was bundled: {member.digest}")


class _Compressed(TarArchive):
    """A tar in zstd frames."""

    def __init__(self, dest: str) -> None:
        self._zstd = compressor("zstd")
        self._begun = False
        self.size = 0
        self._hasher = Hasher()
        super().__init__(dest)

    def end_frame(self) -> None:
        """What follows can be read without what came before."""
        if self._begun:
            rest = self._zstd.flush()
            self._zstd.close()
            self._zstd, self._begun = compressor("zstd"), False
            self._store(rest)

    def commit(self) -> None:
        """See Archive.commit."""
        self._put(bytes(2 * BLOCK))
        self.end_frame()
        self._store(trailer(self._hasher.digest()))
        self._file.commit()

    def abort(self) -> None:
        """See Archive.abort."""
        super().abort()
        self._zstd.close()

    def _put(self, data: bytes) -> None:
        self._begun = True
        self._store(self._zstd.compress(data))

    def _store(self, data: bytes) -> None:
        self.size += len(data)
        self._hasher.update(data)
        super()._put(data)


def trailer(digest: Digest) -> bytes:
    """The last bytes of a bundle whose other bytes have `digest`."""
    return _TRAILER + bytes.fromhex(digest.hex)


# ---------------------------------------------------------------- reading


class Take(Protocol):
    """What to do with a blob that is not held in memory: a writer for its bytes, None to check them only."""

    def __call__(self, member: Member, /) -> BlobWriter | None:
        """The writer for the bytes of `member`."""


@dataclass(slots=True)
class Bundle:
    """A bundle that was read. `small`: contents of blobs, by digest; `damage`: why it could not be read to its end;
    what is here was checked all the same."""

    path: Path
    index: Index
    events: list[Event] = field(default_factory=list)
    small: dict[Digest, bytes] = field(default_factory=dict)
    damage: VerificationError | None = None
    size: int = 0
    digest: Digest | None = None

    @property
    def log(self) -> BundleLog:
        """Its slice of a log."""
        return BundleLog(self.path, self.events)


def _check_only(_: Member, /) -> None:
    return None


def read_bundle(path: Path, take: Take = _check_only) -> Bundle:
    """Read all of `path`, checking everything. Raises InputError (it is no bundle, or a newer one), DiskError, and
    VerificationError when there is not even an index; later damage is told in `Bundle.damage`."""
    bundle: Bundle | None = None
    try:
        with path.open("rb", buffering=0) as file:
            source = _Hashed(file, max(0, path.stat().st_size - _TRAILER_SIZE))
            tar = TarReader(ZstdFrames(source))
            members = iter(tar)
            try:
                index, about = _read_index(tar, members, path)
                bundle = Bundle(path, index)
                _read_rest(bundle, about, tar, members, take)
                tar.drain()
                source.check_end()
                bundle.digest, bundle.size = source.hasher.digest(), source.hasher.size
            except VerificationError as error:
                damage = VerificationError(error.what, where=str(path), hint=_HINT)
                if bundle is None:
                    raise damage from error
                bundle.damage = damage
    except OSError as error:
        raise DiskError.of(error, "reading the bundle") from error
    return bundle


class _Hashed:
    """A file whose bytes are counted and hashed as they are read, less its last ones, behind `size` bytes."""

    def __init__(self, file: ByteSource, size: int) -> None:
        self._file = file
        self._left = size
        self.hasher = Hasher()

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        self.hasher.update(data)
        return data

    def check_end(self) -> None:
        """Raises VerificationError when the file's last bytes are not what those before make them."""
        expected, found = trailer(self.hasher.digest()), self._file.read(_TRAILER_SIZE + 1)
        self.hasher.update(found)
        if found != expected:
            raise VerificationError("its bytes are not those that were written: the digest at its end differs")


def _read_index(tar: TarReader, members: Iterator[Any], path: Path) -> tuple[Index, Json]:
    no_bundle = InputError("not a bundle", where=str(path), hint="`refledger bundle BUILD -o FILE` makes one")
    entry = next(members, None)
    if entry is None or entry.name != _INDEX.encode() or entry.type != REGULAR:
        raise no_bundle
    if entry.size > _INDEX_LIMIT:
        raise VerificationError(f"an index of {entry.size} bytes")
    data = b"".join(bytes(piece) for piece in tar.data())
    try:
        said = parse_json(data)
        if said["format"] != FORMAT:
            raise no_bundle
        if said["version"] > VERSION:
            raise InputError(
                f"the bundle has version {said['version']}, this Refledger knows {VERSION}", where=str(path),
                hint="use a newer Refledger",
            )  # fmt: skip
        try:
            return _index(said), said["events"]
        except InputError as error:  # a digest that is none
            raise ValueError(error.what) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise VerificationError(f"the index is damaged: {type(error).__name__}: {error}") from error


def _index(said: Json) -> Index:
    """Raises ValueError, TypeError, KeyError, AttributeError, VerificationError."""
    blobs, total = [], 0
    for item in said["blobs"]:
        member = Member(_digest(item["digest"]), _count(item["bytes"]), str(item["role"]))
        if not _ROLE.fullmatch(member.role) or (member.role in SMALL and member.size > _SMALL_LIMIT):
            raise VerificationError(f"the index names a blob that cannot be: {member.role!r}, {member.size} bytes")
        total += member.size
        blobs.append(member)
    known = {member.digest for member in blobs}
    if total > LIMIT or len(known) != len(blobs):
        raise VerificationError(f"the index names {len(blobs)} blobs of {total} bytes, more than can be")
    if sum(member.size for member in blobs if member.role in SMALL) > _EVENTS_LIMIT:
        raise VerificationError("the index names more small blobs than can be")
    if not _BUILD.fullmatch(said["build"]):
        raise VerificationError(f"the index names no build: {said['build']!r:.80}")
    for layer in said["layers"].values():
        _check_layer(layer)
        if "bundled" in layer:
            bundled = _digest(layer["bundled"]["digest"])
            if bundled not in known:
                raise VerificationError(f"the index names a layer that is not in it: {bundled}")
    kept = {str(_digest(key)): tuple(str(_digest(pack)) for pack in packs) for key, packs in said["kept"].items()}
    withheld = tuple({name: str(item[name]) for name in ("kind", "name", "why")} for item in said["withheld"])
    return Index(
        said["build"], str(said["engine_version"]), tuple(blobs), dict(said["layers"]), kept,
        {str(key): str(_digest(value)) for key, value in said["files"].items()}, withheld, said["full"] is True,
    )  # fmt: skip


def _check_layer(layer: Json) -> None:
    for item in (layer if "digest" in layer else None, layer.get("bundled")):
        if item is None:
            continue
        Digest(item["digest"])
        _count(item["size"])
        _text(item["mediaType"])
    if "diff_id" in layer:
        Digest(layer["diff_id"])
    _text(layer.get("snapshot", ""))
    _count(layer.get("created", 0))
    for provider in layer.get("providers", ()):
        for name in ("registry", "repository", "scope"):
            _text(provider[name])
        for mirror in provider.get("mirrors", ()):
            _text(mirror)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _digest(text: Any) -> Digest:
    digest = Digest(text)
    if digest.algorithm != "sha256":
        raise ValueError(f"{digest.algorithm} is not used in bundles")
    return digest


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a size")
    return value


def _read_rest(bundle: Bundle, about: Json, tar: TarReader, members: Iterator[Any], take: Take) -> None:
    """Raises VerificationError, OSError."""
    try:
        size, digest = _count(about["bytes"]), _digest(about["digest"])
    except (ValueError, TypeError, KeyError) as error:
        raise VerificationError(f"the index says nothing useful of the events: {error}") from error
    if size > _EVENTS_LIMIT:
        raise VerificationError(f"events of {size} bytes")
    data = bytearray()
    _member(tar, members, _EVENTS, Member(digest, size, "events"), data.extend)
    bundle.events = _events(bytes(data))
    for member in bundle.index.blobs:
        if member.role in SMALL:
            data = bytearray()
            _member(tar, members, _BLOBS + member.digest.hex, member, data.extend)
            bundle.small[member.digest] = bytes(data)
        else:
            _pass_on(tar, members, member, take(member))
    if next(members, None) is not None:
        raise VerificationError("there is more in it than its index says")


def _pass_on(tar: TarReader, members: Iterator[Any], member: Member, writer: BlobWriter | None) -> None:
    name = _BLOBS + member.digest.hex
    if writer is None:
        _member(tar, members, name, member, lambda _: None)
        return
    try:
        _member(tar, members, name, member, lambda piece: writer.write(bytes(piece)))
        writer.commit(member.digest)
    finally:
        writer.abort()


def _member(
    tar: TarReader, members: Iterator[Any], name: str, expected: Member, put: Callable[[memoryview], object]
) -> None:
    """The next member, which must be `name` and as `expected`."""
    try:
        _read_member(tar, members, name, expected, put)
    except VerificationError as error:
        raise error if name in error.what else VerificationError(f"{name}: {error.what}") from error


def _read_member(
    tar: TarReader, members: Iterator[Any], name: str, expected: Member, put: Callable[[memoryview], object]
) -> None:
    entry = next(members, None)
    if entry is None:
        raise VerificationError(f"it ends before {name}")
    if entry.name != name.encode() or entry.type != REGULAR or entry.segments is not None:
        raise VerificationError(f"{entry.name[:100]!r} stands where {name} should")
    if entry.size != expected.size:
        raise VerificationError(f"{name} has {entry.size} bytes, not {expected.size} as the index says")
    hasher = Hasher()
    for piece in tar.data():
        hasher.update(piece)
        put(piece)
    if hasher.digest() != expected.digest:
        raise VerificationError(f"{name} ({expected.role}) is damaged: its digest is {hasher.digest()}")


def _events(data: bytes) -> list[Event]:
    out: list[Event] = []
    if data.count(b"[") + data.count(b"{") > _OBJECTS:
        raise VerificationError(f"{_EVENTS} has more than {_OBJECTS} lists and objects")
    # reason for one at a time: a megabyte of zstd may be half a gigabyte of empty lines
    for number, ended in enumerate(BytesIO(data), 1):
        line = ended.removesuffix(b"\n")
        if len(line) > _LINE_LIMIT:
            raise VerificationError(f"{_EVENTS}:{number} has {len(line)} bytes")
        try:
            event = _event(parse_json(line))
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
            raise VerificationError(f"{_EVENTS}:{number} is no event: {error}") from error
        if out and event.seq <= out[-1].seq:
            raise VerificationError(f"{_EVENTS}:{number} is out of order: {event.seq} after {out[-1].seq}")
        out.append(event)
    return out


def _event(said: Json) -> Event:
    stamp = said["time"]
    whole = datetime.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    if stamp[19] != "." or stamp[29:] != "Z":
        raise ValueError(f"{stamp!r:.50} is not a time")
    time = int(whole.timestamp()) * 1_000_000_000 + int(stamp[20:29])
    if not 0 <= time < 1 << 64:
        raise ValueError(f"{stamp!r:.50} is no time of a build")
    if not isinstance(said["data"], dict) or not isinstance(said["type"], str):
        raise TypeError("it has no type or no data")
    build, where = said["build"], said["vertex"]
    if any(not isinstance(item, str | None) for item in (build, where, said["stream"])):
        raise TypeError("a name is no text")
    cause = None if said["cause"] is None else _count(said["cause"])
    return Event(
        _count(said["seq"]), time, said["stream"], _count(said["version"]), said["type"], build, where, cause,
        said["data"],
    )  # fmt: skip


# ---------------------------------------------------------------- as a log


class BundleLog:
    """Implements the reading half of EventLog over the events of a bundle, with the numbers they had."""

    def __init__(self, path: Path, events: Sequence[Event]) -> None:
        self._path = path
        self._events = events

    def submit(self, events: Sequence[NewEvent]) -> Future[list[Event]]:
        """Raises LogError: a bundle is what it is."""
        raise LogError(f"{len(events)} events for a bundle, which is only read", where=str(self._path))

    def append(self, *events: NewEvent) -> list[Event]:
        """Raises LogError."""
        return self.submit(events).result()

    def read(self, *, after: int = 0, until: int | None = None, types: frozenset[str] | None = None) -> Iterator[Event]:
        """See EventLog."""
        for event in self._events:
            if until is not None and event.seq > until:
                return
            if event.seq > after and (types is None or event.type in types):
                yield event

    def last_seq(self) -> int:
        """See EventLog."""
        return self._events[-1].seq if self._events else 0

    def wait(self, after: int, timeout: float) -> bool:  # noqa: ARG002  # nothing will come
        """See EventLog."""
        return self.last_seq() > after

    def close(self) -> None:
        """See EventLog."""
