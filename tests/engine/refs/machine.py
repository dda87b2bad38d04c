"""A materializer of real parts over a real registry, behind a proxy that misbehaves; what it did, as its log has it."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from engine.clock import Clock
from engine.ledger import Ledger
from engine.refs.fetch import Fetcher
from engine.refs.fill import FetchLimits
from engine.refs.kept import Known, NothingKnown
from engine.refs.materializer import Materializer
from engine.refs.ref import Layer, Local, Remote
from storage.blobs import DirectoryBlobs
from storage.credentials.lookup import Anonymous
from storage.digest import Digest
from storage.interfaces.images import Descriptor, Provider
from storage.layers.directory import DirectoryLayers
from storage.layers.snapshots import OverlaySnapshots
from storage.locks import FileLocks
from storage.log.eventlog import SqliteEventLog
from storage.partial import DirectoryPartials
from storage.registry import Limits, RegistryClient

KIB = 1024
SMALL = FetchLimits(range_bytes=256 * KIB, parallel_bytes=1024 * KIB, connections=4)
"""Limits that make a blob of a few MiB a large one."""


class Machine:
    """One root directory; every `pull` is a process of its own as far as the root can tell."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("layers", "snapshots", "locks", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self.log = SqliteEventLog(root / "log.db")
        self.damaged: list[str] = []
        """Blobs that were found so."""

    async def pull(self, layers: Sequence[Layer], **parts: Any) -> Local:
        """Materialize `layers`, with everything made anew and let go at the end."""
        async with self.materializer(**parts) as made:
            return await made.materialize(Remote("r", tuple(layers)), vertex="v", reason="run")

    @asynccontextmanager
    async def materializer(
        self,
        *,
        limits: FetchLimits = SMALL,
        tries: int = 1,
        client: Callable[..., RegistryClient] = RegistryClient,
        store: type[DirectoryLayers] = DirectoryLayers,
        known: Known | None = None,
    ) -> AsyncIterator[Materializer]:
        """That of one process."""

        async def no_pause(seconds: float) -> None:
            pass

        registry = client(Anonymous(), user_agent="t", limits=Limits(tries=tries), sleep=no_pause)
        root = self.root
        locks, ledger, clock = FileLocks(root / "locks"), Ledger(self.log, "b"), Clock(time.time_ns, time.monotonic)
        fetcher = Fetcher(
            DirectoryBlobs(root, owner="t", lost=lambda digest, _: self.damaged.append(digest)),
            DirectoryPartials(root / "partial"), registry, locks, ledger, clock,
            parallel=2, limits=limits, known=known or NothingKnown(),
        )  # fmt: skip
        layers_here = store(root / "layers", root / "tmp", "t")
        snapshots = OverlaySnapshots(root / "snapshots", root / "tmp", "t")
        materializer = Materializer(layers_here, snapshots, fetcher, locks, ledger, clock)
        try:
            yield materializer
        finally:
            await registry.aclose()
            materializer.close()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The data of all events of one type so far."""
        return [event.data for event in self.log.read(types=frozenset({kind}))]

    def kept(self) -> int:
        """Bytes in partial blobs."""
        return sum(path.stat().st_size for path in (self.root / "partial").glob("*/*"))

    def lying_about(self) -> list[str]:
        """What an ended pull may not leave (partial blobs are another question)."""
        return [str(path) for where in ("tmp/*", "locks/*") for path in self.root.glob(where)]


def layer_of(image: dict[str, Any], *hosts: str, index: int = -1) -> Layer:
    """A layer of what `push_image` made, to be had at `hosts`."""
    found = image["layers"][index]
    name = image["reference"].partition("/")[2].rpartition(":")[0]
    return Layer(
        diff_id=Digest(found["diff_id"]),
        blob=Descriptor(found["mediaType"], Digest(found["digest"]), found["size"]),
        providers=tuple(Provider.of(host, name) for host in hosts),
    )


def open_files(machine: Machine) -> list[str]:
    """What this process has open below the root, but for the log."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:  # the descriptor that this loop itself reads
            continue
        if target.startswith(f"{machine.root}/") and "/log.db" not in target:
            found.append(target)
    return found


def threads() -> list[str]:
    """Threads that pulls start."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("unpack", "decompress"))]
