"""Independent builders: the BuildKit inside Debian's dockerd, and buildah. Each builds a context to an archive.

Both keep everything in a directory of their own: no other daemon, storage or configuration of the machine is used.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from storage.overlay import detach_below
from tests.differential.reading import Image, read_archive
from tests.waiting import PATIENCE


class Unavailable(Exception):
    """This machine cannot run that builder, and why."""


class Oracle(Protocol):
    """`build` gives a running build; `read` waits for it: its image, or what it said when it failed."""

    name: str

    def start(self, context: Path, args: Sequence[str], tag: str) -> subprocess.Popen[str]: ...
    def read(self, tag: str, directory: Path) -> Image: ...


class BuildKit:
    """The BuildKit of a dockerd of our own (Debian 12: 20.10, Dockerfile 1.2)."""

    name = "buildkit"

    def __init__(self, socket: Path, config: Path) -> None:
        self._docker = ["/usr/bin/docker", "--config", str(config), "-H", f"unix://{socket}"]

    def start(self, context: Path, args: Sequence[str], tag: str) -> subprocess.Popen[str]:
        command = [*self._docker, "build", "--network", "host", "--progress", "plain", "-t", tag, *args, str(context)]
        return _popen(command, DOCKER_BUILDKIT="1")

    def read(self, tag: str, directory: Path) -> Image:
        path = directory / "buildkit.tar"
        _run([*self._docker, "save", "-o", str(path), tag])
        return read_archive(path)

    def push(self, tag: str) -> None:
        """To the registry that `tag` names, which is on loopback."""
        _run([*self._docker, "push", "-q", tag])

    def forget(self) -> None:
        """All images and all of its build cache."""
        _run([*self._docker, "image", "prune", "-a", "-f"])
        _run([*self._docker, "builder", "prune", "-a", "-f"])

    def diff_ids(self, tag: str) -> list[str]:
        """Those of an image's layers, bottom first."""
        shown = _run([*self._docker, "image", "inspect", "--format", "{{json .RootFS.Layers}}", tag])
        return [str(item) for item in json.loads(shown)]

    def load(self, archive: Path) -> tuple[str, str]:
        """Load the image in `archive`: what it is called (its id when it has no name), and its id."""
        called = _run([*self._docker, "load", "-q", "-i", str(archive)]).strip().partition(": ")[2]
        return called, _run([*self._docker, "image", "inspect", "--format", "{{.Id}}", called]).strip()

    def read_file(self, image: str, path: str) -> str:
        """The file at `path` of a container of `image`, which is not started."""
        container = _run([*self._docker, "create", "--network", "none", image, "x"]).strip()
        try:
            tar = subprocess.run([*self._docker, "cp", f"{container}:{path}", "-"], capture_output=True, check=True)
            with tarfile.open(fileobj=io.BytesIO(tar.stdout)) as opened:
                member = opened.extractfile(opened.getmembers()[0])
                assert member is not None
                return member.read().decode()
        finally:
            _run([*self._docker, "rm", "-f", container])

    def version(self) -> str:
        """Of the daemon."""
        return _run([*self._docker, "version", "--format", "{{.Server.Version}}"])


class Buildah:
    """`buildah bud`, without a layer for each step: BuildKit is who layers are compared with."""

    name = "buildah"

    def __init__(self, directory: Path) -> None:
        places = ["--root", str(directory / "root"), "--runroot", str(directory / "run")]
        self.command = ["buildah", *places, "--storage-driver", "overlay"]

    def start(self, context: Path, args: Sequence[str], tag: str) -> subprocess.Popen[str]:
        return _popen([
            *self.command, "bud", "--isolation", "chroot", "--layers=false", "--format", "docker",
            "--tls-verify=false", "--pull=false", "-t", tag, *args, str(context),
        ])  # fmt: skip

    def read(self, tag: str, directory: Path) -> Image:
        path = directory / "buildah.tar"
        _run([*self.command, "push", "-q", tag, f"docker-archive:{path}:{tag}"])
        return read_archive(path)


@contextmanager
def dockerd() -> Iterator[BuildKit]:
    """A daemon of our own.

    Raises:
        Unavailable: it is not installed, is another version than the table of deviations is for, or does not start.
    """
    if os.geteuid() != 0:
        raise Unavailable("dockerd needs root")
    if not shutil.which("dockerd") or not Path("/usr/bin/docker").exists():
        raise Unavailable("dockerd is not installed (Debian: docker.io)")
    directory = _place("dockerd")
    socket, log = directory / "socket", directory / "log"
    (directory / "daemon.json").write_text("{}")
    with log.open("wb") as out:
        process = subprocess.Popen(
            # reason for setpriv: it ends with us, also when we are killed
            ["setpriv", "--pdeathsig", "TERM", "dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none",
             "-H", f"unix://{socket}", "--data-root", str(directory / "data"), "--exec-root", str(directory / "exec"),
             "--pidfile", str(directory / "pid"), "--config-file", str(directory / "daemon.json")],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        oracle = BuildKit(socket, directory / "config")
        version = _when_up(oracle, process, log)
        if not version.startswith("20.10."):
            raise Unavailable(f"the deviations are those of dockerd 20.10, this is {version}")
        yield oracle
    finally:
        process.terminate()
        process.wait(PATIENCE)
        _clear(directory)


def _when_up(oracle: BuildKit, process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            return oracle.version().strip()
        except AssertionError:
            time.sleep(0.2)
    raise Unavailable(f"dockerd does not start: {log.read_text(errors='replace').strip().splitlines()[-1:]}")


@contextmanager
def buildah() -> Iterator[Buildah]:
    """buildah with storage of its own.

    Raises:
        Unavailable: it is not installed, or this is not root.
    """
    if os.geteuid() != 0:
        raise Unavailable("buildah needs root here")
    if not shutil.which("buildah"):
        raise Unavailable("buildah is not installed")
    directory = _place("buildah")
    try:
        yield Buildah(directory)
    finally:
        _clear(directory)


def _place(name: str) -> Path:
    """A new directory for what `name` keeps, below the temporary one, as a socket's path has 107 characters at most.
    Those of test runs that were killed go."""
    for left in Path(tempfile.gettempdir()).glob(f"{name}-*-*"):
        if not Path("/proc", left.name.split("-")[1]).exists():
            _clear(left)
    return Path(tempfile.mkdtemp(prefix=f"{name}-{os.getpid()}-"))


def _clear(directory: Path) -> None:
    """Remove it, with what is mounted there: buildah leaves the mounts of builds that failed."""
    with suppress(OSError):  # another run may clear it, too
        detach_below(directory)
    shutil.rmtree(directory, ignore_errors=True)


def _popen(command: Sequence[str], **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env={**os.environ, **env}, text=True, errors="replace", stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, check=False, text=True, errors="replace", timeout=PATIENCE)
    assert done.returncode == 0, (command, done.stderr[-2000:])
    return done.stdout
