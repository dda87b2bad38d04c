"""The executor in this process: what each op does to refs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from engine.clock import Clock
from engine.errors import DiskError, InputError, StepFailed
from engine.events import LocalCreated, RemoteCreated, RuntimeChosen, SecurityLifted
from engine.grants import refusal
from engine.graph import (
    ArchiveSource,
    ContextSource,
    Copy,
    GitSource,
    HttpSource,
    ImageSource,
    LayerSource,
    Merge,
    Mkdir,
    Run,
    Scratch,
)
from engine.ledger import Facts
from engine.ops.attend import Attend, Attended
from engine.ops.copy import copy_layer, directory_layer
from engine.ops.executor import Outcome, Task
from engine.ops.oci_spec import Process
from engine.ops.output import OutputRecorder
from engine.ops.redact import Redactor
from engine.ops.rootfs import RootDir
from engine.ops.rules import asked_of
from engine.ops.run_mounts import Ready, RunMounts
from engine.ops.sandbox import Sandbox
from engine.ops.select import select
from engine.ops.selection import Selection
from engine.ops.users import ExecUser, names_nobody, resolve_user
from engine.record import changed
from engine.refs.asked import AskedPaths
from engine.refs.materializer import Materializer, Reason
from engine.refs.ref import Local, Ref, Remote, layers_to_json, of_image, of_layer, of_step, scratch
from engine.together import both
from storage.digest import Digest, digest_json
from storage.interfaces.layers import Snapshot, SnapshotStore
from storage.threads import in_thread, settle

if TYPE_CHECKING:
    from engine.ops.sources import SourceFetcher

T = TypeVar("T")
SandboxFactory = Callable[[], Awaitable[tuple[Sandbox, RuntimeChosen]]]
"""Chooses the OCI runtime; called when the first RUN needs one."""


@dataclass(slots=True)
class LocalExecutor:
    """Executes tasks here. Sources give remotes; steps materialize what they need. `ambient`: variables (proxies) that
    every RUN sees unless it sets them itself; they are in no key and in no event. `attend`: who may look at a command
    before it runs, and after it failed."""

    materializer: Materializer
    asked: AskedPaths
    snapshots: SnapshotStore
    sources: Callable[[], SourceFetcher]
    make_sandbox: SandboxFactory
    facts: Facts
    clock: Clock
    mounts: RunMounts
    ambient: Mapping[str, str] = field(default_factory=dict)
    attend: Attend | None = None
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
            case LayerSource() as op:
                return await self._layer(task, op)
            case HttpSource() | GitSource() | ArchiveSource() as op:
                return Outcome(await self.sources().fetch(op, task.vertex.digest))
            case Merge() as op:
                return await self._merge(task, op)
            case Run() as op:
                return await self._run(task, op)
            case Copy() as op:
                return await self._copy(task, op)
            case _ as op:  # a Mkdir
                return await self._mkdir(task, op)

    async def content(self, task: Task) -> Digest | None:
        """See Executor.content."""
        op = task.vertex.op
        assert isinstance(op, Copy) and len(task.inputs) == 2, "what a context gives is known before anything runs"
        source, kept = task.inputs[1], self.materializer.kept
        await kept.check(source.layers, task.vertex.digest)
        if not source.layers or not all(map(kept.mountable, source.layers)):
            return None

        def read() -> Digest | None:
            try:
                selection = self._selection(op, [kept.lower(layer) for layer in source.layers])
            except InputError:
                return None  # the step itself will say what is wrong
            return self.materializer.blobs.put(selection.listing())

        return await self._compose(task, read)

    def _selection(self, op: Copy, lowers: Sequence[Path]) -> Selection:
        """What `op` takes of the tree of `lowers`, with its contents. Blocking. Raises InputError, OSError."""
        with self.snapshots.view(lowers) as tree:
            return select(op, tree, hash_files=True)

    # ------------------------------------------------------------ ops

    async def _merge(self, task: Task, op: Merge) -> Outcome:
        layers = tuple(layer for ref in task.inputs for layer in ref.layers)
        ref = Remote(f"merge-{digest_json([*(layer.name for layer in layers), *op.blobs]).hex}", layers)
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

    async def _layer(self, task: Task, op: LayerSource) -> Outcome:
        ref = of_layer(op.layer, op.created)
        if not self.materializer.obtainable(ref.layers[0]):
            hint = "append it again: the file itself is not in the record"
            raise InputError("the layer is not here any more", where=str(op.layer.blob.digest), hint=hint)
        await self.facts.record(
            LocalCreated(
                ref=ref.id, parent=None, bytes=op.layer.blob.size, layers=tuple(layers_to_json(ref.layers))
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
                    attended = Attended(task, process, snapshot, base, sandbox, self.snapshots, self.facts)
                    if self.attend is not None:
                        await self.attend.before(attended)
                    status = await sandbox.run(process, redactor.write)
                    if status != 0 and self.attend is not None:
                        redactor.close()
                        output.close()
                        await self.attend.failed(attended, status)
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
        under = task.inputs[0]
        alone = op.link and (not op.chown or names_nobody(op.chown))  # nothing of the base is asked: it stays remote

        content: list[Digest] = []

        def write(base: Local | None, lowers: Sequence[Path] | None) -> int:
            with self._view(base.lowers if base else ()) as root, self._view(lowers or ()) as tree:
                if lowers is None:
                    assert task.selection is not None  # the planner selected the files to make the key
                    selection, origin = task.selection, Path(task.context) if task.selection.entries else None
                else:
                    assert tree is not None
                    selection, origin = select(op, tree, hash_files=True), tree
                    content.append(self.materializer.blobs.put(selection.listing()))
                return copy_layer(
                    op, selection, origin, None if op.link else root,
                    lambda: self.snapshots.compose(task.execution), now_ns=self._now(task), users=root,
                )  # fmt: skip

        async with AsyncExitStack() as stack:
            base, lowers = await both(
                self._nothing() if alone else self._materialize(task, under, "copy"),
                self._asked(stack, task, op, task.inputs[1:]),
            )
            size = await self._compose(task, lambda: write(base, lowers))
        made = await self._finish(task, base or under, size)
        return changed(made, content=content[0]) if content else made

    async def _asked(
        self, stack: AsyncExitStack, task: Task, op: Copy, sources: Sequence[Remote]
    ) -> Sequence[Path] | None:
        """Lowers that have what `op` takes from its source, until `stack` ends; None without a source."""
        if not sources:
            return None
        return await stack.enter_async_context(
            self.asked.paths(
                sources[0], asked_of(op), vertex=task.vertex.digest, needed_by=task.vertex.name, looks=op.parents
            )
        )

    @staticmethod
    async def _nothing() -> None:
        """For a base that is not looked at."""

    async def _mkdir(self, task: Task, op: Mkdir) -> Outcome:
        base = await self._materialize(task, task.inputs[0], "run")

        def write() -> int:
            with self._view(base.lowers) as root:
                return directory_layer(
                    op.path, root, lambda: self.snapshots.compose(task.execution), user=op.user, now_ns=self._now(task)
                )

        return await self._finish(task, base, await self._compose(task, write))

    # ------------------------------------------------------------ what steps share

    async def _step(self, task: Task, base: Local, work: Callable[[Snapshot], Awaitable[int]]) -> Outcome:
        """Mount, `work`, commit; nothing stays mounted or half-made when any of it fails or is cancelled."""
        snapshot = await self._begin(task, base)
        try:
            exit_code = await work(snapshot)
            size = await in_thread(snapshot.commit)
        except OSError as error:
            raise DiskError.of(error, task.vertex.name) from error
        finally:
            await in_thread(snapshot.discard)
        return await self._finish(task, base, size, exit_code)

    async def _compose(self, task: Task, write: Callable[[], T]) -> T:
        """Write a layer; what is unfinished when that fails or is cancelled is gone when this returns."""
        try:
            return await in_thread(write)
        except OSError as error:
            raise DiskError.of(error, task.vertex.name) from error

    async def _finish(self, task: Task, base: Ref, size: int, exit_code: int | None = None) -> Outcome:
        """The ref of a step whose changes, `size` bytes, are kept."""
        ref = of_step(task.execution, base, self._now(task))
        await self.facts.record(
            LocalCreated(ref=ref.id, parent=base.id, bytes=size, layers=tuple(layers_to_json(ref.layers))),
            vertex=task.vertex.digest,
        )
        return Outcome(ref, exit_code)

    @contextmanager
    def _view(self, lowers: Sequence[Path]) -> Iterator[Path | None]:
        """The files of `lowers` to read; None when there are none."""
        if not lowers:
            yield None
        else:
            with self.snapshots.view(lowers) as tree:
                yield tree

    async def _begin(self, task: Task, base: Local) -> Snapshot:
        starting = asyncio.ensure_future(in_thread(lambda: self.snapshots.begin(task.execution, base.lowers)))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await settle(starting)
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
