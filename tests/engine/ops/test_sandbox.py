"""Steps in real containers: what they see, how they end, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from engine.errors import InputError, SandboxError
from engine.graph import InlineFile
from engine.ops.machine import guard_command
from engine.ops.oci_spec import ContainerMount
from engine.ops.sandbox import OciSandbox, Process, choose_runtime, sweep_containers
from storage.overlay import mounts_below
from tests.waiting import PATIENCE, processes, wait_until

RUNC = shutil.which("runc") or ""
BUSYBOX = "/bin/busybox"
ME = os.getpid()  # in names that all processes of this machine see
APPLETS = (
    "cat", "date", "dd", "echo", "grep", "head", "hostname", "id", "ls", "mkdir", "mount", "printf", "sh", "sleep",
    "touch", "true", "unshare",
)  # fmt: skip

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not RUNC or not Path(BUSYBOX).exists(), reason="needs root, runc, busybox"),
]


@dataclass
class Bench:
    """A busybox image as the lower of an overlay mounted at `root`, and a sandbox directory."""

    base: Path
    root: Path
    upper: Path
    directory: Path
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)

    def process(self, *argv: str, **changes: object) -> Process:
        made = Process(argv, (("PATH", "/bin"),), "/", 0, 0, (), "host", self.root)
        return replace(made, **changes)  # type: ignore[arg-type]

    def collect(self, fd: int, data: bytes) -> None:
        {1: self.out, 2: self.err}[fd].extend(data)

    def sandbox(self, owner: str = "owner1") -> OciSandbox:
        return OciSandbox(RUNC, self.directory, owner)

    def run(self, *argv: str, **changes: object) -> int:
        self.out.clear()
        self.err.clear()
        return asyncio.run(self.sandbox().run(self.process(*argv, **changes), self.collect))

    def shell(self, script: str, **changes: object) -> str:
        assert self.run("/bin/sh", "-c", script, **changes) == 0, self.err
        return self.out.decode()

    def changes(self) -> list[str]:
        return sorted(str(path.relative_to(self.upper)) for path in self.upper.rglob("*"))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    base = tmp_path / "base"
    (base / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, base / "bin/busybox")
    for name in APPLETS:
        (base / "bin" / name).symlink_to("busybox")
    for name in ("root", "upper", "work"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={base},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, tmp_path / "root"], check=True)
    try:
        yield Bench(base, tmp_path / "root", tmp_path / "upper", tmp_path / "sandbox")
        assert mounts_below(tmp_path) == [tmp_path / "root"]
    finally:
        subprocess.run(["umount", tmp_path / "root"], check=True)  # refused when anything still uses it


def cgroups(owner: str) -> list[Path]:
    top = Path("/sys/fs/cgroup")
    return [*top.glob(f"*/refledger/{owner}.*"), *top.glob(f"refledger/{owner}.*")]


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 1", 1), ("exit 42", 42), ("exit 255", 255)])
def test_the_exit_code_is_the_commands(bench: Bench, script: str, status: int) -> None:
    assert bench.run("sh", "-c", script) == status
    assert (bytes(bench.out), bytes(bench.err)) == (b"", b"")


def test_a_signal_is_128_and_its_number(bench: Bench) -> None:
    assert bench.run("sh", "-c", "trap - TERM; sh -c 'kill -TERM $$'; exit $?") == 143


@pytest.mark.parametrize(
    ("argv", "status", "line"),
    [
        (("foo",), 127, b'exec: "foo": executable file not found in $PATH\n'),
        (("/bin/foo",), 127, b'exec: "/bin/foo": stat /bin/foo: no such file or directory\n'),
        (("/bin",), 126, b'exec: "/bin": '),
    ],
)
def test_a_command_that_cannot_run_is_the_steps_failure(
    bench: Bench, argv: tuple[str], status: int, line: bytes
) -> None:
    assert bench.run(*argv) == status
    assert bench.err.startswith(line)
    assert bench.err.count(b"\n") == 1


def test_a_working_directory_that_is_a_file_is_an_input_error(bench: Bench) -> None:
    with pytest.raises(InputError, match=r"working directory '/bin/busybox'.*not a directory"):
        bench.run("sh", cwd="/bin/busybox")


def test_a_missing_working_directory_is_made(bench: Bench) -> None:
    assert bench.shell("pwd", cwd="/new/dir") == "/new/dir\n"


# ---------------------------------------------------------------- output


def test_streams_are_kept_apart_in_order_and_raw(bench: Bench) -> None:
    assert bench.run("sh", "-c", "for i in 1 2 3; do echo o$i; echo e$i >&2; done; printf '\\377\\000x'") == 0
    assert bytes(bench.out) == b"o1\no2\no3\n\xff\x00x"
    assert bytes(bench.err) == b"e1\ne2\ne3\n"


def test_the_order_of_the_two_streams_is_the_one_they_were_written_in(bench: Bench) -> None:
    seen: list[tuple[int, bytes]] = []

    def acknowledge(fd: int, data: bytes) -> None:
        seen.append((fd, data))
        (bench.root / f"seen{len(seen)}").touch()

    script = "for i in 1 3 5; do echo $i; until [ -e /seen$i ]; do sleep 0.01; done; echo $i >&2; "
    script += "until [ -e /seen$((i+1)) ]; do sleep 0.01; done; done"
    asyncio.run(bench.sandbox().run(bench.process("sh", "-c", script), acknowledge))
    assert seen == [(fd, b"%d\n" % i) for i in (1, 3, 5) for fd in (1, 2)]


def test_output_comes_in_whole_lines_and_an_unfinished_one_after_a_while(bench: Bench) -> None:
    seen: list[bytes] = []

    def acknowledge(_: int, data: bytes) -> None:
        seen.append(data)
        (bench.root / f"seen{len(seen)}").touch()

    script = "printf 'a\\nb'; until [ -e /seen2 ]; do sleep 0.01; done; printf 'c\\n'; head -c 100000 /dev/zero"
    asyncio.run(bench.sandbox().run(bench.process("sh", "-c", script), acknowledge))
    assert seen[:3] == [b"a\n", b"b", b"c\n"]
    assert sum(map(len, seen[3:])) == 100000
    assert max(map(len, seen)) == 32 * 1024


def test_ten_megabytes_arrive_whole(bench: Bench) -> None:
    size = 0

    def count(_: int, data: bytes) -> None:
        nonlocal size
        size += len(data)

    asyncio.run(bench.sandbox().run(bench.process("dd", "if=/dev/zero", "bs=64k", "count=160", "status=none"), count))
    assert size == 160 * 65536


def test_stdin_is_empty(bench: Bench) -> None:
    assert bench.shell("cat") == ""


def test_an_error_of_the_listener_ends_the_container_and_comes_through(bench: Bench) -> None:
    def fail(_: int, data: bytes) -> None:
        raise RuntimeError(data.decode())

    with pytest.raises(RuntimeError, match="hi"):
        asyncio.run(bench.sandbox(f"owner2-{ME}").run(bench.process("sh", "-c", f"echo hi; sleep 4711.{ME}"), fail))
    assert not processes(f"4711.{ME}")
    assert not cgroups(f"owner2-{ME}")


# ---------------------------------------------------------------- what it sees


def test_user_groups_and_capabilities(bench: Bench) -> None:
    status = "grep -E '^(Cap(Eff|Prm|Inh|Bnd|Amb)|Groups|Seccomp|NoNewPrivs):' /proc/self/status; id -u; id -g"
    root = dict(line.split(":", 1) for line in bench.shell(status).splitlines() if ":" in line)
    bounding = f"{0xA80405FB:016x}"  # docker's default 14, as capsh prints them, but for NET_RAW
    assert root["CapEff"].strip() == root["CapPrm"].strip() == root["CapBnd"].strip() == bounding
    assert root["CapInh"].strip() == root["CapAmb"].strip() == "0" * 16
    assert root["Seccomp"].strip() == "2"
    assert root["NoNewPrivs"].strip() == "0"
    text = bench.shell(status, uid=1000, gid=1001, groups=(50,))
    user = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    assert user["CapEff"].strip() == user["CapPrm"].strip() == "0" * 16
    assert user["CapBnd"].strip() == bounding
    assert user["Groups"].split() == ["50", "1001"]
    assert text.splitlines()[-2:] == ["1000", "1001"]


@pytest.mark.parametrize(
    "script",
    ["mount -t tmpfs x /mnt", "unshare -U true", "unshare -n true", "echo h > /proc/sysrq-trigger", "hostname other",
     "echo 1 > /proc/sys/kernel/panic", "touch /sys/x", "echo x > /etc/hosts",
     "date -s 2000-01-01 2>&1 | grep -q 'not permitted' && exit 1; exit 0"],
)  # fmt: skip
def test_what_could_reach_the_host_is_refused(bench: Bench, script: str) -> None:
    (bench.base / "mnt").mkdir()
    assert bench.run("sh", "-c", script) != 0


def test_I9_what_crashes_leaves_no_memory_of_itself_in_the_layer(bench: Bench) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))  # as many services have it
    try:
        assert bench.run("sh", "-c", "cd /bin; ulimit -c; sh -c 'kill -ABRT $$'; exit $?") == 134
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert bytes(bench.out) == b"0\n"
    assert bench.changes() == []
    assert bench.shell("ulimit -H -c").strip() == ("unlimited" if hard == resource.RLIM_INFINITY else str(hard // 512))


def test_masked_files_are_empty(bench: Bench) -> None:
    assert Path("/proc/keys").read_text() + Path("/proc/interrupts").read_text()
    here = [path for path in ("/proc/keys", "/proc/interrupts", "/proc/kcore") if Path(path).exists()]
    assert bench.shell(f"cat {' '.join(here)}") == ""


def test_it_sees_its_own_processes_hostname_and_environment_only(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "hunter2")
    script = "hostname; echo $$; cat /proc/1/environ; ls /proc | grep -c '^[0-9]'"
    out = bench.shell(script, env=(("PATH", "/bin"), ("HOME", "/h")))
    host, pid, rest = out.split("\n", 2)
    assert (host, pid) == ("refledger", "1")
    assert "SECRET" not in rest
    assert int(rest.split("\0")[-1]) <= 4


def test_network_none_has_loopback_only_and_host_has_the_hosts(bench: Bench) -> None:
    assert bench.shell("ls /sys/class/net", network="none").split() == ["lo"]
    here = sorted(path.name for path in Path("/sys/class/net").iterdir())
    assert sorted(bench.shell("ls /sys/class/net", network="host").split()) == here


def test_names_are_resolved_as_on_the_host(bench: Bench) -> None:
    assert bench.shell("cat /etc/resolv.conf") == Path("/etc/resolv.conf").read_text()
    assert bench.shell("grep -c 'localhost.*refledger' /etc/hosts") == "2\n"


def test_scripts_are_executable_and_read_only(bench: Bench) -> None:
    script = InlineFile("EOF", "#!/bin/sh\necho from $0 as $(id -u)\n")
    assert bench.shell("/dev/pipes/EOF", scripts=(script,), uid=1000) == "from /dev/pipes/EOF as 1000\n"
    assert bench.run("sh", "-c", "echo x > /dev/pipes/EOF", scripts=(script,)) != 0
    with pytest.raises(InputError, match="not a file name"):
        bench.run("true", scripts=(InlineFile("../x", ""),))


def test_mounts_are_there_and_their_mount_points_are_not_afterwards(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "file").write_text("f\n")
    mounts = (
        ContainerMount("/a/b/dir", str(tmp_path / "shared")),
        ContainerMount("/a/b/dir/inner", str(tmp_path / "file"), readonly=True, directory=False),
        ContainerMount("/a/file", str(tmp_path / "file"), readonly=True, directory=False),
        ContainerMount("/bin/tmp", size=1 << 20),
    )
    script = "cat /a/file /a/b/dir/inner && echo x > /a/b/dir/new && echo x > /bin/tmp/x && ! echo x > /a/file"
    assert bench.shell(script, mounts=mounts) == "f\nf\n"
    assert (tmp_path / "shared/new").read_text() == "x\n"
    assert [name for name in bench.changes() if name != "bin"] == []
    assert not list((bench.root / "bin").glob("tmp"))


def test_I9_secret_variables_lie_in_the_private_directory_only(bench: Bench, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    found: list[str] = []

    def look(fd: int, data: bytes) -> None:
        files = [path for path in bench.directory.rglob("*") if path.is_file()]
        found.extend(str(path) for path in files if b"hunter2" in path.read_bytes())
        assert b"hunter2" in (private / "config.json").read_bytes()

    process = bench.process("sh", "-c", "echo $TOKEN", secret_env=(("TOKEN", "hunter2"),), private=private)
    assert "hunter2" not in repr(process)
    assert asyncio.run(bench.sandbox().run(process, look)) == 0
    assert found == []
    assert list((private / "state").iterdir()) == []


def test_insecure_has_every_capability_no_seccomp_and_devices(bench: Bench) -> None:
    script = "grep -E '^(CapEff|Seccomp):' /proc/self/status; ls /dev/fuse; mkdir /m && mount -t tmpfs x /m && echo ok"
    mine = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd:"))
    out = bench.shell(script, insecure=True).splitlines()
    assert out[0].split()[1] == mine.split()[1]
    assert out[1].split()[1] == "0"
    assert out[2:] == ["/dev/fuse", "ok"]


def test_devices_work(bench: Bench) -> None:
    script = "echo x > /dev/null; head -c 1 /dev/urandom >/dev/shm/r; ls /dev/pts/ptmx; head -c 3 /dev/zero"
    assert bench.shell(script) == "/dev/pts/ptmx\n\0\0\0"


# ---------------------------------------------------------------- nothing stays


def test_only_the_steps_own_changes_are_in_the_upper(bench: Bench) -> None:
    before = bench.root.stat().st_mtime_ns
    assert bench.run("sh", "-c", "echo x > /bin/new") == 0
    assert bench.changes() == ["bin", "bin/new"]
    assert bench.root.stat().st_mtime_ns == before
    assert list((bench.directory / "bundles").iterdir()) == []
    assert list((bench.directory / "state").iterdir()) == []


def test_directories_that_the_step_filled_stay(bench: Bench) -> None:
    assert bench.run("sh", "-c", "echo x > /etc/mine; mkdir /made") == 0
    assert bench.changes() == ["etc", "etc/mine", "made"]


def test_the_images_own_files_are_neither_seen_nor_changed(bench: Bench) -> None:
    (bench.base / "etc").mkdir()
    (bench.base / "etc/hosts").write_text("6.6.6.6 evil\n")
    (bench.base / "etc/resolv.conf").symlink_to("/run/not/there.conf")
    before = (bench.base / "etc").stat().st_mtime_ns
    assert "evil" not in bench.shell("cat /etc/hosts")
    assert (bench.base / "etc/hosts").read_text() == "6.6.6.6 evil\n"
    assert not [path for path in bench.changes() if path != "run"]
    assert (bench.root / "etc").stat().st_mtime_ns == before


def test_a_link_in_the_place_of_a_mount_point_leads_nowhere_outside(bench: Bench, tmp_path: Path) -> None:
    (bench.base / "etc").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").mkdir()
    bench.run("true")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_file_in_the_place_of_a_mount_point_is_an_input_error(bench: Bench) -> None:
    (bench.base / "proc").write_text("")
    with pytest.raises(InputError, match="in the way of /proc"):
        bench.run("true")
    assert bench.changes() == []


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "without util-linux"])
def test_cancelling_kills_what_ignores_signals_and_leaves_nothing(
    bench: Bench, guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not guarded:
        monkeypatch.setattr("engine.ops.container.guard_command", lambda: ())
    sleep = f"sleep 4712.{ME}"
    script = f"trap '' TERM INT HUP; (trap '' TERM INT HUP; {sleep}) & (sh -c '{sleep}' &) ; echo up; wait"

    async def start_and_cancel() -> None:
        up = asyncio.Event()
        task = asyncio.create_task(
            bench.sandbox(f"owner3-{ME}").run(bench.process("sh", "-c", script), lambda _, data: up.set())
        )
        await asyncio.wait_for(up.wait(), PATIENCE)
        while not processes(f"4712.{ME}"):  # what is in the background may start after `up` was printed
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not processes(f"4712.{ME}")

    asyncio.run(start_and_cancel())
    assert not cgroups(f"owner3-{ME}")
    assert bench.changes() == []
    assert [*(bench.directory / "state").iterdir(), *(bench.directory / "bundles").iterdir()] == []


def test_cancelling_at_any_moment_leaves_nothing(bench: Bench) -> None:
    async def cancel_after(seconds: float) -> None:
        process = bench.process("sleep", f"4713.{ME}")
        task = asyncio.create_task(bench.sandbox(f"owner4-{ME}").run(process, lambda *_: None))
        await asyncio.sleep(seconds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for step in range(10):
        asyncio.run(cancel_after(step * 0.008))
        assert not processes(f"4713.{ME}")
        assert not cgroups(f"owner4-{ME}")
        assert bench.changes() == []
    assert [*(bench.directory / "state").iterdir(), *(bench.directory / "bundles").iterdir()] == []


def test_a_shell_whose_user_left_ends(bench: Bench, tmp_path: Path) -> None:
    sleep = f"4716.{ME}"
    runtime = tmp_path / "runtime"
    runtime.write_text(f"#!/bin/sh\nexec sleep {sleep}\n")
    runtime.chmod(0o755)

    async def start_and_leave() -> None:
        sandbox = OciSandbox(str(runtime), bench.directory, f"owner5-{ME}")
        task = asyncio.create_task(sandbox.attach(bench.process("sh", terminal=True)))
        while not processes(sleep):
            assert not task.done()
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(start_and_leave())
    assert not processes(sleep)
    assert [*(bench.directory / "bundles").iterdir()] == []


PARENT = f"""
import asyncio, sys
from pathlib import Path
from engine.ops.sandbox import OciSandbox, Process
root, directory, runtime = sys.argv[1:]
process = Process(("sleep", "4714.{ME}"), (("PATH", "/bin"),), "/", 0, 0, (), "host", Path(root))
asyncio.run(OciSandbox(runtime, Path(directory), "dead{ME}").run(process, print))
"""


@pytest.mark.skipif(not guard_command(), reason="needs util-linux 2.33 or later")
def test_I12_kill_9_ends_the_container_and_a_sweep_removes_the_rest(bench: Bench) -> None:
    argv = [sys.executable, "-c", PARENT, str(bench.root), str(bench.directory), RUNC]
    parent = subprocess.Popen(argv, cwd=Path(__file__).parents[3])
    wait_until(lambda: processes(f"4714.{ME}") and cgroups(f"dead{ME}"))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not processes(f"4714.{ME}"))
    assert sweep_containers(bench.directory, lambda owner: owner == f"dead{ME}") == []
    left = sweep_containers(bench.directory, lambda _: False)
    assert [name.partition(".")[0] for name in left] == [f"dead{ME}"]
    assert not cgroups(f"dead{ME}")
    assert [*(bench.directory / "state").iterdir(), *(bench.directory / "bundles").iterdir()] == []
    assert sweep_containers(bench.directory, lambda _: False) == []


DYING = """
import os, pathlib, signal, subprocess, sys
from engine.ops import machine
pathlib.Path(sys.argv[1]).with_name("parent").write_text(str(os.getpid()))
machine._GUARD = (sys.argv.pop(1), *machine._GUARD[1:])
start = subprocess.Popen.__init__
def start_and_die(popen, argv, *args, **more):
    start(popen, argv, *args, **more)
    if "--bundle" in argv:
        os.kill(os.getpid(), signal.SIGKILL)
