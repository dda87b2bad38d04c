"""Registries in memory, as their own machine sees them: no network, no faults, no waiting. What they answer is what
Debian's docker-registry answers (tests/contracts/test_registry.py holds both to it).

A blob is stored once a host, and seen in the repositories that it was uploaded to or mounted into.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from storage.digest import Digest, parse_json, sha256
from storage.errors import InputError
from storage.interfaces.images import Descriptor
from storage.media_types import DOCKER_LIST, INDEX
from storage.reference import is_tag
from storage.referrers import is_fallback_tag, referring

Answer = tuple[int, bytes]
"""Status and body; the body of a refusal is a JSON error (distribution-spec "Error Codes")."""


@dataclass(slots=True)
class Repository:
    """What one repository shows: `manifests` with their media types."""

    blobs: set[Digest] = field(default_factory=set)
    manifests: dict[Digest, str] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)


@dataclass(slots=True)
class Host:
    """One registry. `ranges`: does it answer Range? `mounts`: does it grant cross-repository mounts? `listing`: has it
    the referrers API? (docker-registry has not.) `up`: does anybody answer?"""

    name: str
    ranges: bool = True
    mounts: bool = True
    listing: bool = False
    up: bool = True
    content: dict[Digest, bytes] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)
    readers: dict[str, frozenset[str]] = field(default_factory=dict)
    """Whose logins may read a repository; those that are not named are open to all."""
    writers: dict[str, frozenset[str]] = field(default_factory=dict)
    lost: set[Digest] = field(default_factory=set)
    """What was taken away or damaged from outside."""
    uploads: dict[str, bytearray] = field(default_factory=dict)
    """Uploads that may be gone on with, by their location, and what came of them."""
    begun: int = 0
    """How many of these there were."""

    # ------------------------------------------------------------ from outside

    def put_blob(self, repository: str, data: bytes) -> Digest:
        """Have a blob there."""
        digest = sha256(data)
        self.content[digest] = data
        self._named(repository).blobs.add(digest)
        return digest

    def lose(self, digest: Digest) -> None:
        """The blob or manifest is gone, in all repositories."""
        self.content.pop(digest, None)
        self.lost.add(digest)

    def damage(self, digest: Digest) -> None:
        """One byte of it is another one."""
        data = self.content[digest]
        self.content[digest] = data[:-1] + bytes([data[-1] ^ 1])
        self.lost.add(digest)

    def copy(self, repository: str, other: Host, name: str = "") -> None:
        """Have `other` (a mirror) show under `name` all that `repository` does."""
        shown, copied = self._named(repository), other._named(name or repository)
        copied.blobs |= shown.blobs
        copied.manifests |= shown.manifests
        copied.tags |= shown.tags
        for digest in (*shown.blobs, *shown.manifests):
            if digest in self.content:
                other.content[digest] = self.content[digest]

    def read(self, repository: str, name: str) -> bytes | None:
        """The manifest or blob of that name, None where there is none."""
        status, data, _ = self.manifest(repository, name)
        if status != 200 and not is_tag(name):
            status, data = self.blob(repository, Digest(name))
        return data if status == 200 else None

    def holes(self) -> list[str]:
        """Tags that lead to something that is not there (I11), but for what was lost."""
        return [
            f"{self.name}/{name}:{tag} lacks {digest}"
            for name, repository in sorted(self.repositories.items())
            for tag, manifest in sorted(repository.tags.items())
            if not is_fallback_tag(tag)
            for digest in self._missing(repository, manifest)
            if digest not in self.lost
        ]

    def _missing(self, repository: Repository, manifest: Digest) -> Iterator[Digest]:
        if manifest not in repository.manifests or manifest not in self.content:
            yield manifest
            return
        for digest, is_manifest in _needed(self.content[manifest], repository.manifests[manifest]):
            if is_manifest:
                yield from self._missing(repository, digest)
            elif digest not in repository.blobs or digest not in self.content:
                yield digest

    def _named(self, repository: str) -> Repository:
        return self.repositories.setdefault(repository, Repository())

    # ------------------------------------------------------------ what is asked over the network

    def allows(self, login: str, repository: str, *, write: bool = False) -> bool:
        """May `login` ("" for nobody's) do this?"""
        allowed = (self.writers if write else self.readers).get(repository)
        return allowed is None or login in allowed

    def blob(self, repository: str, digest: Digest) -> Answer:
        """GET or HEAD of a blob."""
        shown = self.repositories.get(repository)
        if shown is None or digest not in shown.blobs or digest not in self.content:
            return _refusal(404, "BLOB_UNKNOWN", "blob unknown to registry")
        return 200, self.content[digest]

    def manifest(self, repository: str, name: str) -> tuple[int, bytes, str]:
        """GET or HEAD of a manifest by tag or digest; and its media type."""
        shown = self.repositories.get(repository, Repository())
        digest = shown.tags.get(name) or next((one for one in shown.manifests if one == name), None)
        if digest is None or digest not in self.content:
            return *_refusal(404, "MANIFEST_UNKNOWN", "manifest unknown"), ""
        return 200, self.content[digest], shown.manifests[digest]

    def digest_of(self, repository: str, name: str) -> Digest:
        """The digest under which a manifest that is there is stored."""
        return self.repositories[repository].tags.get(name) or Digest(name)

    def mount(self, repository: str, digest: Digest, source: str, login: str) -> bool:
        """POST with `mount` and `from`: is it granted?"""
        if not self.mounts or not self.allows(login, source) or self.blob(source, digest)[0] != 200:
            return False
        self._named(repository).blobs.add(digest)
        return True

    def begin_upload(self) -> str:
        """The location of a new upload that may be gone on with."""
        self.begun += 1
        location = f"/uploads/{self.begun}"
        self.uploads[location] = bytearray()
        return location

    def store(self, repository: str, digest: Digest, data: bytes) -> Answer:
        """The end of an upload."""
        if sha256(data) != digest:
            return _refusal(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        self.content[digest] = data
        self._named(repository).blobs.add(digest)
        return 201, b""

    def put_manifest(self, repository: str, name: str, media_type: str, data: bytes) -> Answer:
        """PUT of a manifest, under a tag or its digest: stored first, named then; refused when something that it needs
        is
        not there."""
        shown, digest = self._named(repository), sha256(data)
        try:
            needed = list(_needed(data, media_type))
        except (ValueError, KeyError, TypeError, InputError):
            return _refusal(400, "MANIFEST_INVALID", "manifest invalid")
        for one, is_manifest in needed:
            if one not in (shown.manifests if is_manifest else shown.blobs) or one not in self.content:
                code = "MANIFEST_BLOB_UNKNOWN"
                return _refusal(400 if not is_manifest else 404, code, "blob unknown to registry")
        self.content[digest] = data
        shown.manifests[digest] = media_type
        if name != digest:
            shown.tags[name] = digest
        return 201, b""

    def tags(self, repository: str) -> Answer:
        """GET of the list of tags."""
        shown = self.repositories.get(repository)
        if shown is None or not shown.tags:
            return _refusal(404, "NAME_UNKNOWN", "repository name not known to registry")
        return 200, b"\n".join(tag.encode() for tag in sorted(shown.tags))

    def referrers(self, repository: str, subject: Digest) -> list[dict[str, Any]]:
        """The entries of the list of referrers."""
        found = []
        shown = self.repositories.get(repository, Repository())
        for digest, media_type in shown.manifests.items():
            refers = referring(self.content.get(digest, b""), media_type)
            if refers is not None and refers[0] == subject:
                found.append(refers[1].to_json())
        return found


def _needed(data: bytes, media_type: str) -> Iterator[tuple[Digest, bool]]:
    """What a manifest cannot be without, and whether that is a manifest."""
    manifest: Mapping[str, Any] = parse_json(data)
    if media_type in {INDEX, DOCKER_LIST}:
        for entry in manifest["manifests"]:
            yield Descriptor.from_json(entry).digest, True
        return
    for entry in (manifest["config"], *manifest.get("layers", ())):
        if not entry.get("urls"):
            yield Descriptor.from_json(entry).digest, False


def _refusal(status: int, code: str, message: str) -> Answer:
    return status, f'{{"errors":[{{"code":"{code}","message":"{message}"}}]}}'.encode()
