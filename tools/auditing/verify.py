"""Checks of a root that trust nothing of it but what was signed: one pass over the log as it is stored, then its tree,
signatures, the bytes that its events name, and its projections. Reads only, and asks nobody (I13).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from projections.named import Named
from projections.runner import Views
from projections.standard import STANDARD
from projections.wellformed import Fault, Wellformed, at, ordered
from storage.errors import LogError, LogTooNew, RefledgerError
from storage.layers.examine import examine_blob, examine_layer, examine_snapshot
from storage.log.codec import Row
from storage.log.eventlog import SqliteEventLog
from storage.log.payloads import payload_problems
from storage.logtree.check import Leaves
from storage.logtree.leaves import leaf_hashes
from storage.signing.notes import Verifier
from tools.auditing import checkpoints
from tools.auditing.verdict import Json, Outside, Verdict
from tools.auditing.vouching import check_tree, last_seen, read_checkpoints

PAGE = 2_000
_APART = frozenset({"VertexOutput", "BuildStarted"})
"""Events of which values are stored apart that name nothing."""


def verify_root(
    root: Path, *, keys: Sequence[Verifier], outside: Sequence[Outside] = (), quick: bool = False
) -> Verdict:
    """Check the root at `root`. `keys`: whose signatures count; `outside`: checkpoints from elsewhere; `quick`: what
    blobs, layers and snapshots hold is not read. Raises LogTooNew, LogError (there is no log), DiskError."""
    verdict = Verdict(contents=not quick, keys=tuple(map(str, keys)))
    log = SqliteEventLog(root / "log.db", read_only=True)
    try:
        seen, faults = last_seen(root, keys)  # before the log, which may grow meanwhile
        reading = _Reading(log)
        reading.run()
        verdict.events, verdict.builds = reading.form.seq, reading.form.builds
        verdict.unknown = reading.form.unknown
        broken = bool(reading.form.faults)
        signed, wrong = read_checkpoints(reading.checkpoints, keys)
        faults += [*reading.form.faults, *wrong]
        faults += check_tree(verdict, reading.leaves, signed, keys, [*outside, *seen], root / checkpoints.TREE)
        faults += _contents(verdict, root, reading.named, quick=quick)
        if not broken:
            faults += [at(seq, "payload", why) for seq, why in payload_problems(log, log)]
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
        said: set[str] = set()
        while page := list(islice(rows, PAGE)):
            for row in page:
                data = look(row)
                if data is None:
                    continue
                try:
                    if row[3] not in _APART and b'"x":{' in row[4]:
                        data = self._whole(row[0]) or data
                    note(row[0], row[3], data)
                except (TypeError, KeyError, AttributeError, IndexError):
                    self.form.faults.append(at(row[0], "state", f"the {row[3]} has fields of another shape"))
                tree = repr((data.get("size"), data.get("root")))  # they may be anything
                if row[3] == "CheckpointSigned":
                    self.checkpoints.append((row[0], data))
                    said.add(tree)
                elif row[3] == "CheckpointPublished" and tree not in said:
                    self.form.faults.append(at(row[0], "checkpoint", "what it says was published was never signed"))
            self.leaves.add(leaf_hashes(page))

    def _whole(self, seq: int) -> Json | None:
        """The data of event `seq` with the lists that are stored apart; None when they are not what they were, which
        `payload_problems` tells."""
        try:
            return next(self._log.read(after=seq - 1, until=seq)).data
        except LogError:
            return None

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
        while size:
            try:
                for row in self._log.rows(after, last, size):
                    after = row[0]
                    yield row
                break
            except LogError as error:
                size //= 2
                if not size:
                    self._unreadable(after + 1, error)
        if self._log.damage is not None and size:
            self._unreadable(last + 1, self._log.damage)

    def _unreadable(self, seq: int, error: LogError) -> None:
        self.form.faults.append(at(seq, "file", error.what))


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
    except RefledgerError as error:
        return [Fault(0, 0, "state", f"the log cannot be folded: {error.what}")]
    if different:
        verdict.views = f"differ: {', '.join(different)}"
        return [Fault(0, 0, "views", f"differs from a fresh fold of the log: {', '.join(different)}")]
    verdict.views = "equal to a fresh fold"
    return []
