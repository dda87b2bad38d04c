"""Who vouches for an image: signed attestations that refer to it, read lazily and believed only with a known key.

Sources: OCI distribution-spec 1.1 (referrers), DSSE protocol.md (PAE, envelope), in-toto attestation spec v1
(Statement, subject digests). A signature by another key, or about another image, says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.attest.statement import Statement
from engine.errors import RegistryError, VerificationError
from engine.images.read import ImageReader, whole
from storage.digest import Digest
from storage.errors import InputError
from storage.interfaces.images import Descriptor, Provider, Referrer
from storage.interfaces.registry import RegistryListing
from storage.signing.dsse import ENVELOPE, IN_TOTO, Envelope
from storage.signing.notes import Verifier

_REFERRERS = 100
_LAYERS = 20
_ENVELOPE_LIMIT = 8 << 20


@dataclass(frozen=True, slots=True)
class Attestations:
    """Looks for them where an image is."""

    images: ImageReader
    listing: RegistryListing

    async def signers(
        self, provider: Provider, subjects: Sequence[Digest], keys: Sequence[str]
    ) -> tuple[str, ...]:
        """Those of `keys` (verifier keys of notes) that signed a statement about one of the manifests `subjects`.
        Raises RegistryError, DiskError."""
        verifiers = [Verifier.parse(key) for key in keys]
        found: dict[str, None] = {}
        for subject in subjects:
            for referrer in (await self.listing.referrers(provider, subject))[:_REFERRERS]:
                found.update(dict.fromkeys(await self._signers(provider, subject, referrer, verifiers)))
                if len(found) == len(set(keys)):
                    return tuple(found)
        return tuple(found)

    async def _signers(
        self, provider: Provider, subject: Digest, referrer: Referrer, verifiers: Sequence[Verifier]
    ) -> list[str]:
        """By one manifest that refers to the image; one that cannot be read vouches for nothing."""
        where = f"{provider}@{referrer.manifest.digest}"
        found: list[str] = []
        try:
            manifest = await self.images.manifest(provider, referrer.manifest.digest, where)
            for blob in _envelopes(manifest.fields):
                data = await whole(self.images.registry, provider, blob)
                found += signed_by(data, subject, verifiers)
        except (VerificationError, InputError):
            return found
        except RegistryError as error:
            if error.kind != "missing":
                raise
        return found


def _envelopes(manifest: Mapping[str, Any]) -> Iterator[Descriptor]:
    layers = manifest.get("layers")
    for entry in layers[:_LAYERS] if isinstance(layers, list) else ():
        try:
            blob = Descriptor.from_json(entry)
        except (KeyError, TypeError, ValueError, AttributeError, InputError):
            continue
        if blob.media_type == ENVELOPE and blob.size <= _ENVELOPE_LIMIT:
            yield blob


def signed_by(envelope: bytes, subject: Digest, verifiers: Sequence[Verifier]) -> list[str]:
    """Those of `verifiers`, as text, that signed `envelope` (DSSE), if what it holds is an in-toto statement about the
    manifest `subject`. The payload is parsed only when a known key signed it."""
    try:
        found = Envelope.parse(envelope)
        if found.payload_type != IN_TOTO:
            return []
        signers = [str(one) for one in verifiers if found.signed_by(one)]
        return signers if signers and str(subject) in Statement.parse(found.payload).subjects else []
    except (VerificationError, KeyError, TypeError, ValueError, AttributeError):
        return []
