"""What is mounted for a step, where the machine refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.clock import Clock
from engine.errors import DiskError, InputError, RefledgerError
from engine.grants import Grants
from engine.graph import Mount, Run, vertex
from engine.ledger import Ledger
from engine.ops.executor import Task
from engine.ops.run_mounts import RunMounts
from engine.refs.ref import Local, Remote
from storage.cachemounts import DirectoryCacheMounts
from storage.layers.compose import TreeWriter
from storage.layers.snapshots import OverlaySnapshots
from tools.roots import open_root


class Places:
    """Where secrets may lie: in a directory that is gone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def place(self) -> Iterator[Path]:
        yield self._directory / "gone"


@pytest.mark.parametrize(("mount", "value", "error", "said"), [
    (Mount(kind="secret", target="/t", id="key"), b"s3cret", DiskError, "mounting secret 'key': No such file"),
    (Mount(kind="secret", target="", id="key", env="KEY"), b"s3cret\0", InputError, "'key' holds a NUL byte"),
], ids=["its place is gone", "no variable can hold it"])  # fmt: skip
def test_I9_a_secret_that_cannot_be_mounted_is_told_of_without_its_value(
    tmp_path: Path, mount: Mount, value: bytes, error: type[RefledgerError], said: str
) -> None:
    async def materialize(ref: Remote) -> Local:
        raise AssertionError(f"{ref} has nothing to do with it")

    async def run(mounts: RunMounts, say: Callable[[str], None]) -> None:
        op = Run(argv=("true",), env=(), cwd="/", mounts=(mount,))
        async with mounts.ready(Task(vertex(op, (), "a step"), "b1-x", 1, ()), op, materialize, say):
            raise AssertionError("there is nothing to run with")

    with open_root(tmp_path / "root") as root:
        mounts = RunMounts(
            OverlaySnapshots(root.path / "snapshots", root.tmp, "b1"),
            DirectoryCacheMounts(root.path / "cache", root.tmp, "b1", root.locks),
            Places(tmp_path),
            Grants(secrets={"key": value}),
            Ledger(root.log, "b1"),
            Clock(time.time_ns, time.monotonic),
            TreeWriter,
        )
        told: list[str] = []
        with pytest.raises(error, match=said) as raised:
            asyncio.run(run(mounts, told.append))
    assert "s3cret" not in f"{raised.value!r} {raised.value}"
    assert told == []
