"""Which platforms' programs run here, and what is said when they do not."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path
from tempfile import mkdtemp

import pytest

from engine.errors import DiskError, HostError
from engine.ops.emulation import Emulation, probe_program, run_in_empty_root
from storage.platform import host_platform

HOST = host_platform()
OTHER = "s390x" if HOST.architecture != "s390x" else "amd64"


@pytest.mark.skipif(os.geteuid() != 0, reason="a root of its own needs root")
def test_a_program_of_this_machine_runs_in_an_empty_root(tmp_path: Path) -> None:
    made: list[Path] = []

    def new_directory() -> Path:
        made.append(tmp_path / f"root {len(made)}")
        made[-1].mkdir()
        return made[-1]

    program = probe_program(HOST.architecture)
    assert program is not None
    assert run_in_empty_root(new_directory, program)
    assert not run_in_empty_root(new_directory, b"not a program")
    assert len(made) == 2
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_the_try_is_no_missing_emulator(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="trying which programs run here: No such file"):
        run_in_empty_root(lambda: tmp_path / "missing", b"a program")


@pytest.mark.parametrize(
    ("architecture", "bits", "order", "machine"),
    [
        ("amd64", 64, "<", 62), ("386", 32, "<", 3), ("arm64", 64, "<", 183), ("arm", 32, "<", 40),
        ("riscv64", 64, "<", 243), ("ppc64le", 64, "<", 21), ("s390x", 64, ">", 22), ("loong64", 64, "<", 258),
    ],
)  # fmt: skip
def test_probe_programs_are_elf_for_their_machine(architecture: str, bits: int, order: str, machine: int) -> None:
    """Source: elf(5); numbers of machines are those of elf.h."""
    program = probe_program(architecture)
    assert program is not None
    assert program[:7] == b"\x7fELF" + bytes([bits // 32, 1 if order == "<" else 2, 1])
    address = "Q" if bits == 64 else "I"
    kind, made_for, _, entry, headers = struct.unpack_from(f"{order}HHI2{address}", program, 16)
    assert (kind, made_for) == (2, machine)
    if bits == 64:
        segment, _, offset, at, _, size = struct.unpack_from(f"{order}2I4Q", program, headers)
    else:
        segment, offset, at, _, size = struct.unpack_from(f"{order}5I", program, headers)
    assert (segment, offset, size) == (1, 0, len(program)), "all of it is loaded"
    assert headers < entry - at < len(program)


def test_this_machines_own_platform_needs_no_try() -> None:
    def never(_: bytes) -> bool:
        raise AssertionError("nothing to try")

    Emulation(runs=never).require(str(HOST))


def test_each_architecture_is_tried_once() -> None:
    tried: list[bytes] = []

    def runs(program: bytes) -> bool:
        tried.append(program)
        return True

    emulation = Emulation(runs=runs)
    emulation.require(f"linux/{OTHER}")
    emulation.require(f"linux/{OTHER}")
    assert len(tried) == 1


def refusal(registered: Path, platform: str) -> str:
    with pytest.raises(HostError) as raised:
        Emulation(runs=lambda _: False, registered=registered).require(platform)
    assert raised.value.exit_code == 3
    return str(raised.value)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    assert "no emulator for it is registered" in refusal(tmp_path / "nothing", f"linux/{OTHER}")
    assert "is not known here" in refusal(tmp_path, "linux/sparc64")
    assert "on such a machine" in refusal(tmp_path, "windows/amd64")


def test_an_emulator_without_flag_F_is_said_to_be_the_reason(tmp_path: Path) -> None:
    program = probe_program(OTHER)
    assert program is not None
    (tmp_path / "status").write_text("enabled\n")
    entry = tmp_path / "any-name"
    magic = program[:20].hex()
    for flags, said in (("OC", "without flag F"), ("OCF", "does not work")):
        mask = "ff" * 20
        entry.write_text(f"enabled\ninterpreter /qemu\nflags: {flags}\noffset 0\nmagic {magic}\nmask {mask}\n")
        assert said in refusal(tmp_path, f"linux/{OTHER}")
    entry.write_text(f"disabled\ninterpreter /usr/bin/qemu\nflags: OCF\noffset 0\nmagic {magic}\n")
    assert "no emulator" in refusal(tmp_path, f"linux/{OTHER}")


def test_a_program_that_does_not_end_or_cannot_be_started_does_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for problem in (FileNotFoundError(), subprocess.TimeoutExpired("chroot", 1)):

        def fails(*_: object, problem: Exception = problem, **__: object) -> None:
            raise problem

        monkeypatch.setattr(subprocess, "run", fails)
        assert not run_in_empty_root(lambda: Path(mkdtemp(dir=tmp_path)), b"")


@pytest.mark.parametrize("text", ["enabled\nmagic zz\n", "enabled\ninterpreter /q\n", "enabled\noffset x\nmagic 7f\n"])
def test_a_registration_that_is_not_understood_matches_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd").write_text(text)
    with pytest.raises(HostError, match="no emulator for it is registered"):
        Emulation(runs=lambda _: False, registered=tmp_path).require(f"linux/{OTHER}")
