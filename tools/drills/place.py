"""Where losses are drilled: a registry, an image in it, and roots as builds left them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import HostError
from storage.log.eventlog import SqliteEventLog
from tools.lab import PROJECT
from tools.lab.loopback_registry import LoopbackRegistry
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
TIMEOUT = 300


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
