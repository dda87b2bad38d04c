"""The loss drill: one random loss, then a build through the command line, many times.

An image is built and pushed once. Each run takes a copy of that root, as it was left ("warm") or with everything gone
that the registry has ("lean": all steps are remote hits), damages something, and builds: the same again into an
archive, the same with another last step (which needs the bytes of all before), or a push to another repository. The
digest must be the one of an undamaged build (SOURCE_DATE_EPOCH makes it the same), and all blobs of an archive what
they are called.

An error is right only where bytes are gone that a build cannot make: those of the base image, or all of the registry.
It is one line, names registry and digest (or the image, when its manifest is what the registry cannot give), and the
exit code is 3 or 4.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import HostError, RefledgerError
from storage.log.eventlog import SqliteEventLog
from tools.lab import PROJECT
from tools.lab.loopback_registry import LoopbackRegistry
from tools.lab.peers import workplace
from tools.lab.seed import seed

EPOCH = "1700000000"
DOCKERFILE = """\
FROM {base} AS tools
RUN echo tool > /tool && mkdir /opt && cp /tool /opt/tool
FROM {base}
RUN echo one > /one && mkdir -p /d/e && echo deep > /d/e/deep && ln -s deep /d/e/link
COPY file /copied
COPY --from=tools /opt /opt
RUN cat /one /copied /opt/tool /d/e/link > {last}
"""
TIMEOUT = 120
RIGHT, ERROR, WRONG = "right", "clear error", "WRONG"


@dataclass(frozen=True, slots=True)
class Done:
    """A finished build; `digest` of what it exported last, "" when nothing was."""

    code: int
    said: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Action:
    """How a run builds: with which last step, and what for."""

    name: str
    last: str
    push: bool = False


AGAIN, OTHER, PUSH = Action("again", "/all"), Action("other", "/sum"), Action("push", "/all", push=True)


@dataclass(slots=True)
class Place:
    """Where the drill happens: a registry with the base and the image, and two roots to be copied."""

    directory: Path
    registry: LoopbackRegistry
    snapshotter: str = "auto"
    base: str = ""
    expected: dict[str, str] = field(default_factory=dict)
    base_manifest: str = ""
    base_blobs: frozenset[str] = frozenset()

    @property
    def context(self) -> Path:
        """What is built."""
        return self.directory / "context"

    def prepare(self) -> None:
        """Build once, and learn what is right. Raises HostError."""
        made = seed(self.registry.host, "drill/base", "busybox")
        self.base, self.base_manifest = made.reference, made.digest
        self.base_blobs = frozenset({made.digest, *(digest for digest, _ in made.layers), *self._manifest(made.digest)})
        self.context.mkdir()
        (self.context / "file").write_text("content\n")
        warm, lean = self.directory / "warm", self.directory / "lean"
        first = self.build(warm, Action("first", "/all", push=True), "drill/app")
        if first.code:
            raise HostError("the first build failed", where=first.said.strip())
        self.copy("warm", lean)
        for name in ("layers", "snapshots"):
            shutil.rmtree(lean / name)
        for event in SqliteEventLog(lean / "log.db", read_only=True).read(types=frozenset({"BlobCreated"})):
            (lean / "blobs" / event.data["digest"].replace(":", "/")).unlink(missing_ok=True)
        for action in (AGAIN, OTHER):
            with self.root("warm") as root:
                done = self.build(root, action, "")
            if done.code or not done.digest:
                raise HostError("an undamaged build failed", where=done.said.strip())
            self.expected[action.last] = done.digest
        if first.digest != self.expected[AGAIN.last]:
            raise HostError("two undamaged builds gave two images")

    def _manifest(self, digest: str) -> set[str]:
        return {json.loads(self.blob(digest).read_bytes())["config"]["digest"]}

    def blob(self, digest: str) -> Path:
        """Where the registry keeps a blob."""
        digits = digest.partition(":")[2]
        return self.registry.directory / "data/docker/registry/v2/blobs/sha256" / digits[:2] / digits / "data"

    def copy(self, name: str, target: Path) -> None:
        """Copy a root, times and all."""
        subprocess.run(["cp", "-a", "--reflink=auto", self.directory / name, target], check=True)

    @contextmanager
    def root(self, name: str) -> Iterator[Path]:
        """A copy of root `name`, gone afterwards."""
        target = self.directory / "root"
        self.copy(name, target)
        try:
            yield target
        finally:
            shutil.rmtree(target)

    def build(
        self, root: Path, action: Action, repository: str, meanwhile: Callable[[Any], None] = lambda _: None
    ) -> Done:
        """Run the command line; `meanwhile` is given the running process."""
        (self.context / "Dockerfile").write_text(DOCKERFILE.format(base=self.base, last=action.last))
        out, told = self.directory / "out.tar", self.directory / "told.json"
        out.unlink(missing_ok=True)
        told.unlink(missing_ok=True)
        export = ["-o", f"type=oci,dest={out}"]
        if action.push:
            export = ["-t", f"{self.registry.host}/{repository}:1", "--push"]
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.cli.main", "build", str(self.context), "--progress", "plain",
             "--snapshotter", self.snapshotter, *export],
            cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "REFLEDGER_ROOT": str(root), "SOURCE_DATE_EPOCH": EPOCH}, errors="replace",
        )  # fmt: skip
        meanwhile(process)
        said, _ = process.communicate(timeout=TIMEOUT)
        digest = ""
        if process.returncode == 0:
            digest = pushed(root) if action.push else archived(out)
        return Done(process.returncode, said, digest)


def pushed(root: Path) -> str:
    """The digest that the log says was exported last."""
    log = SqliteEventLog(root / "log.db", read_only=True)
    try:
        return [str(event.data["digest"]) for event in log.read(types=frozenset({"Exported"}))][-1]
    finally:
        log.close()


def archived(out: Path) -> str:
    """The digest of the one image in an archive; "" when a blob of it is not what its name says."""
    with tarfile.open(out) as tar:
        names = tar.getnames()
        for name in names:
            content = tar.extractfile(name) if name.startswith("blobs/") else None
            if content is not None and hashlib.sha256(content.read()).hexdigest() != name.rpartition("/")[2]:
                return ""
        index = tar.extractfile("index.json")
        assert index is not None, "an archive of ours has an index"
        digest = str(json.load(index)["manifests"][0]["digest"])
    return digest if f"blobs/{digest.replace(':', '/')}" in names else ""


# ---------------------------------------------------------------- damage


@dataclass(frozen=True, slots=True)
class Damage:
    """What was done: `kind` for the table, `what` exactly. `digest`: the blob of the base image that only a person can
    bring back, "" when there is none; `away`: so is the registry. `meanwhile` happens while the build runs, `undo`
    after it."""

    kind: str
    what: str
    digest: str = ""
    away: bool = False
    meanwhile: Callable[[Any], None] = lambda _: None
    undo: Callable[[], None] = lambda: None


def hurt(path: Path, dice: random.Random) -> str:
    """Do something bad to one file; says what."""
    size = path.stat().st_size
    way = dice.choice(["flip", "truncate", "remove", "empty", "append"] if size else ["remove", "append"])
    if way == "flip":
        at = dice.randrange(size)
        with path.open("r+b") as out:
            out.seek(at)
            byte = out.read(1)[0]
            out.seek(at)
            out.write(bytes([byte ^ (1 << dice.randrange(8))]))
    elif way == "remove":
        path.unlink()
    elif way == "append":
        with path.open("ab") as out:
            out.write(b"x")
    else:
        os.truncate(path, dice.randrange(size) if way == "truncate" else 0)
    return f"{way} {path.name[:16]}"


def hurt_kept(item: Path, dice: random.Random) -> str:
    """Do something bad to a layer or a snapshot, an image or a directory."""
    if item.is_file():
        return hurt(item, dice)
    way = dice.choice(["file", "file", "file", "all", "tree", "new"])
    if way == "all":
        shutil.rmtree(item)
    elif way == "tree":
        shutil.rmtree(item / "fs")
    elif way == "new":
        (item / "fs/stray").touch()
    else:
        files = sorted(path for path in (item / "fs").rglob("*") if path.is_file() and not path.is_symlink())
        if files:
            return hurt(dice.choice(files), dice)
        (item / "fs").chmod(0o700)
    return f"{way} of {item.name[:16]}"


def in_root(directory: str) -> Callable[[Place, Path, random.Random], Damage]:
    """Damages one thing in `layers`, `snapshots` or `blobs` of the root."""

    def damage(_place: Place, root: Path, dice: random.Random) -> Damage:
        kept = sorted(root.glob("blobs/sha256/*" if directory == "blobs" else f"{directory}/*"))
        if not kept:
            return Damage(directory, "nothing is there")
        return Damage(directory, hurt_kept(dice.choice(kept), dice))

    return damage


def everything(_place: Place, root: Path, dice: random.Random) -> Damage:
    """Damages half of all that is in the root, but the log."""
    kept = [path for glob in ("layers/*", "snapshots/*", "blobs/sha256/*") for path in sorted(root.glob(glob))]
    chosen = dice.sample(kept, len(kept) // 2)
    for item in chosen:
        hurt_kept(item, dice)
    return Damage("half of the root", f"{len(chosen)} things")


def in_registry(place: Place, _root: Path, dice: random.Random) -> Damage:
    """Damages or removes a blob (layer, config or manifest) in the registry's storage, which is put back afterwards."""
    stored = sorted((place.registry.directory / "data").rglob("blobs/sha256/*/*/data"))
    path = dice.choice(stored)
    digest = f"sha256:{path.parent.name}"
    before = path.read_bytes()
    what = hurt(path, dice)

    def undo() -> None:
        path.write_bytes(before)

    only = digest if digest in place.base_blobs else ""
    return Damage("registry blob", f"{what} {digest[:19]}", digest=only, undo=undo)


