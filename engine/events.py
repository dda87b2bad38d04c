"""Every fact that can be in the log: frozen, past tense, without behaviour (DESIGN section 4).

Field names are public interface: people `jq` them. Schemas grow by new fields with defaults (I10). A fact's `STREAM`
says which stream it belongs to: `build` (`build/<id>`), `ref` (`ref/<id>`), `cache` or `log`. Sizes are bytes,
times UTC nanoseconds, digests text.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, dataclass_transform

from engine.record import Record

Json = dict[str, Any]


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Fact(Record):
    """Base of all facts. Fields hold primitives, tuples of primitives and plain dicts, and are given by keyword."""

    STREAM: ClassVar[Literal["build", "ref", "cache", "log"]] = "build"


# ---------------------------------------------------------------- builds


class BuildStarted(Fact):
    """`definition` and `context` are digests of stored blobs (context: None, it is read as steps need it);
    `options`: args, target, platforms, secrets (ids), tags, jobs, no_cache; `host`: hostname, kernel, pid."""

    frontend: str
    definition: str
    options: Json
    context: str | None
    engine_version: str
    host: Json
    name: str = ""
    filename: str = "Dockerfile"
    tags: tuple[str, ...] = ()


class GraphDefined(Fact):
    """`graph`: digest of the stored graph; `target`: vertex; `plan`: in order, each `vertex`, `name`, `lines`."""

    graph: str
    vertices: int
    plan: tuple[Json, ...] = ()
    target: str = ""


class RuntimeChosen(Fact):
    """The OCI runtime that ran a trivial container here, and what the others said (`rejected`: name → reason)."""

    runtime: str
    version: str
    rejected: Json


class BuildCompleted(Fact):
    """`results`: each `ref`, and `digest` of its manifest when something was exported. What is no ref, an index or a
    copy, has `name` and `digest`, and "" as `ref`."""

    results: tuple[Json, ...]


class BuildFailed(Fact):
    """`vertex`: the step at fault, if one is; `error` as the user read it; `exit_code` of the process."""

    vertex: str | None
    error: str
    exit_code: int = 1


class BuildCancelled(Fact):
    """The user stopped it."""

    error: str = "interrupted"
    vertex: str | None = None


class BuildInterrupted(Fact):
    """Found later: the process had died without a word. `removed`: leftovers that were cleaned up."""

    error: str
    found_by: str | None = None
    removed: tuple[str, ...] = ()
    vertex: str | None = None


# ---------------------------------------------------------------- vertices


class VertexStarted(Fact):
    """`inputs`: ids of the refs it works on; `attempt` counts from 1."""

    name: str
    inputs: tuple[str, ...]
    attempt: int = 1


class VertexCached(Fact):
    """A cache hit gave the result; `outputs`: ref ids."""

    name: str
    outputs: tuple[str, ...]
    origin_build: str | None = None


class VertexCompleted(Fact):
    """`outputs`: ref ids; `exit_code` for a command."""

    name: str
    outputs: tuple[str, ...]
    exit_code: int | None = None
    attempt: int = 1


class VertexFailed(Fact):
    """`error`: one line; `exit_code` when a command ran."""

    name: str
    error: str
    exit_code: int | None = None
    attempt: int = 1


class VertexCancelled(Fact):
    """Stopped because another step failed or the user said so, or because bytes that it stands on were lost (`reason`):
    then another attempt follows."""

    name: str
    attempt: int = 1
    reason: str = ""


class VertexOutput(Fact):
    """`text` (UTF-8, undecodable bytes replaced) that `fd` (1 or 2) printed, from byte `offset` of the step's output;
    `dropped`: bytes left out before it because the step printed faster than the bound."""

    fd: int
    offset: int
    text: str
    dropped: int = 0


# ---------------------------------------------------------------- sources and refs


class SourceResolved(Fact):
    """`reference` as written; `digest` what the tag named; `manifest` the one for `platform`; `config`: digest;
    `recalled`: nobody was asked, an earlier event said so (--offline); `resolved_by`: the place that said what the tag
    is, `provider` or a mirror of it, None when nobody was asked, and in older logs."""

    reference: str
    digest: str
    platform: str
    provider: Json
    manifest: str
    config: str
    recalled: bool = False
    resolved_by: Json | None = None


class ContextScanned(Fact):
    """Files that `step` (a vertex) selects from a context: `listing` is the digest of the stored list (path, type,
    mode, digest)."""

    name: str
    listing: str
    files: int
    bytes: int
    step: str = ""


class ContextKept(Fact):
    """The contents of what `listing` names stay: in `layer` (a snapshot, or a diff ID) of `ref`, found there by digest,
    and in the stored tars `packs` (members named by digest) where the step did not keep them as they were."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "ref"
    ref: str
    listing: str
    layer: str
    packs: tuple[str, ...] = ()


