"""Makes what is attested of the images of a build, before they are exported.

A layer is scanned once for all images and builds that have it: the scan is kept by diff ID (`LayerScanned`). One that
was never scanned is materialized for it, reason `inspect`, as the log says before a byte of it comes (I2).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from engine.attest.scan import Scan, combine, scan_layer
from engine.attest.spec import Attest
from engine.attest.statement import PROVENANCE, SBOM, Said, attach, statement
from engine.errors import DiskError, VerificationError
from engine.events import Attested as AttestedFact
from engine.events import LayerScanned
from engine.exporters.image import Attested, Image
from engine.ledger import Ledger
from engine.refs.materializer import Materializer
from engine.refs.ref import Layer, Remote
from storage.digest import Digest, parse_json
from storage.interfaces.blobs import BlobStore
from storage.interfaces.parts import LayerTree
from storage.signing.dsse import IN_TOTO, key_id, sign
from storage.signing.notes import Signer
from storage.threads import in_thread

if TYPE_CHECKING:
    from engine.exporters.exporters import Built

Json = dict[str, Any]


class Known(Protocol):
    """What the log tells of what was built: projections answer."""

    def provenance(self, build: str, *, whole: bool) -> Json:
        """The SLSA provenance predicate of `build`, `whole` with all arguments and steps. Raises LogError,
        VerificationError."""
        ...

    def scan_of(self, diff_id: Digest) -> Digest | None:
        """The stored scan of a layer."""
        ...


@dataclass(slots=True)
class Attester:
    """`tree` looks into a layer that is mountable here; `signer`: None signs nothing; `version`: the engine's.
    `warnings`: one line for each image of which not all may have been said."""

    ledger: Ledger
    blobs: BlobStore
    materializer: Materializer
    tree: Callable[[Path], LayerTree]
    known: Known
    signer: Signer | None
    version: str
    warnings: dict[str, None] = field(default_factory=dict)
    _scans: dict[Digest, Scan] = field(default_factory=dict)

    async def attest(self, wanted: Sequence[Attest], built: Built, image: Image) -> Attested:
        """What is to be attached to `image`, which `built` became. Raises MaterializationError, DiskError, LogError,
        VerificationError."""
        said = []
        for one in wanted:
            if one.kind == "provenance":
                await self.ledger.flush()  # it is told from the log
                whole = one.mode == "max"
                predicate = await in_thread(
                    lambda: self.known.provenance(self.ledger.build, whole=whole)  # noqa: B023
                )
                said.append(self._say(image, PROVENANCE, predicate))
            else:
                said.append(self._say(image, SBOM, await self._sbom(built, image)))
        attached = attach(image, said)
        for referrer, told in zip(attached.referrers, said, strict=True):
            await self._keep(image, referrer, told)
        return attached

    def _say(self, image: Image, kind: str, predicate: Mapping[str, Any]) -> Said:
        payload = statement({image.digest: image.platform}, kind, predicate)
        return Said(kind, payload, sign(IN_TOTO, payload, self.signer) if self.signer else None)

    async def _keep(self, image: Image, referrer: Image, said: Said) -> None:
        stored = self.blobs.put(said.payload)
        envelope = str(self.blobs.put(said.envelope)) if said.envelope else ""
        await self.ledger.record(
            AttestedFact(
                image=str(image.digest), platform=image.platform, predicate_type=said.predicate_type,
                statement=str(stored), envelope=envelope, referrer=str(referrer.digest),
                key=key_id(self.signer.verifier) if self.signer else "",
            )
        )  # fmt: skip

    # ---------------------------------------------------------------- what is in the image

    async def _sbom(self, built: Built, image: Image) -> Json:
        # reason: packageurl takes a while to load, and most builds write no SBOM
        from engine.attest.sbom import cyclonedx

        scans = await self._scan_all(built, image)
        created = str(parse_json(image.config).get("created") or "")
        contents = await in_thread(lambda: combine(scans))
        if contents.problems:
            count = len(contents.problems)
            more = f" ({count} reasons, all in the SBOM)" if count > 1 else ""
            self.warnings[f"the SBOM for {image.platform} may lack packages: {contents.problems[0]}{more}"] = None
        return await in_thread(lambda: cyclonedx(image.digest, created, contents, self.version))

    async def _scan_all(self, built: Built, image: Image) -> list[Scan]:
        """The scans of all layers, bottom first: `image` tells their diff IDs, `built` how they are had."""
        layers = dict(zip((layer.diff_id for layer in image.layers), built.ref.layers, strict=True))
        unknown: dict[Digest, Layer] = {}
        for diff_id, layer in layers.items():
            assert diff_id is not None, "layers are packed before they are attested"
            if diff_id in self._scans:
                continue
            if (found := self._stored(diff_id)) is None:
                unknown[diff_id] = layer
            else:
                self._scans[diff_id] = found
        if unknown:
            ref = Remote(built.ref.id, tuple(unknown.values()))
            local = await self.materializer.materialize(
                ref, vertex=str(built.result.vertex), reason="inspect", needed_by="the SBOM"
            )
            for diff_id, lower in zip(unknown, local.lowers, strict=True):
                self._scans[diff_id] = await self._scan(diff_id, lower)
        return [self._scans[layer.diff_id] for layer in image.layers if layer.diff_id]

    def _stored(self, diff_id: Digest) -> Scan | None:
        digest = self.known.scan_of(diff_id)
        try:
            return Scan.decode(self.blobs.get(digest)) if digest else None
        except (FileNotFoundError, VerificationError):
            return None  # reason: what was collected or damaged can be scanned again

    async def _scan(self, diff_id: Digest, lower: Path) -> Scan:
        try:
            found = await in_thread(lambda: scan_layer(self.tree(lower), lambda path: _open(lower, path)))
        except OSError as error:
            raise DiskError.of(error, f"looking for packages in layer {diff_id.short}") from error
        stored = self.blobs.put(found.encode())
        await self.ledger.record(
            LayerScanned(
                diff_id=str(diff_id), scan=str(stored), databases=len(found.databases),
                packages=sum(len(one.packages) for one in found.databases), problems=len(found.problems),
            )
        )  # fmt: skip
        return found


def _open(lower: Path, path: bytes) -> BinaryIO | None:
    """A regular file, whose parents are directories of this layer (the tree says so); None for anything else."""
    place = os.path.join(os.fsencode(lower), path)  # noqa: PTH118 - bytes
    fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    return None
