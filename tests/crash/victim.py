"""`python -m tests.crash.victim MOMENT ARGS…`: `refledger ARGS`, in a process that dies at a moment of its own life.

MOMENT is `HOW:NUMBER` or `HOW:NUMBER:SIGNAL` (default KILL), of these; for N there may be a type, the first such event:

    after:N    event N of this process has just become durable
    before:N   event N is about to be committed; what does not wait for it has gone on until it waits, too
    inside:N   event N is in the transaction, which is not committed
    before-op:N the N-th change of a file or directory, or flush of one, is about to happen (not SQLite's own)
    end        nothing happens

`unsynced+` before it: what the process has changed in `$CRASH_WITHIN` and not made durable is told at that moment, and
what is left of that which is told in the file `$CRASH_LOST`.

What was met is told in the file `$CRASH_TOLD`, a line of JSON each: `{"events": [types]}` once they are durable,
`{"op": what}` where they count, `{"at": [types]}` or `{"doomed": [types]}` where it was to die, at events that are
durable or will not be, `{"lost": [...]}` for what power loss may take.

Every submission is a transaction of its own, so that a process can die between any two.

No hook of the product is used: what is wrapped is wrapped here.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.crash.unsynced import Unsynced, path_of

LINGER = 0.4
"""Seconds that everything else may go on for, at most, while an event that is not to come is waited for."""
QUIET, _LOOK = 8, 0.01
"""Looks, and seconds between them, in which nothing has run: then all that is left waits, also for other processes."""
_CHANGES = frozenset({
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "os.setxattr", "subprocess.Popen", "sqlite3.connect",
})  # fmt: skip
_ELSEWHERE = ("/proc/", "/sys/", "/dev/")


class Victim:
    """Counts, tells, and dies when it is time."""

    def __init__(
        self, how: str, which: str, number_of_signal: int, told: int, within: str, unsynced: Unsynced | None
    ) -> None:
        self._within = f"{within}/"
        self._unsynced = unsynced
        self._how = how
        self._type = "" if which.isdecimal() else which
        self._number = int(which) if which.isdecimal() else 0
        self._signal = number_of_signal
        self._told = told
        self._events = 0
        self._ops = 0
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._armed = True

    def wrap_log(self) -> None:
        """Be there at every commit."""
        from storage.log import eventlog, recorder

        eventlog.GROUP = 1
        commit, insert = recorder.LogWriter._commit, recorder.LogRecorder.insert

        def watched_commit(writer: Any, group: Any, gone: Any = ()) -> Any:
            names = [event[1] for _, events in group for event in events]
            here = self._here(names)
            if here and self._how == "before":
                settle()
                self._die("doomed", names)
            results = commit(writer, group, gone)
            self._events += len(names)
            self._tell({"events": names})
            if here and self._how == "after":
                self._die("at", names)
            return results

        def watched_insert(the_recorder: Any, cursor: Any, rows: Any) -> int:
            last = int(insert(the_recorder, cursor, rows))
            names = [row[2] for row in rows]
            if self._how == "inside" and self._here(names):
                self._die("doomed", names)
            return last

        recorder.LogWriter._commit = watched_commit  # type: ignore[method-assign, assignment]
        recorder.LogRecorder.insert = watched_insert  # type: ignore[method-assign, assignment]

    def _here(self, names: Sequence[str]) -> bool:
        """Are these the next events, and is it one of them?"""
        return self._type in names or self._events < self._number <= self._events + len(names)

    def watch_files(self) -> None:
        """Be there at every change that Python makes to files, every flush, and every process that it starts."""
        from storage import durable

        fsync, syncfs = os.fsync, durable.flush_file_system

        def watched_fsync(fd: Any) -> None:
            self._op("os.fsync", path_of(fd if isinstance(fd, int) else fd.fileno()))
            fsync(fd)

        def watched_syncfs(fd: int) -> None:
            self._op("syncfs", path_of(fd))
            syncfs(fd)

        os.fsync = os.fdatasync = watched_fsync
        durable.flush_file_system = watched_syncfs
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            flags = args[2]
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in _CHANGES:
            return
        path = args[0]
        if isinstance(path, str) and (
            "__pycache__" in path or (path.startswith(_ELSEWHERE) and not path.startswith(self._within))
        ):
            return
        self._op(event, os.fsdecode(path) if isinstance(path, (str, bytes)) else path)

    def _op(self, what: str, path: object) -> None:
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._ops += 1
            self._tell({"op": f"{what} {path}"})
            if self._ops == self._number:
                self._die("at", [what])

    def _die(self, how: str, names: Sequence[str]) -> None:
        if not self._armed:
            return
        self._armed = False
        self._tell({how: names})
        self.tell_loss()
        os.kill(self._pid, self._signal)
        if self._signal == signal.SIGKILL:
            time.sleep(60)  # the kernel may need a moment, and nothing may happen in it

    def tell_loss(self) -> None:
        """Say what a power loss would take now."""
        if self._unsynced is not None:
            self._tell({"lost": self._unsynced.loss()})

    def _tell(self, what: dict[str, object]) -> None:
        if self._told >= 0:
            os.write(self._told, json.dumps(what).encode() + b"\n")


def settle() -> None:
    """Return when every other thread of this process, and every process that it started, has been waiting for a while;
    after LINGER seconds in any case: some wait for a clock."""
    end = time.monotonic() + LINGER
    seen, looks = "", 0
    while looks < QUIET and time.monotonic() < end:
        time.sleep(_LOOK)
        now = "".join(_activity(os.getpid(), {threading.get_native_id()}))
        looks = looks + 1 if now == seen else 0
        seen = now


def _activity(pid: int, without: Collection[int] = ()) -> Iterator[str]:
    """How often each thread of process `pid` and below it has run so far; whether it is to run now."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            if int(task.name) not in without:
                status = (task / "status").read_text()
                state = status.partition("State:\t")[2][0]
                yield f"{task.name} {status.partition('voluntary_ctxt_switches')[2]} {state}"
                if state == "R":
                    yield str(time.monotonic())
            for child in (task / "children").read_text().split():
                yield from _activity(int(child))


def main() -> None:
    """See above."""
    moment, sys.argv[1:] = sys.argv[1], sys.argv[2:]
    world, _, moment = moment.rpartition("+")
    how, _, rest = moment.partition(":")
    number, _, name = rest.partition(":")
    where = os.environ.pop("CRASH_TOLD", "")
    told = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600) if where else -1
    within = os.environ.pop("CRASH_WITHIN", "")
    lost = os.environ.pop("CRASH_LOST", "")
    before = json.loads(Path(lost).read_bytes()) if lost else []
    unsynced = Unsynced(within, before) if world == "unsynced" else None
    victim = Victim(how, number or "0", signal.Signals[f"SIG{name or 'KILL'}"], told, within, unsynced)

    from tools.cli.main import main as refledger

    victim.wrap_log()
    if unsynced is not None:
        unsynced.watch()
    if how in {"before-op", "end"}:
        victim.watch_files()
    try:
        refledger()
    finally:
        victim.tell_loss()


if __name__ == "__main__":
    main()
