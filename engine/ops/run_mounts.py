"""What `RUN --mount` puts into a container: gathered before the step, put away after it.

As BuildKit does it where the Dockerfile reference is silent:

- A bind of the build context is a copy of what .dockerignore leaves, owned by root and checked against the cache key;
  one of a stage or image is the mounted thing itself. `rw` gives a view whose changes are dropped.
- A cache is named by its id, owner, mode and initial content: mounts that differ in one of them share nothing.
  One that another mount lies in is used by one step at a time: where that mount goes must not change under it.
- Secrets and agent sockets lie on a tmpfs that only this process sees. The first agent is SSH_AUTH_SOCK.
- What is optional and was not given is left out.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from engine.clock import Clock
from engine.errors import DiskError, InputError
from engine.events import AgentForwarded, CacheMountUsed, SecretMounted
from engine.grants import Grants
from engine.graph import Copy, Mount, Run, Sharing
from engine.ledger import Facts
from engine.ops.copy import copy_layer
from engine.ops.executor import Task
from engine.ops.oci_spec import ContainerMount
from engine.ops.rootfs import RootDir
from engine.ops.rules import source_of
from engine.ops.select import select
from engine.ops.selection import Selection
from engine.refs.ref import Local, Remote
from engine.together import POLL
from storage.digest import Digest, digest_json
from storage.interfaces.layers import LayerWriter, SnapshotStore
from storage.interfaces.mounts import CacheMounts, HeldCache, SecretPlaces
from storage.threads import in_thread

_SECRET_MODE, _SOCKET_MODE, _CACHE_MODE = 0o400, 0o600, 0o755
_SOURCE = "source"
_STRICTEST: tuple[Sharing, ...] = ("shared", "private", "locked")


@dataclass(frozen=True, slots=True)
class Ready:
    """What the process gets: `mounts`, parents first; `env` to add; `secret_env` and `private` as in Process."""

    mounts: tuple[ContainerMount, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    private: Path | None = None


@dataclass(frozen=True, slots=True)
class RunMounts:
    """The collaborators. `grants` has the values of secrets; `writer` writes into a new, empty directory."""

    snapshots: SnapshotStore
    caches: CacheMounts
    places: SecretPlaces
    grants: Grants
    facts: Facts
    clock: Clock
    writer: Callable[[Path], LayerWriter]

    @asynccontextmanager
    async def ready(
        self, task: Task, op: Run, materialize: Callable[[Remote], Awaitable[Local]], say: Callable[[str], None]
    ) -> AsyncIterator[Ready]:
        """Everything that `op` mounts, for the time of the context. `say`: a line for people who watch the step.

        Raises InputError (a source is not there), DiskError, what `materialize` raises.
        """
        if not op.mounts:
            yield Ready()
            return
        async with AsyncExitStack() as relays:
            held = ExitStack()
            try:
                step = _Step(self, task, op, materialize, say, held, relays)
                yield await step.gather()
            finally:
                await relays.aclose()
                await in_thread(held.close)


@dataclass(slots=True)
class _Step:
    """One step's mounts while they are gathered. What must be put away again is in `held` before anybody can be
    cancelled, as it is put there by the thread that made it."""

    tools: RunMounts
    task: Task
    op: Run
    materialize: Callable[[Remote], Awaitable[Local]]
    say: Callable[[str], None]
    held: ExitStack
    relays: AsyncExitStack
    place: Path | None = None
    views: dict[int, Path] = field(default_factory=dict)

    async def gather(self) -> Ready:
        tools, mounts = self.tools, list[ContainerMount]()
        env: dict[str, str] = {}
        secret_env: list[tuple[str, str]] = []
        if any(mount.kind in {"secret", "ssh"} for mount in self.op.mounts):
            self.place = await in_thread(lambda: self.held.enter_context(tools.places.place()))
        for number, mount in enumerate(self.op.mounts):
            match mount.kind:
                case "bind":
                    mounts.append(await self._bind(number, mount))
                case "tmpfs":
                    mode = 0o1777 if mount.mode < 0 else mount.mode
                    mounts.append(ContainerMount(mount.target, "", mount.readonly, size=mount.size, mode=mode))
                case "secret" if mount.id in tools.grants.secrets:
                    if mount.target:
                        mounts.append(self._secret(number, mount))
                    if mount.env:
                        secret_env.append((mount.env, self._secret_variable(mount)))
                    self._post(SecretMounted(id=mount.id, target=mount.target, env=mount.env))
                case "ssh" if mount.id in tools.grants.agents:
                    mounts.append(await self._agent(number, mount))
                    env.setdefault("SSH_AUTH_SOCK", mount.target)
        mounts += await self._caches()
        mounts.sort(key=lambda mount: mount.target.split("/"))
        _check_nesting(mounts)
        private = None
        if secret_env and self.place:
            private = self.place / "bundle"
            private.mkdir(mode=0o700)
        return Ready(tuple(mounts), env, tuple(secret_env), private)

    def _post(self, fact: SecretMounted | AgentForwarded | CacheMountUsed) -> None:
        self.tools.facts.post(fact, vertex=self.task.vertex.digest)

    # ------------------------------------------------------------ secrets and agents

    def _secret(self, number: int, mount: Mount) -> ContainerMount:
        assert self.place is not None
        path = self.place / f"secret.{number}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:  # noqa: PTH123  a descriptor has no Path
                file.write(self.tools.grants.secrets[mount.id])
                os.fchown(file.fileno(), mount.uid, mount.gid)
                os.fchmod(file.fileno(), _SECRET_MODE if mount.mode < 0 else mount.mode)
        except OSError as error:
            raise DiskError.of(error, f"mounting secret {mount.id!r}") from error
        return ContainerMount(mount.target, str(path), readonly=True, directory=False)

    def _secret_variable(self, mount: Mount) -> str:
        value = self.tools.grants.secrets[mount.id]
        if b"\0" in value:
            raise InputError(
                f"secret {mount.id!r} holds a NUL byte: it cannot be a variable", hint="mount it as a file"
            )
        return value.decode("utf-8", "surrogateescape")

    async def _agent(self, number: int, mount: Mount) -> ContainerMount:
        from engine.ops.ssh_agent import relay

        assert self.place is not None
        path = self.place / f"agent.{number}"
        mode = _SOCKET_MODE if mount.mode < 0 else mount.mode
        agent = self.tools.grants.agents[mount.id]
        await self.relays.enter_async_context(relay(agent, path, mode, mount.uid, mount.gid))
        self._post(AgentForwarded(id=mount.id, target=mount.target))
        return ContainerMount(mount.target, str(path), readonly=True, directory=False)

    # ------------------------------------------------------------ binds

    async def _bind(self, number: int, mount: Mount) -> ContainerMount:
        selection = self.task.mounted.get(number)
        if selection is not None:
            path = await in_thread(lambda: self._context(number, mount, selection))
        else:
            base = await self.materialize(self._input(mount))
            root = await in_thread(lambda: self._view(number, mount, base))
            path = _locate(root, mount)
        return ContainerMount(mount.target, str(path), mount.readonly, path.is_dir())

    def _input(self, mount: Mount) -> Remote:
        """The task's inputs are the vertex's without contexts."""
        return self.task.inputs[mount.input - sum(context < mount.input for context in self._contexts)]

    @property
    def _contexts(self) -> set[int]:
        return {self.op.mounts[number].input for number in self.task.mounted}

    def _view(self, number: int, mount: Mount, base: Local) -> Path:
        if not mount.readonly:
            return self._scratch(number, base.lowers)
        if mount.input not in self.views:
            self.views[mount.input] = self.held.enter_context(self.tools.snapshots.view(base.lowers))
        return self.views[mount.input]

    def _scratch(self, number: int, lowers: tuple[Path, ...]) -> Path:
        """A writable view that is dropped."""
        snapshot = self.tools.snapshots.begin(f"{self.task.execution}-mount{number}", lowers)
        self.held.callback(snapshot.discard)
        return snapshot.root

    def _context(self, number: int, mount: Mount, selection: Selection) -> Path:
        root = self._scratch(number, ())
        op = source_of(mount, from_context=True, dest=f"/{_SOURCE}")
        self._copy(op, selection, Path(self.task.directories[number]), root)
        path = root / _SOURCE
        path.chmod(selection.entries[selection.matches[0].start].mode)
        return path

    def _copy(self, op: Copy, selection: Selection, source: Path, into: Path) -> None:
        copy_layer(op, selection, source, None, lambda: self.tools.writer(into), now_ns=self.tools.clock.now())

    # ------------------------------------------------------------ caches

    async def _caches(self) -> list[ContainerMount]:
        """Always in the same order, so that no two steps wait for each other; a cache that is mounted twice is held
        once, as strictly as either mount asks."""
        wanted: dict[Digest, list[tuple[int, Mount]]] = {}
        for number, mount in enumerate(self.op.mounts):
            if mount.kind == "cache":
                wanted.setdefault(self._cache_name(number, mount), []).append((number, mount))
        made = []
        for cache, users in sorted(wanted.items()):
            sharing = max((self._sharing(mount) for _, mount in users), key=_STRICTEST.index)
            held, waited = await self._acquire(cache, users[0][1], sharing)
            created = not held.exists()
            if created:
                await self._fill(held, *users[0])
            for number, mount in users:
                made.append(ContainerMount(mount.target, str(held.path), mount.readonly))
                self._post(
                    CacheMountUsed(
                        id=mount.id, target=mount.target, sharing=mount.sharing, cache=str(cache),
                        instance=held.instance, ref=self._cache_ref(number, mount), created=created,
                        readonly=mount.readonly, waited=waited,
                    )
                )  # fmt: skip
        return made

    def _sharing(self, mount: Mount) -> Sharing:
        holds_another = any(other.target.startswith(mount.target + "/") for other in self.op.mounts)
        return "locked" if holds_another and mount.sharing == "shared" else mount.sharing

    def _cache_name(self, number: int, mount: Mount) -> Digest:
        mode = _CACHE_MODE if mount.mode < 0 and mount.input < 0 else mount.mode
        source = posixpath.normpath("/" + mount.source) if mount.input >= 0 else ""
        ref = self._cache_ref(number, mount)
        owner = {"mode": mode, "uid": mount.uid, "gid": mount.gid}
        return digest_json({"id": mount.id, **owner, "ref": ref, "source": source})

    def _cache_ref(self, number: int, mount: Mount) -> str:
        selection = self.task.mounted.get(number)
        if selection is not None:
            return str(selection.digest)
        return self._input(mount).id if mount.input >= 0 else ""

    async def _acquire(self, cache: Digest, mount: Mount, sharing: Sharing) -> tuple[HeldCache, float]:
        started, told = self.tools.clock.monotonic(), False

        def attempt() -> HeldCache | None:
            held = self.tools.caches.try_acquire(cache, sharing)
            if held is not None:
                self.held.callback(held.release)
            return held

        while (held := await in_thread(attempt)) is None:
            if not told:
                self.say(f"waiting for cache mount {mount.id!r}: another step uses it")
                told = True
            await asyncio.sleep(POLL)
        if told:
            self.say(f"has cache mount {mount.id!r} now")
        return held, round(self.tools.clock.monotonic() - started, 6) if told else 0.0

    async def _fill(self, held: HeldCache, number: int, mount: Mount) -> None:
        selection = self.task.mounted.get(number)
        base = await self.materialize(self._input(mount)) if mount.input >= 0 and selection is None else None

        def make(directory: Path) -> None:
            mode, uid, gid = _CACHE_MODE, 0, 0
            with ExitStack() as stack:
                if selection is not None:
                    tree, chosen = Path(self.task.directories[number]), selection
                elif base is not None:
                    tree = stack.enter_context(self.tools.snapshots.view(base.lowers))
                    chosen = select(source_of(mount, from_context=False), tree, hash_files=False, literal=True)
                if mount.input >= 0:
                    mode, uid, gid = self._begin_with(directory, mount, chosen, tree)
            os.chown(directory, mount.uid or uid, mount.gid or gid)
            directory.chmod(mode if mount.mode < 0 else mount.mode)

        await in_thread(lambda: held.fill(make))

    def _begin_with(self, directory: Path, mount: Mount, chosen: Selection, tree: Path) -> tuple[int, int, int]:
        """Copy the initial content of a cache; returns mode and owner of the directory that it was in."""
        top = chosen.entries[chosen.matches[0].start]
        if top.type != "dir":
            raise InputError(f'"{mount.source}" is not a directory: a cache mount cannot begin with it')
        op = source_of(mount, from_context=mount.input in self._contexts)
        self._copy(op, chosen, tree, directory)
        return top.mode, top.uid, top.gid


def _locate(root: Path, mount: Mount) -> Path:
    """Where `source` is on the host, with no link left in it. Raises InputError."""
    try:
        with RootDir(root) as tree:
            real = tree.resolve(mount.source or "/")
            tree.stat(real)
    except OSError as error:
        raise InputError(
            f'"{mount.source}": not found', hint="--mount source is looked up from the root of the stage or image"
        ) from error
    return root / real.lstrip("/")


def _check_nesting(mounts: list[ContainerMount]) -> None:
    """A mount in a read-only one needs something there to be mounted on."""
    for mount in mounts:
        above = [other for other in mounts if mount.target.startswith(other.target + "/")]
        if not above or not above[-1].readonly:
            continue
        inner = mount.target.removeprefix(above[-1].target)
        try:
            with RootDir(Path(above[-1].source)) as tree:
                there = stat.S_ISDIR(tree.stat(inner).st_mode) == mount.directory
        except OSError:
            there = False
        if not there:
            raise InputError(
                f"{mount.target} cannot be mounted: {above[-1].target} is mounted read-only and has no such "
                f"{'directory' if mount.directory else 'file'}",
                hint=f"mount {above[-1].target} with rw, or choose another target",
            )
