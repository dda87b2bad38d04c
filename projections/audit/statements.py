"""What an audit says, as plain data with stable names. Each statement has `seqs`: the events that prove it, in order.

Times are UTC nanoseconds, sizes bytes, digests text. "" stands for what the log does not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from projections.audit.index import Checkpoint, Resolution

Json = dict[str, Any]
Seqs = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Identity:
    """The build, and who ran it: `host` as in BuildStarted, `runtime` the OCI runtime with its version."""

    id: str
    name: str
    status: str
    started: int
    ended: int | None
    frontend: str
    engine_version: str
    host: Mapping[str, Any]
    runtime: str
    error: str
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class Maker:
    """A build that made or handed out the digest. `how`: image, index, copy, oci, docker, local, tar or cache for an
    export to `target`, result, step (it ran what made the ref) or layer (it packed the blob)."""

    build: str
    name: str
    status: str
    how: str
    target: str
    engine_version: str
    host: Mapping[str, Any]
    time: int
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class Result:
    """What the build gave: `digest` to `target` by an export of `kind`, or a ref alone (`kind` ref)."""

    kind: str
    target: str
    digest: str
    ref: str
    platform: str
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class Taint:
    """What a result may hold beside what its cache key says, as in projections.taint; `build` whose execution it was,
    "" when that is in no log here. The network leaves no event of its own: the stored graph proves it."""

    kind: str
    id: str
    target: str
    seen: str
    build: str
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class Input:
    """`kind`: definition, image, http, git, context, layer, arg, secret, ssh, cache (imported) or option; `value`: its
    digest, commit or value ("" for a secret: its value is nowhere). `made_by`: the build of this log that made the
    image, whose steps had `taint`."""

    kind: str
    name: str
    value: str
    detail: str
    made_by: str
    taint: tuple[Taint, ...]
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class Origin:
    """The build that executed a cached step; `here`: its record is in this log; `importer`: the cache source that knew
    the result, "" for this root. `seqs`: the records of it."""

    build: str
    here: bool
    importer: str
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class Step:
    """`outcome`: executed, cached, source (an image, file or context: nothing ran), failed, cancelled, interrupted or
    "not needed"; `reason` and `key` of what the cache said. `inherits`: numbers of the steps it stands on that have
    taint."""

    number: int
    name: str
    vertex: str
    outcome: str
    attempts: int
    exit_code: int | None
    key: str
    reason: str
    outputs: tuple[str, ...]
    origin: Origin | None
    taint: tuple[Taint, ...]
    inherits: tuple[int, ...]
    seqs: Seqs


MADE, WHOLE, LAID_OUT, DIGEST_ONLY = "made here", "verified", "laid out", "digest only"
PART, BEGUN, NEVER = "in part", "begun", "never verified"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that the build used; `result`: it is part of what the build gave. `state`:

    - `made here`, by `build`: a step of it (`snapshot`), or converted from another blob;
    - `verified`: its bytes came here, and digest and diff ID were right;
    - `laid out`: its content was made mountable here, as is only what has the right diff ID, but no event tells of a
      pull of this blob: it came as another one, lay here as one, or whoever brought it died before he said so; `detail`
      says which, and what was looked at since;
    - `digest only`: its bytes were streamed through to somewhere, so the digest was right; the diff ID was not looked
      at, as nothing was unpacked;
    - `in part`: only its table of contents and some chunks came, right by the digests of the manifest and the table;
    - `begun`: a pull of it began, and no event tells how that ended: it may have been verified, or may not have come;
    - `never verified`: a descriptor was believed; `detail` says what was done with it.
    """

    digest: str
    diff_id: str
    snapshot: str
    state: str
    build: str
    provider: str
    result: bool
    detail: str
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class Served:
    """`provider` gave `bytes` of `digest` (for a tag: of `name`) to `build` at `time`; `verified` as in
    projections.served."""

    digest: str
    name: str
    provider: str
    mirror_of: str
    how: str
    bytes: int
    verified: tuple[str, ...]
    build: str
    time: int
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class Decision:
    """What the build's policy (`policy`: the digest of its file) said of `subject`: `decision` allowed or denied, by
    `rule`."""

    subject: str
    decision: str
    rule: str
    detail: str
    policy: str
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class Attestation:
    """A statement of `predicate_type` about the manifest `image`: `statement` and `envelope` are digests of stored
    documents, `key` the name of the key that signed, "" when none did; `referrer` attaches it."""

    image: str
    platform: str
    predicate_type: str
    statement: str
    envelope: str
    referrer: str
    key: str
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class Attempt:
    """Something that was tried again, failed or was called off: `what` is the event's type, `name` a digest, tag, cache
    or step; `step` its number (0: none)."""

    what: str
    name: str
    step: int
    attempt: int
    detail: str
    time: int
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class LetGo:
    """Bytes of a layer of this build that were let go on purpose; `in_use`: while the build ran."""

    kind: str
    name: str
    providers: str
    policy: str
    by: str
    bytes: int
    time: int
    in_use: bool
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class Difference:
    """`what`: option, source, definition, step or result; `old` and `new` None for a side without it."""

    what: str
    name: str
    old: str | None
    new: str | None
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class Gap:
    """Where the record is incomplete, or proves less than one may think. `what`: unfinished, interrupted, output,
    unknown-event, graph, origin, believed, begun, laid-out, digest-only, part, recalled, redacted, runtime, checkpoint,
    publication."""

    what: str
    detail: str
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class Descendant:
    """A build that stands on the digest: `depth` 1 used it (`how`: image, file, commit, context, definition, layer,
    input or cached), a greater one used what a build before gave; `of`: what it used, `digests` what it gave."""

    build: str
    name: str
    status: str
    depth: int
    how: str
    of: str
    time: int
    digests: tuple[str, ...]
    seqs: Seqs


@dataclass(frozen=True, slots=True)
class BuildReport:
    """All that is said of one build. `against`: the build before of the same thing, "" for none."""

    build: Identity
    results: tuple[Result, ...]
    inputs: tuple[Input, ...]
    resolutions: tuple[Resolution, ...]
    steps: tuple[Step, ...]
    layers: tuple[Layer, ...]
    served: tuple[Served, ...]
    decisions: tuple[Decision, ...]
    attestations: tuple[Attestation, ...]
    attempts: tuple[Attempt, ...]
    let_go: tuple[LetGo, ...]
    against: str
    differences: tuple[Difference, ...]
    checkpoint: Checkpoint | None
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to `audit report`. `subject`: the build's id or the whole digest; `made` (of a digest): builds that
    made it, at most 100 of `makers`; `report` of the build, or of the first that made the digest; `reverse`: builds
    that stand on it, None when that was not asked; `as_of`: the last event that was looked at."""

    subject: str
    kind: str
    as_of: int
    makers: int
    made: tuple[Maker, ...]
    report: BuildReport | None
    reverse: tuple[Descendant, ...] | None

    def to_json(self) -> Json:
        """Plain data."""
        return asdict(self)
