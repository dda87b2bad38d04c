"""A step that wants out of its container, and an image that is laid out to trick those who look into it from outside.

What a step tries from inside is in `inside.py`. `docker` in comments is BuildKit 20.10 with the same runc, see
`tests/differential/test_sandbox.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder, Done, busybox_layer
from tests.registry_fixture import RegistryProcess, push_image
from tests.security.python_image import PYTHON, python_home, python_layer
from tests.storage.layers.trees import info, make_tar
from tests.tools.test_hostile_layers import packed, push
from tests.tools.test_run_mounts import holders
from tests.waiting import long_time, processes, wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("runc"), reason="builds need root and runc"),
]

REFUSED = {"EPERM", "EACCES", "EROFS", "ENOENT", "ENOSYS", "ESRCH", "EXDEV", "ENODATA", "ENODEV", "ENXIO",
           "ECONNREFUSED"}  # fmt: skip
ALLOWED = {"make and open /dev/zero (allowed)", "become another user (allowed)"}
OF_THE_RUNTIME = {"open /dev/net/tun"}  # runc before 1.2 lets everybody open it; to make an interface takes NET_ADMIN
OWN_NETWORK = {"listen to all packets", "send forged packets"}  # as in docker, whose default network is a step's own
HOSTS_NETWORK = {"reach an abstract socket of the host"}  # the default, as `docker build --network host`


@dataclass(frozen=True)
class Lab:
    """A root, and an image with Python in it."""

    builder: Builder
    base: str
    registry: RegistryProcess

    def run(self, *steps: str, args: tuple[str, ...] = (), base: str = "") -> Done:
        lines = "\n".join(step if step.startswith(("RUN", "COPY", "USER", "WORKDIR", "FROM", "ADD")) else f"RUN {step}"
                          for step in steps)  # fmt: skip
        return self.builder.build(f"FROM {base or self.base}\n{lines}\n", *args)

    def must(self, *steps: str, args: tuple[str, ...] = ()) -> str:
        done = self.run(*steps, args=args)
        assert done.code == 0, done.err
        return done.err


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, registry: RegistryProcess) -> Lab:
    builder = Builder(tmp_path_factory.mktemp("sandbox of"))
    image = push_image(
        registry.host, "security/base", [busybox_layer(), python_layer()],
        config={"Env": ["PATH=/bin", python_home()]}, level=1,
    )  # fmt: skip
    return Lab(builder, image["reference"], registry)


@pytest.fixture(autouse=True)
def _nothing_is_left(lab: Lab) -> Iterator[None]:
    yield
    assert lab.builder.leftovers() == []


def first_disk() -> str:
    """Numbers of a block device of this machine."""
    return next(":".join(line.split()[:2]) for line in Path("/proc/partitions").read_text().splitlines()[2:] if line)


def probed(said: str) -> list[dict[str, Any]]:
    return [json.loads(found) for found in re.findall(r"PROBES (\{.*\})", said)]


# ---------------------------------------------------------------- from inside


def test_what_a_step_tries_against_the_host_is_refused(lab: Lab) -> None:
    name = f"refledger-test-{os.getpid()}"
    probe = f"{PYTHON} /probe/inside.py {os.getpid()} {first_disk()} {name}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        with_hosts, with_own = probed(lab.must(probe, f"RUN --network=none {probe}"))
    for found, allowed in ((with_hosts, ALLOWED | HOSTS_NETWORK), (with_own, ALLOWED | OWN_NETWORK)):
        came_through = {name: said for name, said in found.items() if str(said) not in REFUSED}
        came_through.pop("raise a limit")  # a ValueError
        assert set(came_through) - OF_THE_RUNTIME == allowed
        assert len(found) > 90


STATE = """\
import json, os, resource
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
links = lambda pid: sorted(os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")[0] for fd in os.listdir(f"/proc/{pid}/fd")
                           if os.path.lexists(f"/proc/{pid}/fd/{fd}"))
try:
    os.open("/dev/tty", os.O_RDWR)
    terminal = "it has one"
except OSError as error:
    terminal = error.strerror
