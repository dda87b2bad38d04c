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
from engine.ops.oci_spec import ContainerMount
from engine.ops.run_mounts import RunMounts, _check_nesting
from engine.refs.ref import Local, Remote
from storage.cachemounts import DirectoryCacheMounts
from storage.layers.compose import TreeWriter
from storage.layers.snapshots import OverlaySnapshots
from tests.builder import Builder, base_image
from tests.registry_fixture import RegistryProcess
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


def test_a_mount_inside_of_a_read_only_one_needs_something_there_of_its_kind(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_text("")
    outer = ContainerMount("/m", str(tmp_path), readonly=True)
    _check_nesting([outer, ContainerMount("/m/d", str(tmp_path)), ContainerMount("/m/f", "f", directory=False)])
    for inner in (ContainerMount("/m/f", str(tmp_path)), ContainerMount("/m/none", str(tmp_path))):
        with pytest.raises(InputError, match="is mounted read-only and has no such directory"):
            _check_nesting([outer, inner])


def test_two_mounts_of_one_stage_show_the_same_files(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    builder = Builder(tmp_path)
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.write({"f": "text"})
    builder.must_build(
        f"FROM scratch AS files\nCOPY f /d/\nFROM {image['reference']}\n"
        "RUN --mount=from=files,target=/a --mount=from=files,source=d/f,target=/b cmp /a/d/f /b\n"
    )
