"""Threads that take turns: greenlets, of which the one that goes on is drawn whenever one waits, passes a point where
another could have gone on (`pause`), or ends. Nothing runs in parallel, and no thread of the operating system is made.

Whoever is no simulated thread (the event loop with its callbacks, a test) is *the hub*. When the hub has to wait, the
threads go on until it need not any more; callbacks do not, just as a real loop stands still while it is blocked.
"""

from __future__ import annotations

import asyncio.events
import concurrent.futures
import contextvars
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING, Protocol, TypeVar

from greenlet import getcurrent, greenlet

from tests.simulation import locking
from tests.simulation.chance import Chance, Crashed, Process, is_dead, process_of
from tests.simulation.locking import Condition, Event, Future, Lock, Queue, RLock, Thread, ThreadPoolExecutor

if TYPE_CHECKING:
    from tests.simulation.tasks import Source

T = TypeVar("T")
_OURS = {__file__, locking.__file__}
STALL = 3.0
"""Seconds that a thread that is stalled does nothing: the others get far meanwhile."""
PATCHED = ("engine", "storage", "projections", "tools")
"""Packages whose modules are given the simulated `threading`, `queue` and `ThreadPoolExecutor`."""


class Deadlock(Exception):
    """Nobody can go on: the message says what everybody waits for."""


class Time(Protocol):
    """Where the time is kept."""

    def time(self) -> float:
        """Seconds."""
        ...

    def advance(self, to: float) -> None:
        """It is `to` now, or later already."""
        ...


def _never() -> bool:
    return False


class SimThread:
    """A thread, as the scheduler sees it; `process`: on whose behalf it runs."""

    def __init__(self, threads: Threads, work: Callable[[], object], name: str, context: contextvars.Context) -> None:
        self.name = name
        self.process = process_of(context)
        self.until: Callable[[], object] | None = None
        self.deadline: float | None = None
        self.stalled = False
        self.label = "its first turn"
        self.source: Source | None = None
        self._threads = threads
        self._work = work
        self._context = context
        self._greenlet = greenlet(self._run)

    @property
    def ended(self) -> bool:
        """Is it over?"""
        return bool(self._greenlet.dead)

    def runnable(self, now: float) -> bool:
        """Could it go on?"""
        return self.until is None or bool(self.until()) or (self.deadline is not None and self.deadline <= now)

    def step(self) -> None:
        """Let it go on until it waits, pauses or ends. When its process is dead it leaves, whatever it waits for."""
        self._greenlet.parent = getcurrent()
        if self.process is None or self.process.alive:
            self._greenlet.switch()
        elif self._greenlet and not self._greenlet.dead:
            self._greenlet.throw(contextvars.Context().run(Crashed, "the process of the thread is dead"))

    def leave(self) -> None:
        """Let the hub go on."""
        assert self._greenlet.parent is not None
        self._greenlet.parent.switch()

    def where(self) -> str:
        """What it waits for, and in which functions."""
        return f"thread {self.name} waits for {self.label}{_stack(self._greenlet.gr_frame)}"

    def _run(self) -> None:
        try:
            self._context.run(self._work)
        except Crashed:
            pass  # the process is dead, which whoever runs it sees
        except BaseException:
            self._threads.failures.append(f"thread {self.name} failed:\n{traceback.format_exc()}")
        finally:
            self._threads.remove(self)


