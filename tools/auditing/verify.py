"""Checks of a root that trust nothing of it but what was signed: one pass over the log as it is stored, then its tree,
signatures, the bytes that its events name, and its projections. Reads only, and asks nobody (I13).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from projections.named import Named
from projections.runner import Views
from projections.standard import STANDARD
from projections.wellformed import Fault, Wellformed, at, ordered
from storage.codec import Row
from storage.errors import LogDamaged, LogError, LogTooNew, RefledgerError, VerificationError
from storage.eventlog import SqliteEventLog
from storage.examine import examine_blob, examine_layer, examine_snapshot
from storage.leaves import leaf_hashes
from storage.notes import Checkpoint, Note, Verifier
from storage.tree import Tree
from storage.treecheck import Claim, Leaves, Misfit, check_claims, root_of
from tools.auditing import checkpoints
from tools.auditing.checkpoints import is_of

Json = dict[str, Any]
PAGE = 2_000


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint as event `seq` of the log has it; `keys`: those that are trusted and signed it."""

    seq: int
    checkpoint: Checkpoint
    keys: tuple[Verifier, ...]


@dataclass(frozen=True, slots=True)
class Outside:
    """What is known of the log without it: a checkpoint from `source` (a file, a registry, what was last seen)."""

    source: str
    kind: str
    checkpoint: Checkpoint


@dataclass(slots=True)
class Verdict:
    """What was found. `covered`: events that a checkpoint vouches for, one by a trusted key when there are `keys`."""

    events: int = 0
    builds: int = 0
    root: str = ""
    origin: str = ""
    checkpoints: int = 0
    covered: int = 0
    keys: tuple[str, ...] = ()
    trusted: bool = False
    published: int = 0
    named: dict[str, int] = field(default_factory=dict)
    remote: int = 0
    gone: int = 0
    contents: bool = True
    views: str = "none are kept"
    unknown: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def to_json(self) -> Json:
        """The object that `audit verify --json` prints."""
        first = self.faults[0] if self.faults else None
        return {
            "sound": not self.faults, "first": first.to_json() if first else None,
            "faults": [fault.to_json() for fault in self.faults], "events": self.events, "builds": self.builds,
            "root": self.root, "origin": self.origin or None, "checkpoints": self.checkpoints,
            "covered": self.covered, "uncovered": self.events - self.covered, "trusted_keys": list(self.keys),
            "signatures_checked": self.trusted, "published": self.published, "here": self.named,
            "remote": self.remote, "let_go": self.gone, "contents_read": self.contents, "views": self.views,
            "unknown_types": self.unknown,
        }  # fmt: skip


def verify_root(
    root: Path, *, keys: Sequence[Verifier], outside: Sequence[Outside] = (), quick: bool = False
) -> Verdict:
    """Check the root at `root`. `keys`: whose signatures count; `outside`: checkpoints from elsewhere; `quick`: what
    blobs, layers and snapshots hold is not read. Raises LogTooNew, LogError (there is no log), DiskError."""
    verdict = Verdict(contents=not quick, keys=tuple(map(str, keys)))
    log = SqliteEventLog(root / "log.db", read_only=True)
    try:
        reading = _Reading(log)
        reading.run()
        verdict.events, verdict.builds = reading.form.seq, reading.form.builds
        verdict.unknown = reading.form.unknown
        faults = reading.form.faults
        broken = bool(faults)
        signed, wrong = read_checkpoints(reading.checkpoints, keys)
        faults += wrong
        seen, wrong = _last_seen(root, keys)
        faults += wrong
        faults += _tree(verdict, reading.leaves, signed, keys, [*outside, *seen], root / checkpoints.TREE)
        faults += _contents(verdict, root, reading.named, quick=quick)
        if broken:
            verdict.views = "not compared: the log is damaged"
        elif (root / "views.db").exists():
            faults += _views(verdict, root, log)
    finally:
        log.close()
    verdict.faults = list(ordered(faults))
    return verdict


class _Reading:
    """The one pass."""

    def __init__(self, log: SqliteEventLog) -> None:
        self._log = log
        self.form = Wellformed()
        self.named = Named()
        self.leaves = Leaves()
        self.checkpoints: list[tuple[int, Json]] = []

    def run(self) -> None:
        rows = self._rows()
        look, note = self.form.look, self.named.look
        said: set[tuple[object, str]] = set()
        while page := list(islice(rows, PAGE)):
            for row in page:
                data = look(row)
                if data is None:
                    continue
                try:
                    note(row[0], row[3], data)
                except (TypeError, KeyError, AttributeError, IndexError):
                    self.form.faults.append(at(row[0], "state", f"the {row[3]} has fields of another shape"))
                if row[3] == "CheckpointSigned":
                    self.checkpoints.append((row[0], data))
                    said.add((data.get("size"), str(data.get("root"))))
                elif row[3] == "CheckpointPublished" and (data.get("size"), str(data.get("root"))) not in said:
                    self.form.faults.append(at(row[0], "checkpoint", "what it says was published was never signed"))
            self.leaves.add(leaf_hashes(page))

    def _rows(self) -> Iterator[Row]:
        """All that can be read; where the file is damaged, up to there."""
        after, size = 0, PAGE
        try:
            last = self._log.last_seq()
        except LogTooNew:
            raise
        except LogError as error:
            self._unreadable(1, error)
            return
        while after < last and size:
            try:
                rows = list(self._log.rows(after, min(after + size, last)))
            except LogError as error:
                size //= 2
                if not size:
                    self._unreadable(after + 1, error)
                continue
            yield from rows
            after = min(after + size, last)
        if self._log.damage is not None and size:
            self._unreadable(last + 1, self._log.damage)

    def _unreadable(self, seq: int, error: LogError) -> None:
        self.form.faults.append(at(seq, "file", error.what))


