"""The executor in this process: what each op does to refs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import DiskError, StepFailed
from engine.events import LocalCreated, RemoteCreated, RuntimeChosen, SecurityLifted
from engine.executor import Outcome, Task
from engine.grants import refusal
from engine.graph import (
    ArchiveSource,
    ContextSource,
    Copy,
    GitSource,
    HttpSource,
    ImageSource,
    Merge,
    Mkdir,
    Run,
    Scratch,
)
from engine.ledger import Facts
from engine.ops.copy import copy_into, make_directory
from engine.ops.oci_spec import Process
from engine.ops.output import OutputRecorder
from engine.ops.redact import Redactor
from engine.ops.rootfs import RootDir
from engine.ops.run_mounts import Ready, RunMounts
from engine.ops.sandbox import Sandbox
from engine.ops.select import select
from engine.ops.users import ExecUser, resolve_user
from engine.refs.materializer import Clock, Materializer, Reason
from engine.refs.ref import Local, Remote, layers_to_json, of_image, of_step, scratch
from engine.together import in_thread, together
from storage.digest import digest_json
from storage.interfaces import Snapshot, SnapshotStore

if TYPE_CHECKING:
    from engine.ops.sources import SourceFetcher

SandboxFactory = Callable[[], Awaitable[tuple[Sandbox, RuntimeChosen]]]
"""Chooses the OCI runtime; called when the first RUN needs one."""


@dataclass(slots=True)
class LocalExecutor:
    """Executes tasks here. Sources give remotes; steps materialize what they need. `ambient`: variables (proxies) that
    every RUN sees unless it sets them itself; they are in no key and in no event."""

    materializer: Materializer
    snapshots: SnapshotStore
    sources: Callable[[], SourceFetcher]
    make_sandbox: SandboxFactory
    facts: Facts
    clock: Clock
    mounts: RunMounts
    ambient: Mapping[str, str] = field(default_factory=dict)
    _sandbox: Sandbox | None = None
    _choosing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def execute(self, task: Task) -> Outcome:
        """See Executor.execute."""
        match task.vertex.op:
            case Scratch():
                return Outcome(scratch())
            case ContextSource():
                raise AssertionError("a context has no ref: its files are selected before")
            case ImageSource() as op:
                return await self._image(task, op)
            case HttpSource() | GitSource() | ArchiveSource() as op:
                return Outcome(await self.sources().fetch(op, task.vertex.digest))
            case Merge():
                return await self._merge(task)
            case Run() as op:
                return await self._run(task, op)
            case Copy() as op:
                return await self._copy(task, op)
            case Mkdir() as op:
                base = await self._materialize(task, task.inputs[0], "run")
                return await self._step(
                    task, base, lambda snapshot: in_thread(lambda: self._mkdir(task, op, snapshot.root))
                )

    # ------------------------------------------------------------ ops

    async def _merge(self, task: Task) -> Outcome:
        layers = tuple(layer for ref in task.inputs for layer in ref.layers)
        ref = Remote(f"merge-{digest_json([layer.name for layer in layers]).hex}", layers)
        await self.facts.record(
            LocalCreated(ref=ref.id, parent=None, bytes=0, layers=tuple(layers_to_json(layers))),
            vertex=task.vertex.digest,
        )
        return Outcome(ref)

    async def _image(self, task: Task, op: ImageSource) -> Outcome:
        ref = of_image(op.layers, op.provider)
        await self.facts.record(
            RemoteCreated(
                ref=ref.id,
                layers=tuple(layer.to_json() for layer in op.layers),
                providers=(op.provider.to_json(),),
            ),
            vertex=task.vertex.digest,
        )
        return Outcome(ref)

    async def _run(self, task: Task, op: Run) -> Outcome:
        refused = refusal(op, self.mounts.grants.offered)
        if refused is not None:
            raise refused
        base = await self._materialize(task, task.inputs[0], "run")
        sandbox = await self._ready_sandbox()

        async def run(snapshot: Snapshot) -> int:
            user = await in_thread(lambda: _user(snapshot.root, op.user))
            output = OutputRecorder(self.facts, task.vertex.digest, self.clock.monotonic)
            redactor = Redactor(self.mounts.grants.secrets.values(), output.write)
            try:
                async with self.mounts.ready(
                    task, op, lambda ref: self._materialize(task, ref, "run"),
                    lambda line: output.write(2, f"{line}\n".encode()),
                ) as ready:  # fmt: skip
                    process = self._process(op, user, ready, snapshot.root)
                    if process.insecure:
                        self.facts.post(SecurityLifted(security=op.security), vertex=task.vertex.digest)
                    status = await sandbox.run(process, redactor.write)
            finally:
                redactor.close()
                output.close()
            if status != 0:
                raise StepFailed(" ".join(op.argv), status)
            return status

        return await self._step(task, base, run)

    def _process(self, op: Run, user: ExecUser, ready: Ready, root: Path) -> Process:
        env = {**self.ambient, "HOME": user.home, **dict(op.env), **ready.env}
        secret = dict(ready.secret_env)
        return Process(
            argv=op.argv,
            env=tuple((name, value) for name, value in env.items() if name not in secret),
            cwd=op.cwd,
            uid=user.uid,
            gid=user.gid,
            groups=tuple(user.additional_gids),
            network=op.network,
            root=root,
            scripts=op.scripts,
            mounts=ready.mounts,
            insecure=op.security == "insecure",
            secret_env=tuple(secret.items()),
            private=ready.private,
        )

    async def _copy(self, task: Task, op: Copy) -> Outcome:
        base, *sources = await together(self._materialize(task, ref, "copy") for ref in task.inputs)
        source = sources[0] if sources else None
        now = self._now(task)

        def copy(root: Path) -> None:
            if source is not None:
                with self.snapshots.view(source.lowers) as tree:
                    copy_into(op, select(op, tree, hash_files=False), tree, root, now_ns=now)
            else:
                assert task.selection is not None  # the planner selected the files to make the key
                copy_into(op, task.selection, Path(task.context), root, now_ns=now)

        return await self._step(task, base, lambda snapshot: in_thread(lambda: copy(snapshot.root)))

    def _mkdir(self, task: Task, op: Mkdir, root: Path) -> None:
        make_directory(op.path, root, self._now(task))

    # ------------------------------------------------------------ what steps share

    async def _step(
        self, task: Task, base: Local, work: Callable[[Snapshot], Awaitable[int | None]]
    ) -> Outcome:
        """Mount, `work`, commit; nothing stays mounted or half-made when any of it fails or is cancelled."""
        snapshot = await self._begin(task, base)
        try:
            exit_code = await work(snapshot)
            size = await in_thread(snapshot.commit)
        except OSError as error:
            raise DiskError.of(error, task.vertex.name) from error
        finally:
            await in_thread(snapshot.discard)
        ref = of_step(task.execution, base, self._now(task))
        await self.facts.record(
            LocalCreated(ref=ref.id, parent=base.id, bytes=size, layers=tuple(layers_to_json(ref.layers))),
            vertex=task.vertex.digest,
        )
        return Outcome(ref, exit_code)

    async def _begin(self, task: Task, base: Local) -> Snapshot:
        starting = asyncio.ensure_future(in_thread(lambda: self.snapshots.begin(task.execution, base.lowers)))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])
            if starting.exception() is None:
                await in_thread(starting.result().discard)
            raise

    async def _materialize(self, task: Task, ref: Remote, reason: Reason) -> Local:
        return await self.materializer.materialize(
            ref, vertex=task.vertex.digest, reason=reason, needed_by=task.vertex.name
        )

    async def _ready_sandbox(self) -> Sandbox:
        async with self._choosing:
            if self._sandbox is None:
                self._sandbox, chosen = await self.make_sandbox()
                await self.facts.record(chosen)
            return self._sandbox

    def _now(self, task: Task) -> int:
        return self.clock.now() if task.epoch is None else task.epoch * 1_000_000_000


def _user(root: Path, text: str) -> ExecUser:
    with RootDir(root) as rootfs:
        return resolve_user(rootfs, text)
