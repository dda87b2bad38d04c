"""DSSE envelopes: the specification's vector, and what is refused."""

from __future__ import annotations

import json

import pytest

from storage.errors import VerificationError
from storage.signing.dsse import Envelope, key_id, pae, sign
from storage.signing.notes import new_signer

SIGNER = new_signer("ci.example", bytes(range(32)))


def test_the_specification_s_encoding() -> None:
    """protocol.md, "Test Vectors"."""
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_an_envelope_is_signed_by_its_key_and_no_other() -> None:
    data = sign("application/x", b"said", SIGNER)
    envelope = Envelope.parse(data)
    assert envelope.payload == b"said"
    assert envelope.signatures[0][0] == key_id(SIGNER.verifier)
    assert envelope.signed_by(SIGNER.verifier)
    assert not envelope.signed_by(new_signer("ci.example", bytes(32)).verifier)
    assert data == sign("application/x", b"said", SIGNER)


def test_a_payload_of_another_type_is_not_what_was_signed() -> None:
    fields = json.loads(sign("application/x", b"said", SIGNER))
    for change in ({"payloadType": "application/y"}, {"payload": "c2FpZCE="}):
        assert not Envelope.parse(json.dumps({**fields, **change}).encode()).signed_by(SIGNER.verifier)


@pytest.mark.parametrize("data", [
    b"", b"[]", b"null", b"{}", b'{"payload":"","payloadType":"x","signatures":[]}',
    b'{"payload":"!","payloadType":"x","signatures":[{"sig":"AA=="}]}',
    b'{"payload":"","payloadType":1,"signatures":[{"sig":"AA=="}]}',
    b'{"payload":"","payloadType":"x","signatures":[1]}', b'{"payload":"","payloadType":"x","signatures":[{}]}',
])  # fmt: skip
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(VerificationError):
        Envelope.parse(data)


@pytest.mark.parametrize("payload", ["7", "null", '["AA=="]'])
def test_a_payload_that_is_no_text_is_refused(payload: str) -> None:
    with pytest.raises(VerificationError, match="malformed: a field is no text"):
        Envelope.parse(b'{"payload":%s,"payloadType":"x","signatures":[{"sig":"AA=="}]}' % payload.encode())
