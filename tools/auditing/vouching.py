"""Who vouches for a log: the checkpoints in it, the one beside it, those from elsewhere; and its tree against these."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from projections.wellformed import Fault, at
from storage.errors import VerificationError
from storage.logtree.check import Claim, Leaves, Misfit, check_claims, root_of
from storage.logtree.tiles import Tree
from storage.regular import read_regular
from storage.signing.notes import Checkpoint, Note, Verifier
from tools.auditing import checkpoints
from tools.auditing.checkpoints import log_of
from tools.auditing.verdict import Json, Outside, Signed, Verdict


def read_checkpoints(events: Sequence[tuple[int, Json]], keys: Sequence[Verifier]) -> tuple[list[Signed], list[Fault]]:
    """The checkpoints in a log, and what is wrong with them by themselves."""
    found: list[Signed] = []
    faults: list[Fault] = []
    for seq, data in events:
        try:
            note = Note.parse(data["note"])
            checkpoint = Checkpoint.parse(note.text)
            said = (data["origin"], data["size"], data["root"])
            if said != (checkpoint.origin, checkpoint.size, checkpoint.root.hex()):
                raise VerificationError("the event and the note in it differ")
            if checkpoint.size >= seq:
                missing = checkpoint.size - seq + 1
                faults.append(at(seq, "gap", f"the checkpoint is of {missing} more events than stand before it"))
            found.append(Signed(seq, checkpoint, _signers(note, checkpoint, keys)))
        except VerificationError as error:
            kind = "signature" if "signature" in error.what else "checkpoint"
            faults.append(at(seq, kind, f"the checkpoint is wrong: {error.what}"))
        except (KeyError, TypeError, AttributeError):
            faults.append(at(seq, "checkpoint", "the checkpoint has fields of another shape"))
    counted = [one.checkpoint for one in found if one.keys or not keys]
    strange = [one for one in found if counted and log_of(one.checkpoint) != log_of(counted[0])]
    faults += [
        at(one.seq, "origin", f"the checkpoint is of the log {one.checkpoint.origin}, and this is {counted[0].origin}")
        for one in strange
    ]
    return [one for one in found if one not in strange], faults


def _signers(note: Note, checkpoint: Checkpoint, keys: Sequence[Verifier]) -> tuple[Verifier, ...]:
    """Those of `keys` that signed it as a checkpoint of a log of theirs. Raises VerificationError."""
    return tuple(key for key in note.verified_by(keys) if checkpoint.origin.rpartition("/")[0] == key.name)


def last_seen(root: Path, keys: Sequence[Verifier]) -> tuple[list[Outside], list[Fault]]:
    """The checkpoint that lies beside the log."""
    try:
        text = read_regular(root / checkpoints.FILE, 1 << 20).decode()
        note = Note.parse(text)
        checkpoint = Checkpoint.parse(note.text)
        if keys and not _signers(note, checkpoint, keys):
            raise VerificationError("it is not signed by a key that was given")
    except FileNotFoundError:
        return [], []
    except (OSError, UnicodeDecodeError) as error:
        return [], [Fault(0, 0, "checkpoint", f"the checkpoint beside the log cannot be read: {error}")]
    except VerificationError as error:
        return [], [Fault(0, 0, "checkpoint", f"the checkpoint beside the log is wrong: {error.what}")]
    return [Outside(f"the file {checkpoints.FILE} beside the log", "tree", checkpoint)], []


def check_tree(
    verdict: Verdict, leaves: Leaves, signed: Sequence[Signed], keys: Sequence[Verifier], outside: Sequence[Outside],
    kept: Path,
) -> list[Fault]:  # fmt: skip
    """Compares the tree with every checkpoint that counts, and says how far they reach."""
    counted = [one for one in signed if one.keys or not keys]
    verdict.checkpoints, verdict.trusted = len(signed), bool(keys)
    reach = max((one.checkpoint.size for one in counted), default=0)
    verdict.origin = counted[0].checkpoint.origin if counted else ""
    faults = _unsigned(signed, counted, keys, reach, len(leaves))
    here = log_of(counted[0].checkpoint) if counted else leaves[0][:8].hex() if len(leaves) else ""
    own = {Claim(one.checkpoint.size, one.checkpoint.root): one for one in reversed(counted)}
    others: dict[Claim, Outside] = {}
    # an empty log is no log in particular: whichever it was, all of it is gone
    mine = [other for other in outside if not here or log_of(other.checkpoint) == here]
    verdict.published = sum(other.kind == "fork" for other in mine)
    known = {other.source for other in mine}
    for source in dict.fromkeys(other.source for other in outside if other.source not in known):
        what = f"no checkpoint of {source} is of the log {here}, which this is"
        faults.append(Fault(1, max(len(leaves), 1), "origin", what))
    for other in mine:
        claim = Claim(other.checkpoint.size, other.checkpoint.root)
        others.setdefault(claim, other)
        if claim.size > len(leaves):
            what = f"the log ends at event {len(leaves)}, and {other.source} has a checkpoint of {claim.size} events"
            faults.append(Fault(len(leaves) + 1, claim.size, "rollback", what))
    misfits, root = check_claims(leaves, {*own, *others}, _kept(kept))
    verdict.root = root.hex()
    if misfits:
        faults.append(_changed(misfits[0], own, others))
        reach = min(reach, misfits[0].start)
    elif not _tree_kept(kept, leaves):
        faults.append(Fault(0, 0, "kept", "the kept tree is not that of the log"))
    verdict.covered = min(max([reach, *(one.size for one in others if not misfits)], default=0), len(leaves))
    return faults


def _unsigned(
    signed: Sequence[Signed], counted: Sequence[Signed], keys: Sequence[Verifier], reach: int, events: int
) -> list[Fault]:
    """What nobody who is trusted signed."""
    if not keys:
        return []
    if not counted:
        return [Fault(1, max(events, 1), "signature", "no checkpoint in the log is signed by the key that was given")]
    late = next((one for one in signed if not one.keys and one.checkpoint.size > reach), None)
    if late is None:
        return []
    what = f"the checkpoint of event {late.seq} is not signed by a key that was given"
    return [Fault(reach + 1, late.seq, "signature", what)]


def _changed(misfit: Misfit, own: dict[Claim, Signed], others: dict[Claim, Outside]) -> Fault:
    claim, first = misfit.claim, misfit.start + 1
    signed = own.get(claim)
    by = f"the checkpoint of event {signed.seq}" if signed else f"the checkpoint of {others[claim].source}"
    kind = "tree" if signed else others[claim].kind
    if misfit.exact:
        return at(first, kind, f"it is not the event that {by} vouches for")
    return Fault(first, misfit.end, kind, f"these are not the events that {by} vouches for")


def _kept(path: Path) -> Callable[[int, int], Sequence[bytes] | None]:
    def kept(start: int, end: int) -> Sequence[bytes] | None:
        try:
            with Tree(path, read_only=True) as tree:
                return list(islice(tree.leaves(start), end - start))
        except (LookupError, sqlite3.Error, TypeError, ValueError, OSError):
            return None  # a damaged tree says nothing

    return kept


def _tree_kept(path: Path, leaves: Leaves) -> bool:
    """Is the tree that is kept, if one is, that of the log? It may be behind, or ahead when the log was growing."""
    if not path.exists():
        return True
    try:
        with Tree(path, read_only=True) as tree:
            size = min(tree.size, len(leaves))
            there = islice(tree.leaves(), size)
            same = all(one == other for one, other in zip(there, leaves.between(0, size), strict=True))
            return same and (not size or tree.root(size) == root_of(leaves, size))
    except (LookupError, sqlite3.Error, TypeError, ValueError):
        return False
