"""Proofs about a log, as small JSON files that are checked with nothing but a verifier key.

Of inclusion: `type`, `seq`, `leaf` (the canonical bytes of the event, storage/logtree/leaves.py), `path` (hashes,
hexadecimal, RFC 9162 section 2.1.3), `checkpoint` (the signed note). Of consistency: `type`, `from` and `to` (signed
notes), `path` (section 2.1.4). No other members, and each once.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.errors import InputError, VerificationError
from storage.interfaces.log import EventLog
from storage.logtree import merkle
from storage.logtree.leaves import leaf
from storage.logtree.tiles import Tree
from storage.signing.notes import Checkpoint, Note, Verifier
from tools.auditing.checkpoints import AuditedLog, Signed, last_signed, log_id, log_of, settled_tree

INCLUSION = "application/vnd.refledger.inclusion-proof.v1+json"
CONSISTENCY = "application/vnd.refledger.consistency-proof.v1+json"
MAX_BYTES = 1 << 20  # of a proof: an event has 64 KiB, and the text of a text may have six times as many
_MEMBERS = {
    INCLUSION: frozenset({"type", "seq", "leaf", "path", "checkpoint"}),
    CONSISTENCY: frozenset({"type", "from", "to", "path"}),
}
_HASH = re.compile(r"[0-9a-f]{64}")
_SEQ = re.compile(r'\{"seq":([1-9][0-9]{0,18}),"stream":')

Json = dict[str, Any]


# ---------------------------------------------------------------- making them


def prove_inclusion(root: Path, log: AuditedLog, seq: int) -> Json:
    """That event `seq` is in the log that was signed last. Raises InputError (no such event, not signed yet),
    VerificationError (the log is not what was signed), LogError."""
    seen = _newest(root, log)
    if not 1 <= seq <= log.last_seq():
        raise InputError(f"there is no event {seq}", hint=f"the log ends at event {log.last_seq()}")
    if seq > seen.checkpoint.size:
        what = f"event {seq} is not signed yet: the last checkpoint covers {seen.checkpoint.size} events"
        raise InputError(what, hint="refledger audit checkpoint signs what is there")
    row = next(iter(log.rows(seq - 1, seq)), None)
    if row is None:
        raise _changed(seq)
    text = leaf(row)
    path = _path(root, log, seen, lambda tree: _inclusion(tree, text, seq, seen.checkpoint))
    try:
        shown = text.decode()
    except UnicodeDecodeError:
        raise _changed(seq) from None
    return {"type": INCLUSION, "seq": seq, "leaf": shown, "path": path, "checkpoint": seen.note}


def prove_consistency(root: Path, log: AuditedLog, older: str, newer: str) -> Json:
    """That what `newer` says is what `older` says and more; both a size that was signed, the name of a file with a
    checkpoint, or `latest`. Raises InputError, VerificationError (a fork, a rollback), LogError."""
    seen = _newest(root, log)
    first, second = (find_checkpoint(root, log, one) for one in (older, newer))
    identity = log_id(log)
    for one in (first, second):
        must_hold(one.checkpoint, identity, seen.checkpoint.size)
    if first.checkpoint.size > second.checkpoint.size:
        raise InputError("--from is the larger checkpoint", hint="exchange --from and --to")
    sizes = first.checkpoint.size, second.checkpoint.size

    def asked(tree: Tree) -> list[bytes]:
        for one in (first, second):
            if tree.root(one.checkpoint.size) != one.checkpoint.root:
                raise _forked(one.checkpoint)
        found = merkle.consistency_proof(tree.node, *sizes)
        roots = merkle.roots_of_consistency(*sizes, found, first.checkpoint.root)
        if roots != (first.checkpoint.root, second.checkpoint.root):
            raise _forked(first.checkpoint)
        return found

    path = _path(root, log, seen, asked)
    return {"type": CONSISTENCY, "from": first.note, "to": second.note, "path": path}


def _newest(root: Path, log: EventLog) -> Signed:
    seen = last_signed(root, log)
    if seen is None:
        raise InputError("the log was never signed", hint="refledger audit keygen, then refledger audit checkpoint")
    return seen


def find_checkpoint(root: Path, log: EventLog, what: str) -> Signed:
    """The checkpoint that a person calls `what`, see `prove_consistency`. Raises InputError, VerificationError,
    LogError."""
    if what == "latest":
        return _newest(root, log)
    if what.isdecimal() and what.isascii():
        for event in log.read(types=frozenset({"CheckpointSigned"})):
            if str(event.data.get("size")) == what:
                return Signed.parse(str(event.data.get("note")), f"event {event.seq}")
        hint = "refledger events --type CheckpointSigned lists those that were"
        raise InputError(f"no checkpoint of {what} events was signed", hint=hint)
    try:
        with Path(what).open("rb") as file:
            return Signed.parse(file.read(MAX_BYTES).decode("utf-8", "replace"), what)
    except OSError as error:
        hint = "a checkpoint is a size, a file, or latest"
        raise InputError(f"it cannot be read: {error.strerror}", where=what, hint=hint) from error


def must_hold(checkpoint: Checkpoint, identity: str, size: int) -> None:
    """Raises VerificationError for a checkpoint of another log than `identity`, or of more than its `size` events."""
    if log_of(checkpoint) != identity:
        what = f"the checkpoint of {checkpoint.origin} is of another log: the first events differ"
        raise VerificationError(what, where="log.db", hint="its first line ends with what names its log")
    if checkpoint.size > size:
        what = f"a checkpoint of {checkpoint.size} events was given away, and no more than {size} are there and signed"
        raise VerificationError(what, where="log.db", hint="the log was rolled back, or cut off")


def _path(root: Path, log: AuditedLog, seen: Signed, ask: Any) -> list[str]:
    """What `ask` finds in the kept tree. A file that gives a wrong answer is not believed: the log is asked."""
    with settled_tree(root, log, seen) as tree:
        try:
            found = ask(tree)
        except (VerificationError, LookupError, sqlite3.Error):
            with Tree() as fresh:
                fresh.extend(log, seen.checkpoint.size)
                if not fresh.matches(seen.checkpoint.size, seen.checkpoint.root):
                    raise
                found = ask(fresh)
    return [one.hex() for one in found]


def _inclusion(tree: Tree, text: bytes, seq: int, checkpoint: Checkpoint) -> list[bytes]:
    found = merkle.inclusion_proof(tree.node, seq - 1, checkpoint.size)
    if merkle.root_of_inclusion(merkle.leaf_hash(text), seq - 1, checkpoint.size, found) != checkpoint.root:
        raise _changed(seq)
    return found


def _changed(seq: int) -> VerificationError:
    what = f"event {seq} cannot be proved: it, or what the tree says of it, is not what was signed"
    return VerificationError(what, where="log.db", hint="refledger audit verify tells what was changed")


def _forked(checkpoint: Checkpoint) -> VerificationError:
    what = f"its first {checkpoint.size} events are not those that a checkpoint vouches for"
    return VerificationError(what, where="log.db", hint="events were changed, or the log was forked before that")


def encode(proof: Json) -> bytes:
    """As it is written to a file."""
    return json.dumps(proof, ensure_ascii=False, indent=1).encode() + b"\n"


# ---------------------------------------------------------------- checking them


def is_proof(data: bytes) -> bool:
    """Does it look like one of these files?"""
    return data.lstrip()[:1] == b"{" and b"-proof.v1+json" in data[:1000]


def check_proof(data: bytes, verifiers: Sequence[Verifier], where: str = "proof") -> list[str]:
    """Check a proof with nothing else at hand; what it proves, a line each. Raises VerificationError for one that does
    not prove what it says to holders of `verifiers` (at least one)."""
    proof = _parse(data, where)
    path = [bytes.fromhex(one) for one in proof["path"]]
    try:
        if proof["type"] == INCLUSION:
            return _check_inclusion(proof, path, verifiers)
        return _check_consistency(proof, path, verifiers)
    except ValueError as error:
        raise _bad(f"the proof is wrong: {error}", where) from error
    except VerificationError as error:
        raise _bad(error.what, where) from error


def _check_inclusion(proof: Json, path: Sequence[bytes], verifiers: Sequence[Verifier]) -> list[str]:
    checkpoint, by = signed_by(proof["checkpoint"], verifiers)
    text, seq = proof["leaf"], proof["seq"]
    found = _SEQ.match(text)
    if found is None or int(found[1]) != seq:
        raise ValueError(f"its leaf is not event {seq}")
    root = merkle.root_of_inclusion(merkle.leaf_hash(text.encode()), seq - 1, checkpoint.size, path)
    if root != checkpoint.root:
        raise ValueError(f"event {seq} is not in the tree that was signed")
    return [f"event {seq} is in the log {checkpoint.origin} of {checkpoint.size} events, signed by {by.name}", text]


def _check_consistency(proof: Json, path: Sequence[bytes], verifiers: Sequence[Verifier]) -> list[str]:
    first, by = signed_by(proof["from"], verifiers)
    second, also = signed_by(proof["to"], verifiers)
    if log_of(first) != log_of(second):
        raise ValueError("its checkpoints are of two logs")
    roots = merkle.roots_of_consistency(first.size, second.size, path, first.root)
    if roots != (first.root, second.root):
        raise ValueError("the larger log is no continuation of the smaller one")
    signers = by.name if by == also else f"{by.name} and {also.name}"
    return [f"the log {second.origin} of {second.size} events has the {first.size} signed before, signed by {signers}"]


def signed_by(note: str, verifiers: Sequence[Verifier]) -> tuple[Checkpoint, Verifier]:
    """The checkpoint in a note, and who signed it. Raises VerificationError when it is none of `verifiers`."""
    parsed = Note.parse(note)
    signers = parsed.verified_by(verifiers)
    if not signers:
        names = ", ".join(name for name, *_ in parsed.signatures[:3])
        raise VerificationError(f"the checkpoint is signed by {names}, by none of the keys that were given")
    checkpoint = Checkpoint.parse(parsed.text)
    if not any(checkpoint.origin.rpartition("/")[0] == one.name for one in signers):
        raise VerificationError(f"the checkpoint of {checkpoint.origin} is signed by the key of another log")
    return checkpoint, signers[0]


def _parse(data: bytes, where: str) -> Json:
    try:
        if len(data) > MAX_BYTES:
            raise ValueError("too large")
        proof = json.loads(data.decode(), object_pairs_hook=_once)
        members = _MEMBERS[proof["type"]]
        texts = [proof[name] for name in members - {"path", "seq"}]
        seq, path = proof.get("seq", 1), proof["path"]
        fine = proof.keys() == members and all(isinstance(text, str) for text in texts) and type(seq) is int
        if not fine or not isinstance(path, list) or not all(isinstance(one, str) for one in path):
            raise ValueError("members")
        if len(path) > 128 or not all(_HASH.fullmatch(one) for one in path):
            raise ValueError("path")
        for text in texts:
            text.encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad("the proof is malformed", where) from error
    return dict(proof)


def _once(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is there twice")
    return found


def _bad(what: str, where: str) -> VerificationError:
    return VerificationError(what, where=where, hint="it was damaged, or forged; have it made again")
