"""Checkpoints where the builder cannot reach: sent there, and read from there.

A target is `file:PATH`, to which notes are appended, each behind an empty line, or a repository (in a registry, or an
OCI layout), where each checkpoint is an OCI artifact of type CHECKPOINT, and its one layer is the note. The tag tells
log, size and root: two checkpoints never have the same one, so none is overwritten, least of all by the one of a fork.
With a `subject`, the artifact is a referrer of that image (OCI image-spec 1.1), and has no tag.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from storage.digest import Digest, canonical_json, sha256
from storage.durable import fsync_directory
from storage.errors import DiskError, InputError, VerificationError
from storage.interfaces.images import Descriptor, Provider, Reference
from storage.media_types import EMPTY_CONFIG, MANIFEST
from storage.reference import LAYOUT, parse_layout, parse_reference
from storage.signing.notes import Checkpoint, Verifier
from tools.auditing.checkpoints import Signed, log_of
from tools.auditing.proofs import signed_by

if TYPE_CHECKING:
    from tools.imaging import Imaging

CHECKPOINT = "application/vnd.refledger.checkpoint.v1"
FILE = "file:"
_EMPTY = b"{}"
_TAG = "checkpoint-"
_MAX_FILE = 1 << 30  # bytes
_MAX_NOTE = 1 << 20
_PARALLEL = 8
_POLL, PATIENCE = 0.02, 180.0
"""Seconds between two looks at a file that somebody else has locked, and after which that is an error."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where checkpoints are published: a file, or a repository. `named`: a tag or digest was written."""

    path: Path | None = None
    reference: Reference | None = None
    named: bool = False

    @classmethod
    def parse(cls, text: str) -> Target:
        """Raises InputError."""
        if text.startswith(FILE):
            if not text.removeprefix(FILE):
                raise InputError("file: names no file", hint="write file:PATH")
            return cls(path=Path(text.removeprefix(FILE)))
        reference = parse_layout(text) if text.startswith(LAYOUT) else parse_reference(text)
        named = reference.digest is not None or bool(reference.tag and text.endswith(f":{reference.tag}"))
        return cls(reference=reference, named=named)

    def __str__(self) -> str:
        if self.path is not None:
            return f"{FILE}{self.path.absolute()}"
        assert self.reference is not None
        return str(self.reference.provider)


# ---------------------------------------------------------------- sending


def publish(signed: Signed, target: Target, subject: str = "") -> str:
    """Send a checkpoint; returns the digest that names it there, "" in a file. What is there already stays as it is.
    Raises InputError, DiskError, RegistryError, VerificationError."""
    if target.path is not None:
        if subject:
            raise InputError("a file has no subject", hint="--subject is for a registry")
        _append(target.path, signed.note)
        return ""
    if target.named:
        hint = "leave tag and digest out; --subject makes it a referrer of an image"
        raise InputError("checkpoints are published to a repository", where=str(target.reference), hint=hint)
    return asyncio.run(_push(signed, target, subject))


def _append(path: Path, note: str) -> None:
    try:
        with path.open("a+b") as file:
            _lock(file, path)
            file.seek(0)
            known = file.read(_MAX_FILE)
            if note.encode() not in known:
                broken = b"\n" if known and not known.endswith(b"\n") else b""  # what a power loss cut off
                file.write(broken + b"\n" * bool(known) + note.encode())
                file.flush()
            # also what is there already: whoever wrote it may have been killed before it was durable
            os.fsync(file.fileno())
        fsync_directory(path.parent)
    except OSError as error:
        raise DiskError.of(error, "publishing the checkpoint", dest=str(path)) from error