class DefinitionRead(Fact):
    """The Dockerfile that lies in a context which had to be fetched first: `definition` is its digest, stored."""

    definition: str
    filename: str


class SourceRequested(Fact):
    """Something outside is asked for now. `kind`: http or git; `url` without credentials; `ref` of a repository."""

    kind: str
    url: str
    ref: str = ""


class HttpResolved(Fact):
    """What `url` gave: `digest` and `bytes` of the content, `mtime` (Last-Modified, seconds since the epoch, 0: none),
    `etag` and `last_modified` as the server said them; `transferred`: False when it only said that nothing changed;
    `recalled` as in SourceResolved; `stored`: it is a blob of this root now (an archive is; a file becomes the snapshot
    of a source, and logs of old versions do not tell)."""

    url: str
    digest: str
    bytes: int
    mtime: int
    etag: str = ""
    last_modified: str = ""
    transferred: bool = True
    recalled: bool = False
    stored: bool = False


class GitResolved(Fact):
    """`ref` (as written, "" for the default branch) of the repository at `remote` was `name`, at `commit`; `tag`: the
    annotated tag on the way to it, "" for none; `recalled` as in SourceResolved."""

    remote: str
    ref: str
    commit: str
    name: str = ""
    tag: str = ""
    recalled: bool = False


class FoundMissing(Fact):
    """What an offline build would need and is not here: the first of `count` `items`, each `kind` (image, layer, url,
    git or archive), `name`, `bytes` (0: not known), `needed_by` (names of steps and exports), `elsewhere` (providers;
    none: only the step that made it can make it again) and `detail`; `bytes` of all that are known."""

    items: tuple[Json, ...]
    count: int
    bytes: int


class RemoteCreated(Fact):
    """A pointer: `layers` are descriptors with `diff_id`; no bytes of them are here for its sake. `providers` have
    all of them, but for layers that name `providers` of their own."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "ref"
    ref: str
    layers: tuple[Json, ...]
    providers: tuple[Json, ...]


class LocalCreated(Fact):
    """A step's result, on this disk: `layers` bottom first, `parent` the ref it stands on; `bytes` of the diff."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "ref"
    ref: str
    parent: str | None
    bytes: int
    layers: tuple[Json, ...] = ()


class LayerStored(Fact):
    """A layer came as file `name` (as written, `-` for standard input), and is kept as it came: `layer` is its
    descriptor with `diff_id`; `ref`: the ref that is this layer alone."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "ref"
    ref: str
    name: str
    layer: Json


class SourceTried(Fact):
    """One registry was asked once, and what came of it: `verb` pull, manifest, resolve, mount, upload, put, or exists
    (told of when it failed only); `name`: a digest or a tag; `status` of its answer, 0 for none; `outcome` ok, refused,
    or the `kind` of a failure (missing, auth, transport, corrupt), with `error`; `bytes` of the body that came or went;
    `mirror_of`: the registry and repository (`host/name`) that was meant, when this is a mirror of it. A part of a blob
    is `ok` when it is complete: that it was wrong shows with the rest of the blob (PullFailed)."""

    verb: str
    name: str
    provider: Json
    status: int
    outcome: str
    bytes: int
    seconds: float
    error: str = ""
    mirror_of: str = ""


class MaterializationRequested(Fact):
    """`reason`: run, copy, export, shell or inspect; `layers`: digests of the blobs to come, whole or in part; `bytes`:
    the sizes of what is to come, as far as they are known (not of a table of contents); `snapshotter`: how they are
    laid out, "" when they are not, as for an export that converts them."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "ref"
    ref: str
    reason: str
    layers: tuple[str, ...]
    bytes: int
    snapshotter: str


