"""A kill at any event, between any two changes of files, or a power loss, and then the same command again: it ends as
if nothing had happened, and nothing is left. A sample; all of it with REFLEDGER_LONG, or by `python -m tests.crash`.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from projections.runner import Views
from projections.standard import STANDARD
from tests.crash.crash import HOWS, disk_of, registries, staged
from tests.crash.power import Disk, works
from tests.crash.scenes import SCENES
from tests.projections import story
from tests.projections.support import ListLog
from tests.registry_fixture import RegistryProcess

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("docker-registry"), reason="builds need root, scenes a registry"
)
LONG = float(os.environ.get("REFLEDGER_LONG") or 0)
SAMPLE = {
    "build, directory": ("after:LayerPulled", "unsynced+end"),
    "push, directory": ("before:BlobCreated",),
    "failing build": ("after:VertexOutput",),
    "archives": ("unsynced+end",),
    "copy": ("inside:Exported",),
    "prune": ("twice:Demoted", "after:Pruned:TERM"),
    "checkpoint": ("after:CheckpointSigned",),
    "redact": ("inside:PayloadRedacted",),
}
Registries = tuple[RegistryProcess, RegistryProcess]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registries]:
    with registries(tmp_path_factory.mktemp("crash registries")) as both:
        yield both


@pytest.mark.parametrize("name", SAMPLE)
def test_I12_a_crash_changes_nothing_but_the_record_of_it(tmp_path: Path, servers: Registries, name: str) -> None:
    hub, second = servers
    with staged(SCENES[name], tmp_path / "a stage", hub.host, second.host) as stage:
        for chosen in SAMPLE[name]:
            crash = stage.crash(chosen)
            assert not crash.wrong, str(crash)
            assert not crash.outlived, str(crash)


@pytest.mark.skipif(not LONG, reason="takes hours: set REFLEDGER_LONG=<seconds>")
@pytest.mark.parametrize("name", SCENES if LONG else ["each"])
def test_I12_no_crash_at_all_changes_anything(tmp_path: Path, servers: Registries, name: str) -> None:
    hub, second = servers
    until = time.monotonic() + LONG / len(SCENES) if LONG > 1 else float("inf")
    for disk in dict.fromkeys(map(disk_of, HOWS)):
        hows = [how for how in HOWS if disk_of(how) == disk]
        if disk and not works(tmp_path, disk):
            continue
        with staged(SCENES[name], tmp_path / f"stage {disk}", hub.host, second.host, on=disk) as stage:
            moments = list(stage.moments(hows))
            random.Random(name).shuffle(moments)
            for moment in moments:
                crash = stage.crash(moment)
                assert not crash.wrong, str(crash)
                if time.monotonic() > until:
                    break


def test_I1_views_are_whole_after_a_power_loss(tmp_path: Path) -> None:
    if not works(tmp_path):
        pytest.skip("needs mkfs.ext4 and a loop device")
    half, whole = ListLog(), ListLog()
    for number in range(90):
        story.whole(whole, f"b{number}")
    half.events = whole.events[: len(whole.events) // 2]
    disk = Disk(tmp_path / "disk.img", tmp_path / "disk", mib=64)
    path = tmp_path / "disk/views.db"
    try:
        disk.make()
        with Views(path, STANDARD) as views:
            views.catch_up(half)
        disk.keep(tmp_path / "kept")
        for seed in (8, 9, 10):  # which tear a file that is written without flushes
            dice = random.Random(seed)
            disk.put_back(tmp_path / "kept", dice)
            with Views(path, STANDARD) as views:
                views.catch_up(whole)
            with (tmp_path / "disk/log").open("wb") as other:  # what is made durable next takes names along, not pages
                os.fsync(other.fileno())
            disk.pull_the_plug(dice)
            with Views(path, STANDARD) as views:
                assert views.check(whole) == [], f"seed {seed}"
    finally:
        disk.unmount()