subprocess.Popen.__init__ = start_and_die
"""


@pytest.mark.skipif(not guard_command(), reason="needs util-linux 2.33 or later")
def test_I12_kill_9_before_the_guard_is_in_place_begins_nothing(bench: Bench, tmp_path: Path) -> None:
    slow = tmp_path / "setpriv"  # the parent has died by the time that it asks to die with it
    slow.write_text(f"""#!/bin/sh
case "$*" in *--bundle*) while [ -e /proc/$(cat '{tmp_path}/parent') ]; do sleep 0.01; done ;; esac
exec setpriv "$@"
""")
    slow.chmod(0o755)
    argv = [sys.executable, "-c", DYING + PARENT, str(slow), str(bench.root), str(bench.directory), RUNC]
    parent = subprocess.run(argv, cwd=Path(__file__).parents[3], check=False)
    assert parent.returncode == -signal.SIGKILL
    wait_until(lambda: not processes(str(bench.directory / "state")))
    assert not cgroups(f"dead{ME}")
    sweep_containers(bench.directory, lambda _: False)


def test_a_sweep_kills_what_still_runs_of_the_dead(bench: Bench) -> None:
    bundle = bench.directory / f"bundles/dead{ME}.00ff.1"
    bundle.mkdir(parents=True)
    name = next(path for path in ("pids", "freezer", "") if (Path("/sys/fs/cgroup") / path / "cgroup.procs").exists())
    group = Path("/sys/fs/cgroup") / name / f"refledger/dead{ME}.00ff.1"
    group.mkdir(parents=True)
    child = subprocess.Popen(["sleep", f"4715.{ME}"])
    (group / "cgroup.procs").write_text(str(child.pid))
    assert sweep_containers(bench.directory, lambda _: False) == [f"dead{ME}.00ff.1"]
    assert child.wait() == -signal.SIGKILL
    assert not group.exists()
    assert not bundle.exists()


def test_a_sweep_of_a_root_that_never_ran_anything_is_empty(tmp_path: Path) -> None:
    assert sweep_containers(tmp_path / "none", lambda _: False) == []


# ---------------------------------------------------------------- the runtime


def test_a_runtime_that_runs_a_container_is_chosen_once(tmp_path: Path) -> None:
    first = asyncio.run(choose_runtime(None, tmp_path))
    assert Path(first.runtime).name in {"crun", "runc"}
    assert "version" in first.version
    assert [path.name for path in tmp_path.iterdir()] == ["runtime.json"]
    stamp = (tmp_path / "runtime.json").stat().st_mtime_ns
    assert asyncio.run(choose_runtime(None, tmp_path)) == first
    assert (tmp_path / "runtime.json").stat().st_mtime_ns == stamp
    (tmp_path / "runtime.json").write_text("{broken")
    assert asyncio.run(choose_runtime(None, tmp_path)) == first


def test_what_does_not_work_is_told_with_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bin/crun"
    bad.parent.mkdir()
    bad.write_text("#!/bin/sh\necho this host has no luck >&2\nexit 1\n")
    bad.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bad.parent}:{os.environ['PATH']}")
    choice = asyncio.run(choose_runtime(None, tmp_path / "d"))
    assert (Path(choice.runtime).name, choice.rejected) == ("runc", {"crun": "this host has no luck"})
    with pytest.raises(SandboxError, match="crun does not work here: this host has no luck"):
        asyncio.run(choose_runtime("crun", tmp_path / "d"))


def test_without_any_runtime_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="crun: not installed; runc: not installed") as caught:
        asyncio.run(choose_runtime(None, tmp_path / "d"))
    assert "apt-get install runc" in caught.value.hint
    with pytest.raises(SandboxError, match="nope does not work here: not installed"):
        asyncio.run(choose_runtime("nope", tmp_path / "d"))


def test_a_host_that_cannot_start_the_container_is_no_failure_of_the_step(bench: Bench) -> None:
    broken = bench.process("true", hostname="x" * 100)  # longer than the kernel takes
    with pytest.raises(SandboxError, match=r"runc could not start the container: .*hostname"):
        asyncio.run(bench.sandbox(f"owner5-{ME}").run(broken, bench.collect))
    assert not cgroups(f"owner5-{ME}")
    assert json.dumps(bench.changes()) == "[]"