class PullStarted(Fact):
    """This build now fetches blob `digest` for all who wait for it."""

    digest: str
    total: int
    provider: Json


class PullProgressed(Fact):
    """`bytes` of `total` of blob `digest` have come. At most 4 a second a layer."""

    digest: str
    bytes: int
    total: int


class PullFailed(Fact):
    """One provider could not give blob `digest`, or what was here of it was wrong: another attempt may follow. `bytes`
    came over the wire all the same."""

    digest: str
    provider: Json
    kind: str
    error: str
    bytes: int = 0


class LayerPulled(Fact):
    """`bytes` over the wire as the registry counts them; `verified`: what was checked (`digest`, `diff_id`);
    `resumed_from`: bytes that were here from an interrupted pull, or where a broken connection was taken up again."""

    digest: str
    bytes: int
    provider: Json
    seconds: float
    verified: tuple[str, ...]
    resumed_from: int = 0
    diff_id: str = ""


class LayerTocRead(Fact):
    """The table of contents of layer `digest`, with `entries`, was read by range and verified: `bytes` over the wire;
    `from_bytes`: the layer's size."""

    digest: str
    bytes: int
    provider: Json
    entries: int
    from_bytes: int = 0


class FilesFetched(Fact):
    """Of layer `digest` only `files` were read, by range: `bytes` over the wire, each chunk verified against the
    table of contents; `avoided`: bytes of the layer that were not, for the table or for this."""

    digest: str
    files: int
    bytes: int
    avoided: int
    provider: Json
    seconds: float = 0.0


class Materialized(Fact):
    """What was requested is here; `bytes` fetched for this request by this build, `waited`: layers others fetched.
    `whole`: the ref is mountable now; else only what a COPY asks for is here. `avoided`: bytes of layers that were not
    fetched as nothing in them was asked for, in `unfetched` by layer (`digest`, `bytes`)."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "ref"
    ref: str
    bytes: int
    seconds: float
    waited: tuple[str, ...] = ()
    whole: bool = True
    avoided: int = 0
    unfetched: tuple[Json, ...] = ()


class MaterializationFailed(Fact):
    """`digest`: the blob nobody could give; `kind` (`class` in the log): missing, auth, transport, corrupt, disk."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "ref"
    ref: str
    digest: str
    kind: str
    error: str
    providers: tuple[Json, ...]


class BlobCreated(Fact):
    """A layer was packed: `snapshot` → `diff_id` → `digest`; `compressor`: name, version, level; `compression`: what
    was asked for (see Compression.written), `annotations` of the blob's descriptor. Of a layer that was converted:
    `source`, the blob it was made of, and no snapshot."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "ref"
    ref: str
    diff_id: str
    digest: str
    media_type: str
    bytes: int
    compressor: str
    snapshot: str = ""
    epoch: int | None = None
    compression: str = "gzip"
    source: str = ""
    annotations: Json | None = None


# ---------------------------------------------------------------- the cache


class CacheQueried(Fact):
    """`outcome`: hit or miss; `reason` of a miss: never-built, no-cache, bytes-lost, evicted, provider-unreachable;
    `components`: digest of the stored plaintext key, "" in older logs. `by`: `definition` when the key says what the
    step is made of, `content` when it says what it takes of results that were made before it ran; the second may follow
    the first. `importer`: the `--cache-from` that knew a hit, "" for a record of this root."""

    key: str
    outcome: str
    ref: str | None = None
    origin_build: str | None = None
    reason: str | None = None
    components: str = ""
    by: str = "definition"
    importer: str = ""


class CacheRecorded(Fact):
    """`components`: digest of the stored plaintext key; `layers` of the ref it names, bottom first; `resolved`: the key
    by content of the same result, "" when it is `key` itself. A hit that `importer` knew is recorded here with
    the build that made it, `origin_build`, "" for this event's own."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "cache"
    key: str
    components: str
    ref: str
    layers: tuple[Json, ...]
    resolved: str = ""
    importer: str = ""
    origin_build: str = ""


