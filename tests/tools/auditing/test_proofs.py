"""Proof files: made from a root, checked without one, and by implementations that are not ours."""

from __future__ import annotations

import json
import shutil
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proofbundle import checkpoint as oracle_notes
from proofbundle import merkle as oracle

from storage.errors import InputError, VerificationError
from storage.interfaces.log import NewEvent
from storage.signing.notes import new_signer
from tests.builder import Builder
from tests.state import state_of
from tests.tools.auditing.test_checkpoints import grow, tampered
from tools import roots
from tools.auditing import proofs
from tools.auditing.checkpoints import TREE, sign_checkpoint
from tools.auditing.keys import read_verifier

SIGNER = new_signer("ci.example/refledger", bytes(range(32)))
VERIFIERS = [SIGNER.verifier]
SIZES = (3, 257, 601)  # of checkpoints: one event behind each is the checkpoint itself


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root that was signed at SIZES, and has two more events than those."""
    path = tmp_path_factory.mktemp("a root") / "root"
    with roots.open_root(path, folded=False) as root:
        for size in SIZES:
            grow(root, size - root.log.last_seq())
            sign_checkpoint(root, SIGNER)
        root.log.append(NewEvent("build/1", "Told", {"text": '"—\u2028\\'}, "1"))
    return path


@pytest.fixture
def copied(signed: Path, tmp_path: Path) -> Path:
    """One of its own to tamper with."""
    shutil.copytree(signed, tmp_path / "root")
    return tmp_path / "root"


def inclusion(path: Path, seq: int) -> dict[str, Any]:
    with roots.read_root(path) as (log, _):
        return proofs.prove_inclusion(path, log, seq)


def consistency(path: Path, older: str, newer: str = "latest") -> dict[str, Any]:
    with roots.read_root(path) as (log, _):
        return proofs.prove_consistency(path, log, older, newer)


# ---------------------------------------------------------------- what is proved


@pytest.mark.parametrize("seq", [1, 2, 4, 256, 257, 258, 600, 601])
def test_inclusion_is_proved_to_us_and_to_another_implementation(signed: Path, seq: int) -> None:
    proof = inclusion(signed, seq)
    told = proofs.check_proof(proofs.encode(proof), VERIFIERS)
    assert told[0].startswith(f"event {seq} is in the log ci.example/refledger/")
    assert json.loads(told[1])["seq"] == seq
    note = oracle_notes.verify_checkpoint(proof["checkpoint"], str(SIGNER.verifier))
    root = b64decode(proof["checkpoint"].splitlines()[2])
    assert (note["ok"], note["tree_size"]) == (True, 601)
    path = [bytes.fromhex(one) for one in proof["path"]]
    assert oracle.verify_inclusion(proof["leaf"].encode(), seq - 1, note["tree_size"], path, root)


@pytest.mark.parametrize(("older", "newer"), [("3", "257"), ("3", "latest"), ("257", "601"), ("601", "latest")])
def test_consistency_is_proved_to_us_and_to_another_implementation(signed: Path, older: str, newer: str) -> None:
    proof = consistency(signed, older, newer)
    [told] = proofs.check_proof(proofs.encode(proof), VERIFIERS)
    assert f"has the {older} signed before" in told
    first, second = (oracle_notes.verify_checkpoint(proof[key], str(SIGNER.verifier)) for key in ("from", "to"))
    assert first["ok"] and second["ok"]
    one, other = (b64decode(proof[key].splitlines()[2]) for key in ("from", "to"))
    path = [bytes.fromhex(text) for text in proof["path"]]
    assert oracle.verify_consistency(first["tree_size"], second["tree_size"], path, one, other)


def test_I13_proving_changes_nothing_in_the_root_with_or_without_its_tree(copied: Path) -> None:
    before = state_of(copied)
    proof = inclusion(copied, 77)
    assert state_of(copied) == before
    (copied / TREE).unlink()
    assert inclusion(copied, 77) == proof
    assert list(state_of(copied)) == [name for name in before if not name.endswith(TREE)]


def test_damaged_tiles_are_not_believed_and_the_log_is_asked(copied: Path) -> None:
    import sqlite3

    proof = inclusion(copied, 77)
    with sqlite3.connect(copied / TREE) as db:  # a tile that no root is made of
        db.execute("UPDATE tiles SET hashes = zeroblob(length(hashes)) WHERE level = 0 AND number = 0")
    db.close()
    assert inclusion(copied, 77) == proof


# ---------------------------------------------------------------- what is not


def test_what_is_not_there_or_not_signed_yet_cannot_be_proved(signed: Path) -> None:
    with pytest.raises(InputError, match="event 603 is not signed yet"):
        inclusion(signed, 603)
    with pytest.raises(InputError, match="there is no event 604"):
        inclusion(signed, 604)
    with pytest.raises(InputError, match="no checkpoint of 5 events was signed"):
        consistency(signed, "5")
    with pytest.raises(InputError, match=r"no checkpoint of 9+ events was signed"):
        consistency(signed, "9" * 5000)
    with pytest.raises(InputError, match="--from is the larger"):
        consistency(signed, "257", "3")
    with pytest.raises(InputError, match="cannot be read"):
        consistency(signed, "no such file")


def test_a_changed_event_cannot_be_proved_and_others_still_can(copied: Path) -> None:
    tampered(copied, "UPDATE events SET state = CAST(replace(state, 'x41', 'y41') AS BLOB) WHERE rowid = 300")
    with pytest.raises(VerificationError, match="event 300 cannot be proved"):
        inclusion(copied, 300)
    assert proofs.check_proof(proofs.encode(inclusion(copied, 299)), VERIFIERS)


def test_an_event_that_was_taken_out_cannot_be_proved(copied: Path) -> None:
    tampered(copied, "DELETE FROM events WHERE rowid = 300")
    with pytest.raises(VerificationError, match="event 300 cannot be proved"):
        inclusion(copied, 300)


def test_a_checkpoint_of_a_fork_and_one_of_another_log_are_told_apart(copied: Path, tmp_path: Path) -> None:
    with roots.open_root(tmp_path / "other", folded=False) as root:
        grow(root, 5, "other")
        (tmp_path / "other.cp").write_text(sign_checkpoint(root, SIGNER).note)
    with pytest.raises(VerificationError, match="is of another log"):
        consistency(copied, str(tmp_path / "other.cp"))
    # somebody takes the log back to event 300, forgets what was signed, and goes on with the same key
    for name in ("checkpoint", TREE):
        (copied / name).unlink()
    with roots.read_root(copied) as (log, _):
        (tmp_path / "given away").write_text(proofs.find_checkpoint(copied, log, "601").note)
        (tmp_path / "older").write_text(proofs.find_checkpoint(copied, log, "257").note)
    tampered(copied, "DELETE FROM events WHERE rowid > 300", "UPDATE sqlite_sequence SET seq = 300")
    with roots.open_root(copied, folded=False) as root:
        grow(root, 1, "forked")
        sign_checkpoint(root, SIGNER)
    with pytest.raises(VerificationError, match="no more than 301 are there"):
        consistency(copied, str(tmp_path / "given away"))
    with roots.open_root(copied, folded=False) as root:
        grow(root, 500, "forked")
        sign_checkpoint(root, SIGNER)
    with pytest.raises(VerificationError, match="first 601 events are not those that a checkpoint vouches for"):
        consistency(copied, str(tmp_path / "given away"))
    assert proofs.check_proof(proofs.encode(consistency(copied, str(tmp_path / "older"))), VERIFIERS)


def test_other_keys_even_of_the_same_name_do_not_do(signed: Path) -> None:
    data = proofs.encode(inclusion(signed, 9))
    for key in (new_signer("ci.example/refledger", bytes(32)), new_signer("other", bytes(range(32)))):
        with pytest.raises(VerificationError, match="by none of the keys that were given"):
            proofs.check_proof(data, [key.verifier])
    assert proofs.check_proof(data, [key.verifier, *VERIFIERS])


def test_the_key_of_one_log_does_not_vouch_for_the_origin_of_another(copied: Path) -> None:
    from storage.signing.notes import Checkpoint, sign_note

    proof = inclusion(copied, 9)
    size, root = proof["checkpoint"].splitlines()[1:3]
    other = new_signer("attacker.example", bytes(32))
    made = Checkpoint(proof["checkpoint"].splitlines()[0], int(size), b64decode(root))
    proof["checkpoint"] = sign_note(str(made), other)
    with pytest.raises(VerificationError, match="the key of another log"):
        proofs.check_proof(proofs.encode(proof), [other.verifier, *VERIFIERS])


@pytest.mark.parametrize("kind", ["inclusion", "consistency"])
def test_no_byte_of_a_proof_can_be_changed(signed: Path, kind: str) -> None:
    proof = inclusion(signed, 9) if kind == "inclusion" else consistency(signed, "3", "257")
    data = proofs.encode(proof)
    passed = []
    for at in range(len(data)):
        for bit in (0, 1, 5, 7):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            try:
                proofs.check_proof(bytes(changed), VERIFIERS)
            except VerificationError:
                continue
            passed.append(bytes(changed))
    assert [json.loads(one) for one in passed] == [proof] * len(passed)


@given(st.data())
@settings(max_examples=200)
def test_no_member_can_be_exchanged_for_that_of_another_proof(signed: Path, data: st.DataObject) -> None:
    one, other = (inclusion(signed, data.draw(st.integers(1, 601))) for _ in range(2))
    key = data.draw(st.sampled_from(["seq", "leaf", "path"]))
    mixed = {**one, key: other[key]}
    if mixed == one:
        return
    with pytest.raises(VerificationError):
        proofs.check_proof(proofs.encode(mixed), VERIFIERS)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b"\xff", b'{"type":"x"}', b'{"type":[]}', b"[" * 100_000, b"9" * 10_000,
             b'{"type":"application/vnd.refledger.inclusion-proof.v1+json"}', b" " * (proofs.MAX_BYTES + 1)],
)  # fmt: skip
def test_what_is_no_proof_is_said_so(data: bytes) -> None:
    with pytest.raises(VerificationError, match=r"somewhere: the proof is malformed"):
        proofs.check_proof(data, VERIFIERS, "somewhere")


def test_a_member_that_is_there_twice_or_is_no_part_of_a_proof_is_refused(signed: Path) -> None:
    text = proofs.encode(inclusion(signed, 9)).decode()
    for begin in ('{"seq":9,', '{"note":"",'):
        with pytest.raises(VerificationError, match="malformed"):
            proofs.check_proof((begin + text[1:]).encode(), VERIFIERS)


# ---------------------------------------------------------------- the command


def test_prove_writes_a_file_that_can_be_checked_anywhere(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "a root")
    builder.write({"file": "x"})
    key = builder.run("audit", "keygen", "--name", "k").out
    builder.must_build("FROM scratch\nCOPY file /\n")
    first = builder.run("audit", "checkpoint").out
    (tmp_path / "first").write_text(first)
    builder.must_build("FROM scratch\nCOPY file /\n")
    done = builder.run("audit", "prove", "3", "-o", str(tmp_path / "3.proof"))
    assert (done.code, done.out, done.err) == (0, "", "")
    data = (tmp_path / "3.proof").read_bytes()
    assert builder.run("audit", "prove", "3").out.encode() == data
    assert builder.run("audit", "prove", "3", "-o", "-").out.encode() == data
    assert builder.run("audit", "prove", "--from", str(tmp_path / "first"), "-o", str(tmp_path / "c.proof")).code == 0
    shutil.rmtree(builder.root)
    (tmp_path / "key").write_text(key)
    for name in ("3.proof", "c.proof"):
        assert proofs.is_proof((tmp_path / name).read_bytes())
        assert proofs.check_proof((tmp_path / name).read_bytes(), [read_verifier(str(tmp_path / "key"))])
    assert not proofs.is_proof(first.encode())
    for args in ((), ("3", "--from", "1"), ("--to", "3"), ("0",)):
        assert builder.run("audit", "prove", *args).code == 2
