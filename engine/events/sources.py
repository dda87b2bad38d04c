"""What a build is made of: images, contexts, files and repositories, and who was asked for them."""

from __future__ import annotations

from typing import ClassVar

from engine.events.fact import Fact, Json, Stream


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

    STREAM: ClassVar[Stream] = "ref"
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
