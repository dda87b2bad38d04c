"""What differs from machine to machine, and from one time to the next, and is to leave no trace in what is made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.builder import PROJECT


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`env`: variables beside the usual ones; `prefix`: what starts the interpreter; `shuffled`: directories are listed
    in an order that $SHUFFLED draws; `options` of the build; `below`: where the root is, None for the temporary
    directory."""

    name: str
    env: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    umask: int = 0o022
    cwd: Path = PROJECT
    shuffled: bool = False
    options: tuple[str, ...] = ()
    below: Path | None = None

    @property
    def can_be(self) -> bool:
        """Is here what it needs?"""
        return (not self.prefix or shutil.which(self.prefix[0]) is not None) and (not self.below or self.below.is_dir())

    def start(self, *args: str, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """`refledger ARGS`, as the leader of a session."""
        words = ["tests.variation.shuffled", "tools.cli.main"] if self.shuffled else ["tools.cli.main"]
        usual = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "PYTHONHASHSEED": "0"}
        return subprocess.Popen(
            [*self.prefix, sys.executable, "-m", *words, *args], env={**usual, **env, **self.env}, cwd=self.cwd,
            umask=self.umask, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip


_ONE = ("taskset", "-c", str(min(os.sched_getaffinity(0))))
USUAL = Surroundings("usual")
OTHER = Surroundings(
    "all at once",
    {"PYTHONHASHSEED": "7", "SHUFFLED": "1", "MALLOC_PERTURB_": "165", "TZ": "Pacific/Kiritimati", "LC_ALL": "C",
     "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "USER": "somebody", "SUDO_UID": "1000"},
    ("unshare", "-u", *_ONE, "sh", "-c", 'hostname elsewhere; ulimit -n 256; ulimit -s 1024; exec "$@"', "-"),
    0o077, Path("/"), shuffled=True, options=("--snapshotter", "directory", "--jobs", "1"),
)  # fmt: skip
_HOST = ("unshare", "-u", "sh", "-c", 'hostname elsewhere; exec "$@"', "-")
ALL = (
    USUAL,
    OTHER,
    *(Surroundings(f"hash seed {seed}", {"PYTHONHASHSEED": seed}) for seed in ("1", "4242")),
    *(Surroundings(f"shuffled {seed}", {"SHUFFLED": seed}, shuffled=True) for seed in ("1", "2")),
    Surroundings("used memory", {"MALLOC_PERTURB_": "165", "PYTHONMALLOC": "malloc"}),
    Surroundings("one arena", {"MALLOC_ARENA_MAX": "1", "MALLOC_PERTURB_": "90"}),
    Surroundings("no random addresses", prefix=("setarch", "-R")),
    Surroundings("small stacks", prefix=("prlimit", "--stack=1048576:1048576")),
    Surroundings("few descriptors", prefix=("prlimit", "--nofile=256:256")),
    Surroundings("one processor", prefix=_ONE),
    Surroundings("no hurry", prefix=("nice", "-n", "19")),
    Surroundings("one job", options=("--jobs", "1")),
    Surroundings("many jobs", options=("--jobs", "16")),
    Surroundings("Turkish", {"LC_ALL": "tr_TR.UTF-8", "LANGUAGE": "tr"}),
    Surroundings("ASCII", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    Surroundings("time zone", {"TZ": "Pacific/Kiritimati"}),
    Surroundings("years later", prefix=("faketime", "-f", "+800d")),
    Surroundings("years before", prefix=("faketime", "-f", "@2021-01-01 00:00:00")),
    Surroundings("narrow umask", umask=0o077),
    Surroundings("open umask", umask=0),
    Surroundings("somebody", {"USER": "somebody", "LOGNAME": "somebody", "SUDO_UID": "1000", "TERM": "vt100"}),
    Surroundings("another directory", cwd=Path("/")),
    Surroundings("another host", prefix=_HOST),
    Surroundings("layers as directories", options=("--snapshotter", "directory")),
    Surroundings("tmpfs", below=Path("/dev/shm")),
)