class CacheImported(Fact):
    """What is known of a cache elsewhere: `source` as written (`type=registry,ref=…`), `digest` of its manifest,
    `metadata`: digests of the stored documents that were read (cache config, our facts), `records` they have; `bytes`
    over the wire, none of them a layer's."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "cache"
    source: str
    digest: str
    records: int
    bytes: int
    metadata: tuple[str, ...] = ()
    provider: Json | None = None


class CacheImportFailed(Fact):
    """`source` could not be read: `kind` (`class` in the log) missing, auth, transport, corrupt or disk. The build goes
    on without it."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "cache"
    source: str
    kind: str
    error: str


class CacheExported(Fact):
    """`target` as written; `mode` min or max; `digest` of the manifest written, "" for inline; `layers` and `provider`
    as in Exported, of the layers the first 200; `bytes` moved, layers and metadata."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "cache"
    target: str
    mode: str
    digest: str
    records: int
    bytes: int
    layers: tuple[Json, ...] = ()
    provider: Json | None = None


class CacheExportFailed(Fact):
    """`target` could not be written, which the user asked to ignore."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "cache"
    target: str
    error: str


# ---------------------------------------------------------------- losses, and what was let go on purpose


class ProviderLost(Fact):
    """`provider` cannot give blob `digest` of `ref`, which it was known to have: `kind` (`class` in the log) missing,
    auth, transport or corrupt."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "ref"
    ref: str
    digest: str
    provider: Json
    kind: str
    error: str = ""


class HitRevoked(Fact):
    """`ref` cannot be used after all, as `digest` (a blob, or the id of a snapshot) is gone: `reexecuted` vertices make
    it and what stands on it anew; `attempt` counts losses of this vertex from 1."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "ref"
    ref: str
    digest: str
    reexecuted: tuple[str, ...]
    attempt: int = 1
    provider: Json | None = None
    error: str = ""


class LocalLost(Fact):
    """Something in this root is not as it was: `kind` blob, layer or snapshot; `name`: digest, diff ID or snapshot id;
    `problem`: vanished or corrupt. What is left of it was removed, so that it is fetched or made again."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "cache"
    kind: str
    name: str
    problem: str
    detail: str = ""


class Demoted(Fact):
    """Bytes let go that `providers` still have: `kind` blob, layer or snapshot; `name`: digest, diff ID or snapshot id;
    `digest` of the blob to be pulled again. `policy`: what asked for it (`prune`, or a rule of the policy file), `by`
    whom; `bytes` freed."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "cache"
    kind: str
    name: str
    digest: str
    providers: tuple[Json, ...]
    policy: str
    bytes: int
    by: str = ""


class Pruned(Fact):
    """The tombstone of bytes that nobody else is known to have: `kind` blob, layer, snapshot, cachemount or partial;
    the rest as in Demoted."""

    STREAM: ClassVar[Literal["build", "ref", "cache"]] = "cache"
    kind: str
    name: str
    policy: str
    bytes: int
    by: str = ""


# ---------------------------------------------------------------- policies


class PolicyDecided(Fact):
    """The build policy whose file is the blob `policy` (named `file` then) speaks of `subject` (as people know it; of
    `kind` image, pin, created, signature, url, git, network, privilege, secret, ssh, cache, layer or export, called
    `name` in patterns): `decision` allowed or denied, by `rule`, "" when allowed, at `line` of the file, for the reason
    in `detail`; `rules`: all that speak of it; `evidence`: what is decided on beside the name. Once a subject."""

    rule: str
    subject: str
    decision: str
    detail: str
    policy: str
    kind: str = ""
    name: str = ""
    rules: tuple[str, ...] = ()
    evidence: Json | None = None
    file: str = ""
    line: int = 0


