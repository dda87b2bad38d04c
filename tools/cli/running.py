"""How a command that works in a root runs: the lock that says it is alive, what dead ones left, display, signals."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, NamedTuple, TypeVar

from engine.errors import Cancelled
from storage.errors import RefledgerError
from storage.interfaces.log import EventLog
from tools import roots
from tools.auditing.signing import signing_after
from tools.cli.render import Renderer, make_renderer
from tools.cli.writing import print_aside
from tools.collection_rules import collecting_after

T = TypeVar("T")
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a process."""
TICK = 0.1
"""Seconds between two looks of the progress display at the log."""
_ENDS = frozenset({"BuildCompleted", "BuildFailed", "BuildCancelled"})


class Run(NamedTuple):
    """A build that is about to begin: the `root`, its id, and the last event before it."""

    root: roots.Root
    build: str
    before: int
    renderer: Renderer

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Draw what goes on meanwhile."""
        with watching(self.root.log, self.before, self.renderer, self.build):
            yield

    @contextlib.contextmanager
    def told(self, progress: str) -> Iterator[None]:
        """As `watched`; of work that has no Dockerfile, where the story of a failure is to be found is told as well,
        to whoever reads what `progress` draws. Raises what goes wrong."""
        try:
            with self.watched():
                yield
        except RefledgerError as error:
            if progress not in ("json", "quiet"):
                from tools.cli.failure import explain

                sys.stderr.write(explain(self.root.log, self.before, self.build, error, "", ""))
            raise


@contextlib.contextmanager
def running(progress: str, *, silent: bool = False, mounts: bool = True) -> Iterator[Run]:
    """Open the root for one build, shown as `progress` says; `silent`: nothing is said of what is collected after it;
    `mounts`: it may mount something, which needs root. Raises InputError, DiskError, LogError."""
    if mounts:
        roots.prepare_process()
    build_id = roots.new_build_id()
    renderer = make_renderer(progress, build_id, sys.stderr if progress != "json" else sys.stdout)
    with (
        roots.open_root(roots.root_directory()) as root,
        signing_after(root),
        collecting_after(root, quiet=silent),
        roots.owning(root, build_id),
    ):
        for dead in roots.recover(root, build_id):
            print_aside(f"build {dead} had been interrupted; what it left was cleaned up")
        yield Run(root, build_id, root.log.last_seq(), renderer)


async def interruptible(work: Coroutine[Any, Any, T]) -> T:
    """`work`, cancelled by the signals that end a process. Raises Cancelled."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    # reason: who ignores one (nohup) goes on doing so
    before = {number: handler for number in ENDING if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    for number in before:
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise Cancelled("interrupted") from None
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


@contextlib.contextmanager
def watching(log: EventLog, after: int, renderer: Renderer, build_id: str) -> Iterator[None]:
    """Draw everything later than `after` until the build has ended, in the log or (without a word there) here."""
    ended = threading.Event()
    failures: list[RefledgerError] = []

    def watch() -> None:
        seen = after
        try:
            while True:
                last_round = ended.is_set()
                for event in log.read(after=seen):
                    renderer.event(event)
                    seen = event.seq
                    last_round |= event.build == build_id and event.type in _ENDS
                renderer.tick()
                if last_round:
                    return
                log.wait(seen, TICK)
        except RefledgerError as error:
            failures.append(error)
        finally:
            renderer.close()

    thread = threading.Thread(target=watch, name="progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failures:
        raise failures[0]