class Threads:
    """All threads of a simulation. `module`, `queue`: what the code under test has for `threading` and `queue`."""

    def __init__(self, draws: Chance, time: Time) -> None:
        self._chance = draws
        self._time = time
        self._ident = threading.get_ident()
        self._all: list[SimThread] = []
        self.current: SimThread | None = None
        self.failures: list[str] = []
        """Of threads that nobody waits for: what the interpreter would print of them."""
        self.deadlock: Deadlock | None = None
        """What was raised in the hub, where anybody may have caught it."""
        self.switches = 0
        self.module = SimpleNamespace(
            Lock=lambda: Lock(self), RLock=lambda: RLock(self), Condition=lambda lock=None: Condition(self, lock),
            Event=lambda: Event(self), Thread=lambda **given: Thread(self, **given),
            get_ident=lambda: id(self.current), current_thread=lambda: self.current,
        )  # fmt: skip
        self.queue = SimpleNamespace(Queue=lambda maxsize=0: Queue(self, maxsize), Empty=queue.Empty, Full=queue.Full)

    # ------------------------------------------------------------ for whoever schedules

    def start(self, work: Callable[[], object], name: str, context: contextvars.Context) -> SimThread:
        """A thread that does `work`, in `context`; its first turn is still to come."""
        thread = SimThread(self, work, name, context)
        self._all.append(thread)
        return thread

    def runnable(self) -> list[SimThread]:
        """Those that could go on now, in the order in which they were started."""
        if not self._all:
            return []
        now = self._time.time()
        return [thread for thread in self._all if thread.runnable(now)]

    def next_deadline(self) -> float | None:
        """When the first of those that wait will stop waiting."""
        return min((thread.deadline for thread in self._all if thread.deadline is not None), default=None)

    def step(self, thread: SimThread) -> None:
        """Let `thread` go on; it sees no event loop that runs, as there is none in a thread."""
        loop = asyncio.events._get_running_loop()
        asyncio.events._set_running_loop(None)
        before, self.current = self.current, thread
        self.switches += 1
        try:
            thread.step()
        finally:
            self.current = before
            asyncio.events._set_running_loop(loop)

    def of(self, owner: Process | None) -> list[SimThread]:
        """The threads of `owner`."""
        return [thread for thread in self._all if thread.process is owner]

    def unwind(self, owner: Process) -> None:
        """Have all threads of `owner`, which is dead, leave."""
        assert not owner.alive
        for thread in self.of(owner):
            self.step(thread)
            self.remove(thread)

    def remove(self, thread: SimThread) -> None:
        """It has ended, or will never go on."""
        if thread in self._all:
            self._all.remove(thread)

    def waiting(self) -> list[str]:
        """What each waits for."""
        return [thread.where() for thread in self._all]

    # ------------------------------------------------------------ for what runs in them

    def pause(self) -> None:
        """A point where somebody else may go on: before whatever others can see or do something about."""
        if is_dead():
            raise Crashed("a thread of a dead process")
        if self.current is not None:
            deadline = self._time.time() + STALL if self.current.stalled else None
            self.current.stalled = False
            self._yield(None if deadline is None else _never, deadline, "its turn")
        elif self._all and self._chance.maybe(30) and (able := self.runnable()):
            self.step(self._chance.pick(able))

    def give_way(self) -> None:
        """As `pause`, for code that may be of a dead process, which need not notice it here, or of a real thread (a
        library's that compresses)."""
        if threading.get_ident() == self._ident and not is_dead():
            self.pause()

    def stall(self) -> None:
        """The thread that runs will get no turn for a long time, from where it passes a point next."""
        assert self.current is not None, "the others would have to wait for the hub"
        self.current.stalled = True

    def wait(self, until: Callable[[], object], label: str, timeout: float | None = None) -> bool:
        """Return True once `until()` holds, False when `timeout` seconds have passed before. Raises Crashed in a
        process that is dead, Deadlock in the hub when nobody is left who could make it true."""
        if is_dead():
            raise Crashed("a thread of a dead process")
        if until():
            return True
        deadline = None if timeout is None else self._time.time() + timeout
        if self.current is not None:
            self._yield(until, deadline, label)
        else:
            self._wait_in_hub(until, deadline, label)
        return bool(until())

    def _yield(self, until: Callable[[], object] | None, deadline: float | None, label: str) -> None:
        thread = self.current
        assert thread is not None
        thread.until, thread.deadline, thread.label = until, deadline, label
        try:
            thread.leave()
        finally:
            thread.until = thread.deadline = None
        if is_dead():
            raise Crashed("a thread of a dead process")

    def _wait_in_hub(self, until: Callable[[], object], deadline: float | None, label: str) -> None:
        while not until():
            if deadline is not None and deadline <= self._time.time():
                return
            if able := self.runnable():
                self.step(self._chance.pick(able))
                continue
            times = [time for time in (deadline, self.next_deadline()) if time is not None]
            if not times:
                self.deadlock = Deadlock("\n".join([f"the hub waits for {label}", *self.waiting()]))
                raise self.deadlock
            self._time.advance(min(times))


@contextmanager
def patched(threads: Threads) -> Iterator[None]:
    """Have the modules of the product that are loaded use `threads` where they name `threading`, `queue` or
    `ThreadPoolExecutor`."""
    stand_ins: dict[str, tuple[object, object]] = {
        "threading": (threading, threads.module),
        "queue": (queue, threads.queue),
        "ThreadPoolExecutor": (
            concurrent.futures.ThreadPoolExecutor,
            lambda max_workers=4, thread_name_prefix="pool": ThreadPoolExecutor(
                threads, max_workers, thread_name_prefix
            ),
        ),
    }
    undo: list[tuple[object, str, object]] = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in PATCHED:
            for attribute, (real, simulated) in stand_ins.items():
                if getattr(module, attribute, None) is real:
                    setattr(module, attribute, simulated)
                    undo.append((module, attribute, real))
    try:
        yield
    finally:
        for holder, attribute, real in undo:
            setattr(holder, attribute, real)


def _stack(frame: FrameType | None) -> str:
    """The product's functions on the stack below `frame`, innermost first."""
    names = []
    while frame is not None:
        path = frame.f_code.co_filename
        if path not in _OURS:
            names.append(f"\n    {path}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return "".join(names[:12])


__all__ = ["Deadlock", "Future", "SimThread", "ThreadPoolExecutor", "Threads", "patched"]
