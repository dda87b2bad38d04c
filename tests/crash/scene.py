"""What is done when the crash comes: a command, and what must come of it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storage.log.eventlog import SqliteEventLog
from tests.builder import base_image
from tests.crash.place import EPOCH, Place
from tests.registry_fixture import OCI_MANIFEST, RegistryProcess, push_image, push_manifest

BASE, NEWER, MANY = "crash/base", "crash/newer", "crash/many"
"""Images in the first registry: three layers with a shell; the same with another one; for amd64 and arm64, no shell."""
STEPS = """\
FROM {base} AS tools
RUN echo tool > /tool && mkdir /made && echo a > /made/a
FROM {base}
WORKDIR /app
COPY file dir /app/
ADD more.tar /unpacked/
COPY --from=tools /tool /made /tools/
RUN cat /tools/tool && echo done > /result
LABEL a=b
"""
FILES = """\
FROM {base}
COPY file /file
COPY --from={base} /data/1 /one
"""
WAITS = "7731"
"""Seconds for which a step sleeps that is to wait until it is let go on."""
_INDEX = "application/vnd.oci.image.index.v1+json"
Commands = Callable[[Place], Sequence[str]]


def _nothing(_place: Place) -> None:
    """Nothing is done before."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A command, what was done `before` it, and the `outcome` that must be the same with and without a crash.

    `codes`: exit codes that are right when it is run again after a crash; `then`: a second command, run at the end.
    `beside`: another one, which lives through all of it: it is begun before, and must end well; when it `waits`, in a
    step that is let go on at the very end. `keeps`: what may stay outside of the root and `out`."""

    name: str
    command: Commands
    outcome: Callable[[Place], object]
    before: Callable[[Place], None] = _nothing
    codes: tuple[int, ...] = (0,)
    then: Commands | None = None
    beside: Commands | None = None
    waits: bool = False
    keeps: tuple[str, ...] = ()


def images(hub: RegistryProcess) -> None:
    """Put those that scenes begin with into the first registry."""
    base_image(hub, BASE, size=100_000)
    base_image(hub, NEWER, size=50_000, layers=2)
    several(hub.host, MANY, "all", ["amd64", "arm64"])


def several(host: str, repository: str, tag: str, machines: Sequence[str]) -> None:
    """Put an index of images for `machines` there."""
    listed = []
    for machine in machines:
        files = [{"f": b"f" * 5000}, {"own": machine.encode() * 3000}]
        image = push_image(host, repository, files, tag=machine, architecture=machine)
        platform = {"os": "linux", "architecture": machine}
        about = {"digest": image["digest"], "size": image["size"], "platform": platform}
        listed.append({"mediaType": OCI_MANIFEST, **about})
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": listed}
    push_manifest(host, repository, tag, json.dumps(index).encode(), _INDEX)


def write(place: Place, dockerfile: str) -> None:
    """A context with `dockerfile`."""
    base = f"{place.host}/{BASE}"
    place.write({"Dockerfile": dockerfile.format(base=base), "file": "content\n", "dir/a": "a\n", "dir/b": "b" * 9000,
                 "more.tar": archive()})  # fmt: skip


def archive() -> bytes:
    """A tar of two files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("u", "v"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 1000, int(EPOCH)
            tar.addfile(info, io.BytesIO(name.encode() * 1000))
    return out.getvalue()


def build(place: Place, dockerfile: str, *options: str) -> list[str]:
    """The command that builds it, once it is written."""
    write(place, dockerfile)
    return ["build", str(place.context), "--progress", "plain", *options]


def first_build(place: Place) -> None:
    """One that went well, and was pushed."""
    place.must(*build(place, STEPS, "-t", f"{place.host}/{place.repository}/first:1", "--push"))


def recorded(place: Place, number: int = 0) -> str:
    """The id of the first one that was begun, or of a later one."""
    log = SqliteEventLog(place.root / "log.db", read_only=True)
    try:
        return [str(event.build) for event in log.read(types=frozenset({"BuildStarted"}))][number]
    finally:
        log.close()
