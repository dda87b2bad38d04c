"""An event loop on a virtual clock, in which the seed decides what runs next.

Order. asyncio runs callbacks in the order in which they were scheduled. What a program may rely on of that is less:
what *one* turn of a callback schedules (the steps of tasks that it starts, the callbacks of a future that it completes)
runs in that order; what several turns schedule was, in a real run, ordered by when bytes, timers and threads came. So
each turn has a queue of its own, and the next callback is the first one of any of them, drawn. Callbacks from one
thread are in one queue, too. Two that came due by time have no order.

Time stands still while there is something to do, but for a hair each turn, and for a hiccup now and then, so that a
timer may win against what is ready. When there is nothing to do it jumps to the next timer, or to where a thread stops
waiting. It begins at 0, which is EPOCH for those who ask for the date.

Processes. `spawn` starts one: what it runs, and whatever comes of that, has it in its context. When it crashes (whoever
makes a Crashed ends the process on whose behalf that is) or is killed, its callbacks are dropped, its threads and tasks
are unwound, with nothing of what they do on the way having an effect, and who awaits it gets Crashed. The coroutine
given to `run` is a process, too: "main".
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from engine.clock import Clock
from tests.simulation.chance import Chance, Crashed, Process, enter, is_dead, process
from tests.simulation.tasks import Handle, SimFuture, SimTask, Source, awaits, nobodys
from tests.simulation.threads import Deadlock, ThreadPoolExecutor, Threads, patched

if TYPE_CHECKING:
    from asyncio import BaseEventLoop as _Loop  # reason: of the other one no instance may be made, say the stubs
else:
    from asyncio import AbstractEventLoop as _Loop

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
EPOCH = 1_767_225_600
"""Seconds since 1970 at which simulations begin."""
TURN = 1e-5
"""Seconds that a turn takes."""
POOL = 5
"""Threads of the default executor: those of a machine with one core."""


class Livelock(Exception):
    """It goes on and on: more turns than any honest run takes."""


class SimLoop(_Loop):
    """See above. Use it for one `run`; `max_turns`: more of them are a livelock. `turns` counts them."""

    def __init__(self, chance: Chance, *, max_turns: int = 1_000_000) -> None:
        self._chance = chance
        self._max_turns = max_turns
        self._now = 0.0
        self._numbers = 0
        self._sources: list[Source] = []
        self._source = Source()
        self._timers: list[tuple[float, int, Handle]] = []
        self._executors: dict[tuple[object, Process | None], ThreadPoolExecutor] = {}
        self._tasks: dict[int, SimTask] = {}
        self._generators: dict[int, Process | None] = {}
        self._living: dict[Process, tuple[asyncio.Task[Any], asyncio.Future[Any]]] = {}
        self._running = False
        self._closed = False
        self.turns = 0
        self.threads = Threads(chance, self)
        self.complaints: list[str] = []
        """What nobody awaited: failed tasks and callbacks, as asyncio would have logged them."""

    # ------------------------------------------------------------ running

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """What `main` returns or raises, once all that it started has ended too (asyncio.run cancels what is left).
        Raises Crashed when it crashed, Deadlock, Livelock."""
        assert not self._closed, "a loop is for one run"
        collecting = gc.isenabled()
        gc.disable()  # when a cycle is collected must not depend on what ran before
        hooks = sys.get_asyncgen_hooks()
        self._running = True
        asyncio._set_running_loop(self)
        sys.set_asyncgen_hooks(firstiter=self._begun, finalizer=self._finalize)
        try:
            return self._run(main)
        finally:
            for left in list(self._living):
                self._end(left)
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)
            self._running, self._closed = False, True
            if collecting:
                gc.enable()

    def _run(self, main: Coroutine[Any, Any, T]) -> T:
        ended: asyncio.Future[T] = self.create_future()
        self._begin("main", main, ended)
        while not ended.done():
            self._turn()
        return ended.result()

    def spawn(self, name: str, main: Coroutine[Any, Any, T]) -> tuple[Process, asyncio.Future[T]]:
        """Start a process that does `main`, and what comes of it: its result, what it raised, or Crashed."""
        ended: asyncio.Future[T] = self.create_future()
        return self._begin(name, main, ended), ended

    def kill(self, victim: Process) -> None:
        """As kill -9, from outside: nothing of it happens any more. Harmless when it has ended."""
        assert process() is not victim, "whoever ends himself raises Crashed"
        if victim in self._living:
            self._bury(victim)

    def _begin(self, name: str, main: Coroutine[Any, Any, T], ended: asyncio.Future[T]) -> Process:
        owner, context = Process(name), contextvars.copy_context()
        context.run(enter, owner)
        task = self.create_task(self._whole(main, owner), name=name, context=context)
        self._living[owner] = task, ended
        task.add_done_callback(lambda task: self._over(owner), context=nobodys())
        return owner

    async def _whole(self, main: Coroutine[Any, Any, T], owner: Process) -> T:
        """`main`, and the end of what it left behind, as asyncio.run has it."""
        try:
            return await main
        finally:
            me = asyncio.current_task()
            if left := [task for task in self._of(owner) if task is not me]:
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)
            while self.threads.of(owner):  # the default executor's, and daemons that still have something to do
                if all(thread.until is not None and thread.deadline is None for thread in self.threads.of(owner)):
                    break
                await asyncio.sleep(0.01)

    def _over(self, owner: Process) -> None:
        if owner not in self._living:
            return
        task, ended = self._living[owner]
        self._end(owner)
        if ended.done():
            return
        if task.cancelled():
            ended.cancel()
        elif (error := task.exception()) is not None:
            ended.set_exception(error)
            ended.exception()  # who does not await it knows
        else:
            ended.set_result(task.result())

    def _bury(self, owner: Process) -> None:
        _, ended = self._living[owner]
        owner.crashed = True
        self._end(owner)
        if not ended.done():
            ended.set_exception(nobodys().run(Crashed, owner.name))
            ended.exception()

    def _end(self, owner: Process) -> None:
        """Have nothing of `owner` ever happen again."""
        owner.alive = False
        self._living.pop(owner, None)
        for source in self._sources:
            kept = [handle for handle in source if handle.process is not owner]
            source.clear()
            source.extend(kept)
        self._sources = [source for source in self._sources if source or _unlist(source)]
        self._timers = [entry for entry in self._timers if entry[2].process is not owner]
        heapq.heapify(self._timers)
        self.threads.unwind(owner)
        self._executors = {key: pool for key, pool in self._executors.items() if key[1] is not owner}
        for task in self._of(owner):
            self._tasks.pop(task.number, None)
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio itself says it
            if not task.done():
                with suppress(BaseException):  # a coroutine that goes on awaiting, or finds out that it is dead
                    task.context.run(task.get_coro().close)

    def _of(self, owner: Process | None) -> list[SimTask]:
        return [task for task in list(self._tasks.values()) if task.process is owner]

    # ------------------------------------------------------------ one turn

    def _turn(self) -> None:
        self.turns += 1
        if self.turns > self._max_turns:
            raise Livelock("\n".join([f"no end after {self._max_turns} turns", *self.waiting()]))
        self._now += TURN
        if self.turns & 63 == 0 and self._chance.maybe(50):
            self._now += self._chance.below(100) / 1000
        self._due()
        able = self.threads.runnable()
        choices = len(self._sources) + len(able)
        if not choices:
            self._jump()
            return
        chosen = self._chance.below(choices) if choices > 1 else 0
        if chosen < len(self._sources):
            self._run_next(chosen)
        else:
            thread = able[chosen - len(self._sources)]
            thread.source = thread.source or Source()
            self._source = thread.source
            self.threads.step(thread)
        if self.threads.deadlock is not None:
            raise self.threads.deadlock
        for owner in [owner for owner in self._living if not owner.alive]:
            self._bury(owner)

    def _run_next(self, chosen: int) -> None:
        source = self._sources[chosen]
        handle = source.popleft()
        if not source:
            self._sources[chosen] = self._sources[-1]
            self._sources.pop()
            source.listed = False
        self._source = Source()
        if not handle.cancelled():
            handle._run()

    def _due(self) -> None:
        while self._timers and self._timers[0][0] <= self._now:
            handle = heapq.heappop(self._timers)[2]
            if not handle.cancelled():
                self._schedule(handle, Source())

    def _jump(self) -> None:
        """There is nothing to do now."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        times = [self._timers[0][0]] if self._timers else []
        if (deadline := self.threads.next_deadline()) is not None:
            times.append(deadline)
        if not times:
            raise Deadlock("\n".join(["nobody can go on", *self.waiting()]))
        self.advance(min(times))

    def waiting(self) -> list[str]:
        """What every task and every thread waits for."""
        tasks = [task for task in self._tasks.values() if not task.done()]
        return [awaits(task) for task in tasks] + self.threads.waiting()

    # ------------------------------------------------------------ time

    def time(self) -> float:
        """Seconds since the beginning."""
        return self._now

    def advance(self, to: float) -> None:
        """It is `to` now, or later already."""
        self._now = max(self._now, to)

    def clock(self) -> Clock:
        """The time, as the engine asks for it."""
        return Clock(lambda: EPOCH * 10**9 + round(self._now * 10**9), self.time)

    # ------------------------------------------------------------ what asyncio asks a loop for

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = Handle(self._now, callback, args, self, context)
        self._schedule(handle, self._source)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:  # fmt: skip
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:  # fmt: skip
        handle = Handle(when, callback, args, self, context)
        if handle.process is None or handle.process.alive:
            heapq.heappush(self._timers, (when, self.numbered(), handle))
        return handle

    def _schedule(self, handle: Handle, source: Source) -> None:
        if handle.process is not None and not handle.process.alive:
            return
        source.append(handle)
        if not source.listed:
            source.listed = True
            self._sources.append(source)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # dropped when it would be due

    def numbered(self) -> int:
        """A number that nobody else has."""
        self._numbers += 1
        return self._numbers

    def create_future(self) -> asyncio.Future[Any]:
        return SimFuture(self)

    def create_task(
        self, coro: Generator[Any, None, T] | Coroutine[Any, Any, T], *, name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:  # fmt: skip
        if is_dead() and context is None:
            coro.close()
            raise Crashed("a task of a dead process")
        assert asyncio.iscoroutine(coro)
        task = SimTask(coro, self, str(name or ""), context if context is not None else contextvars.copy_context())
        self._tasks[task.number] = task
        task.add_done_callback(lambda _: self._tasks.pop(task.number, None), context=nobodys())
        return task

    def run_in_executor(
        self, executor: Any, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """`func` in a simulated thread; at most so many at once as `executor` has."""
        if is_dead():
            raise Crashed("a thread of a dead process")
        if not isinstance(executor, ThreadPoolExecutor):
            key = executor, process()
            pool = self._executors.get(key)
            if pool is None:
                pool = ThreadPoolExecutor(self.threads, getattr(executor, "_max_workers", POOL), "worker")
                self._executors[key] = pool
            executor = pool
        return asyncio.wrap_future(executor.submit(func, *args), loop=self)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Somebody failed, and nobody awaits it."""
        error, left = context.get("exception"), context.get("task") or context.get("future")
        owners = [getattr(one, "process", None) for one in (left, *getattr(left, "_children", ()))]  # those of a gather
        if not isinstance(error, Crashed) and not any(owner is not None and owner.crashed for owner in owners):
            self.complaints.append(f"{context.get('message')}: {error!r}")

    def _begun(self, generator: AsyncGenerator[Any, None]) -> None:
        self._generators[id(generator)] = process()

    def _finalize(self, generator: AsyncGenerator[Any, None]) -> None:
        """Nobody refers to it any more, and it has not ended. As asyncio does, but not for the dead."""
        owner = self._generators.pop(id(generator), None)
        if self._closed or (owner is not None and not owner.alive):
            return
        context = contextvars.copy_context()
        context.run(enter, owner)
        self.create_task(generator.aclose(), context=context)


@contextmanager
def simulated_threads(loop: SimLoop) -> Iterator[Threads]:
    """Have the product's modules use threads of `loop`; those that import `threading` must be loaded before."""
    import storage.durable
    import storage.layers.readahead
    import storage.log.eventlog
    import storage.partial  # noqa: F401

    with patched(loop.threads):
        yield loop.threads


def _unlist(source: Source) -> bool:
    source.listed = False
    return False
