"""What the engine knows of storage: plain data and protocols of at most six methods.

Plain data here is frozen, made of primitives, and goes into events and across processes as `to_json()` gives it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol

from storage.digest import Digest

if TYPE_CHECKING:
    from concurrent.futures import Future  # it brings logging along, which a quick start cannot afford

Json = dict[str, Any]

# ---------------------------------------------------------------- plain data


@dataclass(frozen=True, slots=True)
class Platform:
    """An OCI platform; `str()` gives `os/architecture[/variant]`."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """OCI descriptor of one blob; `size` in bytes, `urls` where else it can be had: of layers that are not to be
    distributed (image-spec descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    urls: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """The OCI JSON form, keys `mediaType`, `digest`, `size` and, when there are any, `annotations` and `urls`."""
        out: Json = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.annotations:
            out["annotations"] = dict(self.annotations)
        if self.urls:
            out["urls"] = list(self.urls)
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Descriptor:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError or InputError on anything else: registries
        and layouts give what they like."""
        if not isinstance(data, Mapping) or not isinstance(data["mediaType"], str):
            raise TypeError("a descriptor is not an object with a media type")
        annotations, urls = data.get("annotations") or {}, data.get("urls") or []
        if not isinstance(annotations, Mapping) or not all(isinstance(text, str) for text in annotations.values()):
            raise TypeError("annotations are no texts")
        if not isinstance(urls, list):
            raise TypeError("urls is not a list")
        return cls(
            data["mediaType"], Digest(data["digest"]), int(data["size"]), dict(annotations), tuple(map(str, urls))
        )


ESTARGZ = "containerd.io/snapshot/stargz/toc.digest"
"""The annotation of a gzip layer that is an eStargz: the digest of its table of contents."""


@dataclass(frozen=True, slots=True)
class Provider:
    """Where a blob can be read. Data, never a session: any later process can use it with its own credentials.

    `registry` is `host[:port]`, `repository` the path below /v2/, `scope` the token scope that reading needs
    (`repository:<name>:pull`): a name, never a secret. `mirrors` are other `host[:port]` to ask first. `mirror_of`: the
    provider (`host/name`) that was meant, when this one is asked before it, as a mirror.
    """

    registry: str
    repository: str
    scope: str
    mirrors: tuple[str, ...] = ()
    mirror_of: str = ""

    @classmethod
    def of(cls, registry: str, repository: str) -> Provider:
        """The provider of `repository` at `registry`, with the scope that pulling from it needs."""
        return cls(registry, repository, f"repository:{repository}:pull")

    @property
    def coordinates(self) -> tuple[str, str]:
        """Registry and repository: the same for all that mean the same repository, whatever for."""
        return self.registry, self.repository

    def to_json(self) -> Json:
        """`{registry, repository, scope}` and, unless they are empty, `mirrors` and `mirror_of`."""
        out: Json = {"registry": self.registry, "repository": self.repository, "scope": self.scope}
        if self.mirrors:
            out["mirrors"] = list(self.mirrors)
        if self.mirror_of:
            out["mirror_of"] = self.mirror_of
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Provider:
        """The inverse of `to_json`."""
        mirrors, mirror_of = tuple(data.get("mirrors", ())), str(data.get("mirror_of", ""))
        return cls(data["registry"], data["repository"], data["scope"], mirrors, mirror_of)

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}"


def push_scope(repository: str) -> str:
    """The token scope that writing to `repository` needs."""
    return f"repository:{repository}:pull,push"


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that refers to another one by its `subject` (a signature, an SBOM): the descriptor, annotations of the
    manifest included, and what kind of artifact it says it is ("" for none)."""

    manifest: Descriptor
    artifact_type: str = ""

    def to_json(self) -> Json:
        """The descriptor as image indexes have it."""
        out = self.manifest.to_json()
        return {**out, "artifactType": self.artifact_type} if self.artifact_type else out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Referrer:
        """The inverse of `to_json`. Raises KeyError, TypeError or InputError on anything else."""
        return cls(Descriptor.from_json(data), str(data.get("artifactType") or ""))


@dataclass(frozen=True, slots=True)
class Mirror:
    """Another place that has what a provider has: asked before it. `tags`: may it say what a tag means, too?"""

    provider: Provider
    tags: bool = True


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request to one registry, answered or not: the fields of the event SourceTried."""

    verb: Literal["pull", "manifest", "resolve", "exists", "mount", "upload", "put"]
    name: str
    provider: Provider
    status: int
    outcome: Literal["ok", "refused", "missing", "auth", "transport", "corrupt"]
    bytes: int
    seconds: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Compression:
    """How layers are to be compressed: `level` None for the kind's default; `force`: also layers that are there already
    in another kind."""

    kind: Literal["gzip", "zstd", "uncompressed", "estargz"] = "gzip"
    level: int | None = None
    force: bool = False

    @property
    def written(self) -> str:
        """Kind and level, which decide the bytes: `zstd`, `zstd:19`."""
        return self.kind if self.level is None else f"{self.kind}:{self.level}"


@dataclass(frozen=True, slots=True)
class Reference:
    """An image name, as docker understands it, made complete.

    `registry` `host[:port]` (default docker.io), `repository` (with `library/` where docker adds it), and `tag` or
    `digest` or both; `tag` is `latest` when neither was written. `written` is the text the user wrote. `mirror_of`: as
    in Provider.
    """

    registry: str
    repository: str
    tag: str
    digest: Digest | None
    written: str
    mirror_of: str = ""

    @property
    def provider(self) -> Provider:
        """Where blobs of this image are read."""
        return Provider(self.registry, self.repository, f"repository:{self.repository}:pull", (), self.mirror_of)

    @property
    def target(self) -> Provider:
        """Where it is written."""
        return Provider(self.registry, self.repository, push_scope(self.repository))

    def __str__(self) -> str:
        name = f"{self.registry}/{self.repository}"
        if self.tag:
            name += f":{self.tag}"
        return f"{name}@{self.digest}" if self.digest else name


# ---------------------------------------------------------------- the log


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be appended. `data` holds primitives, lists and string-keyed dicts only, 64 KiB encoded at most.
    `detached`: places in it (JSON pointers, RFC 6901, through objects only) whose values are stored apart, so that they
    can be erased (see storage.detached)."""

    stream: str
    type: str
    data: Json
    build: str | None = None
    vertex: str | None = None
    cause: int | None = None
    detached: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """An event in the log (DESIGN section 4). `seq` is gapless and total, `time` UTC nanoseconds since the epoch."""

    seq: int
    time: int
    stream: str
    version: int
    type: str
    build: str | None
    vertex: str | None
    cause: int | None
    data: Json

    def to_json(self) -> Json:
        """One object with exactly the names of DESIGN section 4; `time` as RFC 3339 with nanoseconds."""
        from datetime import UTC, datetime  # reason: only `events --json` needs it, and starting up must be quick

        whole, ns = divmod(self.time, 1_000_000_000)
        stamp = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ns:09d}Z"
        return {
            "seq": self.seq, "time": stamp, "stream": self.stream, "version": self.version, "type": self.type,
            "build": self.build, "vertex": self.vertex, "cause": self.cause, "data": self.data,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Payload:
    """A detached value of event `seq`: `digest` is what the event has in its place, `salt` and `data` what that is of
    (see storage.detached). An erased one has neither, and `erased` is the event that says so, 0 for none. `id` is its
    place in the log's file."""

    id: int
    seq: int
    pointer: str
    digest: str
    salt: bytes = b""
    data: bytes = b""
    erased: int = 0


REDACTED = "$redacted"
"""The only key of what stands for an erased value when its event is read: an object with `digest`, and of the event
that tells of it `seq`, `time` (UTC ns), `by` and `reason`."""


def redacted(value: Any) -> str:
    """What to show for a value of an event that was erased, `[redacted by NAME on DATE: REASON]`; "" for any other."""
    if not isinstance(value, dict) or not isinstance(told := value.get(REDACTED), dict) or len(value) != 1:
        return ""
    from datetime import UTC, datetime  # reason: few logs have any, and starting up must be quick

    day = datetime.fromtimestamp(int(told.get("time", 0)) // 10**9, UTC)
    return f"[redacted by {told.get('by')} on {day:%Y-%m-%d}: {told.get('reason')}]"


def worded(value: Any) -> Any:
    """`value`, in which words stand for what was erased (see `redacted`)."""
    if not isinstance(value, dict):
        return value
    return redacted(value) or {key: worded(item) for key, item in value.items()}


class EventLog(Protocol):
    """The append-only log of one root. Thread-safe; several processes may append to the same log."""

    def submit(self, events: Sequence[NewEvent]) -> Future[list[Event]]:
        """Append all of `events`, in order and adjacent, atomically. The future is done once they are durable.
        Submissions of one process land in the order they were made. The future raises LogError or DiskError."""
        ...

    def append(self, *events: NewEvent) -> list[Event]:
        """`submit(events).result()`: returns when they are durable."""
        ...

    def read(self, *, after: int = 0, until: int | None = None, types: frozenset[str] | None = None) -> Iterator[Event]:
        """Events with `after < seq <= until`, in order, read in pages (memory does not grow with the log)."""
        ...

    def last_seq(self) -> int:
        """The highest `seq`, 0 for an empty log."""
        ...

    def wait(self, after: int, timeout: float) -> bool:
        """Block until there is an event after `after` (of any process) or `timeout` seconds passed: say which."""
        ...

    def close(self) -> None:
        """Write what was submitted and let go of the file."""
        ...


class StoredRows(Protocol):
    """The log as it is stored, for those who check it."""

    def rows(self, after: int, until: int) -> Iterator[tuple[int, str, int, str, bytes]]:
        """Stored events (seq, stream, version, type, state) with `after < seq <= until` in order, read in pages and
        decoded by nobody (see storage.codec)."""
        ...

    def last_seq(self) -> int:
        """The highest `seq`, 0 for an empty log."""
        ...


class StoredPayloads(Protocol):
    """The detached values of a log (see storage.detached)."""

    def payloads(self, after: int, until: int) -> Iterator[Payload]:
        """Every detached value of the events with `after < seq <= until`, in order, unverified, read in pages: one
        that is not there at all has neither data nor `erased`. Raises LogError."""
        ...

    def redact(self, *said: tuple[NewEvent, Sequence[Payload]]) -> list[Event]:
        """Append every event, and erase the payloads that it tells of, for good and at once: after a crash there is
        both or neither. Raises LogError, DiskError."""
        ...


# ---------------------------------------------------------------- bytes on this disk


class BlobWriter(Protocol):
    """A blob on its way in. Nothing is visible, and nothing stays behind, before `commit`."""

    def write(self, data: bytes) -> None:
        """Append `data`."""
        ...

    def commit(self, expected: Digest | None = None) -> tuple[Digest, int]:
        """Make the blob durable and visible; returns its digest and size in bytes.
        Raises VerificationError, keeping nothing, when it is not `expected`."""
        ...

    def abort(self) -> None:
        """Drop it. Harmless after `commit`."""
        ...


class BlobStore(Protocol):
    """Content-addressed blobs: an OCI image layout that any OCI tool can read."""

    def size(self, digest: Digest) -> int | None:
        """Size in bytes, or None when the blob is not here."""
        ...

    def open(self, digest: Digest) -> BinaryIO:
        """The blob's bytes, from the start. Raises FileNotFoundError."""
        ...

    def put(self, data: bytes) -> Digest:
        """Store small `data` durably; a no-op when it is here already, unharmed."""
        ...

    def get(self, digest: Digest) -> bytes:
        """All bytes of a small blob, verified. Raises FileNotFoundError, also for a damaged one, which is removed;
        VerificationError for that in a store that is only read."""
        ...

    def sound(self, digest: Digest) -> bool:
        """Is the blob here, and its bytes what its digest promises? Reads all of it the first time a process asks about
        one that it did not store itself; a damaged one is removed. Blocking. Raises DiskError."""
        ...

    def writer(self) -> BlobWriter:
        """Begin a new blob."""
        ...


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer that was stored as it came: its blob, its diff ID, and the latest time of a file in it that is not in the
    future, in seconds since the epoch, 0 for none."""

    blob: Descriptor
    diff_id: Digest
    newest: int


class StagedLayer(Protocol):
    """A layer that was read and checked, and is not to be seen yet. Methods block."""

    def commit(self) -> StoredLayer:
        """Make it durable and visible. Raises DiskError."""
        ...

    def abort(self) -> None:
        """Drop it. Harmless after `commit`."""
        ...


class LayerIntake(Protocol):
    """Takes layers in that come as files."""

    def read(self, file: BinaryIO, now: int) -> StagedLayer:
        """Read the layer that `file` gives, to its end; `now`: seconds since the epoch. Blocking. Raises
        VerificationError, keeping nothing, for what is no layer, DiskError."""
        ...


class ByteSource(Protocol):
    """Bytes that arrive from elsewhere; `read` blocks (use it off the event loop)."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, b"" at the end. Raises what broke the source."""
        ...


class PartialBlob(Protocol):
    """What came of one blob so far: bytes that outlive the process that fetched them, and that nobody verified yet.
    Methods may be called from any thread; each gap is filled by one writer. They raise DiskError."""

    def gaps(self) -> list[tuple[int, int]]:
        """The ranges that are missing (offsets in bytes, half open), in order."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Keep `data`, which lies in a gap and begins where that gap does or where the last write into it ended."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on; b"" when the byte there has not come yet, and at the end."""
        ...

    def discard(self) -> None:
        """Drop all of it. Only `close` may follow."""
        ...

    def close(self) -> None:
        """Let go of it: what came stays for the next one."""
        ...


class PartialBlobs(Protocol):
    """Blobs that are being fetched, or whose fetching was interrupted."""

    def open(self, blob: Descriptor) -> PartialBlob:
        """What is here of `blob`, if anything. The caller holds the lock `partial-<digest>` until it is closed.
        Raises DiskError."""
        ...


class LayerStore(Protocol):
    """Layers of images, mountable, named by diff ID. A layer is there whole or not at all."""

    def has(self, diff_id: Digest) -> bool:
        """Is the layer mountable here?"""
        ...

    def lower(self, diff_id: Digest) -> Path:
        """The directory that serves as overlay lower."""
        ...

    def unpack(self, diff_id: Digest, media_type: str, source: ByteSource) -> int:
        """Decompress, verify against `diff_id`, lay out, make durable, publish; returns the bytes laid out.
        Raises VerificationError (wrong or malformed bytes) or DiskError; nothing of the layer stays then.
        Consumes `source` to its end. Blocking."""
        ...

    @property
    def name(self) -> str:
        """How layers are laid out, for MaterializationRequested.snapshotter: `erofs` or `directory`."""
        ...

    def close(self) -> None:
        """Let go of what this process has mounted. Raises DiskError."""
        ...


class Checked(Protocol):
    """Something kept on this disk that a disk, or a person, may have damaged since it was made."""

    def check(self, name: str) -> str:
        """What is wrong with what is kept as `name`: "" when it is as it was made, and when nothing is here. Costs
        something the first time a process asks; what this process made itself is believed. Blocking. Raises
        DiskError."""
        ...

    def discard(self, name: str) -> None:
        """Remove what is kept as `name`, whatever it is. Who has it mounted keeps it. Blocking. Raises DiskError."""
        ...


class CheckedLayers(LayerStore, Checked, Protocol):
    """Layers by diff ID, with what finds damage to them."""


class Snapshot(Protocol):
    """A writable file system on top of lowers, mounted at `root`; the changes gather beside it."""

    @property
    def root(self) -> Path:
        """Where it is mounted."""
        ...

    @property
    def changes(self) -> Path:
        """The directory that the changes gather in, as an overlay upper; not to be written to."""
        ...

    def commit(self) -> int:
        """Unmount, make the changes durable and visible under the snapshot's id; returns bytes of the diff."""
        ...

    def discard(self) -> None:
        """Unmount and drop the changes. Harmless after `commit`."""
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """What there is to a file besides its content; `mode` the 12 permission bits, `mtime` in ns since the epoch."""

    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


class LayerWriter(Protocol):
    """A step's layer, written entry by entry: parents before what is in them, each path once. Paths are relative to
    the root, without `.`, `..` or slashes at their ends; the empty path is the root. Methods raise DiskError."""

    def directory(self, path: bytes, look: Look) -> None:
        """A directory. With the attribute `trusted.overlay.opaque` it hides all that lower layers have in it."""
        ...

    def file(self, path: bytes, look: Look, size: int, content: Iterable[bytes | memoryview]) -> None:
        """A regular file of exactly `size` bytes. Raises what `content` raises, and ValueError when it gives more or
        less; the writer can only be discarded then."""
        ...

    def node(
        self, path: bytes, look: Look, kind: Literal["symlink", "fifo", "char", "block"], target: bytes, device: int
    ) -> None:
        """A symbolic link to `target`, a FIFO, or a device of number `device`."""
        ...

    def link(self, path: bytes, target: bytes) -> None:
        """A hard link to the file written as `target`."""
        ...

    def commit(self) -> int:
        """Make the layer durable and visible under the snapshot's id; returns bytes of its regular files."""
        ...

    def discard(self) -> None:
        """Drop it. Harmless after `commit`."""
        ...


class SnapshotStore(Protocol):
    """Results of steps: the changes a step made, named by an id unique to the execution. What a command changed is
    kept as an overlay upper; what the engine itself composes may be kept as an image that no file is created for."""

    def has(self, snapshot: str) -> bool:
        """Is it here?"""
        ...

    def lower(self, snapshot: str) -> Path:
        """The directory that serves as overlay lower."""
        ...

    def begin(self, snapshot: str, lowers: Sequence[Path]) -> Snapshot:
        """Mount a new writable snapshot over `lowers` (bottom first; may be empty). Blocking. Raises DiskError."""
        ...

    def compose(self, snapshot: str) -> LayerWriter:
        """Begin a new snapshot that is written entry by entry, without mounting anything. Raises DiskError."""
        ...

    def view(self, lowers: Sequence[Path]) -> AbstractContextManager[Path]:
        """Mount `lowers` (bottom first) read-only for the time of the context. Blocking. Raises DiskError."""
        ...

    def pack(self, snapshot: str, write: Callable[[bytes], Any], *, clamp_mtime: int | None = None) -> None:
        """Write the changes as an OCI layer tar (uncompressed, deterministic order, whiteouts as image-spec layer.md
        has them). `clamp_mtime`: no time later than this many seconds since the epoch. Blocking."""
        ...


class CheckedSnapshots(SnapshotStore, Checked, Protocol):
    """Snapshots by id, with what finds damage to them."""


# ---------------------------------------------------------------- registries

ByteStream = AsyncIterator[bytes]


class RegistrySource(Protocol):
    """Reading from registries. Methods raise RegistryError (missing, auth, transport) and VerificationError, and
    InputError for a provider that no registry could have (from a foreign log, say)."""

    async def resolve(self, reference: Reference) -> Descriptor:
        """The descriptor that the tag or digest of `reference` names now (a manifest or an index)."""
        ...

    async def manifest(self, provider: Provider, digest: Digest) -> tuple[str, bytes]:
        """Media type and verified bytes of a manifest or index."""
        ...

    def blob(
        self, provider: Provider, blob: Descriptor, *, start: int = 0, end: int | None = None
    ) -> AbstractAsyncContextManager[BlobStream]:
        """Open `blob`. Retries and resumes by itself; bytes are verified while streaming: the iterator raises
        VerificationError instead of ending when they are not `blob.digest`. With `start` or `end` (offsets in bytes,
        half open) only that range comes: its length is checked, its content is the caller's to verify. Raises
        ValueError for an empty range and for one that the blob does not have."""
        ...

    async def exists(self, provider: Provider, digest: Digest) -> bool:
        """Does `provider` hold the blob? (HEAD)"""
        ...


class BlobStream(Protocol):
    """The bytes of one blob as they arrive."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Chunks, in order. Raises RegistryError, VerificationError."""
        ...

    @property
    def wire_bytes(self) -> int:
        """Body bytes received so far, as the registry counts them (a resumed stretch is counted again)."""
        ...

    @property
    def resumed_from(self) -> int:
        """Offset of the last resumption in bytes; 0 when it came in one piece."""
        ...

    @property
    def ranged(self) -> bool:
        """Did the provider answer with a range? False where it sends the blob from its start whatever is asked, which
        costs the bytes before `start`, and before the first byte was asked for."""
        ...


class RegistryTarget(Protocol):
    """Writing to registries. Methods raise RegistryError (missing, auth, transport), VerificationError, InputError."""

    async def mount(self, target: Provider, digest: Digest, source: Provider) -> bool:
        """Cross-repository mount within one registry; False when the registry would not (any 4xx or 202)."""
        ...

    async def upload(
        self, target: Provider, blob: Descriptor, chunks: Callable[[], ByteStream], *,
        resume: Callable[[int], ByteStream] | None = None,
    ) -> None:  # fmt: skip
        """Upload `blob` from a stream that can be opened anew for a retry. `resume` opens it from an offset on (bytes;
        less than `blob.size`): an upload that broke off, in an earlier process maybe, may then be gone on with."""
        ...

    async def put_manifest(self, target: Provider, name: str, media_type: str, data: bytes) -> Digest:
        """Put a manifest or index under `name` (a tag or its digest). One that has a `subject` is among its referrers
        then, also where the registry has no API for them."""
        ...


class RegistryListing(Protocol):
    """What a repository has beside what was asked for by name. Methods raise RegistryError, VerificationError and
    InputError as those of RegistrySource do."""

    async def tags(self, provider: Provider) -> tuple[str, ...]:
        """All tags of the repository, as the registry orders them."""
        ...

    async def referrers(self, provider: Provider, subject: Digest, artifact_type: str = "") -> tuple[Referrer, ...]:
        """What refers to the manifest `subject`, which need not be there itself; of `artifact_type` only, when given.
        Of a registry without the referrers API: what the tag that stands in for it lists."""
        ...


# ---------------------------------------------------------------- parts of layers


@dataclass(frozen=True, slots=True)
class Seen:
    """What one layer has at a path. `ends`: whatever layers below have there cannot be seen, as this one has something
    else than a directory, a whiteout or an opaque directory there or on the way. `target` of a symbolic link;
    `implied`: a directory whose look the layer does not tell."""

    kind: Literal["missing", "whiteout", "directory", "symlink", "other"]
    ends: bool
    target: bytes = b""
    implied: bool = False


class LayerTree(Protocol):
    """The names of one layer. Paths are relative to its root, without `.`, `..` or slashes at their ends; the empty
    path is the root. Links are never followed. Methods are quick, may read the disk, and raise OSError."""

    def look(self, path: bytes) -> Seen:
        """What is at `path`."""
        ...

    def names(self, path: bytes) -> AbstractSet[bytes]:
        """Names in directory `path`, empty when there is none; those of whiteouts may be among them."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """What is wanted of a layer: `seen`, paths whose entries matter but not their content; `files` with their
    content; `trees`, directories with all that is below. `above` says what the layers above have at a path: nothing, a
    directory (which this layer's adds to, if it is one), or what covers this layer's."""

    seen: AbstractSet[bytes]
    files: AbstractSet[bytes]
    trees: AbstractSet[bytes]
    above: Callable[[bytes], Literal["nothing", "directory", "covers"]]


class PartReader(Protocol):
    """A part of one layer on its way to this disk. Methods raise DiskError."""

    @property
    def ranges(self) -> Sequence[tuple[int, int]]:
        """The ranges of the blob to be read, half open, in order."""
        ...

    @property
    def files(self) -> int:
        """Regular files whose content is in them."""
        ...

    def write(self, data: bytes) -> None:
        """The next bytes of the ranges, in order."""
        ...

    def restart(self) -> None:
        """Forget what was written: the ranges come anew, from the first one on."""
        ...

    def lay_out(self) -> Path:
        """Verify what was written and lay the part out as an overlay lower, which stays until `discard`. Blocking.
        Raises VerificationError, with nothing laid out."""
        ...

    def discard(self) -> None:
        """Drop it, and what was laid out. Harmless when it was done before."""
        ...


class Toc(LayerTree, Protocol):
    """The table of contents of a layer, verified."""

    @property
    def entries(self) -> int:
        """How many it lists."""
        ...

    def part(self, part: Part) -> PartReader:
        """Begin to read `part`. Raises VerificationError for entries that cannot be, DiskError."""
        ...


class LayerParts(Protocol):
    """Looking into layers, and taking parts of them."""

    def tree(self, lower: Path) -> LayerTree:
        """The layer that is laid out at `lower`."""
        ...

    def toc(self, blob: Descriptor) -> Generator[tuple[int, int], bytes, Toc] | None:
        """How to read the table of contents of `blob`: yields ranges of it, is sent their bytes, returns the table.
        None when the descriptor promises none. Raises VerificationError when it is not what the descriptor promises,
        TocUnusable when it is, and is of no use."""
        ...


# ---------------------------------------------------------------- locks


class Locks(Protocol):
    """Named advisory locks of one root, that die with their holder's process."""

    def try_acquire(self, name: str, *, shared: bool = False) -> AbstractContextManager[None] | None:
        """The lock, held until the context ends; None when somebody else (any thread or process) has it. Held
        `shared` it admits others that share it, and nobody who wants it alone."""
        ...


# ---------------------------------------------------------------- what a RUN mounts


class HeldCache(Protocol):
    """One instance of a cache mount, this step's until `release`."""

    @property
    def instance(self) -> int:
        """Its number; 0 unless somebody else's private use made more of them necessary."""
        ...

    @property
    def path(self) -> Path:
        """The directory to be mounted. It need not be there yet: see `fill`."""
        ...

    def exists(self) -> bool:
        """Has it been filled before?"""
        ...

    def fill(self, make: Callable[[Path], None]) -> None:
        """Have `make` furnish a new empty directory, which then, all at once and for good, is the one at `path`.
        When another step that shares the instance was quicker, that one's stays. Raises DiskError and what `make`
        raises; nothing is left then."""
        ...

    def release(self) -> None:
        """Let others have it. Harmless when called again."""
        ...


class CacheMounts(Protocol):
    """Directories that outlive builds, named by the digest of what makes one differ from another."""

    def try_acquire(self, cache: Digest, sharing: Literal["shared", "private", "locked"]) -> HeldCache | None:
        """An instance of `cache`: one that other `shared` steps may use meanwhile, another one when it is taken
        (`private`), the only one (`locked`). None: the step has to wait. Blocking. Raises DiskError."""
        ...


class SecretPlaces(Protocol):
    """Directories in memory."""

    def place(self) -> AbstractContextManager[Path]:
        """A new directory, 0700, on a tmpfs that no other process sees mounted and that is gone with the context, or
        with this process. Blocking. Raises DiskError."""
        ...


# ---------------------------------------------------------------- packing and archives


@dataclass(frozen=True, slots=True)
class PackedBlob:
    """A step's layer as a blob in the blob store; `compressor`: name, version and level."""

    diff_id: Digest
    blob: Descriptor
    compressor: str


class LayerPacker(Protocol):
    """Turns snapshots into blobs."""

    def pack(self, snapshot: str, clamp_mtime: int | None, compression: Compression) -> PackedBlob:
        """Write the snapshot's layer into the blob store; `clamp_mtime` as in SnapshotStore.pack. The bytes depend on
        nothing else. Blocking. Raises DiskError, VerificationError, InputError for a level that there is not."""
        ...


class LayerConverter(Protocol):
    """Turns blobs into others that hold the same layer."""

    def convert(
        self, source: ByteSource, media_type: str, diff_id: Digest, compression: Compression,
        clamp_mtime: int | None = None, *, even_if_same: bool = True,
    ) -> PackedBlob | None:  # fmt: skip
        """Write what `source` decompresses to, whose digest is `diff_id`, into the blob store as `compression`; with
        `clamp_mtime` no time in it is later than so many seconds since the epoch. The result has a diff ID of its own
        when that changed something, and as an eStargz. Not `even_if_same`: None, and nothing is kept, when the diff ID
        is the same. Consumes `source` to its end. Blocking. Raises VerificationError, with nothing kept, DiskError,
        InputError, and what `source` raises."""
        ...


class LayerTars(Protocol):
    """Layers of images that are laid out here such that the tar they came as can be had."""

    def has(self, diff_id: Digest) -> bool:
        """Can that of the layer be had?"""
        ...

    def open(self, diff_id: Digest) -> AbstractContextManager[ByteSource]:
        """The tar, not verified. Blocking. Raises DiskError, VerificationError."""
        ...


class OutFile(Protocol):
    """A file on its way out: complete after `commit`, gone after `abort`. Methods raise DiskError."""

    def write(self, data: bytes) -> None:
        """Append `data`."""
        ...

    def commit(self) -> None:
        """Finish the file and give it its name."""
        ...

    def abort(self) -> None:
        """Leave nothing. Harmless after `commit`."""
        ...


class Archive(Protocol):
    """A tar file on its way out: complete after `commit`, gone after `abort`."""

    def add(self, name: str, data: bytes) -> None:
        """Add a small file."""
        ...

    def begin(self, name: str, size: int) -> None:
        """Start a file of `size` bytes, whose data follows by `write`."""
        ...

    def write(self, data: bytes) -> None:
        """The next bytes of the file begun."""
        ...

    def commit(self) -> None:
        """Finish the archive and give it its name."""
        ...

    def abort(self) -> None:
        """Leave nothing. Harmless after `commit`."""
        ...
