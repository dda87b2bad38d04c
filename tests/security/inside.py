"""What a step tries from inside, one probe at a time, each in a process of its own; prints one JSON object, name → what
came of it: `did`, or the error's name. Runs in a container, with Python's standard library only.

Arguments: a process of the host, major:minor of a disk, the name of an abstract socket. Nothing here does harm where it
succeeds: files are opened and not written, arguments are such that the kernel, once it looks at them, refuses them with
another error than the sandbox does.
"""

# ruff: noqa: PTH103, PTH108, PTH116, PTH123, PTH208
# reason: pathlib needs half of the standard library, and what this needs goes into an image

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == "x86_64"
NUMBERS = {  # x86_64, aarch64
    "ptrace": (101, 117), "syslog": (103, 116), "pivot_root": (155, 41), "adjtimex": (159, 171), "chroot": (161, 51),
    "acct": (163, 89), "settimeofday": (164, 170), "mount": (165, 40), "umount2": (166, 39), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162),
    "iopl": (172, 0), "ioperm": (173, 0), "init_module": (175, 105), "delete_module": (176, 106), "quotactl": (179, 60),
    "clock_settime": (227, 112), "kexec_load": (246, 104), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "unshare": (272, 97), "perf_event_open": (298, 241), "fanotify_init": (300, 262),
    "open_by_handle_at": (304, 265), "setns": (308, 268), "kcmp": (312, 272), "finit_module": (313, 273),
    "kexec_file_load": (320, 294), "bpf": (321, 280), "userfaultfd": (323, 282), "move_pages": (279, 239),
    "personality": (135, 92), "vhangup": (153, 58), "clone": (56, 220), "clone3": (435, 435),
    "io_uring_setup": (425, 425), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "mount_setattr": (442, 442), "statmount": (457, 457), "listmount": (458, 458), "lsm_set_self_attr": (460, 460),
}  # fmt: skip
PROBES: dict[str, Callable[[], object]] = {}
Probe = Callable[[], object]


def call(name: str, *arguments: object) -> int:
    """A system call by its number: libc has no names for some, and turns others into something else."""
    number = NUMBERS[name][not X86]
    if number == 0:
        raise OSError(errno.ENOSYS, "this machine has no such call")
    converted = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    result = libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return int(result)


def probe(name: str) -> Callable[[Probe], Probe]:
    def keep(function: Probe) -> Probe:
        PROBES[name] = function
        return function

    return keep


def simple(name: str, *arguments: object, called: str = "") -> None:
    PROBES[called or name] = lambda: call(name, *arguments)


# ---------------------------------------------------------------- mounts and namespaces

MS_BIND, MS_REMOUNT, MS_RDONLY = 4096, 32, 1
NEW = {"mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000,
       "network": 0x40000000, "cgroup": 0x2000000, "time": 0x80}  # fmt: skip

simple("mount", b"none", b"/mnt", b"tmpfs", 0, None, called="mount a tmpfs")
simple("mount", b"none", b"/mnt", b"proc", 0, None, called="mount a second /proc")
simple("mount", b"none", b"/mnt", b"cgroup", 0, b"memory", called="mount a cgroup hierarchy")
simple("mount", b"/", b"/mnt", None, MS_BIND, None, called="bind a directory")
simple("mount", b"none", b"/sys", None, MS_BIND | MS_REMOUNT, None, called="make /sys writable")
simple("mount", b"none", b"/proc/sys", None, MS_BIND | MS_REMOUNT, None, called="make /proc/sys writable")
simple("umount2", b"/proc/keys", 2, called="unmount a mask")
simple("umount2", b"/sys", 2, called="unmount /sys")
simple("pivot_root", b".", b".")
simple("open_tree", -100, b"/", 1)
simple("move_mount", -1, b"", -1, b"", 0)
simple("fsopen", b"tmpfs", 0)
simple("mount_setattr", -1, b"", 0, None, 0)
for kind, flag in NEW.items():
    simple("unshare", flag, called=f"unshare {kind}")
simple("clone", NEW["user"] | 17, 0, 0, 0, 0, called="clone into a user namespace")
simple("clone3", None, 0)


@probe("enter a namespace")
def enter() -> None:
    call("setns", os.open("/proc/self/ns/mnt", os.O_RDONLY), 0)


