"""Checks what is attested of an image, from its manifests and attestations alone: no layer is asked for.

Attestations are found both ways: in the index beside the image (BuildKit), and among its referrers (OCI 1.1). What
counts is what the given key signed; what is said beside it without a signature must be the same, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.attest.statement import PREDICATE_TYPE, PROVENANCE, SBOM, Statement
from engine.errors import RegistryError, VerificationError
from engine.images.inspect import Entry, index_entries
from engine.images.place import descriptors
from engine.images.read import ImageReader, Manifest, whole
from storage.digest import Digest, sha256
from storage.interfaces.images import Descriptor, Provider, Reference
from storage.interfaces.registry import RegistryListing
from storage.signing.dsse import ENVELOPE, IN_TOTO, Envelope, key_id
from storage.signing.notes import Verifier

Json = dict[str, Any]
MOST = 64
"""Attestations of one image that are looked at, and images of one index: both come from whoever pushed them."""
LIMIT = 64 << 20
"""Bytes of one attestation at most."""
TOTAL = 2 * LIMIT
"""Bytes of all statements of one image at most, and of all envelopes."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the key signed of one image. `in_index`: the same statement lies beside the image in its index."""

    predicate_type: str
    statement: Digest
    predicate: Json
    in_index: bool

    def to_json(self) -> Json:
        """`predicate_type`, `statement` (its digest), `in_index`, and what it says, in short."""
        return {
            "predicate_type": self.predicate_type, "statement": str(self.statement), "in_index": self.in_index,
            **summary(self.predicate_type, self.predicate),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verified:
    """The claims that are true of `image`: true is that the key's owner makes them."""

    image: Digest
    platform: str
    claims: tuple[Claim, ...]

    def to_json(self) -> Json:
        """`image`, `platform`, `claims`."""
        return {
            "image": str(self.image), "platform": self.platform, "claims": [one.to_json() for one in self.claims],
        }  # fmt: skip


def summary(predicate_type: str, predicate: Mapping[str, Any]) -> Json:
    """What a predicate says, for people: of a provenance the builder, sources and completeness, of an SBOM how many
    components, and whether it says that there are more. Texts are as they came; what is not as it should be is left
    out."""
    if predicate_type == SBOM:
        found, parts = (_list(predicate, key) for key in ("components", "compositions"))
        told = [str(one.get("aggregate")) for one in parts if isinstance(one, dict)]
        return {"components": len(found), "incomplete": any(one.startswith("incomplete") for one in told)}
    if predicate_type != PROVENANCE:
        return {}
    definition, details = _object(predicate, "buildDefinition"), _object(predicate, "runDetails")
    metadata = _object(details, "metadata")
    return {
        "builder": str(_object(details, "builder").get("id") or ""),
        "build_type": str(definition.get("buildType") or ""),
        "invocation": str(metadata.get("invocationId") or ""),
        "started": str(metadata.get("startedOn") or ""),
        "sources": [_source(one) for one in _list(definition, "resolvedDependencies") if isinstance(one, dict)],
        "completeness": _object(metadata, "refledger_completeness") or None,
    }


def _source(one: Mapping[str, Any]) -> Json:
    digests = _object(one, "digest")
    return {
        "name": str(one.get("uri") or one.get("name") or ""),
        "digest": next((f"{kind}:{value}" for kind, value in digests.items()), ""),
    }


def _object(fields: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = fields.get(key)
    return value if isinstance(value, dict) else {}


def _list(fields: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = fields.get(key)
    return value if isinstance(value, list) else ()


@dataclass(frozen=True, slots=True)
class ImageVerifier:
    """Asks for manifests, lists of referrers and attestations. All methods raise VerificationError for what is not as
    it should be, RegistryError for what cannot be had, DiskError, InputError."""

    images: ImageReader
    listing: RegistryListing
    key: Verifier

    async def verify(
        self, reference: Reference, *, platform: str = "", required: Sequence[str] = ()
    ) -> tuple[Verified, ...]:
        """What is signed of all images that `reference` names, or of the one for `platform`: each must have something,
        and a statement of each of the `required` predicate types."""
        where, provider = str(reference), reference.provider
        top, _ = await self.images.places.resolve(reference, self.images.registry.resolve)
        manifest = await self.images.manifest(provider, top.digest, where)
        entries = index_entries(manifest, where) if manifest.is_index else ()
        images = [(one.blob.digest, one.name) for one in entries if not one.attests]
        if not manifest.is_index:
            images = [(manifest.digest, "")]
        wanted = [one for one in images if platform in ("", one[1]) or not manifest.is_index]
        if not wanted:
            raise VerificationError(f"there is no image for {platform or 'any platform'}", where=where)
        if len(wanted) > MOST:
            raise VerificationError(f"an index of {len(wanted)} images", where=where, hint="name one with --platform")
        found = []
        for digest, name in wanted:
            claims = await self._claims(provider, digest, [one for one in entries if one.attests == digest])
            there = {claim.predicate_type for claim in claims}
            if lacking := [kind for kind in required if kind not in there]:
                raise VerificationError(
                    f"{self._by()} signed nothing of the type {', '.join(lacking)}", where=f"{provider}@{digest}"
                )
            found.append(Verified(digest, name, claims))
        return tuple(found)

    def _by(self) -> str:
        return f"the key {key_id(self.key)}"

    async def _claims(self, provider: Provider, image: Digest, beside: Sequence[Entry]) -> tuple[Claim, ...]:
        where = f"{provider}@{image}"
        referrers = [
            one for one in await self.listing.referrers(provider, image) if one.artifact_type in (ENVELOPE, IN_TOTO)
        ]
        if len(beside) > MOST or len(referrers) > MOST:  # to pass some over would be to believe them
            raise VerificationError(f"more than {MOST} attestations are attached to it", where=where)
        plain: dict[Digest, bytes] = {}
        for entry in beside:
            manifest = await self.images.manifest(provider, entry.blob.digest, where)
            await self._add(plain, provider, manifest, where, IN_TOTO)
        envelopes: dict[Digest, bytes] = {}
        for one in referrers:
            manifest = await self.images.manifest(provider, one.manifest.digest, where)
            subject = manifest.fields.get("subject")
            if not isinstance(subject, dict) or subject.get("digest") != image:
                what = f"{one.manifest.digest} is listed as a referrer and refers elsewhere"
                raise VerificationError(what, where=where)
            await self._add(envelopes, provider, manifest, where, ENVELOPE)
            await self._add(plain, provider, manifest, where, IN_TOTO)
        signed = self._signed(list(envelopes.values()), where)
        if not signed:
            what = "what is attested of it is not signed" if plain else "nothing is attested of it"
            if envelopes:
                what = f"{self._by()} signed nothing of what is attested of it"
            raise VerificationError(what, where=where)
        for data in plain.values():
            if data not in signed:
                kind = Statement.parse(data).predicate_type
                raise VerificationError(f"it has a statement ({kind}) that {self._by()} did not sign", where=where)
        return tuple(self._claim(data, image, where, in_index=data in plain.values()) for data in signed)

    def _signed(self, envelopes: Sequence[bytes], where: str) -> list[bytes]:
        found = []
        for data in envelopes:
            envelope = Envelope.parse(data)
            claims_key = any(name == key_id(self.key) for name, _ in envelope.signatures)
            if envelope.payload_type == IN_TOTO and envelope.signed_by(self.key):
                found.append(envelope.payload)
            elif claims_key:
                raise VerificationError(f"the signature of {self._by()} is wrong", where=where)
        return found

    def _claim(self, data: bytes, image: Digest, where: str, *, in_index: bool) -> Claim:
        said = Statement.parse(data)
        if str(image) not in said.subjects:
            about = ", ".join(sorted(said.subjects))[:200] or "nothing"
            raise VerificationError(f"what is signed ({said.predicate_type}) is about {about}", where=where)
        return Claim(said.predicate_type, sha256(data), said.predicate, in_index)

    async def _add(
        self, found: dict[Digest, bytes], provider: Provider, manifest: Manifest, where: str, media_type: str
    ) -> None:
        """To `found`, by digest, the blobs of `media_type` that a manifest lists."""
        listed = descriptors(manifest.fields, "layers", where)
        if len(listed) > MOST:
            raise VerificationError(f"{manifest.digest} lists more than {MOST} attestations", where=where)
        for blob, fields in listed:
            if blob.media_type == media_type:
                data = found.get(blob.digest)
                if data is None:
                    if sum(map(len, found.values())) + blob.size > TOTAL:
                        raise VerificationError(f"its attestations have more than {TOTAL} bytes", where=where)
                    data = found[blob.digest] = await self._blob(provider, blob, where)
                if media_type == IN_TOTO and _annotated(fields) not in ("", Statement.parse(data).predicate_type):
                    raise VerificationError(f"{blob.digest} is announced as another type than it is", where=where)

    async def _blob(self, provider: Provider, blob: Descriptor, where: str) -> bytes:
        if blob.size > LIMIT:
            raise VerificationError(f"an attestation of {blob.size} bytes is larger than {LIMIT}", where=where)
        try:
            return await whole(self.images.registry, provider, blob)
        except RegistryError as error:
            if error.kind == "missing":
                raise VerificationError(f"the attestation {blob.digest} is gone", where=where) from error
            raise


def _annotated(fields: Mapping[str, Any]) -> str:
    return str(_object(fields, "annotations").get(PREDICATE_TYPE) or "")
