"""What a container is made of, and what is said where it cannot be made."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import DiskError, InputError, SandboxError
from engine.graph import InlineFile
from engine.ops import bundle, container, machine, sandbox
from engine.ops.bundle import prepared
from engine.ops.container import OciSandbox
from engine.ops.oci_spec import Process
from engine.ops.sandbox import choose_runtime

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("proc", "sys", "dev", "etc"):
        (tmp_path / "root" / name).mkdir(parents=True)
    return tmp_path / "root"


def _process(root: Path, **more: object) -> Process:
    return Process(("/x",), (), str(more.pop("cwd", "/")), 0, 0, (), "host", root, **more)  # type: ignore[arg-type]


def _runtime(directory: Path, script: str) -> str:
    path = directory / "runtime"
    program = directory / "runtime.py"
    program.write_text(f"import os, signal, sys\n{script}\n")
    # reason for the shell: a path in the first line cannot have a blank
    path.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(program))} \"$@\"\n")
    path.chmod(0o755)
    return str(path)


def _run(runtime: str, root: Path, directory: Path) -> int:
    return asyncio.run(OciSandbox(runtime, directory, "owner1").run(_process(root), lambda *_: None))


def test_the_bundle_is_there_for_the_time_of_the_context_only(root: Path, tmp_path: Path) -> None:
    before = sorted(root.rglob("*"))
    scripts = (InlineFile("go", "#!/bin/sh\n"),)
    with prepared(_process(root, scripts=scripts), "o.0.1", tmp_path / "sandbox") as made:
        assert json.loads((made.config / "config.json").read_text())["root"]["path"] == str(root)
        assert (made.config / "scripts/go").stat().st_mode & 0o777 == 0o755
        assert (root / "etc/hosts").exists()
    assert not made.config.exists()
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"cwd": "/etc/passwd"}, "'/etc/passwd' cannot be used: not a directory"),
        ({"cwd": "/loop"}, "'/loop' cannot be used: too many levels of symbolic links"),
        ({"cwd": "/etc/passwd/x"}, "'/etc/passwd/x' cannot be used: not a directory"),
        ({"scripts": (InlineFile("../x", ""),)}, "not a file name: '../x'"),
    ],
)
def test_what_the_image_cannot_hold_is_the_users_to_mend(
    root: Path, tmp_path: Path, more: dict[str, object], said: str
) -> None:
    (root / "etc/passwd").touch()
    (root / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=said), prepared(_process(root, **more), "o.0.1", tmp_path / "sandbox"):
        pass
    assert not (root / "etc/hosts").exists()


def test_a_disk_that_takes_no_bundle_is_told(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "sandbox"
    place.touch()
    with pytest.raises(DiskError, match="preparing the container"), prepared(_process(root), "o.0.1", place):
        pass


def test_a_machine_without_a_list_of_name_servers_gives_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_RESOLV", "/nowhere/at/all")
    assert bundle._resolv() == b""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "runtime was killed by SIGKILL"),
        ("""print('{"level": "error", "msg": "no such cgroup"}', file=open(sys.argv[sys.argv.index('--log') + 1], 'w'))
sys.exit(1)""", "runtime could not start the container: no such cgroup"),
        ("""print('{"level": "info", "msg": "old"}\\nnot json', file=open(sys.argv[sys.argv.index('--log') + 1], 'w'))
sys.exit(7)""", "7"),
    ],
)  # fmt: skip
def test_what_a_runtime_says_of_itself_is_told_apart_from_its_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setattr(container, "guard_command", lambda: ())
    runtime = _runtime(tmp_path, script)
    if said == "7":
        assert _run(runtime, root, tmp_path / "sandbox") == 7
    else:
        with pytest.raises(SandboxError, match=said):
            _run(runtime, root, tmp_path / "sandbox")


def test_a_runtime_that_is_gone_or_cannot_be_started_is_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SandboxError, match="the OCI runtime is not executable"):
        _run(str(tmp_path / "none"), root, tmp_path / "sandbox")
    monkeypatch.setattr(container, "guard_command", lambda: ())
    (tmp_path / "odd").write_text("\x00")
    (tmp_path / "odd").chmod(0o755)
    with pytest.raises(SandboxError, match=r"cannot start .*odd: Exec format error"):
        _run(str(tmp_path / "odd"), root, tmp_path / "sandbox")


def test_steps_run_on_machines_that_have_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.host.cache_clear()
    name = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*name[:4], "vax")))
    with pytest.raises(SandboxError, match=r"steps cannot be run on vax \(use a machine of type"):
        machine.host()


@pytest.mark.parametrize("problem", [FileNotFoundError(), subprocess.TimeoutExpired("setpriv", 10)])
def test_without_util_linux_there_is_no_guard(monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    def fails(*_: object, **__: object) -> None:
        raise problem

    machine.guard_command.cache_clear()
    monkeypatch.setattr(subprocess, "run", fails)
    assert machine.guard_command() == ()
    machine.guard_command.cache_clear()


def test_a_runtime_that_fails_is_not_chosen_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "guard_command", lambda: ())
    runtime = _runtime(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(SandboxError, match=r"OCI runtime .*runtime does not work here: .*killed by SIGKILL"):
        asyncio.run(choose_runtime(runtime, tmp_path / "sandbox"))
    assert list((tmp_path / "sandbox").iterdir()) == []


def test_a_disk_that_takes_no_trial_is_told_and_a_hint_that_cannot_be_kept_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="trying out the OCI runtime"):
        asyncio.run(choose_runtime(shutil.which("true"), tmp_path / "file/sandbox"))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    sandbox._remember(tmp_path / "hint", [], sandbox.RuntimeChoice("r", "v", {}))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