@probe("leave by chroot")
def leave() -> None:
    """The old way out of a chroot: a root below the working directory. Succeeds when another root is seen then."""
    before = os.stat("/")
    above = os.open("/", os.O_RDONLY)
    os.makedirs("/mnt/below", exist_ok=True)
    os.chroot("/mnt/below")
    os.fchdir(above)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    after = os.stat("/")
    if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):
        raise OSError(errno.EXDEV, "the same root")


# ---------------------------------------------------------------- the kernel

simple("init_module", None, 0, b"", called="load a module")
simple("finit_module", -1, b"", 0, called="load a module from a file")
simple("delete_module", b"no-such-module", 0, called="remove a module")
simple("kexec_load", 0, 0, None, 0)
simple("kexec_file_load", -1, -1, 0, b"", 0)
simple("reboot", 0, 0, 0, None)
simple("bpf", 0, None, 0)
simple("perf_event_open", None, 0, -1, -1, 0)
simple("userfaultfd", 0)
simple("io_uring_setup", 0, None)
simple("add_key", b"user", b"probe", b"x", 1, -1)
simple("request_key", b"user", b"probe", None, -1)
simple("keyctl", 0, -3, 0, called="keyctl: the session's keyring")
simple("syslog", 10, None, 0, called="read the kernel's messages")
simple("swapon", b"/nowhere", 0)
simple("swapoff", b"/nowhere")
simple("acct", b"/nowhere")
simple("quotactl", 0x80000700, b"/nowhere", 0, None)
simple("open_by_handle_at", -1, None, 0)
simple("fanotify_init", 0, 0)
simple("kcmp", 1, 1, 0, 0, 0)
simple("move_pages", 0, 0, None, None, None, 0)
simple("iopl", 3)
simple("ioperm", 0x80, 1, 1)
simple("vhangup")
simple("personality", 0x0040000, called="personality: no address randomization")
simple("sethostname", b"probe", 5)
simple("setdomainname", b"probe", 5)


@probe("clock_settime")
def set_clock() -> None:
    call("clock_settime", 0, struct.pack("qq", -1, -1))  # never a time


@probe("settimeofday")
def set_time() -> None:
    call("settimeofday", struct.pack("qq", 0, -1), None)  # never a time


@probe("adjtimex: the clock's speed")
def set_speed() -> None:
    call("adjtimex", ctypes.create_string_buffer(struct.pack("i4xq", 2, 1), 256))  # ADJ_FREQUENCY


# ---------------------------------------------------------------- sockets

simple_families = {"AF_ALG": 38, "AF_VSOCK": 40}
for family, number in simple_families.items():
    PROBES[f"socket {family}"] = lambda number=number: socket.socket(number, socket.SOCK_STREAM)


@probe("listen to all packets")
def sniff() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))


@probe("send forged packets")
def forge() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


