"""The build graph: vertices named by the digest of their op and inputs. Plain data; no I/O.

An op says *what*; engine/ops says how. Two vertices with the same op and inputs are the same vertex, so a step that
two stages share runs once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.record import Record
from storage.digest import Digest, digest_json
from storage.errors import RefledgerError
from storage.interfaces.images import Descriptor, Provider

Json = dict[str, Any]


class ImageLayer(Record):
    """One layer of an image in a registry."""

    diff_id: Digest
    blob: Descriptor

    def to_json(self) -> Json:
        """The blob's descriptor with `diff_id` beside it."""
        return {**self.blob.to_json(), "diff_id": str(self.diff_id)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImageLayer:
        """The inverse of `to_json`."""
        return cls(Digest(data["diff_id"]), Descriptor.from_json(data))


class ResolvedImage(Record):
    """What a resolver knows of an image without fetching a layer. `digest` is what the name pointed at (maybe an
    index), `manifest` the chosen platform's, with its `annotations`, `config` the image config JSON (image-spec
    config.md)."""

    reference: str
    digest: Digest
    manifest: Digest
    platform: str
    provider: Provider
    layers: tuple[ImageLayer, ...]
    config: Mapping[str, Any]
    annotations: Mapping[str, str] = {}


class InlineFile(Record):
    """A file given in the Dockerfile itself (heredoc). `data` is text."""

    name: str
    data: str


# ---------------------------------------------------------------- ops


class Scratch(Record):
    """The empty file system. No inputs."""


class ImageSource(Record):
    """An image in a registry, or some of its layers. No inputs; the result is a remote."""

    reference: str
    manifest: Digest
    platform: str
    provider: Provider
    layers: tuple[ImageLayer, ...]


class LayerSource(Record):
    """A layer that was given to this root as a file: its blob is stored here. `created`: UTC ns. No inputs."""

    layer: ImageLayer
    created: int = 0


class ContextSource(Record):
    """The local build context, less what `excludes` (.dockerignore patterns, in order) hide. No inputs."""

    name: str = "context"
    excludes: tuple[str, ...] = ()


class HttpSource(Record):
    """A file from the web, as `filename` in an otherwise empty tree, 0600 root. `digest` of its content: "" until it is
    resolved; `mtime`: its Last-Modified in seconds since the epoch, 0 for none, -1 for whatever the server says when it
    is fetched. `url` without credentials once resolved. No inputs."""

    url: str
    filename: str
    digest: str = ""
    mtime: int = -1


class GitSource(Record):
    """The files of a commit of a git repository, below `subdir` (relative, "" for all). `ref`: branch, tag, full ref or
    commit as written, "" for the default branch; `commit`: "" until it is resolved; `checksum`: what the commit (or the
    annotated tag) must begin with; `keep_git_dir`: with `.git`. No inputs."""

    remote: str
    ref: str = ""
    commit: str = ""
    subdir: str = ""
    keep_git_dir: bool = False
    submodules: bool = True
    checksum: str = ""


class ArchiveSource(Record):
    """A context that came as one file: what a tar (maybe compressed) unpacks to, its owners kept; a file that is no tar
    is called `context` in the tree. `digest` of the stored file, "" until it is resolved; `url` "" for standard input.
    No inputs."""

    url: str = ""
    digest: str = ""


MountKind = Literal["bind", "cache", "tmpfs", "secret", "ssh"]
Sharing = Literal["shared", "private", "locked"]


class Mount(Record):
    """One `RUN --mount` (Dockerfile reference, "RUN --mount"). `target`: absolute, "" for a secret that is only in
    `env`; `input`: the vertex's input that `source` (a path below its root) is taken from, -1 for none; `id` of a
    cache, secret or ssh agent; `mode` permission bits, -1 for the kind's default; `size` of a tmpfs in bytes, 0 for
    no bound; `env`: the variable that a secret is in as well, or only."""

    kind: MountKind
    target: str
    input: int = -1
    source: str = ""
    readonly: bool = False
    id: str = ""
    sharing: Sharing = "shared"
    required: bool = False
    mode: int = -1
    uid: int = 0
    gid: int = 0
    size: int = 0
    env: str = ""

    def at(self, number: int) -> Mount:
        """The same mount, taking from the vertex's input `number`."""
        return Mount(**{**{name: getattr(self, name) for name in self.FIELDS}, "input": number})


class Run(Record):
    """Run `argv`. Input 0: the base; further ones: what `mounts` take from. `env` ordered; `user` as in USER;
    `scripts` appear executable in /dev/pipes; `security` `insecure` asks for all capabilities."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    user: str = ""
    network: Literal["host", "none"] = "host"
    scripts: tuple[InlineFile, ...] = ()
    platform: str = ""
    mounts: tuple[Mount, ...] = ()
    security: Literal["sandbox", "insecure"] = "sandbox"

    def with_mounts(self, mounts: tuple[Mount, ...]) -> Run:
        """The same command with `mounts`."""
        return Run(**{**{name: getattr(self, name) for name in self.FIELDS}, "mounts": mounts})


class Copy(Record):
    """Copy `sources` (patterns below the root of input 1) and `files` to absolute `dest` in input 0.

    Input 0: the base; input 1: a context, stage or image (absent when there are only `files`). `dest` ends with `/`
    when it was written as a directory. `chown`: `user[:group]`, names or numbers, "" for 0:0; `chmod`: octal or
    symbolic as in chmod(1), "" to keep. `unpack`: local tar archives among the sources are unpacked (ADD).
    `from_context`: input 1 is a context, its files become 0:0; files of a stage or image keep their owner; `chown`
    overrides both. `link`: the layer is made without looking at the base; `parents`: sources keep their directories
    (from a `/./` in them on); `excludes`: patterns, as in .dockerignore, of what is left out below each source.
    """

    sources: tuple[str, ...]
    dest: str
    chown: str = ""
    chmod: str = ""
    files: tuple[InlineFile, ...] = ()
    unpack: bool = False
    from_context: bool = True
    link: bool = False
    parents: bool = False
    excludes: tuple[str, ...] = ()


class Mkdir(Record):
    """Make directory `path` (absolute) and its parents, 0755, in input 0, where missing (WORKDIR). `user`: who owns
    them (USER: `user[:group]`, "" for root)."""

    path: str
    user: str = ""


class Merge(Record):
    """The trees of all inputs, the later ones on top: their layers stacked, nothing copied. At least one input.
    `blobs`: the digests of the layers' blobs, where an image is edited: it keeps its very blobs, not only what is in
    them."""

    blobs: tuple[str, ...] = ()


Op = (
    Scratch | ImageSource | LayerSource | ContextSource | HttpSource | GitSource | ArchiveSource | Run | Copy | Mkdir
    | Merge
)  # fmt: skip
FetchedSource = HttpSource | GitSource | ArchiveSource
"""Sources that are fetched into a ref of this root whose id follows from their content."""
OPS: Mapping[str, type[Any]] = {
    "scratch": Scratch, "image": ImageSource, "layer": LayerSource, "context": ContextSource, "http": HttpSource,
    "git": GitSource, "archive": ArchiveSource, "run": Run, "copy": Copy, "mkdir": Mkdir, "merge": Merge,
}  # fmt: skip
_KINDS = {cls: kind for kind, cls in OPS.items()}


def op_kind(op: Op) -> str:
    """`scratch`, `image`, `layer`, `context`, `http`, `git`, `archive`, `run`, `copy`, `mkdir` or `merge`."""
    return _KINDS[type(op)]


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, InlineFile | Mount):
        return {name: getattr(value, name) for name in value.FIELDS}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Digest) else value


def op_to_json(op: Op) -> Json:
    """`{"op": kind, …fields}`; the digest of a vertex is taken of this."""
    fields = {name: _plain(getattr(op, name)) for name in op.FIELDS}
    if isinstance(op, Merge) and not op.blobs:
        del fields["blobs"]  # reason: graphs of before have none, and their vertices keep their digests
    return {"op": op_kind(op), **fields}


# ---------------------------------------------------------------- vertices


class Vertex(Record):
    """One step. `digest` names op and inputs; `name` is for people; `lines` (first, last), 1-based, (0, 0) for none."""

    digest: Digest
    op: Op
    inputs: tuple[Digest, ...]
    name: str
    stage: str = ""
    lines: tuple[int, int] = (0, 0)


class VertexError(Exception):
    """The failure of `vertex`, as `cause`: raised for the first one only."""

    def __init__(self, vertex: Vertex, cause: RefledgerError) -> None:
        super().__init__(str(cause))
        self.vertex = vertex
        self.cause = cause


_NAME = 2000
"""Characters of a step's name."""


def vertex(
    op: Op, inputs: tuple[Digest, ...], name: str, *, stage: str = "", lines: tuple[int, int] = (0, 0)
) -> Vertex:
    """Make a vertex; its digest follows from `op` and `inputs` only, not from how it is called or where it stands. Of a
    long name the beginning counts: variables may stand for anything, and events have the name."""
    digest = digest_json({"op": op_to_json(op), "inputs": [str(item) for item in inputs]})
    return Vertex(digest, op, inputs, name if len(name) <= _NAME else f"{name[:_NAME]}…", stage, lines)


class HistoryStep(Record):
    """One entry of the image's history to be; `vertex`: the step that may have added a layer, None for metadata."""

    created_by: str
    vertex: Digest | None = None
    comment: str = "refledger.dockerfile.v0"


class Result(Record):
    """One image the build makes. `image` is its config JSON without `rootfs`, `history` and `created`;
    `base_history` the history entries of the base image; `history` what this build adds; `annotations` of its
    manifest."""

    vertex: Digest
    platform: str
    image: Mapping[str, Any]
    base_history: tuple[Mapping[str, Any], ...] = ()
    history: tuple[HistoryStep, ...] = ()
    annotations: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Graph:
    """Vertices in topological order (inputs first), and what to make of them. `warnings`: one line each."""

    vertices: tuple[Vertex, ...]
    results: tuple[Result, ...]
    warnings: tuple[str, ...] = ()
    by_digest: Mapping[Digest, Vertex] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_digest", {item.digest: item for item in self.vertices})

    def to_json(self) -> Json:
        """The stored form: everything needed to build again."""
        return {
            "vertices": [
                {
                    "digest": str(v.digest), "op": op_to_json(v.op), "inputs": [str(i) for i in v.inputs],
                    "name": v.name, "stage": v.stage, "lines": list(v.lines),
                }
                for v in self.vertices
            ],
            "results": [
                {
                    "vertex": str(r.vertex), "platform": r.platform, "image": dict(r.image),
                    "base_history": [dict(h) for h in r.base_history],
                    "history": [
                        {"created_by": h.created_by, "vertex": h.vertex and str(h.vertex), "comment": h.comment}
                        for h in r.history
                    ],
                    **({"annotations": dict(r.annotations)} if r.annotations else {}),
                }
                for r in self.results
            ],
        }  # fmt: skip

def merged(graphs: Sequence[Graph]) -> Graph:
    """One graph with the results of all: vertices that several have are one."""
    if len(graphs) == 1:
        return graphs[0]
    vertices: dict[Digest, Vertex] = {}
    for graph in graphs:
        for item in graph.vertices:
            vertices.setdefault(item.digest, item)
    results = tuple(result for graph in graphs for result in graph.results)
    warnings = dict.fromkeys(warning for graph in graphs for warning in graph.warnings)
    return Graph(tuple(vertices.values()), results, tuple(warnings))