def registry_away(place: Place, root: Path, dice: random.Random) -> Damage:
    """Takes the registry away some time after the first hit of the build."""
    pause = dice.uniform(0, 0.4)
    log = SqliteEventLog(root / "log.db", read_only=True)
    last = log.last_seq()

    def meanwhile(process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            if next(log.read(after=last, types=frozenset({"CacheQueried"})), None) is not None:
                time.sleep(pause)
                break
            time.sleep(0.01)
        log.close()
        place.registry.stop()

    def undo() -> None:
        place.registry.start()

    return Damage("registry gone", f"{pause:.2f} s after the hit", away=True, meanwhile=meanwhile, undo=undo)


LOCAL = (in_root("layers"), in_root("snapshots"), in_root("blobs"), everything)


# ---------------------------------------------------------------- runs


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one run ended."""

    kind: str
    outcome: str
    story: str


def run_once(place: Place, number: int, dice: random.Random) -> Verdict:
    """One run. Raises HostError when the registry does not come back."""
    damage = dice.choice([*LOCAL, in_registry, in_registry, registry_away, registry_away])
    variant = "warm" if damage in LOCAL and dice.random() < 0.8 else dice.choice(["warm", "lean", "lean"])
    action = dice.choice([AGAIN, OTHER, OTHER, PUSH])
    with place.root(variant) as root:
        done = damage(place, root, dice)
        try:
            built = place.build(root, action, f"drill/to{number}", done.meanwhile)
        finally:
            done.undo()
        problem = judge(place, action, done, built) or leftovers(root)
    outcome = WRONG if problem else RIGHT if built.code == 0 else ERROR
    story = f"run {number}: {variant}, {action.name}, {done.kind}: {done.what}: {problem or outcome}"
    if outcome != RIGHT:
        said = built.said.splitlines()[-40:]
        shown = said if problem else [line for line in said if line.startswith("ERROR")]
        story = "\n    ".join([story, *shown])
    return Verdict(done.kind, outcome, story)


def judge(place: Place, action: Action, damage: Damage, built: Done) -> str:
    """What is wrong with how the build ended, "" when nothing is."""
    if "Traceback" in built.said:
        return "a traceback"
    if built.code == 0:
        expected = place.expected[action.last]
        return "" if built.digest == expected else f"the image is {built.digest or 'broken'}, not {expected}"
    errors = [line for line in built.said.splitlines() if line.startswith("ERROR")]
    if len(errors) != 1:
        return f"{len(errors)} error lines"
    if not damage.digest and not damage.away:
        return f"exit code {built.code}, though everything could be made again"
    if built.code not in {3, 4}:
        return f"exit code {built.code}"
    if place.registry.host not in errors[0]:
        return "the error does not name the registry"
    named = damage.digest.partition(":")[2][:12] in errors[0]
    if damage.digest and not named and not (damage.digest == place.base_manifest and place.base in errors[0]):
        return "the error does not name the digest"
    return ""


def leftovers(root: Path) -> str:
    """What the build left that it should not have."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    left = [mount for mount in mounts if mount.startswith(str(root))]
    left += [str(path.relative_to(root)) for where in ("tmp/*", "run/*/*") for path in root.glob(where)]
    return f"leftovers: {', '.join(left)[:200]}" if left else ""


def drill(runs: int, first: int, parent: Path | None, snapshotter: str, *, verbose: bool) -> int:
    """All runs; returns the number of those that went wrong."""
    verdicts: list[Verdict] = []
    with workplace(parent) as directory, LoopbackRegistry(directory / "registry") as registry:
        place = Place(directory, registry, snapshotter)
        place.prepare()
        for number in range(first, first + runs):
            verdict = run_once(place, number, random.Random(number))  # noqa: S311 - a drill, not a secret
            verdicts.append(verdict)
            if verbose or verdict.outcome == WRONG:
                print(verdict.story, flush=True)
    table(verdicts)
    return sum(verdict.outcome == WRONG for verdict in verdicts)


def table(verdicts: Sequence[Verdict]) -> None:
    """Markdown."""
    counts = Counter((verdict.kind, verdict.outcome) for verdict in verdicts)
    print(f"| damage | runs | {RIGHT} | {ERROR} | {WRONG} |\n|---|---|---|---|---|")
    for kind in (*sorted({verdict.kind for verdict in verdicts}), ""):
        found = [sum(n for (k, o), n in counts.items() if o == outcome and (not kind or k == kind))
                 for outcome in (RIGHT, ERROR, WRONG)]  # fmt: skip
        print(f"| {kind or 'all'} | {sum(found)} | {' | '.join(map(str, found))} |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 when a run went wrong, 3 when the host refuses, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="tools/drills/loss", description="Builds on roots and registries that lose bytes."
    )
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of the first run; each next one has the next number")
    parser.add_argument("--directory", type=Path, help="where to work; default: the temporary directory")
    parser.add_argument("--snapshotter", choices=["auto", "erofs", "directory"], default="auto")
    parser.add_argument("--verbose", action="store_true", help="a line for every run")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        wrong = drill(max(1, given.runs), given.seed, given.directory, given.snapshotter, verbose=given.verbose)
    except RefledgerError as error:
        print(f"loss: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
