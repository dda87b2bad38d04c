"""Reads bundles, and trusts nothing of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from storage.bundle.form import BLOBS, EVENTS, FORMAT, INDEX, SMALL, TRAILER, VERSION, Index, Json, Member, trailer
from storage.bundle.log import BundleLog
from storage.decompression import ZstdFrames
from storage.digest import Digest, Hasher, parse_json
from storage.errors import DiskError, InputError, VerificationError
from storage.interfaces.blobs import BlobWriter, ByteSource
from storage.interfaces.images import Provider
from storage.interfaces.log import Event
from storage.tar.reader import REGULAR, TarReader

LIMIT = 64 << 30
"""Bytes that all members may have together."""
_SMALL_LIMIT = 64 << 20
_INDEX_LIMIT = 32 << 20
_EVENTS_LIMIT = 512 << 20
_LINE_LIMIT = 4 << 20
_OBJECTS = 20_000_000
"""In the events of a bundle: a few bytes of text become a hundred of memory."""
_TRAILER_SIZE = len(TRAILER) + 32
_ROLE = re.compile(r"[a-z][a-z-]{0,30}")
_BUILD = re.compile(r"[0-9a-f]{1,64}")
_HINT = "have it sent again, or bundle the build anew"


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
                if bundle is None:
                    hint = f"if it is a bundle: {_HINT}"
                    raise VerificationError(error.what, where=str(path), hint=hint) from error
                bundle.damage = VerificationError(error.what, where=str(path), hint=_HINT)
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
    if entry is None or entry.name != INDEX.encode() or entry.type != REGULAR:
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
        return _index(said), said["events"]
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
        _any_digest(item["digest"])
        _count(item["size"])
        _text(item["mediaType"])
    if "diff_id" in layer:
        _any_digest(layer["diff_id"])
    _text(layer.get("snapshot", ""))
    _count(layer.get("created", 0))
    for provider in layer.get("providers", ()):
        Provider.from_json(provider)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _any_digest(text: Any) -> Digest:
    try:
        return Digest(text)
    except InputError as error:
        raise ValueError(error.what) from error


def _digest(text: Any) -> Digest:
    digest = _any_digest(text)
    if digest.algorithm != "sha256":
        raise ValueError(f"{digest.algorithm} is not used in bundles")
    return digest


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r:.40} is not a count")
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
    _member(tar, members, EVENTS, Member(digest, size, "events"), data.extend)
    bundle.events = _events(bytes(data))
    for member in bundle.index.blobs:
        if member.role in SMALL:
            data = bytearray()
            _member(tar, members, BLOBS + member.digest.hex, member, data.extend)
            bundle.small[member.digest] = bytes(data)
        else:
            _pass_on(tar, members, member, take(member))
    if next(members, None) is not None:
        raise VerificationError("there is more in it than its index says")


def _pass_on(tar: TarReader, members: Iterator[Any], member: Member, writer: BlobWriter | None) -> None:
    name = BLOBS + member.digest.hex
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
        raise VerificationError(f"{EVENTS} has more than {_OBJECTS} lists and objects")
    # reason for one at a time: a megabyte of zstd may be half a gigabyte of empty lines
    for number, ended in enumerate(BytesIO(data), 1):
        line = ended.removesuffix(b"\n")
        if len(line) > _LINE_LIMIT:
            raise VerificationError(f"{EVENTS}:{number} has {len(line)} bytes")
        try:
            event = _event(parse_json(line))
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
            raise VerificationError(f"{EVENTS}:{number} is no event: {error}") from error
        if out and event.seq <= out[-1].seq:
            raise VerificationError(f"{EVENTS}:{number} is out of order: {event.seq} after {out[-1].seq}")
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
    if not (isinstance(said["data"], dict) and isinstance(said["type"], str) and isinstance(said["stream"], str)):
        raise TypeError("it has no type, no stream or no data")
    build, where = said["build"], said["vertex"]
    if not (isinstance(build, str | None) and isinstance(where, str | None)):
        raise TypeError("a name is no text")
    cause = None if said["cause"] is None else _count(said["cause"])
    return Event(
        _count(said["seq"]), time, said["stream"], _count(said["version"]), said["type"], build, where, cause,
        said["data"],
    )  # fmt: skip
