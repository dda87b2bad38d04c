"""Where crashes happen: a directory with a root, a context and a place for outputs, which is put back before each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.processes import run_into
from tests.waiting import PATIENCE

EPOCH = "1700000000"
_PARTS = ("root", "context", "out", "tmp", "home", "runtime")


@dataclass(frozen=True, slots=True)
class Done:
    """A process that has ended: `code` as Popen has it, `met` what it told of its own life (see victim)."""

    code: int
    out: str
    err: str
    met: tuple[Mapping[str, Any], ...] = ()

    @property
    def killed(self) -> bool:
        """Did it die by SIGKILL?"""
        return self.code == -signal.SIGKILL

    @property
    def groups(self) -> list[list[str]]:
        """Types of the events of each transaction, in order."""
        return [list(one["events"]) for one in self.met if "events" in one]

    @property
    def events(self) -> int:
        """How many that is."""
        return sum(map(len, self.groups))

    @property
    def ops(self) -> list[str]:
        """Its changes of files, in order."""
        return [str(one["op"]) for one in self.met if "op" in one]

    @property
    def lost(self) -> list[list[str]]:
        """What a power loss may take (see unsynced)."""
        return next(one["lost"] for one in self.met if "lost" in one)

    @property
    def last_met(self) -> str:
        """What the moment is called at which it was stopped: a type of event, or a change of a file."""
        names = next((one.get("at") or one.get("doomed") for one in self.met if "at" in one or "doomed" in one), None)
        return str(names[-1]) if names else "the end"


@dataclass(slots=True)
class Place:
    """`directory` has a part for everything that a command may write to, `tmp`, `home` and `runtime` among them: what
    is left there is left by it. `host` and `second`: registries; `repository`: a name in them that only this run has;
    `sessions`: of the processes that have run here; `keeps`: files that may stay where nothing else may."""

    directory: Path
    host: str
    second: str
    repository: str = ""
    env: dict[str, str] = field(default_factory=dict)
    sessions: set[int] = field(default_factory=set)
    keeps: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def context(self) -> Path:
        return self.directory / "context"

    @property
    def out(self) -> Path:
        return self.directory / "out"

    @property
    def name(self) -> str:
        """What images are to be called."""
        return f"{self.host}/{self.repository}:1"

    def lay_out(self) -> None:
        """Make the parts that are missing."""
        for part in _PARTS:
            (self.directory / part).mkdir(parents=True, exist_ok=True)

    def write(self, files: Mapping[str, str | bytes]) -> None:
        """Put `files` into the context."""
        for name, data in files.items():
            path = self.context / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
            os.utime(path, (int(EPOCH), int(EPOCH)))

    def keep(self, kept: Path) -> None:
        """Copy all of it to `kept`, for `put_back`."""
        subprocess.run(["cp", "-a", "--reflink=auto", str(self.directory), str(kept)], check=True)

    def put_back(self, kept: Path) -> None:
        """Have everything as it was when it was kept."""
        for part in _PARTS:
            shutil.rmtree(self.directory / part, ignore_errors=True)
        parts = [str(kept / part) for part in _PARTS]
        subprocess.run(["cp", "-a", "--reflink=auto", *parts, str(self.directory)], check=True)

    def environment(self) -> dict[str, str]:
        """Of every process here; nothing of the machine's own."""
        return {
            "PATH": os.environ["PATH"], "HOME": str(self.directory / "home"), "TMPDIR": str(self.directory / "tmp"),
            "XDG_RUNTIME_DIR": str(self.directory / "runtime"), "REFLEDGER_ROOT": str(self.root),
            "SOURCE_DATE_EPOCH": EPOCH, "LC_ALL": "C.UTF-8", **self.env,
        }  # fmt: skip

    def run(
        self, args: Sequence[str], moment: str = "", said: str = "said", lost: Sequence[Sequence[str]] = ()
    ) -> Done:
        """`refledger ARGS` to its end, which may come at `moment`. `said`: what its output is called, one for each
        process at a time. `lost`: what a power loss may take that was changed before."""
        said_in = self.directory.with_name(f"{self.directory.name}.{said}")  # not on a disk that is to fail
        said_in.mkdir(exist_ok=True)
        told = said_in / "told"
        told.unlink(missing_ok=True)
        module = ["tests.crash.victim", moment] if moment else ["tools.cli.main"]
        ears = {"CRASH_TOLD": str(told), "CRASH_WITHIN": str(self.directory)} if moment else {}
        if lost:
            ears["CRASH_LOST"] = str(said_in / "lost")
            (said_in / "lost").write_text(json.dumps(lost))
        # files, not pipes: processes that outlive the victim would keep a pipe open
        out, err = said_in / "stdout", said_in / "stderr"
        env = {**self.environment(), **ears}
        session, code = run_into(*module, *args, env=env, out=out, err=err, timeout=PATIENCE)
        self.sessions.add(session)
        met = tuple(map(json.loads, told.read_text().splitlines())) if told.exists() else ()
        told.unlink(missing_ok=True)
        return Done(code, out.read_text(errors="replace"), err.read_text(errors="replace"), met)

    def must(self, *args: str) -> Done:
        """Run `refledger ARGS`, which has to go well."""
        done = self.run(args)
        if done.code:
            raise AssertionError(f"refledger {' '.join(args)}: exit code {done.code}\n{done.err}")
        return done