print("STATE " + json.dumps({
    "env": sorted(os.environ), "own": links("self"), "first": links(1), "blocked": status["SigBlk"],
    "terminal": terminal, "umask": status["Umask"], "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
    "pids": [int(name) for name in os.listdir("/proc") if name.isdigit()],
    "mounts": open("/proc/self/mountinfo").read(), "groups": open("/proc/self/cgroup").read()}))
"""


def test_a_step_inherits_no_descriptor_variable_signal_mask_or_terminal(lab: Lab) -> None:
    lab.builder.write({"state.py": STATE})
    readable, writable = os.pipe()
    os.set_inheritable(writable, True)  # as a careless caller leaves it
    try:
        dockerfile = f"FROM {lab.base}\nCOPY state.py /\nRUN {PYTHON} /state.py\n"
        done = lab.builder.must_build(dockerfile, "--no-cache", env={"SECRET_OF_THE_HOST": "hunter2"})
    finally:
        os.close(readable)
        os.close(writable)
    state = json.loads(done.err.partition("STATE ")[2].partition("\n")[0])
    assert state["env"] == ["HOME", "PATH", "PWD", "PYTHONHOME", "SHLVL"]
    assert state["own"] == state["first"] == ["pipe", "pipe", "pipe"]
    assert (state["blocked"].strip("0"), state["umask"], state["terminal"]) == ("", "0022", "No such device or address")
    assert state["core"] == 0
    assert max(state["pids"]) < 10
    assert not [line for line in state["mounts"].splitlines() if re.search(r" (shared|master):\d+ ", line)]


def test_what_a_step_leaves_running_dies_with_it(lab: Lab) -> None:
    fork = "import os, time\nfor _ in range(2):\n    if os.fork(): os._exit(0)\n    os.setsid()\ntime.sleep(4917.25)\n"
    name = f"/fork-{os.getpid()}.py"
    lab.builder.write({"fork.py": fork})
    lab.must(f"COPY fork.py {name}", f"{PYTHON} {name}", f"{PYTHON} {name} & sleep 0.2; true")
    assert processes(name) == []


LEFT = """\
import os, socket, stat
os.mkdir("/left"); os.chdir("/left")
open("setuid", "w").close(); os.chmod("setuid", 0o6755); os.link("setuid", "hard")
os.mknod("zero", stat.S_IFCHR | 0o600, os.makedev(1, 5)); os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
open("caps", "w").close()
os.setxattr("caps", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
for name in ("trusted.overlay.opaque", "trusted.other"):
    try: os.setxattr("caps", name, b"y"); print("CAME THROUGH", name)
    except PermissionError: pass
try: os.mknod("whiteout", stat.S_IFCHR, 0); print("CAME THROUGH whiteout")
except PermissionError: pass
for name in (b"-rf", b"new\\nline", b"\\xff", b"\\x1b[31m"): open(name, "w").close()
"""


def test_a_result_has_what_a_step_may_make_and_nothing_that_means_more_here(lab: Lab, tmp_path: Path) -> None:
    lab.builder.write({"left.py": LEFT})
    said = lab.must("COPY left.py /", f"{PYTHON} /left.py", args=("-o", f"type=local,dest={tmp_path}/out"))
    assert "CAME THROUGH" not in said
    left = tmp_path / "out/left"
    made = {os.fsdecode(name): stat.S_IFMT((left / os.fsdecode(name)).lstat().st_mode) for name in
            os.listdir(os.fsencode(left))}  # noqa: PTH208  # fmt: skip
    assert made == {
        **dict.fromkeys(("setuid", "hard", "caps", "-rf", "new\nline", "\udcff", "\x1b[31m"), stat.S_IFREG),
        "zero": stat.S_IFCHR, "fifo": stat.S_IFIFO,
    }  # fmt: skip
    assert stat.S_IMODE((left / "setuid").stat().st_mode) == 0o6755  # as in docker
    assert os.listxattr(left / "caps") == ["security.capability"]


def test_paths_too_deep_for_the_kernel_are_an_input_error_and_are_removed(lab: Lab) -> None:
    deep = "import os\nfor _ in range(60): os.mkdir('d' * 200); os.chdir('d' * 200)\n"
    lab.builder.write({"deep.py": deep})
    done = lab.run("COPY deep.py /", f"{PYTHON} /deep.py")
    assert done.code == 2
    assert "a path of more than 4096 bytes cannot be kept" in done.err
    assert max(map(len, done.err.splitlines())) < 300


# ---------------------------------------------------------------- by mounts


@pytest.mark.parametrize("target", ["/dots", "/c/away"])
def test_a_cache_does_not_stand_in_for_dev(lab: Lab, target: str) -> None:
    """runc 1.1.5 opens /dev/null for writing before kernel files are read-only, and takes it for the step's output: a
    link to one of those was written to on the host (docker: came through)."""
    knob = Path("/proc/sys/fs/lease-break-time")
    fill = f"ln -sf {knob} /c/null; for n in full zero random urandom tty; do echo > /c/$n; done"
    both = "--mount=type=cache,id=o,target=/c " if target == "/c/away" else ""
    done = lab.run(
        f"RUN --mount=type=cache,id=i,target=/c {fill}",
        "RUN --mount=type=cache,id=o,target=/c ln -sf /dev /c/away",
        "ln -s /dev /link; ln -s bin/../link /dots",
        # reason for the value that it has: should it come through, nothing changes
        f"RUN {both}--mount=type=cache,id=i,target={target} echo {knob.read_text().strip()}; echo RAN >&2",
    )
    assert done.code == 2, done.err
    assert re.search(rf"ERROR: .*{target} cannot be mounted over.*the runtime", done.err)
    assert "RAN\n" not in done.err


def test_a_cache_with_another_mount_in_it_is_used_by_one_step_at_a_time(lab: Lab) -> None:
    """Else a step could put a link in the place of the target between the look at it and the mount."""
    lab.must("RUN --mount=type=cache,id=n,target=/c --mount=type=tmpfs,target=/c/in true")
    time = long_time()
    lab.builder.write({"Dockerfile": f"FROM {lab.base}\nRUN --mount=type=cache,id=n,target=/c sleep {time}\n"})
    first = lab.builder.start("build", str(lab.builder.context), "--progress", "plain")
    try:
        wait_until(lambda: processes(time))
        step = "RUN --mount=type=cache,id=n,target=/c --mount=type=tmpfs,target=/c/in true"
        lab.builder.write({"Dockerfile.second": f"FROM {lab.base}\n{step} # again\n"})
        file = lab.builder.context / "Dockerfile.second"
        second = lab.builder.start("build", str(lab.builder.context), "-f", str(file), "--progress", "plain")
        assert second.stderr is not None
        said = iter(second.stderr.readline, "")
        assert any("waiting for cache mount 'n'" in line for line in said)
    finally:
        first.terminate()
        first.communicate()
    second.communicate()
    assert second.returncode == 0


# ---------------------------------------------------------------- images with links to this machine


def tricky(lab: Lab, name: str, links: dict[str, str]) -> str:
    """An image with a shell, in which `links` lead where their text says."""
    tar = make_tar(*(info(path.lstrip("/"), tarfile.SYMTYPE, linkname=text) for path, text in links.items()))
    return push(lab.registry.host, f"security/{name}", packed(tar, ""))


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of this machine."""
    victim = tmp_path_factory.mktemp("victim")
    (victim / "passwd").write_text("evil:x:0:0::/:/bin/sh\n")
    (victim / "group").write_text("evil:x:0:\n")
    (victim / "secret").write_text("of this machine\n")
    return victim


def test_links_of_an_image_lead_nowhere_on_this_machine(lab: Lab, victim: Path, tmp_path: Path) -> None:
    before = seen(victim)
    up = f"../../../../../..{victim}"
    base = tricky(lab, "links", {
        "/etc": str(victim), "/w": str(victim), "/up": up, "/run": up, "/file": f"{victim}/secret", "/home/app": up,
    })  # fmt: skip
    lab.builder.write({"plain": "of the context\n"})
    (tmp_path / "s").write_text("secret\n")
    lent = ("--secret", f"id=s,src={tmp_path}/s")
    for steps in ("USER evil\nRUN true", "COPY --chown=evil plain /x"):
        done = lab.run(*steps.split("\n"), base=base)
        assert (done.code, "is not in the image's /etc/passwd" in done.err) == (2, True), done.err
    done = lab.run(
        "WORKDIR /w/made", "WORKDIR /up", "RUN echo x > new; cat /etc/resolv.conf > /file",
        "COPY plain /w/new", "COPY plain /up/", "COPY plain /file", "ADD plain /home/app/new",
        "RUN --mount=type=tmpfs,target=/w/tmpfs --mount=type=cache,target=/up/cache "
        "--mount=type=secret,id=s,target=/run/s cat /run/s > /w/copied; echo x > /w/cache/x",
        base=base, args=lent,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert seen(victim) == before


def test_nothing_of_this_machine_comes_out_of_an_image_with_links(lab: Lab, victim: Path, tmp_path: Path) -> None:
    links = {"/etc": str(victim), "/file": f"{victim}/secret", "/a/b": f"../../../..{victim}"}
    base = tricky(lab, "sources", links)
    for step in (f"COPY --from={base} /etc/secret /x", f"COPY --from={base} /file /x",
                 f"RUN --mount=type=bind,from={base},source=/a/b,target=/m cat /m/secret"):  # fmt: skip
        done = lab.run(step)
        assert (done.code, "not found" in done.err) == (2, True), done.err
    done = lab.run("FROM scratch", f"COPY --from={base} / /x/", args=("-o", f"type=local,dest={tmp_path}/out"))
    assert done.code == 0, done.err
    assert (tmp_path / "out/x/etc").is_symlink()


@pytest.mark.parametrize(
    ("path", "text"),
    [("/dev", "/data"), ("/etc/hosts", "/dev/null"), ("/etc/resolv.conf", "/"), ("/etc", "/proc/sys")],
)
def test_a_link_in_the_place_of_the_runtimes_files_is_an_input_error(lab: Lab, path: str, text: str) -> None:
    name = re.sub(r"[^a-z]+", "-", f"place{path}{text}").strip("-")
    done = lab.run("RUN echo RAN >&2", base=tricky(lab, name, {path: text}))
    assert done.code == 2, done.err
    assert "RAN\n" not in done.err


@pytest.mark.parametrize("cwd", ["/proc/self/fd/3", "/proc/self/fd/7/../.."])
def test_a_working_directory_in_proc_leads_to_nothing_of_the_host(lab: Lab, victim: Path, cwd: str) -> None:
    """CVE-2024-21626: a descriptor that the runtime had left open."""
    up = "../" * 20 + str(victim).lstrip("/")
    done = lab.run(f"WORKDIR {cwd}", f"test ! -e {up}/secret || echo came-through-$((40+2)); echo looked-$((40+2))")
    assert "came-through-42" not in done.err
    assert (done.code, "looked-42" in done.err) in {(0, True), (3, False)}, done.err


def seen(place: Path) -> list[tuple[str, int, int, int]]:
    """All there is to see of a directory, and in it."""
    return [(str(path), (info := path.lstat()).st_mode, info.st_mtime_ns, info.st_size)
            for path in sorted([place, *place.rglob("*")])]  # fmt: skip


# ---------------------------------------------------------------- what is lent


def test_insecure_needs_the_users_word_also_in_a_replay(lab: Lab, tmp_path: Path) -> None:
    done = lab.run("RUN --security=insecure echo x", args=("--allow", "security.insecure", "--no-cache"))
    assert done.code == 0, done.err
    build = lab.builder.builds()[0]["id"]
    bundle = tmp_path / "bundle"
    assert lab.builder.run("bundle", build, "-o", str(bundle)).code == 0
    again = lab.builder.run("replay", str(bundle), "--verify")
    assert again.code == 2, again.err
    assert "this step asks for --security=insecure" in again.out


def test_a_secret_can_be_neither_changed_nor_kept_open(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2-of-this-test")
    steps = (
        ("RUN --mount=type=secret,id=t,mode=0666 ! (echo x > /run/secrets/t) 2>/dev/null && "
        "! chmod 777 /run/secrets/t 2>/dev/null && ! rm /run/secrets/t 2>/dev/null && ls -ld /run/secrets && "
        "ln -s /run/secrets/t /kept && (sleep 30 < /run/secrets/t &)"),
        "test ! -e /kept && test ! -e /run/secrets",
    )
    lab.must(*steps, args=("--secret", f"id=t,src={tmp_path}/token", "--no-cache"))
    assert holders("hunter2-of-this-test", lab.builder.root) == []