def _lock(file: BinaryIO, path: Path) -> None:
    """Wait until nobody else writes to it. Raises DiskError, OSError."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                what, hint = "another process has kept it locked for minutes", f"see which one: fuser -v {path}"
                raise DiskError(what, where=str(path), hint=hint) from None
            time.sleep(_POLL)
        else:
            return


def tag_of(checkpoint: Checkpoint) -> str:
    """The tag of a checkpoint: log, size, and root."""
    return f"{_TAG}{log_of(checkpoint)}-{checkpoint.size}-{checkpoint.root[:8].hex()}"


async def _push(signed: Signed, target: Target, subject: str) -> str:
    from tools.imaging import passing_imaging

    assert target.reference is not None
    name = target.reference
    place = Provider(name.registry, name.repository, f"repository:{name.repository}:pull,push")
    note = signed.note.encode()
    layer, config = Descriptor(CHECKPOINT, sha256(note), len(note)), Descriptor(EMPTY_CONFIG, sha256(_EMPTY), 2)
    fields: dict[str, object] = {
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": CHECKPOINT,
        "config": config.to_json(), "layers": [layer.to_json()],
    }  # fmt: skip
    async with passing_imaging() as made:
        if subject:
            image = parse_layout(subject) if subject.startswith(LAYOUT) else parse_reference(subject)
            if (image.registry, image.repository) != (name.registry, name.repository):
                hint = f"publish to {image.provider}, or leave --subject out"
                raise InputError("a referrer lies in the repository of its subject", where=subject, hint=hint)
            top, _ = await made.images.places.resolve(image, made.images.registry.resolve)
            fields["subject"] = replace(top, annotations={}, urls=()).to_json()
        data = canonical_json(fields)
        for blob, content in ((config, _EMPTY), (layer, note)):
            if not await made.images.registry.exists(place, blob.digest):
                await made.placer.mover.target.upload(place, blob, partial(_whole, content))
        tag = str(sha256(data)) if subject else tag_of(signed.checkpoint)
        return str(await made.placer.mover.target.put_manifest(place, tag, MANIFEST, data))


async def _whole(content: bytes) -> AsyncIterator[bytes]:
    yield content


# ---------------------------------------------------------------- reading


def published(source: str, verifiers: Sequence[Verifier] = (), identity: str = "") -> list[Checkpoint]:
    """The checkpoints that were published at `source`: of a file all its notes, of a repository all that have their
    tag, of an image (a tag or digest is written) its referrers. Those of the log `identity` (checkpoints.log_id) only,
    as others of other keys may lie there too; where there are none, all, for it may be the first event that was
    changed. With `verifiers`, all that are given back are signed by them. Raises VerificationError for what is no
    signed checkpoint, InputError, DiskError, RegistryError."""
    found = [(where, note, Signed.parse(note, where).checkpoint) for where, note in notes(source)]
    mine = [one for one in found if identity and log_of(one[2]) == identity] or found
    for where, note, _ in mine if verifiers else ():
        try:
            signed_by(note, verifiers)
        except VerificationError as error:
            hint = "somebody else wrote it, or it was changed"
            raise VerificationError(error.what, where=where, hint=hint) from error
    return [checkpoint for _, _, checkpoint in mine]


def notes(source: str) -> list[tuple[str, str]]:
    """Where each one is, and its text. Raises as `published` does."""
    path = Path(source)
    target = Target(path=path) if not source.startswith((FILE, LAYOUT)) and path.is_file() else Target.parse(source)
    if target.path is not None:
        return _read(target.path)
    return asyncio.run(_fetch(target))


def _read(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE).decode("utf-8", "replace")
    except OSError as error:
        hint = "it is a file that --publish file:PATH wrote, or a repository"
        raise InputError(f"it cannot be read: {error.strerror}", where=str(path), hint=hint) from error
    found: list[tuple[str, str]] = []
    lines: list[str] = []
    start = 1

    def close() -> None:
        if lines:
            found.append((f"{path}:{start}", "".join(lines)))
            lines.clear()

    for number, line in enumerate(text.split("\n")[:-1] if text.endswith("\n") else text.split("\n"), 1):
        signature = line.startswith("— ")
        if lines and not signature and lines[-1].startswith("— "):
            close()
        if not lines:
            start = number
        if lines or line:
            lines.append(f"{line}\n")
    close()
    return found


async def _fetch(target: Target) -> list[tuple[str, str]]:
    from engine.together import together
    from tools.imaging import passing_imaging

    assert target.reference is not None
    slots = asyncio.Semaphore(_PARALLEL)
    async with passing_imaging() as made:
        place, named = target.reference.provider, target.reference
        digests: list[Digest] = []
        if target.named:
            top, _ = await made.images.places.resolve(named, made.images.registry.resolve)
            digests = [one.manifest.digest for one in await made.listing.referrers(place, top.digest, CHECKPOINT)]
        else:

            async def tagged(tag: str) -> Digest:
                async with slots:
                    return (await made.images.registry.resolve(replace(named, tag=tag))).digest

            tags = sorted(tag for tag in await made.listing.tags(place) if tag.startswith(_TAG))
            digests = list(await together(tagged(tag) for tag in tags))

        async def one(digest: Digest) -> tuple[str, str]:
            async with slots:
                return await _note(made, place, digest)

        return list(await together(one(digest) for digest in dict.fromkeys(digests)))


async def _note(made: Imaging, place: Provider, digest: Digest) -> tuple[str, str]:
    where = f"{place}@{digest}"
    manifest = await made.images.manifest(place, digest, where)
    try:
        [fields] = manifest.fields["layers"]
        layer = Descriptor.from_json(fields)
        if layer.media_type != CHECKPOINT or not 0 < layer.size <= _MAX_NOTE:
            raise ValueError("not a note")
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        hint = "somebody else put it there"
        raise VerificationError("the artifact is no checkpoint", where=where, hint=hint) from error
    return where, (await made.images.config(place, layer, where)).decode("utf-8", "replace")
