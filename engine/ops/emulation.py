"""Which platforms' programs run on this machine: its own, those its processor and kernel can do besides, and those
for which an emulator is registered.

The answer comes from trying: a program of a few instructions (exit with 0) for that platform is run in an empty root,
as a container is, so an emulator that containers would not see does not count. Sources: elf(5), each architecture's
system call convention (syscall(2)); the kernel's admin-guide/binfmt-misc.rst for the hints.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import DiskError, HostError
from storage.platform import host_platform, parse_platform

REGISTERED = Path("/proc/sys/fs/binfmt_misc")
_BASE = 0x400000
_PAGE = 0x10000
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class _Machine:
    """`number` as in elf.h; `wide`: 64 bits; `little`: byte order; `flags`: e_flags; `code`: exit(0)."""

    number: int
    wide: bool
    little: bool
    flags: int
    code: bytes


def _words(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


_MACHINES = {
    "amd64": _Machine(62, True, True, 0, bytes.fromhex("31ff b83c000000 0f05")),  # edi=0 eax=60 syscall
    "386": _Machine(3, False, True, 0, bytes.fromhex("31db b801000000 cd80")),  # ebx=0 eax=1 int 0x80
    "arm64": _Machine(183, True, True, 0, _words(0xD2800000, 0xD2800BA8, 0xD4000001)),  # x0=0 x8=93 svc
    "arm": _Machine(40, False, True, 0x5000000, _words(0xE3A00000, 0xE3A07001, 0xEF000000)),  # r0=0 r7=1 svc
    "riscv64": _Machine(243, True, True, 0x5, _words(0x00000513, 0x05D00893, 0x00000073)),  # a0=0 a7=93 ecall
    "ppc64le": _Machine(21, True, True, 0x2, _words(0x38000001, 0x38600000, 0x44000002)),  # r0=1 r3=0 sc
    "s390x": _Machine(22, True, False, 0, bytes.fromhex("a7290000 0a01")),  # r2=0 svc 1
    "loong64": _Machine(258, True, True, 0x3, _words(0x00150004, 0x02C1740B, 0x002B0000)),  # a0=0 a7=93 syscall
}  # fmt: skip


def probe_program(architecture: str) -> bytes | None:
    """An ELF program for Linux on `architecture` (Go's name) that ends with 0; None for one that is not known here."""
    machine = _MACHINES.get(architecture)
    if machine is None:
        return None
    order = "<" if machine.little else ">"
    header, entry = (64, 56) if machine.wide else (52, 32)
    start, size = _BASE + header + entry, header + entry + len(machine.code)
    ident = b"\x7fELF" + bytes([2 if machine.wide else 1, 1 if machine.little else 2, 1]) + bytes(9)
    address = "Q" if machine.wide else "I"
    elf = struct.pack(
        f"{order}HHI3{address}I6H", 2, machine.number, 1, start, header, 0, machine.flags, header, entry, 1, 0, 0, 0
    )
    if machine.wide:
        segment = struct.pack(f"{order}II6Q", 1, 5, 0, _BASE, _BASE, size, size, _PAGE)
    else:
        segment = struct.pack(f"{order}8I", 1, 0, _BASE, _BASE, size, size, 5, _PAGE)
    return ident + elf + segment + machine.code


def run_in_empty_root(new_directory: Callable[[], Path], program: bytes) -> bool:
    """Does `program` run, alone in a root, and end with 0? Needs root. `new_directory` makes one where what a killed
    build left is removed; here it is removed at the end. Raises DiskError."""
    chroot = shutil.which("chroot") or "/usr/sbin/chroot"
    try:
        directory = new_directory()
        try:
            path = directory / "probe"
            path.write_bytes(program)
            path.chmod(0o755)
            return _ends_well([chroot, str(directory), "/probe"])
        finally:
            shutil.rmtree(directory)
    except OSError as error:
        raise DiskError.of(error, "trying which programs run here") from error


def _ends_well(command: list[str]) -> bool:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@dataclass(slots=True)
class Emulation:
    """Answers once for each architecture. `runs`: tries a program."""

    runs: Callable[[bytes], bool]
    registered: Path = REGISTERED
    _known: dict[str, bool] = field(default_factory=dict)

    def require(self, platform: str) -> None:
        """Raises HostError, which says how to get it, when programs for `platform` do not run here."""
        wanted, host = parse_platform(platform), host_platform()
        if wanted.os != host.os:
            raise HostError(f"a {wanted} command cannot run on {host}", hint="build it on such a machine")
        architecture = wanted.architecture
        if architecture == host.architecture:
            return
        if architecture not in self._known:
            program = probe_program(architecture)
            self._known[architecture] = program is not None and self.runs(program)
        if not self._known[architecture]:
            raise HostError(f"a {wanted} command cannot run on this {host} machine: {self._why(architecture)}",
                            hint=_HOW.format(architecture=architecture))  # fmt: skip

    def _why(self, architecture: str) -> str:
        if architecture not in _MACHINES:
            return f"{architecture} is not known here"
        entry = self._entry(architecture)
        if entry is None:
            return "no emulator for it is registered with the kernel (binfmt_misc)"
        if "F" not in entry.get("flags:", ""):
            return f"its emulator {entry.get('interpreter', '')} is registered without flag F, so containers miss it"
        return f"its emulator {entry.get('interpreter', '')} does not work"

    def _entry(self, architecture: str) -> dict[str, str] | None:
        """The enabled registration that matches programs of `architecture`: what the kernel says of it, by word."""
        program = probe_program(architecture) or b""
        try:
            files = [path for path in self.registered.iterdir() if path.name not in {"register", "status"}]
            told = [path.read_text() for path in files]
        except OSError:
            return None
        for text in told:
            lines = text.splitlines()
            entry = {key: value for key, _, value in (line.partition(" ") for line in lines[1:])}
            if lines[:1] == ["enabled"] and _matches(entry, program):
                return entry
        return None


_HOW = (
    "register one: apt-get install qemu-user-static, or docker run --privileged --rm tonistiigi/binfmt --install "
    "{architecture}; or build it on such a machine, or cross-compile in a stage FROM --platform=$BUILDPLATFORM"
)


def _matches(entry: dict[str, str], program: bytes) -> bool:
    try:
        magic = bytes.fromhex(entry["magic"])
        mask = bytes.fromhex(entry["mask"]) if "mask" in entry else b"\xff" * len(magic)
        start = program[int(entry.get("offset", "0")) :][: len(magic)]
    except (KeyError, ValueError):
        return False
    return len(start) == len(magic) and all(a & m == b & m for a, b, m in zip(start, magic, mask, strict=True))
