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
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import Any, Protocol, TypeVar

from greenlet import getcurrent, greenlet

from tests.simulation.chance import Chance, Crashed, Process, is_dead, process_of

T = TypeVar("T")
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


class SimThread:
    """A thread, as the scheduler sees it; `process`: on whose behalf it runs."""

    def __init__(self, threads: Threads, work: Callable[[], object], name: str, context: contextvars.Context) -> None:
        self.name = name
        self.process = process_of(context)
        self.until: Callable[[], object] | None = None
        self.deadline: float | None = None
        self.label = "its first turn"
        self.source: object = None
        self._threads = threads
        self._work = work
        self._context = context
        self._greenlet = greenlet(self._run)

    @property
    def ended(self) -> bool:
        """Is it over?"""
        return self._greenlet.dead

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
    """All threads of a simulation. `module`, `queue`: what stands for `threading` and `queue` in the code under
    test."""

    def __init__(self, chance: Chance, time: Time) -> None:
        self._chance = chance
        self._time = time
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
            self._yield(None, None, "its turn")
        elif self._all and self._chance.maybe(30) and (able := self.runnable()):
            self.step(self._chance.pick(able))

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


class Lock:
    """As threading.Lock."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self._threads.pause()
        if blocking:
            self._threads.wait(lambda: not self._held, "a lock", None if timeout < 0 else timeout)
        if self._held:
            return False
        self._held = True
        return True

    def release(self) -> None:
        if not self._held and not is_dead():
            raise RuntimeError("release unlocked lock")
        self._held = False

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock:
    """As threading.RLock."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._owner: object = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = self._me()
        if self._owner is not me:
            self._threads.pause()
            if blocking:
                self._threads.wait(lambda: self._owner is None, "a lock", None if timeout < 0 else timeout)
            if self._owner is not None:
                return False
            self._owner = me
        self._count += 1
        return True

    def release(self) -> None:
        if self._owner is not self._me():
            if is_dead():
                return
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if not self._count:
            self._owner = None

    def held(self) -> bool:
        """Does the caller hold it?"""
        return self._owner is self._me()

    def give_up(self) -> int:
        """Let go, however often it was taken."""
        count, self._count, self._owner = self._count, 0, None
        return count

    def take_back(self, count: int) -> None:
        """Undo `give_up`."""
        self._threads.wait(lambda: self._owner is None, "a condition's lock")
        self._owner, self._count = self._me(), count

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _me(self) -> object:
        return self._threads.current or self._threads


class Condition:
    """As threading.Condition, over a lock that may be taken again."""

    def __init__(self, threads: Threads, lock: RLock | None = None) -> None:
        self._threads = threads
        self._lock = lock or RLock(threads)
        self._waiters: deque[list[bool]] = deque()
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def wait(self, timeout: float | None = None) -> bool:
        self._must_hold()
        told = [False]
        self._waiters.append(told)
        count = self._lock.give_up()
        try:
            self._threads.wait(lambda: told[0], "a condition to be notified", timeout)
        finally:
            if not told[0]:
                self._waiters.remove(told)
            if not is_dead():
                self._lock.take_back(count)
        return told[0]

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        end = None if timeout is None else self._threads._time.time() + timeout
        while not (result := predicate()):
            left = None if end is None else end - self._threads._time.time()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify(self, n: int = 1) -> None:
        self._must_hold()
        for _ in range(min(n, len(self._waiters))):
            self._waiters.popleft()[0] = True

    def notify_all(self) -> None:
        self.notify(len(self._waiters))

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _must_hold(self) -> None:
        if not self._lock.held():
            raise RuntimeError("the lock of the condition is not held")


class Event:
    """As threading.Event."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._set = False

    def is_set(self) -> bool:
        self._threads.pause()
        return self._set

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        return self._threads.wait(lambda: self._set, "an event", timeout)


class Thread:
    """As threading.Thread, as far as the product uses it."""

    def __init__(
        self, threads: Threads, *, target: Callable[..., object], name: str = "thread", args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None, daemon: bool | None = None,
    ) -> None:  # fmt: skip
        self._threads = threads
        self._work = lambda: target(*args, **(kwargs or {}))
        self._thread: SimThread | None = None
        self.name = name
        self.daemon = daemon

    def start(self) -> None:
        assert self._thread is None, "threads can only be started once"
        self._thread = self._threads.start(self._work, self.name, contextvars.copy_context())

    def is_alive(self) -> bool:
        self._threads.pause()
        return self._thread is not None and not self._thread.ended

    def join(self, timeout: float | None = None) -> None:
        thread = self._thread
        assert thread is not None, "cannot join a thread before it is started"
        self._threads.wait(lambda: thread.ended, f"the end of thread {self.name}", timeout)


class Queue:
    """As queue.Queue, as far as the product uses it."""

    def __init__(self, threads: Threads, maxsize: int = 0) -> None:
        self._threads = threads
        self._maxsize = maxsize
        self._items: deque[Any] = deque()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self._threads.pause()
        room: Callable[[], bool] = lambda: not 0 < self._maxsize <= len(self._items)  # noqa: E731
        if not (self._threads.wait(room, "room in a queue", timeout) if block else room()):
            raise queue.Full
        self._items.append(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        self._threads.pause()
        if not (self._threads.wait(lambda: self._items, "an item in a queue", timeout) if block else self._items):
            raise queue.Empty
        return self._items.popleft()

    def put_nowait(self, item: Any) -> None:
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)


class Future(concurrent.futures.Future[T]):
    """A future that threads take turns to wait for."""

    def __init__(self, threads: Threads) -> None:
        super().__init__()
        self._threads = threads

    def result(self, timeout: float | None = None) -> T:
        self._settled(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._settled(timeout)
        return super().exception(0)

    def _settled(self, timeout: float | None) -> None:
        if not self._threads.wait(self.done, "a future", timeout):
            raise concurrent.futures.TimeoutError


class ThreadPoolExecutor:
    """As concurrent.futures.ThreadPoolExecutor; what it is given to do begins in order."""

    def __init__(self, threads: Threads, max_workers: int = 4, thread_name_prefix: str = "pool") -> None:
        self._threads = threads
        self._max_workers = max_workers
        self._name = thread_name_prefix
        self._queue: deque[Callable[[], None]] = deque()
        self._busy = 0
        self._closed = False

    def submit(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """See ThreadPoolExecutor."""
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[T] = Future(self._threads)

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work(*args, **kwargs)
            except Crashed:
                raise
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._queue.append(run)
        if self._busy < self._max_workers:
            self._busy += 1
            self._threads.start(self._work, f"{self._name}-{self._busy}", contextvars.copy_context())
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See ThreadPoolExecutor."""
        self._closed = True
        if cancel_futures:
            self._queue.clear()
        if wait:
            self._threads.wait(lambda: not self._busy, f"the end of the threads of {self._name}")

    def __enter__(self) -> ThreadPoolExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _work(self) -> None:
        try:
            while self._queue:
                self._queue.popleft()()
                self._threads.pause()
        finally:
            self._busy -= 1


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
    undo = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in PATCHED:
            for attribute, (real, simulated) in stand_ins.items():
                if getattr(module, attribute, None) is real:
                    setattr(module, attribute, simulated)
                    undo.append((module, attribute, real))
    try:
        yield
    finally:
        for module, attribute, real in undo:
            setattr(module, attribute, real)


def _stack(frame: FrameType | None) -> str:
    """The product's functions on the stack below `frame`, innermost first."""
    names = []
    while frame is not None:
        path = frame.f_code.co_filename
        if "/simulation/threads.py" not in path:
            names.append(f"\n    {path}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return "".join(names[:12])
