"""What `threading`, `queue` and `concurrent.futures` offer, as far as the product uses it, for simulated threads."""

from __future__ import annotations

import concurrent.futures
import contextvars
import queue
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tests.simulation.chance import Crashed, is_dead

if TYPE_CHECKING:
    from tests.simulation.threads import SimThread, Threads

T = TypeVar("T")


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
    """As concurrent.futures.ThreadPoolExecutor; what it is given to do begins in order. Of one process."""

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

    def __enter__(self) -> Self:
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
