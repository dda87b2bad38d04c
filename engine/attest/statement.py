"""in-toto statements about images, and the manifests that attach them. Pure.

Sources: in-toto Attestation Framework (spec/v1/statement.md, resource_descriptor.md), SLSA provenance v1, CycloneDX;
BuildKit docs/attestations/attestation-storage.md for attestation manifests in an index, OCI image-spec 1.1
manifest.md ("Guidelines for Artifact Usage") for referrers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.exporters.image import Attested, Image
from engine.refs.ref import Layer
from storage.digest import Digest, canonical_json, parse_json, sha256
from storage.errors import VerificationError
from storage.interfaces.images import Descriptor
from storage.media_types import CONFIG, EMPTY_CONFIG, MANIFEST
from storage.signing.dsse import ENVELOPE, IN_TOTO

Json = dict[str, Any]
STATEMENT = "https://in-toto.io/Statement/v1"
STATEMENTS = frozenset({STATEMENT, "https://in-toto.io/Statement/v0.1"})
PROVENANCE = "https://slsa.dev/provenance/v1"
SBOM = "https://cyclonedx.org/bom"
PREDICATE_TYPE = "in-toto.io/predicate-type"
EMPTY = b"{}"
_KIND, _SUBJECT = "vnd.docker.reference.type", "vnd.docker.reference.digest"


def statement(images: Mapping[Digest, str], predicate_type: str, predicate: Mapping[str, Any]) -> bytes:
    """What is said of `images`, digests of their manifests with their platforms, as its bytes."""
    return canonical_json(
        {
            "_type": STATEMENT,
            "subject": [
                {"name": f"image ({platform})" if platform else "image", "digest": {image.algorithm: image.hex}}
                for image, platform in images.items()
            ],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement as somebody made it: `subjects` are digests (`sha256:…`). Nothing in it is to be trusted."""

    subjects: frozenset[str]
    predicate_type: str
    predicate: Json

    @classmethod
    def parse(cls, data: bytes) -> Statement:
        """Raises VerificationError for what is no in-toto statement."""
        try:
            fields = parse_json(data)
            if fields["_type"] not in STATEMENTS:
                raise ValueError("its type is another")
            digests = [one["digest"] for one in fields["subject"]]
            subjects = frozenset(f"{name}:{value}" for digest in digests for name, value in digest.items())
            kind, predicate = fields["predicateType"], fields.get("predicate") or {}
            if not isinstance(kind, str) or not isinstance(predicate, dict):
                raise TypeError("its predicate is none")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VerificationError(f"the attestation is no in-toto statement: {str(error)[:100]}") from error
        return cls(subjects, kind, predicate)


@dataclass(frozen=True, slots=True)
class Said:
    """One statement about an image; `envelope`: the same signed (DSSE), None where there is no key."""

    predicate_type: str
    payload: bytes
    envelope: bytes | None = None


def attach(image: Image, said: Sequence[Said]) -> Attested:
    """How statements are attached to `image`, whose blobs lie in this root."""
    return Attested(_in_index(image, said), tuple(_referrer(image, one) for one in said))


def _in_index(image: Image, said: Sequence[Said]) -> Image:
    layers = [_layer(IN_TOTO, one.payload, one.predicate_type) for one in said]
    config = canonical_json(
        {
            "architecture": "unknown", "os": "unknown", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]},
        }
    )  # fmt: skip
    noted = {_KIND: "attestation-manifest", _SUBJECT: str(image.digest)}
    return _manifest(layers, Descriptor(CONFIG, sha256(config), len(config)), config, {}, noted)


def _referrer(image: Image, one: Said) -> Image:
    """A signed statement's envelope, else the statement itself."""
    layer = _layer(ENVELOPE if one.envelope else IN_TOTO, one.envelope or one.payload, one.predicate_type)
    more = {
        "artifactType": ENVELOPE if one.envelope else IN_TOTO,
        "subject": Descriptor(image.media_type, image.digest, len(image.manifest)).to_json(),
        "annotations": {PREDICATE_TYPE: one.predicate_type},
    }
    return _manifest([layer], Descriptor(EMPTY_CONFIG, sha256(EMPTY), len(EMPTY)), EMPTY, more, {})


def _layer(media_type: str, data: bytes, predicate_type: str) -> Layer:
    digest = sha256(data)
    return Layer(digest, Descriptor(media_type, digest, len(data), {PREDICATE_TYPE: predicate_type}))


def _manifest(
    layers: Sequence[Layer], config: Descriptor, config_data: bytes, more: Mapping[str, Any], noted: Mapping[str, str]
) -> Image:
    fields = {
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config.to_json(),
        "layers": [layer.blob.to_json() for layer in layers if layer.blob], **more,
    }  # fmt: skip
    data = canonical_json(fields)
    return Image(tuple(layers), data, MANIFEST, config_data, config, "unknown/unknown", noted)
