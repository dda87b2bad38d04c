"""What must hold, said without the engine: over the log, the registries, and what the processes said at their end.

Each check gives lines that begin with the invariant (DESIGN section 2) that is broken.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import zstandard

from storage.interfaces.blobs import ByteSource
from storage.interfaces.log import Event
from tests.simulation.model import TOC, Made, Tree, fingerprint, symbol, told_by_run

ENDS = frozenset({"BuildCompleted", "BuildFailed", "BuildCancelled", "BuildInterrupted"})
VERTEX_ENDS = frozenset({"VertexCompleted", "VertexFailed", "VertexCancelled"})
MOST_ATTEMPTS = 4
"""Executions of one vertex in a build: the first, and three because of losses (I8)."""
Read = Callable[[str], bytes | None]
"""The blob or manifest of that digest (or tag), in one repository."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: `exit` 0, or an error's exit code, -1 when it died; `error` as it was shown."""

    build: str
    exit: int
    error: str = ""


# ---------------------------------------------------------------- images


def image_problems(read: Read, name: str, made: Made, completed: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with the image `name` of a repository, which is to be what `made` says. `completed`: executions
    whose result may be used."""
    data = read(name)
    if data is None:
        yield f"I11 {name} is not there"
        return
    manifest = json.loads(data)
    config = read(manifest["config"]["digest"])
    blobs = [read(layer["digest"]) for layer in manifest["layers"]]
    if config is None or None in blobs:
        yield f"I11 {name} has a hole"
        return
    trees: list[Tree] = []
    for layer, blob, diff_id in zip(manifest["layers"], blobs, json.loads(config)["rootfs"]["diff_ids"], strict=True):
        assert blob is not None
        tar = plain(blob)
        if f"sha256:{hashlib.sha256(tar).hexdigest()}" != diff_id:
            yield f"I3 {name}: layer {layer['digest'][:19]} has not the diff ID that the config gives"
        trees.append(files_of(tar))
    found = tuple({path: symbol(content) for path, content in tree.items()} for tree in trees)
    if found != made.layers:
        yield f"I12 {name} has the layers {found}, not {made.layers}"
    yield from _pieces(name, trees, completed)


def _pieces(name: str, trees: Sequence[Tree], completed: Mapping[str, str]) -> Iterator[str]:
    """Is every layer that a RUN made a difference to what is below it, made by somebody who said so?"""
    below: Tree = {}
    for tree in trees:
        for path, content in tree.items():
            if path.startswith("r") and content.startswith(b"run "):
                over, execution = told_by_run(content)
                if over != fingerprint(below):
                    yield f"I8 {name}: {path} was not made over what is below it"
                if execution not in completed:
                    yield f"I14 {name}: {path} is of {execution}, which was not completed"
        below |= tree


def plain(blob: bytes) -> bytes:
    """A layer's tar."""
    if blob.startswith(b"\x1f\x8b"):
        return gzip.decompress(blob)
    if blob.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(blob), read_across_frames=True).read()
    return blob


def whole(source: ByteSource) -> bytes:
    """All that `source` has."""
    parts = []
    while part := source.read(1 << 20):
        parts.append(part)
    return b"".join(parts)