# ---------------------------------------------------------------- exports


class ExportStarted(Fact):
    """`kind`: image, index, copy, oci, docker, local, tar or cache; `target`: name or path, of a cache as written;
    `layers`: digests that may have to be read, of an index at most 200; `compression`: what was asked for (see
    Compression.written), "" where there is none."""

    kind: str
    target: str
    digest: str
    layers: tuple[str, ...] = ()
    compression: str = ""


class ExportProgressed(Fact):
    """`bytes` of `total` of blob `digest` went to `target` by `transport`. At most 4 a second a layer."""

    target: str
    digest: str
    bytes: int
    total: int
    transport: str


class Exported(Fact):
    """`digest` of the manifest or index, of a tar its own; `layers`: each `digest`, `transport` (mounted, streamed,
    uploaded, present, written), `bytes` moved, `source`; `provider`: where the blobs can be read from now on, for a
    registry; `compression` as in ExportStarted."""

    kind: str
    target: str
    digest: str
    layers: tuple[Json, ...]
    provider: Json | None = None
    compression: str = ""


# ---------------------------------------------------------------- what is attested


class LayerScanned(Fact):
    """Layer `diff_id` was looked through: `scan` is the digest of what it tells of packages and hides, stored;
    `databases` of packages in it, and the `packages` they have; `problems`: reasons why that may not be all."""

    STREAM: ClassVar[Literal["build", "ref", "cache", "log"]] = "cache"
    diff_id: str
    scan: str
    databases: int
    packages: int
    problems: int = 0


class Attested(Fact):
    """Something is said of the manifest `image` for `platform`, before that is exported: `statement` is the digest of
    the stored in-toto statement, of `predicate_type`; `envelope`: of the DSSE envelope that `key` signed, "" for none;
    `referrer`: of the manifest that attaches it."""

    image: str
    platform: str
    predicate_type: str
    statement: str
    envelope: str = ""
    referrer: str = ""
    key: str = ""


# ---------------------------------------------------------------- the log itself


class CheckpointSigned(Fact):
    """The log's first `size` events were vouched for: `root` of their tree (hexadecimal; storage/leaves.py), and the
    signed `note`, complete (C2SP tlog-checkpoint), whose origin is `origin`."""

    STREAM: ClassVar[Literal["build", "ref", "cache", "log"]] = "log"
    origin: str
    size: int
    root: str
    note: str


class CheckpointPublished(Fact):
    """The checkpoint of `size` and `root` was sent to `target` (a file or a repository), where `digest` names it."""

    STREAM: ClassVar[Literal["build", "ref", "cache", "log"]] = "log"
    size: int
    root: str
    target: str
    digest: str = ""


class CheckpointPublishFailed(Fact):
    """The checkpoint of `size` and `root` could not be sent to `target`: where it is missing, this says why."""

    STREAM: ClassVar[Literal["build", "ref", "cache", "log"]] = "log"
    size: int
    root: str
    target: str
    error: str


class PayloadRedacted(Fact):
    """Values that had been stored apart from their events (detached) were erased, for good, by `by` because of
    `reason`: those whose salted digests are `digests`, of `build`; `vertex`: when all are of one step."""

    STREAM: ClassVar[Literal["build", "ref", "cache", "log"]] = "log"
    digests: tuple[str, ...]
    by: str
    reason: str
    build: str = ""
    vertex: str = ""


# ---------------------------------------------------------------- what a step had beside its inputs


