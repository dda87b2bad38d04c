"""What images and those that have them are called by: plain data.

It is frozen, made of primitives, and goes into events and across processes as `to_json()` gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from storage.digest import Digest

Json = dict[str, Any]


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
        size, annotations, urls = data["size"], data.get("annotations") or {}, data.get("urls") or []
        if type(size) is not int or not 0 <= size < 1 << 63:
            raise ValueError("a descriptor's size is no number of bytes")
        if not isinstance(annotations, Mapping) or not all(isinstance(text, str) for text in annotations.values()):
            raise TypeError("annotations are no texts")
        if not isinstance(urls, list):
            raise TypeError("urls is not a list")
        return cls(data["mediaType"], Digest(data["digest"]), size, dict(annotations), tuple(map(str, urls)))


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
        """The inverse of `to_json`. Raises KeyError or TypeError on anything else: logs and bundles come from
        anybody."""
        if not isinstance(data, Mapping):
            raise TypeError("a provider is not an object")
        mirrors, mirror_of = tuple(data.get("mirrors", ())), data.get("mirror_of", "")
        names = (data["registry"], data["repository"], data["scope"], mirror_of, *mirrors)
        if not all(isinstance(name, str) for name in names):
            raise TypeError("the names of a provider are no texts")
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