def files_of(tar: bytes) -> Tree:
    """The files in it; directories only where they are all there is."""
    tree: Tree = {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            name = member.name.strip("/").removeprefix("./")
            if name in TOC:
                continue
            if member.isfile():
                file = archive.extractfile(member)
                assert file is not None
                tree[name] = file.read()
            elif member.isdir() and name not in {"", "."}:
                tree[f"{name}/"] = b""
    return tree


def blobs_of(read: Read, name: str) -> Iterator[str]:
    """Digests that the manifest `name` needs."""
    data = read(name)
    if data is None:
        return
    manifest = json.loads(data)
    for entry in (*manifest.get("layers", ()), *([manifest["config"]] if "config" in manifest else ())):
        yield entry["digest"]
    for entry in manifest.get("manifests", ()):
        yield entry["digest"]
        yield from blobs_of(read, entry["digest"])


def manifests_of(files: Mapping[str, bytes]) -> list[str]:
    """The digests of the images of an OCI layout, whose `files` are by path; none when it is none, or torn."""
    if "oci-layout" not in files:
        return []
    try:
        return sorted({entry["digest"] for entry in json.loads(files["index.json"])["manifests"]})
    except (KeyError, ValueError):
        return []


def layout_problems(name: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """I11, I3: what the index of an OCI layout leads to is there, and is what it is called."""
    read = reading(files)
    for image in manifests_of(files):
        for digest in (image, *blobs_of(read, image)):
            if read(digest) is None:
                yield f"I11 {name} lacks {digest}, or has it with other bytes"


def reading(files: Mapping[str, bytes]) -> Read:
    """What reads the blobs of an OCI layout, but those that are not what they are called."""

    def read(digest: str) -> bytes | None:
        data = files.get(f"blobs/{digest.replace(':', '/')}")
        return data if data is not None and f"sha256:{hashlib.sha256(data).hexdigest()}" == digest else None

    return read


# ---------------------------------------------------------------- the log


def log_problems(events: Sequence[Event], ended: Iterable[Ended], dead: Iterable[str]) -> Iterator[str]:
    """What the log must not say, once others have begun since. `dead`: builds that nobody was told the end of, as their
    process died."""
    by_build: dict[str, list[Event]] = defaultdict(list)
    for number, event in enumerate(events, 1):
        if event.seq != number:
            yield f"I6 event {number} of the log is numbered {event.seq}"
        if event.build:
            by_build[event.build].append(event)
    gone = set(dead)
    for build, own in by_build.items():
        ends = [event.type for event in own if event.type in ENDS]
        if len(ends) != 1:
            yield f"I12 build {build} has the ends {ends}"
        interrupted = "BuildInterrupted" in ends or build in gone
        yield from _vertices(build, own, interrupted=interrupted)
        yield from output_problems(build, own)
    for one in ended:
        yield from _told(one, [event.type for event in by_build.get(one.build, ())])


def _told(one: Ended, types: Sequence[str]) -> Iterator[str]:
    """I6: what was told outside is in the log."""
    if not types or one.exit == -1:
        return
    wanted = {0: "BuildCompleted", 130: "BuildCancelled"}.get(one.exit, "BuildFailed")
    if wanted not in types:
        yield f"I6 build {one.build} ended with {one.exit} ({one.error}), and its log has no {wanted}"


def output_problems(build: str, events: Sequence[Event]) -> Iterator[str]:
    """Is what each step printed there, without a gap that nobody tells of?"""
    reached: dict[str | None, int] = {}
    for event in events:
        if event.type == "VertexStarted":
            reached[event.vertex] = 0
        elif event.type == "VertexOutput":
            expected = reached.get(event.vertex, 0) + event.data["dropped"]
            if event.data["offset"] != expected:
                yield f"I6 build {build} has output at {event.data['offset']} of event {event.seq}, not {expected}"
            reached[event.vertex] = event.data["offset"] + len(event.data["text"].encode())


def _vertices(build: str, events: Sequence[Event], *, interrupted: bool) -> Iterator[str]:
    starts: Counter[tuple[str, int]] = Counter()
    ends: Counter[tuple[str, int]] = Counter()
    for event in events:
        if event.vertex is None:
            continue
        where = (event.vertex, event.data.get("attempt", 1))
        if event.type == "VertexStarted":
            starts[where] += 1
        elif event.type in VERTEX_ENDS:
            ends[where] += 1
    for (vertex, attempt), count in starts.items():
        if attempt > MOST_ATTEMPTS:
            yield f"I8 build {build} executed {vertex[:19]} {attempt} times"
        if count > 1:
            yield f"I8 build {build} began attempt {attempt} of {vertex[:19]} {count} times"
        if ends[vertex, attempt] != 1 and not (interrupted and not ends[vertex, attempt]):
            yield f"I12 build {build} ended attempt {attempt} of {vertex[:19]} {ends[vertex, attempt]} times"


def completed_in(events: Iterable[Event]) -> dict[str, str]:
    """Executions whose results may be used, as the log says what they are results of; and whose they are."""
    found: dict[str, str] = {}
    for event in events:
        if event.type == "VertexCompleted":
            found.update(dict.fromkeys(event.data["outputs"], event.build or ""))
        elif event.type == "CacheRecorded":
            found[event.data["ref"]] = event.build or ""
    return found


def blob_problems(events: Iterable[Event]) -> Iterator[str]:
    """I12: what was packed anew has the same bytes, whoever did it, and where."""
    made: dict[tuple[str, ...], Event] = {}
    for event in events:
        if event.type == "BlobCreated":
            how = tuple(event.data[field] for field in ("diff_id", "media_type", "compressor", "compression"))
            first = made.setdefault(how, event)
            if first.data["digest"] != event.data["digest"]:
                yield f"I12 builds {first.build} and {event.build} made different blobs of layer {how[0]}"


def secret_problems(secrets: Sequence[str], where: Mapping[str, bytes]) -> Iterator[str]:
    """I9: what holds one of `secrets`."""
    for name, data in where.items():
        for secret in secrets:
            if secret.encode() in data:
                yield f"I9 {name} holds a secret"


def content_problems(
    events: Sequence[Event], stored: Mapping[str, Sequence[str]], rotten: Container[str]
) -> Iterator[str]:
    """I6: what an event names and nobody let go of since is still here, also when the power was lost, unless it is
    `rotten`."""
    named: dict[tuple[str, str], Event] = {}
    copies = {event.build for event in events if event.type == "BuildStarted" and event.data["frontend"] == "copy.v0"}
    for event in events:
        for kind, name in _named(event) if event.build not in copies else ():  # a copy keeps nothing
            named[kind, name] = event
        if event.type in {"Pruned", "Demoted", "LocalLost"}:
            named.pop((f"{event.data['kind']}s", event.data["name"]), None)
    here = {(kind, name) for kind, names in stored.items() for name in names}
    for (kind, name), event in named.items():
        if (kind, name) not in here and name not in rotten:
            yield f"I6 event {event.seq} ({event.type}) names {kind[:-1]} {name}, which is not here"


def _named(event: Event) -> Iterator[tuple[str, str]]:
    data = event.data
    fields = {
        "BuildStarted": ("definition",), "GraphDefined": ("graph",), "CacheRecorded": ("components",),
        "BlobCreated": ("digest",), "SourceResolved": ("manifest", "config"),
    }.get(event.type, ())  # fmt: skip
    for field in fields:
        if data.get(field):
            yield "blobs", data[field]
    if event.type == "LocalCreated" and data["layers"] and data["layers"][-1].get("snapshot"):
        yield "snapshots", data["layers"][-1]["snapshot"]
    if event.type in {"LayerPulled", "LayerLaidOut"} and data["diff_id"]:
        yield "layers", data["diff_id"]