@probe("make a network interface")
def interface() -> None:
    """RTM_NEWLINK without a kind: refused, but who is not allowed to is told so first (rtnetlink(7))."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(struct.pack("=IHHII", 32, 16, 0x605, 1, 0) + bytes(16))
        code = struct.unpack_from("=i", netlink.recv(4096), 16)[0]
        if code:
            raise OSError(-code, "refused")


@probe("reach an abstract socket of the host")
def abstract() -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + sys.argv[3])


# ---------------------------------------------------------------- other processes


@probe("trace a process of the host")
def trace() -> None:
    call("ptrace", 16, int(sys.argv[1]), 0, 0)


@probe("signal a process of the host")
def kill() -> None:
    os.kill(int(sys.argv[1]), 0)


@probe("see a process of the host")
def see() -> None:
    os.stat(f"/proc/{sys.argv[1]}")


@probe("be spared by the out-of-memory killer")
def spared() -> None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


@probe("raise a limit")
def raise_limit() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard == resource.RLIM_INFINITY:
        raise OSError(errno.EPERM, "there is none")
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard + 4096, hard + 4096))


# ---------------------------------------------------------------- files of the kernel


def opens(path: str, flags: int) -> None:
    os.close(os.open(path, flags | os.O_NONBLOCK))


for written in (
    "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/panic",
    "/proc/sys/vm/overcommit_memory", "/proc/sys/net/ipv4/ip_forward", "/proc/irq/default_smp_affinity", "/proc/mtrr",
    "/sys/kernel/uevent_helper", "/sys/power/state", "/sys/kernel/mm/transparent_hugepage/enabled",
):  # fmt: skip
    PROBES[f"write {written}"] = lambda path=written: opens(path, os.O_WRONLY)


@probe("read kernel memory (/proc/kcore)")
def kcore() -> None:
    with open("/proc/kcore", "rb") as file:
        if not file.read(4):
            raise OSError(errno.ENODATA, "it is empty")


@probe("read addresses of the kernel")
def kallsyms() -> None:
    with open("/proc/kallsyms", "rb") as file:
        if not int(file.readline().split()[0], 16):
            raise OSError(errno.ENODATA, "they are zeros")


@probe("read what the kernel tells of the machine")
def masked() -> list[str]:
    """Files and directories that are empty in a container."""
    found = []
    for path in (
        "/proc/acpi", "/proc/interrupts", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
        "/proc/timer_list", "/sys/devices/virtual/powercap", "/sys/firmware",
    ):  # fmt: skip
        try:
            with open(path, "rb") as file:
                told: object = file.read(1)
        except IsADirectoryError:
            told = os.listdir(path)
        except OSError:
            continue
        if told:
            found.append(path)
    if not found:
        raise OSError(errno.ENODATA, "nothing")
    return found


@probe("write some file of /proc or /sys")
def any_file() -> list[str]:
    """All that a process may write and that does not belong to processes. (What has no write permission for anybody
    can be opened by root all the same, and takes no data.)"""
    found = []
    for top in ("/proc", "/sys"):
        for directory, names, files in os.walk(top):
            if directory == "/proc":
                names[:] = [name for name in names if not name.isdecimal() and name not in {"self", "thread-self"}]
            for name in files:
                path = f"{directory}/{name}"
                try:
                    mode = os.lstat(path).st_mode
                    if stat.S_ISREG(mode) and mode & 0o222:
                        opens(path, os.O_WRONLY)
                        found.append(path)
                except OSError:
                    continue
    if not found:
        raise OSError(errno.EROFS, "none")
    return sorted(found)


# ---------------------------------------------------------------- devices

DEVICES = {
    "/dev/mem": ("char", 1, 1), "/dev/port": ("char", 1, 4), "/dev/kmsg": ("char", 1, 11), "a console": ("char", 4, 0),
    "/dev/loop-control": ("char", 10, 237), "a loop device": ("block", 7, 0), "/dev/fuse": ("char", 10, 229),
    "/dev/net/tun": ("char", 10, 200), "/dev/kvm": ("char", 10, 232), "/dev/vhost-vsock": ("char", 10, 241),
    "/dev/userfaultfd": ("char", 10, 126), "a disk of the host": ("block", *map(int, sys.argv[2].split(":"))),
}  # fmt: skip


def device(kind: str, major: int, minor: int) -> None:
    """Make it, and open it."""
    mode = stat.S_IFCHR if kind == "char" else stat.S_IFBLK
    path = f"/mnt/{kind}-{major}-{minor}"
    os.mknod(path, mode | 0o600, os.makedev(major, minor))
    try:
        opens(path, os.O_RDONLY)
    finally:
        os.unlink(path)


for title, numbers in DEVICES.items():
    PROBES[f"open {title}"] = lambda numbers=numbers: device(*numbers)
PROBES["make and open /dev/zero (allowed)"] = lambda: device("char", 1, 5)
PROBES["become another user (allowed)"] = lambda: os.setuid(1000)


# ---------------------------------------------------------------- all of them


def run(function: Callable[[], object]) -> object:
    """What came of it, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            value = function()
            said: object = value if isinstance(value, list) else "did"
        except OSError as error:
            said = errno.errorcode.get(error.errno or 0, str(error))
        except BaseException as error:
            said = repr(error)
        os.write(writer, json.dumps(said).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        data = file.read()
    os.waitpid(child, 0)
    return json.loads(data) if data else "killed"


if __name__ == "__main__":
    print("PROBES " + json.dumps({name: run(function) for name, function in PROBES.items()}))