class CacheMountUsed(Fact):
    """A step saw cache mount `id` at `target`: its result may depend on what earlier steps left there (taint).
    `cache`: digest that names the directory (of `id`, owner, mode and initial content); `instance` of it; `ref` the
    initial content, "" for none; `created`: it was empty or new; `waited`: seconds until another step let go of it."""

    id: str
    target: str
    sharing: str
    cache: str
    instance: int = 0
    ref: str = ""
    created: bool = False
    readonly: bool = False
    waited: float = 0.0


class SecretMounted(Fact):
    """A step could read secret `id`, as the file `target` or the variable `env` ("" for neither one). Never its value:
    the result may depend on it (taint)."""

    id: str
    target: str
    env: str = ""


class AgentForwarded(Fact):
    """A step could have ssh agent `id` sign for it, through the socket `target` (taint)."""

    id: str
    target: str


class SecurityLifted(Fact):
    """A step ran with `security` `insecure`, so it could reach the host (taint)."""

    security: str = "insecure"


TYPES: dict[str, type[Fact]] = {
    cls.__name__: cls
    for cls in (
        BuildStarted, GraphDefined, RuntimeChosen, BuildCompleted, BuildFailed, BuildCancelled, BuildInterrupted,
        VertexStarted, VertexCached, VertexCompleted, VertexFailed, VertexCancelled, VertexOutput,
        SourceResolved, ContextScanned, ContextKept, DefinitionRead, SourceRequested, HttpResolved, GitResolved,
        FoundMissing, LayerStored, SourceTried, RemoteCreated, LocalCreated, MaterializationRequested, PullStarted,
        PullProgressed, PullFailed, LayerPulled, LayerTocRead, FilesFetched, Materialized, MaterializationFailed,
        BlobCreated, CacheQueried, CacheRecorded, CacheImported, CacheImportFailed, CacheExported, CacheExportFailed,
        ProviderLost, HitRevoked, LocalLost, Demoted, Pruned, ExportStarted, ExportProgressed, Exported,
        CacheMountUsed, SecretMounted, AgentForwarded, SecurityLifted, PolicyDecided,
        LayerScanned, Attested,
        CheckpointSigned, CheckpointPublished, CheckpointPublishFailed, PayloadRedacted,
    )
}  # fmt: skip
"""The closed table of what may be decoded: a stored name never imports anything."""

_RENAMED = {"kind": "class"}
"""Names that the log has and Python cannot: field → key, for the fact types below."""
_RENAMED_IN = frozenset({"MaterializationFailed", "PullFailed", "CacheImportFailed", "ProviderLost"})


def to_data(fact: Fact) -> Json:
    """The `data` of the fact's event: primitives, lists and string-keyed dicts."""
    name = type(fact).__name__
    renamed = _RENAMED if name in _RENAMED_IN else {}
    out: Json = {}
    for key in fact.FIELDS:
        value = getattr(fact, key)
        out[renamed.get(key, key)] = list(value) if isinstance(value, tuple) else value
    return out


SENSITIVE = ("*PASSWORD*", "*PASSWD*", "*TOKEN*", "*SECRET*", "*KEY*", "*CREDENTIAL*", "*AUTH*")
"""Patterns of the names of build args whose values are stored apart, in upper or lower case."""
_MANY = 500  # detached values an event


def is_sensitive(name: str, patterns: Sequence[str]) -> bool:
    """Does the name of a build arg match one of `patterns`, in upper or lower case?"""
    return any(fnmatchcase(name.upper(), pattern.upper()) for pattern in patterns)


def detached(fact: Fact, sensitive: Sequence[str] = SENSITIVE) -> tuple[str, ...]:
    """Where in the data of `fact` are values that somebody may have to erase (see NewEvent.detached): what a step
    printed, and build args whose names match one of `sensitive`, in upper or lower case."""
    if isinstance(fact, VertexOutput):
        return ("/text",)
    if not isinstance(fact, BuildStarted) or not isinstance(args := fact.options.get("args"), dict):
        return ()
    names = [name for name in args if is_sensitive(name, sensitive)]
    if len(names) > _MANY:
        return ("/options/args",)
    return tuple("/options/args/" + name.replace("~", "~0").replace("/", "~1") for name in names)
