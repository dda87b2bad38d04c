"""Checkpoints: what the log is, signed, each a continuation of the one before.

The last one stays beside the log (`checkpoint`, a C2SP note), as well as in it: a log that was rolled back, or put in
the place of another one, is found on this machine before anything contradictory is signed.

An origin reads `<name of the key>/<16 hexadecimal digits>`: the beginning of the leaf hash of the log's first event.
So one key may sign many logs, anybody who has a log can tell whether a checkpoint is of it, and none needs an id.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.events import CheckpointSigned, to_data
from storage.durable import replace_file
from storage.errors import DiskError, HostError, InputError, VerificationError
from storage.interfaces.locks import Locks
from storage.interfaces.log import EventLog, NewEvent, StoredPayloads, StoredRows
from storage.logtree.leaves import leaf_hashes
from storage.logtree.tiles import Tree
from storage.regular import read_regular
from storage.signing.notes import Checkpoint, Note, Signer, sign_note

FILE, TREE = "checkpoint", "tree.db"
OWN = frozenset({"CheckpointSigned", "CheckpointPublished", "CheckpointPublishFailed"})
"""Types of events that are no reason to sign again."""
_LOCK = "checkpoint"
_PATIENCE = 180.0  # seconds
_MAX_NOTE = 1 << 20
_TELL = "refledger audit verify tells what was changed"


class AuditedLog(EventLog, StoredRows, StoredPayloads, Protocol):
    """A log with its stored rows, and what is detached from them."""


class SigningRoot(Protocol):
    """What of a root is needed to sign what is in it."""

    @property
    def path(self) -> Path:
        """Its directory."""
        ...

    @property
    def log(self) -> AuditedLog:
        """Its log, to append to."""
        ...

    @property
    def locks(self) -> Locks:
        """Of all its processes."""
        ...


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint with its `note`, whose signatures nobody has verified here; `new`: it was made just now."""

    checkpoint: Checkpoint
    note: str
    new: bool = False

    @classmethod
    def parse(cls, note: str, where: str) -> Signed:
        """Raises VerificationError."""
        try:
            return cls(Checkpoint.parse(Note.parse(note).text), note)
        except VerificationError as error:
            raise VerificationError(error.what, where=where, hint=error.hint) from error


def log_id(log: StoredRows) -> str:
    """What names a log, see above; "" for an empty one. Raises LogError."""
    return next(leaf_hashes(log.rows(0, 1)), b"")[:8].hex()


def log_of(checkpoint: Checkpoint) -> str:
    """What names the log that it is of, see `log_id`."""
    return checkpoint.origin.rpartition("/")[2]


def last_signed(root: Path, log: EventLog) -> Signed | None:
    """The last checkpoint: the one beside the log, else the last one in it; None when there is none. Raises
    VerificationError for a file that is no checkpoint, DiskError, LogError."""
    path = root / FILE
    try:
        return Signed.parse(read_regular(path, _MAX_NOTE).decode("utf-8", "replace"), str(path))
    except FileNotFoundError:
        found = deque(log.read(types=frozenset({"CheckpointSigned"})), maxlen=1)
        return Signed.parse(str(found[0].data.get("note")), f"event {found[0].seq}") if found else None
    except OSError as error:
        raise DiskError.of(error, "reading the last checkpoint") from error


def settled_tree(root: Path, log: StoredRows, seen: Signed | None, *, read_only: bool = True) -> Tree:
    """The tree of `log` at the size of `seen`, its root checked: the kept one when it is as it should be, else a new
    one of the log as it is. The caller closes it. Raises VerificationError when the log is no continuation of `seen`,
    LogError."""
    tree = Tree(root / TREE, read_only=read_only)
    try:
        if seen is None:
            tree.discard()
        else:
            _settle(tree, log, seen.checkpoint)
    except BaseException:
        tree.__exit__(None, None, None)
        raise
    return tree


def _settle(tree: Tree, log: StoredRows, seen: Checkpoint) -> None:
    head, where = log.last_seq(), "log.db"
    if log_of(seen) != log_id(log):
        what = "the log's first event is not the one that was signed: it was changed, or this is another log"
        raise VerificationError(what, where=where, hint=_TELL)
    if head < seen.size:
        what = f"the log ends at event {head}, and event {seen.size} was signed: it was rolled back, or cut off"
        raise VerificationError(what, where=where, hint=_TELL)
    kept = tree.matches(seen.size, seen.root)
    # reason: the last event tells a log that was rolled back and then grew, at the cost of reading one
    if kept and tree.agrees(log, seen.size):
        return
    changed = tree.first_change(log, seen.root) if kept else None
    tree.discard()
    tree.extend(log, seen.size)
    if not tree.matches(seen.size, seen.root):
        which = f"event {changed}" if changed else f"an event up to {seen.size}"
        what = f"{which} is not what it was when it was signed: the log was changed, or rolled back"
        raise VerificationError(what, where=where, hint=_TELL)


def sign_checkpoint(root: SigningRoot, signer: Signer) -> Signed:
    """Sign all that is in the log, unless the last checkpoint covers it: that one is returned then. Processes that sign
    at once take turns. Raises VerificationError when the log contradicts the last checkpoint, InputError for an empty
    log, LogError, DiskError, HostError."""
    log = root.log
    with _turn(root.locks):
        seen = last_signed(root.path, log)
        origin = f"{signer.name}/{log_id(log)}"
        with settled_tree(root.path, log, seen, read_only=False) as tree:
            head = log.last_seq()
            if not head:
                raise InputError("there is nothing to sign: the log is empty", hint="build something first")
            if seen is not None and seen.checkpoint.origin == origin and _covered(log, seen.checkpoint.size, head):
                if not (root.path / FILE).exists():  # who signed it was killed before it was kept
                    _keep(root.path, seen.note)
                return seen
            tree.extend(log, head)
            made = Checkpoint(origin, head, tree.root())
            note = sign_note(str(made), signer)
            fact = CheckpointSigned(origin=origin, size=head, root=made.root.hex(), note=note)
            log.append(NewEvent("log", "CheckpointSigned", to_data(fact)))
            _keep(root.path, note)
            tree.keep()
    return Signed(made, note, new=True)


def _covered(log: EventLog, size: int, head: int) -> bool:
    """Has nothing happened since but signing?"""
    return all(event.type in OWN for event in log.read(after=size, until=head))


@contextmanager
def _turn(locks: Locks) -> Iterator[None]:
    deadline = time.monotonic() + _PATIENCE
    while (lock := locks.try_acquire(_LOCK)) is None:
        if time.monotonic() > deadline:
            raise HostError("another process has been signing the log for minutes", hint="see which one: ps")
        time.sleep(0.02)
    with lock:
        yield


def _keep(root: Path, note: str) -> None:
    try:
        replace_file(root / FILE, note.encode())
    except OSError as error:
        raise DiskError.of(error, "writing the checkpoint") from error


def told(checkpoint: Checkpoint) -> str:
    """One line for people."""
    return f"{checkpoint.size} events, root {b64encode(checkpoint.root).decode()}, {checkpoint.origin}"
