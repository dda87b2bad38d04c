"""Builds while everything that can be collected is collected in a loop: does any build fail, or make a wrong image?

Loopback only. Builders share one root. Each builds variants of a two-stage image, new ones and earlier ones again, some
without the cache, with SOURCE_DATE_EPOCH, and pushes them: a variant must have the same digest every time, whatever was
let go meanwhile.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import HostError, RefledgerError
from storage.usage import measure
from tools.lab import PROJECT
from tools.lab.loopback_registry import LoopbackRegistry

BASES = 3
PAUSE = 1.0
"""Seconds at most between two builds."""
_BASE = """\
FROM scratch
COPY busybox /bin/busybox
COPY busybox /bin/sh
COPY one /data/one
COPY two /data/two
ENV PATH=/bin
"""
_DOCKERFILE = """\
FROM {base} AS tools
RUN busybox sha256sum /data/one > /one.sum
RUN --mount=type=cache,target=/cache,id=drill busybox date >> /cache/dates; busybox sha256sum /data/two > /two.sum
FROM {base}
COPY file /src/file
RUN busybox sha256sum /src/file > /file.sum
COPY --from=tools /one.sum /two.sum /
RUN busybox sha256sum -c /one.sum /two.sum /file.sum && test "$(busybox sha256sum < /src/file)" = "{digest}  -"
RUN busybox cat /one.sum /two.sum /file.sum > /all
"""


@dataclass(slots=True)
class Figures:
    """What happened. `failures`: what a build or a collection said that went wrong; `again`: builds of variants that
    had been built before; `wrong`: those with a second digest; `unexplained`: layers pulled again though nothing says
    that they had been let go; `measured`, `du`: bytes."""

    seconds: float = 0.0
    builds: int = 0
    again: int = 0
    prunes: int = 0
    failures: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    freed: int = 0
    pulled_again: int = 0
    unexplained: list[str] = field(default_factory=list)
    measured: int = 0
    du: int = 0

    @property
    def right(self) -> bool:
        """Is all as it has to be?"""
        return not (self.failures or self.wrong or self.unexplained) and self.measured == self.du and self.builds > 0


def drill(directory: Path, *, seconds: float, builders: int, seed: int = 1, snapshotter: str = "auto") -> Figures:
    """Build with `builders` processes at once in `directory` for `seconds`, collecting all the while. Raises
    HostError."""
    with LoopbackRegistry(directory / "registry") as registry:
        running = _Drill(directory, registry.host, seed, snapshotter, Figures())
        running.make_bases()
        started = time.monotonic()
        running.until = started + seconds
        with ThreadPoolExecutor(builders + 1) as threads:
            work = [threads.submit(running.build_on, number) for number in range(builders)]
            work.append(threads.submit(running.collect_on))
            for each in work:
                each.result()
        running.figures.seconds = time.monotonic() - started
        running.judge()
        return running.figures


@dataclass(slots=True)
class _Drill:
    directory: Path
    registry: str
    seed: int
    snapshotter: str
    figures: Figures
    until: float = 0.0
    digests: dict[int, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.directory / "root"

    def refledger(self, *args: str) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": os.environ["PATH"], "HOME": str(self.directory), "REFLEDGER_ROOT": str(self.root),
            "SOURCE_DATE_EPOCH": "1700000000",
        }  # fmt: skip
        command = [sys.executable, "-m", "tools.cli.main", *args]
        return subprocess.run(
            command, cwd=PROJECT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )

    def _random(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")  # noqa: S311  # a drill has to be repeatable

    def _how(self) -> tuple[str, ...]:
        return ("--snapshotter", self.snapshotter)

    def make_bases(self) -> None:
        """Push base images with a shell and two layers that do not compress."""
        busybox = Path("/bin/busybox")
        if not busybox.exists():
            raise HostError("there is no /bin/busybox", hint="apt-get install busybox-static")
        for number in range(BASES):
            context = self.directory / f"base{number}"
            context.mkdir(parents=True)
            one, two = (self._random(f"{name}{number}").randbytes(1 << 20) for name in ("one", "two"))
            for name, data in {"busybox": busybox.read_bytes(), "one": one, "two": two}.items():
                (context / name).write_bytes(data)
            (context / "busybox").chmod(0o755)
            (context / "Dockerfile").write_text(_BASE)
            name = f"{self.registry}/base:{number}"
            done = self.refledger("build", str(context), "--push", "-t", name, "--progress=quiet", *self._how())
            if done.returncode:
                raise HostError(f"a base image could not be built: {done.stderr.strip()[-500:]}")

    def build_on(self, number: int) -> None:
        """Build one variant after the other."""
        context = self.directory / f"builder{number}"
        context.mkdir()
        rng = self._random(f"builder{number}")
        while time.monotonic() < self.until:
            time.sleep(rng.uniform(0, PAUSE))  # so that what a build needs is let go of between two
            known = len(self.digests)
            variant = rng.randrange(known) if known and rng.random() < 0.5 else known
            fresh = ["--no-cache"] if rng.random() < 0.25 else []
            data = f"file of variant {variant}\n".encode() * 1000
            (context / "file").write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            base = f"{self.registry}/base:{variant % BASES}"
            (context / "Dockerfile").write_text(_DOCKERFILE.format(base=base, digest=digest))
            name = f"{self.registry}/app{number}:{variant}"
            done = self.refledger("build", str(context), "--push", "-t", name, "--progress=quiet", *self._how(), *fresh)
            self.figures.builds += 1
            if done.returncode:
                self.figures.failures.append(f"build of variant {variant}: {done.stderr.strip()[-800:]}")
                continue
            made = done.stdout.strip()
            self.figures.again += variant in self.digests
            if self.digests.setdefault(variant, made) != made:
                self.figures.wrong.append(f"variant {variant}: {self.digests[variant]} and {made}")

    def collect_on(self) -> None:
        """Collect all that can be, again and again."""
        while time.monotonic() < self.until:
            done = self.refledger("prune", "--all")
            self.figures.prunes += 1
            if done.returncode:
                self.figures.failures.append(f"prune: {done.stderr.strip()[-800:]}")

    def judge(self) -> None:
        """Read the log, and compare the measured root with what du says."""
        self._explain(list(self._log()))
        told = self.refledger("du", "--json")
        totals = json.loads(told.stdout.splitlines()[-1]) if told.returncode == 0 else {}
        du = subprocess.run(
            ["du", "-s", "--apparent-size", "-B1", self.root],
            env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        self.figures.du = int(du.stdout.split()[0])
        same = measure(self.root)
        # reason: since coreutils 9.2 directories have no apparent size
        key = "total" if self.figures.du == same.total else "files"
        self.figures.measured = int(totals.get(key, -1))

    def _log(self) -> Iterator[Mapping[str, Any]]:
        done = self.refledger("events", "--json")
        if done.returncode:
            raise HostError(f"the log cannot be read: {done.stderr.strip()[-500:]}")
        yield from map(json.loads, done.stdout.splitlines())

    def _explain(self, events: list[Mapping[str, Any]]) -> None:
        """Each blob that came again must have been let go, or have been on its way to a build that ended, since."""
        here: set[str] = set()
        for event in events:
            kind, data = event["type"], event["data"]
            self.figures.events[kind] += 1
            if kind in {"Demoted", "Pruned"}:
                self.figures.freed += data["bytes"]
                here.discard(data["name"])
            elif kind == "LayerPulled":
                if data["diff_id"] in here:
                    self.figures.unexplained.append(data["diff_id"])
                self.figures.pulled_again += 1
                here.add(data["diff_id"])


def report(figures: Figures) -> Iterator[str]:
    """Lines for people."""
    events = figures.events
    yield f"{figures.builds} builds and {figures.prunes} collections in {figures.seconds:.0f} s"
    yield f"failures: {len(figures.failures)}; of {figures.again} built again, wrong: {len(figures.wrong)}"
    yield (
        f"let go: {events['Demoted']} demoted, {events['Pruned']} pruned, {figures.freed / 1e6:.1f} MB;"
        f" hits revoked: {events['HitRevoked']}"
    )
    yield f"layers pulled: {figures.pulled_again}, of which without a reason in the log: {len(figures.unexplained)}"
    yield f"du afterwards: {figures.du} bytes, refledger du: {figures.measured} bytes"
    yield from (f"FAILED {line}" for line in (*figures.failures, *figures.wrong, *figures.unexplained))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 when something is wrong, 3 when the host refuses, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="tools/drills/prune_under_load", description="Builds while everything prunable is pruned in a loop."
    )
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--builders", type=int, default=4)
    parser.add_argument("--snapshotter", default="auto", choices=["auto", "erofs", "directory"])
    parser.add_argument("--directory", type=Path, help="where to work; default: the temporary directory")
    given = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="refledger-drill-", dir=given.directory) as directory:
            figures = drill(
                Path(directory), seconds=given.seconds, builders=given.builders, snapshotter=given.snapshotter
            )
    except RefledgerError as error:
        print(f"prune_under_load: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    for line in report(figures):
        print(line)
    return 0 if figures.right else 1


if __name__ == "__main__":
    sys.exit(main())
