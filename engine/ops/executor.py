"""The seam between deciding and doing (I14): plain data in, plain data out, facts to a sink.

The first executor is in this process (engine/ops/local.py). Another one may live elsewhere: nothing in a Task or an
Outcome is a handle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from engine.graph import Vertex
from engine.ops.selection import Selection
from engine.record import Record
from engine.refs.ref import Remote
from storage.digest import Digest


class Task(Record):
    """One execution of a vertex.

    `execution` names it and, for a step, the ref it makes; `inputs` are in the vertex's order (a context gives none);
    `context` is the directory that context sources stand for, `selection` the files of it that a Copy takes;
    `mounted` the files that mounts of a Run take from a context, by the mount's number, and `directories` what that
    context stands for; `epoch` SOURCE_DATE_EPOCH in seconds.
    """

    vertex: Vertex
    execution: str
    attempt: int
    inputs: tuple[Remote, ...]
    context: str = ""
    excludes: tuple[str, ...] = ()
    selection: Selection | None = None
    epoch: int | None = None
    mounted: Mapping[int, Selection] = {}
    directories: Mapping[int, str] = {}


class Outcome(Record):
    """`ref`: the result; `exit_code` of the command, for a step that ran one; `content`: digest of the stored listing
    of what a Copy took of another result."""

    ref: Remote
    exit_code: int | None = None
    content: Digest | None = None


class Executor(Protocol):
    """Runs tasks. Cancelling `execute` stops the task and cleans up after it."""

    async def content(self, task: Task) -> Digest | None:
        """The digest of the stored listing of what a Copy takes of another result, where that can be had without a byte
        that is not here; None otherwise. Not for other tasks. Raises DiskError."""
        ...

    async def execute(self, task: Task) -> Outcome:
        """Raises StepFailed, MaterializationError, SandboxError, DiskError, InputError."""
        ...
