"""No flipped bit of a log or a bundle goes unnoticed and changes what a report says.

2,000 bits, by a fixed seed; a sample of them unless REFLEDGER_LONG is set.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from storage.errors import RefledgerError
from storage.signing.notes import Verifier
from tests.registry_fixture import RegistryProcess
from tests.tools.auditing.attacks import Scene, clear, make_scene, open_copy
from tools.auditing.bundles import verify_bundle
from tools.auditing.verify import verify_root
from tools.cli.main import cli

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

OF_LOG, OF_BUNDLE = (1600, 400) if os.environ.get("REFLEDGER_LONG") else (80, 40)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, registry: RegistryProcess) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("flipped root")
    yield make_scene(directory, registry, "t/flips")
    clear(directory)


def told(root: Path, builds: list[str], covered: int) -> list[tuple[int, str]]:
    """What the reading commands say of the log; of its events, those that are signed: nothing vouches for the last
    one yet, the checkpoint itself, as `verify` says."""
    commands = [["history", "--json"], ["events", "--json"]]
    for build in builds:
        commands += [["show", build, "--json"], ["why", build, "--json"], ["output", build]]
        commands.append(["audit", "report", build, "--json"])
    out = []
    for command in commands:
        done = CliRunner().invoke(cli, ["--root", str(root), *command])
        out.append((done.exit_code, done.output))
    out[1] = (out[1][0], "".join(out[1][1].splitlines(keepends=True)[:covered]))
    return out


def flip(path: Path, bit: int) -> None:
    """Another time, it is as before."""
    with path.open("r+b", buffering=0) as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


def test_no_bit_of_a_log_is_flipped_unnoticed_that_changes_a_report(scene: Scene, tmp_path: Path) -> None:
    root = open_copy(scene, tmp_path / "root").path
    signing = {"REFLEDGER_ROOT": str(root), "REFLEDGER_AUDIT_PUBLISH": ""}  # so that but one event is not signed
    scene.builder.must_build("FROM scratch\nCOPY greeting /\n", env=signing)
    (root / "views.db").unlink()  # so that every report is folded from the log as it is
    clear(root / "moments")
    with closing(sqlite3.connect(root / "log.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    key = Verifier.parse(scene.key)
    builds = list(scene.builds.values())
    verdict = verify_root(root, keys=[key])
    assert (verdict.faults, verdict.covered) == ([], verdict.events - 1)
    honest = told(root, builds, verdict.covered)
    path = root / "log.db"
    rng = random.Random("bits of a log")
    unnoticed = 0
    for bit in sorted(rng.sample(range(path.stat().st_size * 8), OF_LOG)):
        flip(path, bit)
        try:
            found = bool(verify_root(root, keys=[key], quick=True).faults)
        except RefledgerError as error:
            found = error.exit_code in {3, 4}
        if not found:
            unnoticed += 1
            assert told(root, builds, verdict.covered) == honest, f"bit {bit}"
        flip(path, bit)
    assert verify_root(root, keys=[key]).faults == []
    print(f"{OF_LOG} bits of a log of {path.stat().st_size} bytes: {unnoticed} changed nothing that is read")


def test_no_bit_of_a_bundle_is_flipped_unnoticed(scene: Scene, tmp_path: Path) -> None:
    path = open_copy(scene, tmp_path / "root").make_bundle("first")
    key = Verifier.parse(scene.key)
    assert verify_bundle(path, [key]).faults == []
    rng = random.Random("bits of a bundle")
    for bit in sorted(rng.sample(range(path.stat().st_size * 8), OF_BUNDLE)):
        flip(path, bit)
        try:
            found = bool(verify_bundle(path, [key]).faults)
        except RefledgerError as error:
            found = error.exit_code in {2, 4}
        assert found, f"bit {bit}"
        flip(path, bit)
    assert json.loads(json.dumps(verify_bundle(path, [key]).to_json()))["sound"]
