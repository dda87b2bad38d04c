"""Tasks, futures and callbacks of the simulated loop: they know on behalf of which process they are, and sets of them
have the same order in every run."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import TYPE_CHECKING, Any

from tests.simulation.chance import enter, process, process_of

if TYPE_CHECKING:
    from tests.simulation.loop import SimLoop


class Source(deque["Handle"]):
    """What one turn, or one thread, has scheduled."""

    listed = False


class Handle(asyncio.TimerHandle):
    """A callback that is due, or will be at `when()`; `process`: on whose behalf."""

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], loop: SimLoop,
        context: contextvars.Context | None,
    ) -> None:  # fmt: skip
        context = context if context is not None else contextvars.copy_context()
        super().__init__(when, callback, args, loop, context)
        self.process = process_of(context)


class _Numbered:
    """Hashed by a number, so that sets of them have the same order in every run."""

    number: int

    def __hash__(self) -> int:
        return self.number


class SimFuture(_Numbered, asyncio.Future[Any]):
    """A future of the loop."""

    def __init__(self, loop: SimLoop) -> None:
        self.number = loop.numbered()
        self.process = process()
        super().__init__(loop=loop)


class SimTask(_Numbered, asyncio.Task[Any]):
    """A task of the loop."""

    def __init__(
        self, coro: Coroutine[Any, Any, Any], loop: SimLoop, name: str, context: contextvars.Context
    ) -> None:
        self.number = loop.numbered()
        self.context = context
        self.process = process_of(context)
        super().__init__(coro, loop=loop, name=name or f"task-{self.number}", context=context)


def nobodys() -> contextvars.Context:
    """A context that is of no process."""
    context = contextvars.copy_context()
    context.run(enter, None)
    return context


def awaits(task: SimTask) -> str:
    """Where `task` is, innermost function first."""
    names: list[str] = []
    waits: Any = task.get_coro()
    while waits is not None:
        frame: FrameType | None = getattr(waits, "cr_frame", None) or getattr(waits, "ag_frame", None)
        if frame is not None:
            names.append(f"\n    {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        waits = getattr(waits, "cr_await", None) or getattr(waits, "ag_await", None)
    owner = f" of {task.process.name}" if task.process is not None else ""
    return f"{task.get_name()}{owner} waits in{''.join(reversed(names))}"
