"""I13: the reading commands work on a copied root, read-only mounted, without network, and leave it as it was."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.builder import PROJECT, Builder, base_image
from tests.registry_fixture import RegistryProcess
from tests.state import state_of
from tools.cli.main import _COMMANDS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

COMMANDS = (
    "why {new}", "why {new} {step}", "why {old}", "why {new} --against {old}", "why {new} --json", "diff {old} {new}",
    "diff {old} {new} --json", "refs", "refs --json", "refs {ref}", "show {new}", "show {new} --json", "history",
    "history --json", "events --build {new}", "events --json", "output {new}", "output {new} {step}", "rebuild --check",
    "du", "du --json", "report {new} -o -", "inspect {ref}", "inspect {ref} --offline --json",
    "audit prove 3", "audit prove --from {signed}", "audit report {new}", "audit report {new} --reverse --json",
    "audit provenance {new}",
)  # fmt: skip
"""Every command that reads, where there is one; names in braces are those of `Told`."""
BUILDING = {"append", "browse", "build", "bundle", "copy", "index", "login", "logout", "prune", "rebase", "replay"}
"""Commands that write, or need more than a root: tests/tools/test_browse.py tries `browse`, which needs a terminal."""

SCRIPT = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && ! touch "$0/x" 2>/dev/null && exec "$@"'


@dataclass(frozen=True)
class Told:
    """Two builds, and a `copy` of their root with its `state` as copied."""

    builder: Builder
    copy: Path
    state: dict[str, str]
    names: dict[str, str]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, registry: RegistryProcess) -> Told:
    directory = tmp_path_factory.mktemp("offline")
    builder = Builder(directory)
    base = base_image(registry, "t/offline/base", layers=2)["reference"]
    builder.run("audit", "keygen")
    dockerfile = f"FROM {base} AS made\nCOPY a /a\nRUN echo made; cat /a > /b\nFROM {base}\nCOPY --from=made /b /b\n"
    for content in ("one", "two"):
        builder.write({"a": content})
        builder.must_build(dockerfile, "-t", f"{registry.host}/t/offline/app", "--push")
    new, old = (record["id"] for record in builder.builds())
    copy = directory / "copy"
    subprocess.run(["cp", "-a", str(builder.root), str(copy)], check=True)
    ref = builder.run("refs").out.splitlines()[1].split()[0]
    signed = str(builder.events("CheckpointSigned")[0]["data"]["size"])
    return Told(builder, copy, state_of(copy), {"old": old, "new": new, "step": "RUN", "ref": ref, "signed": signed})


@pytest.mark.parametrize("command", COMMANDS)
def test_I13_reading_needs_no_network_and_no_disk_to_write_to(told: Told, command: str) -> None:
    args = command.format(**told.names).split()
    done = subprocess.run(
        ["unshare", "-n", "-m", "sh", "-c", SCRIPT, str(told.copy), sys.executable, "-m", "tools.cli.main", "--root",
         str(told.copy), *args],
        cwd=PROJECT, env=told.builder.env, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    ago = re.compile(r"\b\S+ ago *")  # the one thing that is told from when it is asked
    assert ago.sub("…", done.stdout) == ago.sub("…", told.builder.run(*args).out)
    assert done.stdout.strip()
    assert state_of(told.copy) == told.state


def test_I13_views_that_are_gone_are_folded_in_memory(told: Told, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(told.copy), str(copy)], check=True)
    for name in ("views.db", "views.db-wal", "views.db-shm"):
        (copy / name).unlink(missing_ok=True)
    state = state_of(copy)
    new = told.names["new"]
    assert told.builder.run("--root", str(copy), "why", new).out == told.builder.run("why", new).out
    assert state_of(copy) == state


def test_every_reading_command_is_tried() -> None:
    assert {command.split()[0] for command in COMMANDS} >= set(_COMMANDS) - BUILDING
