"""A terminal inside a step: its file system, mounts, environment, user and network, on the state it failed in."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import DiskError, InputError
from engine.events import LocalCreated
from engine.graph import InlineFile
from engine.ops.attend import Attended
from engine.ops.oci_spec import SCRIPTS, ContainerMount, Process
from engine.ops.rootfs import RootDir
from engine.refs.ref import Layer, layers_to_json
from storage.interfaces.layers import Snapshot
from tools.cli.patch import Change, changes, unified
from tools.text import clean

_SHELLS = ("/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh")
_BROUGHT = "/dev/.refledger/sh"  # on the container's own tmpfs, so that the image shows no trace of it
_RC, _HISTORY = "refledger.rc", "refledger.history"
_SHOWN = 40
_DRAWN = 0.4  # seconds after which the progress display has drawn what is in the log


@dataclass(frozen=True, slots=True)
class Leaving:
    """What to do with the changes: write a patch to a file, keep a snapshot; asked for when neither is said."""

    patch: Path | None = None
    keep: bool = False


class Terminal:
    """Implements Attend. `before`: open when the step is ready, else when it failed."""

    def __init__(self, *, before: bool, leaving: Leaving) -> None:
        """Raises InputError where there is no terminal."""
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise InputError("a shell needs a terminal", hint="run it in one, without redirections")
        self._before = before
        self._leaving = leaving
        self._turn = asyncio.Lock()

    async def before(self, step: Attended) -> None:
        """See Attend."""
        if self._before:
            await self._open(step, "before it runs")

    async def failed(self, step: Attended, status: int) -> None:
        """See Attend."""
        if not self._before:
            await self._open(step, f"which failed with exit code {status}")

    async def _open(self, step: Attended, when: str) -> None:
        async with self._turn:  # there is one terminal
            await asyncio.sleep(_DRAWN)
            name = f"{step.task.execution}-shell"
            # reason: a file system of its own on top of the step's tells what was changed in here from what it did
            layer = await asyncio.to_thread(step.snapshots.begin, name, [step.snapshot.root])
            try:
                process = _shell(step.process, layer.root)
                _say("", f"shell in {step.task.vertex.name}, {when}", *_notes(process))
                await step.sandbox.attach(process)
                await self._leave(step, layer, name)
            except (InputError, DiskError) as error:
                _say(f"ERROR: {error}")
            finally:
                await asyncio.to_thread(layer.discard)

    # ------------------------------------------------------------ on leaving

    async def _leave(self, step: Attended, layer: Snapshot, name: str) -> None:
        found = await asyncio.to_thread(lambda: list(changes(layer.changes, step.snapshot.root)))
        if not found:
            _say("nothing was changed in the shell")
            return
        _say("changed in the shell:", *(f"  {change}" for change in found[:_SHOWN]))
        if len(found) > _SHOWN:
            _say(f"  and {len(found) - _SHOWN} more")
        leaving = self._leaving
        if leaving.patch is None and not leaving.keep:
            leaving = await asyncio.to_thread(_ask)
        if leaving.patch is not None:
            await asyncio.to_thread(_write, leaving.patch, found, layer.root, step.snapshot.root)
        if leaving.keep:
            await self._keep(step, layer, name)

    async def _keep(self, step: Attended, layer: Snapshot, name: str) -> None:
        size = await asyncio.to_thread(layer.commit)
        size += await asyncio.to_thread(step.snapshot.commit)
        made = (Layer(snapshot=step.task.execution), Layer(snapshot=name))
        layers = layers_to_json((*step.base.layers, *made))
        fact = LocalCreated(ref=name, parent=step.base.id, bytes=size, layers=tuple(layers))
        await step.facts.record(fact, vertex=step.task.vertex.digest)
        _say(f"kept as {name}: refledger refs {name} tells of it")


def _ask() -> Leaving:
    import click

    try:
        path = click.prompt("save it as a patch? file name, empty for no", default="", show_default=False)
        return Leaving(Path(path) if path else None, click.confirm("keep it as a snapshot?", default=False))
    except click.Abort:
        return Leaving()


def _write(path: Path, found: list[Change], now: Path, before: Path) -> None:
    text = "".join(unified(found, before, now))
    try:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise DiskError.of(error, "writing the patch", dest=str(path)) from error
    _say(f"the patch is in {path}: paths in it begin at the root of the image (patch -p1)")


def _say(*lines: str) -> None:
    sys.stderr.write("".join(f"{clean(line)}\n" for line in lines))
    sys.stderr.flush()


# ---------------------------------------------------------------- the shell


def _shell(process: Process, root: Path) -> Process:
    """`process` with a shell in the place of its command. Raises InputError when there is none to be had."""
    mounts = process.mounts
    found = next((path for path in _SHELLS if _runs(root, path)), "")
    argv: tuple[str, ...] = (found,)
    if not found:
        brought = _static_shell()
        mounts = (*mounts, ContainerMount(_BROUGHT, str(brought), readonly=True, directory=False))
        argv = (_BROUGHT,)  # busybox goes by its name
    elif found.endswith("bash"):
        argv = (found, "--rcfile", f"{SCRIPTS}/{_RC}", "-i")
    env = dict(process.env) | {"ENV": f"{SCRIPTS}/{_RC}", "HISTFILE": f"{SCRIPTS}/{_HISTORY}"}
    env.setdefault("TERM", os.environ.get("TERM", "xterm"))
    again = InlineFile(_RC, f"r() {{ {shlex.join(process.argv)}; }}\nPS1='(step) \\w # '\n")
    scripts = (*process.scripts, again, InlineFile(_HISTORY, "r\n"))
    return replace(
        process, argv=argv, env=tuple(env.items()), mounts=mounts, scripts=scripts, root=root, terminal=True
    )


def _notes(process: Process) -> Iterator[str]:
    yield "  r runs the step's command again (arrow up brings it, too), exit leaves"
    if process.argv[0] == _BROUGHT:
        yield "  the image has no shell: this one was brought along, with the programs of busybox in it"
    if process.network == "none":
        yield "  without network, as the step"


def _runs(root: Path, path: str) -> bool:
    """Is `path` a program of the image?"""
    try:
        with RootDir(root) as rootfs:
            status = rootfs.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o111)


def _static_shell() -> Path:
    """A shell of this machine that needs nothing beside it. Raises InputError."""
    for name in ("busybox", "busybox.static"):
        found = shutil.which(name)
        if found and _is_static(Path(found)):
            return Path(found).resolve()
    raise InputError(
        "the image has no shell, and there is none here to bring along", hint="apt-get install busybox-static"
    )


def _is_static(path: Path) -> bool:
    """A 64-bit ELF file that names no interpreter (ELF-64 Object File Format, PT_INTERP)."""
    data = path.read_bytes()[:4096]
    if data[:5] != b"\x7fELF\x02":
        return False
    at, size, count = (int.from_bytes(data[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
    return all(int.from_bytes(data[at + n * size : at + n * size + 4], "little") != 3 for n in range(count))
