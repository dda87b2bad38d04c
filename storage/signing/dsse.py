"""DSSE envelopes: signed bytes with their type, in JSON.

Source: secure-systems-lab/dsse, protocol.md and envelope.md (version 1.0.2). Keys are those of
storage/signing/notes.py; the `keyid` is a verifier key's name and hash, `NAME+HASH`.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from dataclasses import dataclass

from storage.digest import canonical_json, parse_json
from storage.errors import VerificationError
from storage.signing.notes import Signer, Verifier

ENVELOPE = "application/vnd.dsse.envelope.v1+json"
IN_TOTO = "application/vnd.in-toto+json"
_MAX_SIGNATURES = 100


def key_id(verifier: Verifier) -> str:
    """What an envelope calls a key: a hint of which one it is."""
    return f"{verifier.name}+{verifier.key_id.hex()}"


def pae(payload_type: str, payload: bytes) -> bytes:
    """What is signed (protocol.md, "Pre-Authentication Encoding")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: bytes, signer: Signer) -> bytes:
    """An envelope, as its JSON: the same each time."""
    signature = b64encode(signer.sign(pae(payload_type, payload))).decode()
    return canonical_json(
        {
            "payloadType": payload_type,
            "payload": b64encode(payload).decode(),
            "signatures": [{"keyid": key_id(signer.verifier), "sig": signature}],
        }
    )


@dataclass(frozen=True, slots=True)
class Envelope:
    """`signatures`: key IDs, which prove nothing, with the signatures; none of them is verified."""

    payload_type: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]

    @classmethod
    def parse(cls, data: bytes) -> Envelope:
        """Raises VerificationError for what is no envelope."""
        try:
            fields = parse_json(data)
            signatures = fields["signatures"]
            if not isinstance(signatures, list) or not 0 < len(signatures) <= _MAX_SIGNATURES:
                raise ValueError("it has no signatures")
            found = tuple((str(one.get("keyid") or ""), _decode(one["sig"])) for one in signatures)
            kind, payload = fields["payloadType"], _decode(fields["payload"])
            if not isinstance(kind, str):
                raise TypeError("its payload type is no text")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VerificationError(f"the DSSE envelope is malformed: {str(error)[:100]}") from error
        return cls(kind, payload, found)

    def signed_by(self, verifier: Verifier) -> bool:
        """Did that key sign it? Key IDs are hints (envelope.md): every signature is tried."""
        signed = pae(self.payload_type, self.payload)
        return any(verifier.verifies(signed, signature) for _, signature in self.signatures)


def _decode(text: object) -> bytes:
    """Base64, of the standard or the URL-safe alphabet. Raises ValueError, TypeError."""
    if not isinstance(text, str):
        raise TypeError("a field is no text")
    try:
        return b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("a field is not base64") from error
