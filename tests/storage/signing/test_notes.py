"""Signed notes and checkpoints, by the example of C2SP's documents and Go's sumdb/note, and by what must not pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import InputError, VerificationError
from storage.signing.notes import Checkpoint, Note, Signer, Verifier, new_signer, sign_note

# Known good: key and note that other implementations of C2SP signed-note are tested with.
KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE = (
    "This is an example message.\n\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
SIGNER = new_signer("ci.example/log", bytes(range(32)))
CHECKPOINT = Checkpoint("ci.example/log", 7, bytes(range(100, 132)))


def test_a_note_of_another_implementation_is_verified() -> None:
    verifier = Verifier.parse(KEY)
    note = Note.parse(NOTE)
    assert (verifier.name, verifier.key_id.hex(), str(verifier)) == ("example.com/foo", "530d903a", KEY)
    assert note.text == "This is an example message.\n"
    assert note.verified_by([verifier]) == (verifier,)


def test_keys_are_read_back_and_the_private_one_is_in_no_repr() -> None:
    assert Signer.parse(SIGNER.encode()) == SIGNER
    assert Verifier.parse(str(SIGNER.verifier)) == SIGNER.verifier
    assert SIGNER.seed.hex() not in repr(SIGNER) and "seed" not in repr(SIGNER)


def test_a_signed_checkpoint_is_read_back() -> None:
    other = new_signer("witness.example", bytes(32))
    note = Note.parse(sign_note(str(CHECKPOINT), SIGNER, other))
    assert Checkpoint.parse(note.text) == CHECKPOINT
    assert note.verified_by([SIGNER.verifier]) == (SIGNER.verifier,)
    assert note.verified_by([other.verifier, SIGNER.verifier]) == (SIGNER.verifier, other.verifier)
    assert note.verified_by([new_signer("ci.example/log", bytes(32)).verifier]) == ()


def test_a_wrong_signature_of_a_known_key_is_an_error_and_not_an_unknown_key() -> None:
    signed = sign_note(str(CHECKPOINT), SIGNER)
    with pytest.raises(VerificationError, match=r"signature of ci\.example/log on the note is wrong"):
        Note.parse(signed.replace("\n7\n", "\n8\n")).verified_by([SIGNER.verifier])


@given(st.data())
def test_no_other_bytes_pass_for_the_note(data: st.DataObject) -> None:
    signed = sign_note(str(CHECKPOINT), SIGNER).encode()
    at = data.draw(st.integers(0, len(signed) - 1))
    changed = bytearray(signed)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        note = Note.parse(changed.decode("utf-8", "surrogateescape"))
        passed = note.verified_by([SIGNER.verifier]) != ()
    except (VerificationError, UnicodeEncodeError):
        passed = False
    assert not passed


@pytest.mark.parametrize(
    "text",
    ["", "text\n", "text\n\n", "text\n\nno line\n", "text\n\n— name\n", "text\n\n— name AAAA\n",
     "text\n\n— name A=A=\n", "\n\n— name AAAAAAAAAAAA\n",
     "te\0xt\n\n— name AAAAAAAAAAAA\n", "text\n\n— name AAAAAAAAAAAA",
     "text\n\n" + "— name AAAAAAAAAAAA\n" * 101],
)  # fmt: skip
def test_what_is_no_note_is_said_so(text: str) -> None:
    with pytest.raises(VerificationError, match="malformed"):
        Note.parse(text)


TREE = f"{'A' * 43}="


@pytest.mark.parametrize(
    "text",
    ["", "a\n", f"\n5\n{TREE}\n", f"a\n01\n{TREE}\n", f"a\n-1\n{TREE}\n", f"a\n+1\n{TREE}\n", f"a\n٣\n{TREE}\n",
     f"a\n1{'0' * 19}\n{TREE}\n", "a\n5\n!!\n", "a\n5\nAAAA\n"],
)  # fmt: skip
def test_what_is_no_checkpoint_is_said_so(text: str) -> None:
    with pytest.raises(VerificationError, match="no checkpoint"):
        Checkpoint.parse(text)


def test_damaged_keys_are_refused_and_not_quoted() -> None:
    secret = SIGNER.encode()
    for text in (secret[:-2], secret.replace("+AQ", "+Ag"), secret.replace("log+", "lag+"), "PRIVATE+KEY+", "x"):
        with pytest.raises(InputError) as failure:
            Signer.parse(text)
        assert not text[20:] or text[20:] not in str(failure.value)
    for text in (KEY[:-4], KEY.replace("530d903a", "530d903b"), KEY.replace("foo", "f\udcff"), "x+y", ""):
        with pytest.raises(InputError):
            Verifier.parse(text)
    for name in ("", "a b", "a+b", "a\nb", "a\udcff", "a\x9b"):
        with pytest.raises(InputError, match="cannot be called"):
            new_signer(name, bytes(32))


def test_what_no_note_can_hold_is_a_bug_of_the_caller() -> None:
    for text in ("no end", "a\tb\n"):
        with pytest.raises(ValueError, match="made of lines"):
            sign_note(text, SIGNER)
    with pytest.raises(ValueError, match="32 bytes"):
        new_signer("log", b"short")
