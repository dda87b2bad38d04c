"""Where steps run: the protocol, and the choice of the OCI runtime that serves it here."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.errors import DiskError, SandboxError
from engine.ops.container import OciSandbox
from engine.ops.emulation import probe_program
from engine.ops.leftovers import PROBE, sweep_containers
from engine.ops.machine import host
from engine.ops.oci_spec import Process
from storage.platform import host_platform

__all__ = ["OciSandbox", "Process", "RuntimeChoice", "Sandbox", "choose_runtime", "sweep_containers"]

_CANDIDATES = ("crun", "runc")
_HINT = "install one: apt-get install runc"
_HINTS_FILE = "runtime.json"


class Sandbox(Protocol):
    """Runs processes isolated from the host."""

    async def run(self, process: Process, on_output: Callable[[int, bytes], None]) -> int:
        """Run `process` to its end; returns its exit code (128 + n when signal n ended it, 127 or 126 when the command
        is missing or cannot be executed). `on_output(fd, data)` gets raw bytes of streams 1 and 2 on the event loop,
        whole lines where possible. stdin is empty.

        Cancelled, or when `on_output` raises, everything in the sandbox is dead and nothing mounted before this
        returns. Raises InputError (the image cannot hold the process), SandboxError, DiskError.
        """
        ...

    async def attach(self, process: Process) -> int:
        """Run `process`, whose `terminal` is set, in the terminal of this process; returns its exit code. As `run`
        otherwise."""
        ...


@dataclass(frozen=True, slots=True)
class RuntimeChoice:
    """`runtime`: path; `version`: the first line it prints about itself; `rejected`: name → why not, in one line."""

    runtime: str
    version: str
    rejected: dict[str, str]


async def choose_runtime(wanted: str | None, directory: Path, owner: str = PROBE) -> RuntimeChoice:
    """The OCI runtime that runs a trivial container on this host: `wanted` (a name or path), or the first of crun and
    runc. The answer is kept in `directory` until a runtime, the kernel or the boot changes. `owner`: whose death leaves
    what is being tried out to `sweep_containers`.

    Raises SandboxError: there is none, with what each one said.
    """
    names = (wanted,) if wanted else _CANDIDATES
    paths = {name: shutil.which(name) for name in names}
    key = _key(paths)
    known = _recall(directory / _HINTS_FILE, key)
    if known is not None:
        return known
    rejected: dict[str, str] = {}
    for name, path in paths.items():
        reason = await _try(path, directory, owner) if path else "not installed"
        if path and reason is None:
            choice = RuntimeChoice(path, await asyncio.to_thread(_version, path), rejected)
            _remember(directory / _HINTS_FILE, key, choice)
            return choice
        rejected[name] = reason or ""
    if wanted:
        raise SandboxError(f"OCI runtime {wanted} does not work here: {rejected[wanted]}", hint=_HINT)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
    raise SandboxError(f"no OCI runtime works here ({reasons})", hint=_HINT)


async def _try(runtime: str, directory: Path, owner: str) -> str | None:
    """Run a program that does nothing in an empty root; None when that works, else why it does not."""
    said: list[bytes] = []
    place = _make_trial(directory, owner)
    try:
        process = Process(("/true",), (), "/", 0, 0, (), "host", place / "root")
        status = await OciSandbox(runtime, place, "probe").run(process, lambda _, data: said.append(data))
    except SandboxError as error:
        return error.what
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if status == 0:
        return None
    lines = b"".join(said).decode("utf-8", "replace").split("\n")
    return " ".join(line.strip() for line in lines if line.strip()) or f"exit code {status}"


def _make_trial(directory: Path, owner: str) -> Path:
    """A new directory with a `root` in which /true is a program: no image is needed to try a runtime."""
    host()  # raises where steps cannot be run
    program = probe_program(host_platform().architecture)
    assert program is not None, "of every machine that has a seccomp profile"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f"{PROBE}-{owner}-", dir=directory))
        root = place / "root"
        root.mkdir()
        (root / "true").write_bytes(program)
        (root / "true").chmod(0o755)
    except OSError as error:
        raise DiskError.of(error, "trying out the OCI runtime") from error
    return place


def _version(runtime: str) -> str:
    done = subprocess.run((runtime, "--version"), capture_output=True, check=False, stdin=subprocess.DEVNULL)
    return done.stdout.decode("utf-8", "replace").partition("\n")[0].strip()


def _key(paths: dict[str, str | None]) -> list[Any]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    found = [[name, path, Path(path).stat().st_mtime_ns if path else 0] for name, path in paths.items()]
    return [os.uname().release, boot, found]


def _recall(file: Path, key: list[Any]) -> RuntimeChoice | None:
    """What was found with the same `key`; anything unreadable is as good as nothing."""
    try:
        stored = json.loads(file.read_bytes())
        return RuntimeChoice(**stored["choice"]) if stored["key"] == key else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _remember(file: Path, key: list[Any], choice: RuntimeChoice) -> None:
    """Only a hint: when it cannot be written, the next build tries again."""
    new = file.with_name(f"{file.name}.new")  # one name: what a killed process left is overwritten
    try:
        new.write_text(json.dumps({"key": key, "choice": asdict(choice)}))
        new.replace(file)
    except OSError:
        new.unlink(missing_ok=True)
