"""Refs, and the bytes of their layers: how they come, are made, are lost and let go."""

from __future__ import annotations

from typing import ClassVar

from engine.events.fact import Fact, Json, Stream


class RemoteCreated(Fact):
    """A pointer: `layers` are descriptors with `diff_id`; no bytes of them are here for its sake. `providers` have
    all of them, but for layers that name `providers` of their own."""

    STREAM: ClassVar[Stream] = "ref"
    ref: str
    layers: tuple[Json, ...]
    providers: tuple[Json, ...]


class LocalCreated(Fact):
    """A step's result, on this disk: `layers` bottom first, `parent` the ref it stands on; `bytes` of the diff."""

    STREAM: ClassVar[Stream] = "ref"
    ref: str
    parent: str | None
    bytes: int
    layers: tuple[Json, ...] = ()


class LayerStored(Fact):
    """A layer came as file `name` (as written, `-` for standard input), and is kept as it came: `layer` is its
    descriptor with `diff_id`; `ref`: the ref that is this layer alone."""

    STREAM: ClassVar[Stream] = "ref"
    ref: str
    name: str
    layer: Json


class MaterializationRequested(Fact):
    """`reason`: run, copy, export, shell or inspect; `layers`: digests of the blobs to come, whole or in part; `bytes`:
    the sizes of what is to come, as far as they are known (not of a table of contents); `snapshotter`: how they are
    laid out, "" when they are not, as for an export that converts them."""

    STREAM: ClassVar[Stream] = "ref"
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


class LayerLaidOut(Fact):
    """Layer `diff_id` is mountable here, though nobody was asked for its blob `digest` ("" where that has no name):
    `how` `unpacked`, from the blob, which lay here; or `found`, as no event tells how it came: whoever brought it died
    between laying it out and LayerPulled, or this log does not go back so far. `verified`, for this event: `diff_id`,
    by all of its bytes; or of a tree of files its `seal`, which is over names, sizes and times. A layer is laid out by
    those only who had its digest and its diff ID right (I3)."""

    diff_id: str
    digest: str
    how: str
    verified: tuple[str, ...]


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

    STREAM: ClassVar[Stream] = "ref"
    ref: str
    bytes: int
    seconds: float
    waited: tuple[str, ...] = ()
    whole: bool = True
    avoided: int = 0
    unfetched: tuple[Json, ...] = ()


class MaterializationFailed(Fact):
    """`digest`: the blob nobody could give; `kind` (`class` in the log): missing, auth, transport, corrupt, disk."""

    STREAM: ClassVar[Stream] = "ref"
    ref: str
    digest: str
    kind: str
    error: str
    providers: tuple[Json, ...]


class BlobCreated(Fact):
    """A layer was packed: `snapshot` → `diff_id` → `digest`; `compressor`: name, version, level; `compression`: what
    was asked for (see Compression.written), `annotations` of the blob's descriptor. Of a layer that was converted:
    `source`, the blob it was made of, and no snapshot."""

    STREAM: ClassVar[Stream] = "ref"
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


class ProviderLost(Fact):
    """`provider` cannot give blob `digest` of `ref`, which it was known to have: `kind` (`class` in the log) missing,
    auth, transport or corrupt."""

    STREAM: ClassVar[Stream] = "ref"
    ref: str
    digest: str
    provider: Json
    kind: str
    error: str = ""


class HitRevoked(Fact):
    """`ref` cannot be used after all, as `digest` (a blob, or the id of a snapshot) is gone: `reexecuted` vertices make
    it and what stands on it anew; `attempt` counts losses of this vertex from 1."""

    STREAM: ClassVar[Stream] = "ref"
    ref: str
    digest: str
    reexecuted: tuple[str, ...]
    attempt: int = 1
    provider: Json | None = None
    error: str = ""


class LocalLost(Fact):
    """Something in this root is not as it was: `kind` blob, layer or snapshot; `name`: digest, diff ID or snapshot id;
    `problem`: vanished or corrupt. What is left of it was removed, so that it is fetched or made again."""

    STREAM: ClassVar[Stream] = "cache"
    kind: str
    name: str
    problem: str
    detail: str = ""


class Demoted(Fact):
    """Bytes let go that `providers` still have: `kind` blob, layer or snapshot; `name`: digest, diff ID or snapshot id;
    `digest` of the blob to be pulled again. `policy`: what asked for it (`prune`, or a rule of the policy file), `by`
    whom; `bytes` freed."""

    STREAM: ClassVar[Stream] = "cache"
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

    STREAM: ClassVar[Stream] = "cache"
    kind: str
    name: str
    policy: str
    bytes: int
    by: str = ""