# ---------------------------------------------------------------- signatures and the tree


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
    origins = [one.checkpoint.origin for one in found if one.keys or not keys]
    strange = [one for one in found if origins and not is_of(one.checkpoint, _identity(origins[0]))]
    faults += [
        at(one.seq, "origin", f"the checkpoint is of the log {one.checkpoint.origin}, and this is {origins[0]}")
        for one in strange
    ]
    return [one for one in found if one not in strange], faults


def _identity(origin: str) -> str:
    return origin.rpartition("/")[2]


def _signers(note: Note, checkpoint: Checkpoint, keys: Sequence[Verifier]) -> tuple[Verifier, ...]:
    """Those of `keys` that signed it as a checkpoint of a log of theirs. Raises VerificationError."""
    return tuple(key for key in note.verified_by(keys) if checkpoint.origin.rpartition("/")[0] == key.name)


def _last_seen(root: Path, keys: Sequence[Verifier]) -> tuple[list[Outside], list[Fault]]:
    """The checkpoint that lies beside the log."""
    try:
        text = (root / checkpoints.FILE).read_bytes()[: 1 << 20].decode()
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


def _tree(
    verdict: Verdict, leaves: Leaves, signed: Sequence[Signed], keys: Sequence[Verifier], outside: Sequence[Outside],
    kept: Path,
) -> list[Fault]:  # fmt: skip
    """Compares the tree with every checkpoint that counts, and says how far they reach."""
    counted = [one for one in signed if one.keys or not keys]
    verdict.checkpoints, verdict.trusted = len(signed), bool(keys)
    reach = max((one.checkpoint.size for one in counted), default=0)
    verdict.origin = counted[0].checkpoint.origin if counted else ""
    faults = _unsigned(signed, counted, keys, reach, len(leaves))
    here = _identity(verdict.origin) if verdict.origin else leaves[0][:8].hex()
    own = {Claim(one.checkpoint.size, one.checkpoint.root): one for one in reversed(counted)}
    others: dict[Claim, Outside] = {}
    mine = [other for other in outside if is_of(other.checkpoint, here)]
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
    """Is the tree that is kept, if one is, that of the log? It may be behind."""
    if not path.exists():
        return True
    try:
        with Tree(path, read_only=True) as tree:
            same = all(one == other for one, other in zip(tree.leaves(), leaves.between(0, tree.size), strict=True))
            return same and (not tree.size or tree.root() == root_of(leaves, tree.size))
    except (LookupError, sqlite3.Error, TypeError, ValueError):
        return False


# ---------------------------------------------------------------- bytes and projections


def _contents(verdict: Verdict, root: Path, named: Named, *, quick: bool) -> list[Fault]:
    faults, absent = [], 0
    examine = {"blob": examine_blob, "layer": examine_layer, "snapshot": examine_snapshot}
    for (kind, name), (seq, role) in named.here.items():
        verdict.named[kind] = verdict.named.get(kind, 0) + 1
        what = f"its {role}, blob {name}," if role else f"{kind} {name}"
        try:
            problem = examine[kind](root, name, quick=quick)
        except OSError as error:
            problem = f"it cannot be read: {error.strerror or error}"
        if problem is None and (kind, name) in named.elsewhere:
            absent += 1
        elif problem is None:
            faults.append(at(seq, kind, f"{what} is not here, and nothing says that it was let go"))
        elif problem:
            faults.append(at(seq, kind, f"{what} is not what it was: {problem}"))
    here = {name for kind, name in named.here if kind == "blob"}
    verdict.remote, verdict.gone = len(named.remote - here) + absent, len(named.gone)
    if absent:
        verdict.named["blob"] -= absent
    return faults


def _views(verdict: Verdict, root: Path, log: SqliteEventLog) -> list[Fault]:
    try:
        with Views.read_only(root / "views.db", log, STANDARD) as views:
            different = views.check(log)
    except LogDamaged:
        raise
    except RefledgerError as error:
        return [Fault(0, 0, "state", f"the log cannot be folded: {error.what}")]
    if different:
        verdict.views = f"differ: {', '.join(different)}"
        return [Fault(0, 0, "views", f"differs from a fresh fold of the log: {', '.join(different)}")]
    verdict.views = "equal to a fresh fold"
    return []
