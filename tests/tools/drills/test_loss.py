"""A short loss drill: whatever is damaged, the build ends right or with one clear error."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tools.drills.damage import Damage
from tools.drills.loss import judge, main
from tools.drills.place import AGAIN as ACTION
from tools.drills.place import Done, Place, archived
from tools.lab.loopback_registry import LoopbackRegistry

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("docker-registry") is None, reason="builds need root and a registry"
)


def test_I8_no_loss_gives_a_wrong_image_a_traceback_or_leftovers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--runs", "12", "--seed", "1", "--directory", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "| all | 12 |" in shown
    assert shown.rstrip().endswith("| 0 |")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "done", "problem"),
    [
        (Damage("blobs", ""), Done(0, "", "sha256:other"), "the image is sha256:other"),
        (Damage("blobs", ""), Done(0, "", ""), "broken"),
        (Damage("blobs", ""), Done(3, "ERROR: here: gone"), "could be made again"),
        (Damage("gone", "", away=True), Done(3, "ERROR: here: gone\nERROR: again"), "2 error lines"),
        (Damage("gone", "", away=True), Done(3, "ERROR: gone"), "name the registry"),
        (Damage("gone", "", away=True), Done(1, "ERROR: here: gone"), "exit code 1"),
        (Damage("base", "", digest="sha256:" + 64 * "a"), Done(3, "ERROR: here: gone"), "name the digest"),
        (Damage("gone", "", away=True), Done(3, "Traceback (most recent"), "traceback"),
        (Damage("gone", "", away=True), Done(3, "ERROR: here: gone"), ""),
        (Damage("gone", "", away=True), Done(0, "", "sha256:right"), ""),
    ],
)
def test_what_counts_as_wrong(tmp_path: Path, damage: Damage, done: Done, problem: str) -> None:
    registry = LoopbackRegistry(tmp_path)
    registry.host = "here"
    place = Place(tmp_path, registry, expected={ACTION.last: "sha256:right"})
    found = judge(place, ACTION, damage, done)
    assert (problem in found) if problem else not found


def test_a_registry_that_was_stopped_comes_back_where_it_was(tmp_path: Path) -> None:
    with LoopbackRegistry(tmp_path) as registry:
        host = registry.host
        registry.stop()
        assert registry.start().host == host


def test_an_archive_with_a_wrong_blob_is_no_image(tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "blobs/sha256").mkdir(parents=True)
    (tmp_path / "blobs/sha256" / ("0" * 64)).write_text("not that")
    with tarfile.open(tmp_path / "out.tar", "w") as tar:
        tar.add(tmp_path / "blobs", "blobs")
    assert archived(tmp_path / "out.tar") == ""
