"""RUN --mount, --network and --security from the command line: what a step gets, and what nobody ever finds again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builder import Builder, base_image
from tests.registry_fixture import RegistryProcess
from tests.waiting import PATIENCE, long_time, processes, wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("runc"), reason="builds need root and runc"),
]

ME = os.getpid()  # in names that all processes of this machine see
SECRET = "correct-horse-battery-staple-7319"
TEXT = f"first line of it\n{SECRET}\n"


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


@pytest.fixture
def base(registry: RegistryProcess, repository: str) -> str:
    return str(base_image(registry, f"{repository}/base", layers=1)["reference"])


def layers(builder: Builder) -> list[dict[str, tarfile.TarInfo]]:
    """Members of each layer of the image that a build with `--output` left, by path."""
    import json

    done = builder.context.parent / "out"
    index = json.loads((done / "index.json").read_bytes())

    def blob(digest: str) -> Path:
        return done / "blobs" / digest.replace(":", "/")

    manifest = json.loads(blob(index["manifests"][0]["digest"]).read_bytes())
    found = []
    for layer in manifest["layers"]:
        with tarfile.open(blob(layer["digest"])) as tar:
            found.append({member.name: member for member in tar})
    return found


def image(builder: Builder, dockerfile: str, *args: str) -> list[dict[str, tarfile.TarInfo]]:
    archive = builder.context.parent / "out.tar"
    builder.must_build(dockerfile, "--output", f"type=oci,dest={archive}", *args)
    out = builder.context.parent / "out"
    out.mkdir(exist_ok=True)
    subprocess.run(["tar", "-xf", archive, "-C", out], check=True)
    return layers(builder)


def holders(needle: str, *places: Path) -> list[str]:
    """Files below `places` that hold `needle`, compressed layers looked into."""
    found = []
    for place in places:
        for path in [place] if place.is_file() else place.rglob("*"):
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                if data[:2] == b"\x1f\x8b":
                    import gzip

                    data += gzip.decompress(data)
                if needle.encode() in data:
                    found.append(str(path))
    return found


def output(builder: Builder) -> str:
    return "".join(event["data"]["text"] for event in builder.events("VertexOutput"))


# ---------------------------------------------------------------- secrets


def test_a_secret_is_a_file_with_the_mode_and_owner_that_were_asked(builder: Builder, base: str) -> None:
    (builder.context.parent / "token").write_text(TEXT)
    done = image(
        builder,
        f"FROM {base}\n"
        "RUN --mount=type=secret,id=tok stat -c '%a %u %g %s' /run/secrets/tok\n"
        "RUN --mount=type=secret,id=tok,target=/deep/er/t,mode=0440,uid=7,gid=8 stat -c '%a %u %g %s' /deep/er/t\n",
        "--secret", f"id=tok,src={builder.context.parent / 'token'}",
    )  # fmt: skip
    size = len(TEXT)
    assert f"400 0 0 {size}\n" in output(builder)
    assert f"440 7 8 {size}\n" in output(builder)
    assert [sorted(layer) for layer in done[1:]] == [[], []]  # no mount point stays, nor a directory above one
    mounted = [event["data"] for event in builder.events("SecretMounted")]
    assert mounted == [
        {"id": "tok", "target": "/run/secrets/tok", "env": ""}, {"id": "tok", "target": "/deep/er/t", "env": ""},
    ]  # fmt: skip


def test_a_secret_can_be_a_variable_only(builder: Builder, base: str) -> None:
    builder.must_build(
        f"FROM {base}\n"
        'RUN --mount=type=secret,id=tok,env=TOKEN test "$TOKEN" = "$(echo correct-horse-battery)-staple-7319" '
        "&& test ! -e /run/secrets\n",
        "--secret", "id=tok,env=FROM_HERE", env={"FROM_HERE": SECRET},
    )  # fmt: skip


def test_I9_a_search_of_everything_finds_no_secret_that_steps_printed_and_used(
    builder: Builder, base: str, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/token").write_text(TEXT)
    archive = tmp_path / "image.tar"
    done = builder.build(
        f"FROM {base}\n"
        "RUN --mount=type=secret,id=file cat /run/secrets/file && cat /run/secrets/file >&2\n"
        "RUN --mount=type=secret,id=var,env=TOKEN echo \"it is $TOKEN.\" && env && printf '%s' \"$TOKEN\"\n"
        "RUN --mount=type=secret,id=var,env=TOKEN "
        "printf '%s' \"${TOKEN%-*}\"; sleep 0.3; printf -- '-%s' \"${TOKEN##*-}\"\n"
        'RUN --mount=type=secret,id=var,env=TOKEN "$TOKEN" || echo "$TOKEN" | cat >&2\n'
        "RUN --mount=type=secret,id=var,required test -s /run/secrets/var\n"
        'RUN --mount=type=secret,id=var,env=TOKEN echo "failing with $TOKEN"; exit 3\n',
        "--secret", f"id=file,src={tmp_path / 'elsewhere/token'}", "--secret", "id=var,env=FROM_HERE",
        "--output", f"type=oci,dest={archive}",
        env={"FROM_HERE": SECRET},
    )  # fmt: skip
    assert done.code == 1, done.err
    assert "it is ***." in output(builder)
    assert SECRET not in done.out + done.err + output(builder)
    assert builder.events("SecretMounted")
    everything = builder.run("events", "--json").out + builder.run("show", builder.builds()[0]["id"]).out
    assert SECRET not in everything
    assert holders(SECRET, builder.root, builder.context) == []
    assert builder.leftovers() == []


def test_I9_while_a_step_runs_its_secrets_are_on_no_disk_and_in_no_command_line(
    builder: Builder, base: str, tmp_path: Path
) -> None:
    time = long_time()
    builder.write({
        "Dockerfile": f"FROM {base}\n"
        f"RUN --mount=type=secret,id=a --mount=type=secret,id=a,env=TOKEN echo started; sleep {time}\n"
    })  # fmt: skip
    process = builder.start(
        "build", str(builder.context), "--progress", "plain", "--secret", "id=a,env=FROM_HERE",
        env={"FROM_HERE": SECRET},
    )  # fmt: skip
    try:
        wait_until(lambda: processes(time))
        assert holders(SECRET, builder.root) == []  # the tmpfs is mounted where only the build sees it
        lines = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
        assert time in lines
        assert SECRET not in lines
        assert not [mount for mount in builder.leftovers() if "-" not in Path(mount).name and "run/" not in mount]
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    wait_until(lambda: not processes(time))
    builder.must_build(f"FROM {base}\nRUN true\n")
    assert builder.leftovers() == []
    assert holders(SECRET, builder.root) == []


def test_a_missing_secret_stops_the_build_before_anything_runs_and_says_what_to_add(
    builder: Builder, base: str
) -> None:
    dockerfile = f"FROM {base}\nRUN echo first\nRUN --mount=type=secret,id=npm,required true\n"
    done = builder.build(dockerfile)
    assert done.code == 2
    assert re.search(r"^ERROR: Dockerfile:3: .*secret 'npm'.*--secret id=npm,", done.err, re.MULTILINE), done.err
    assert builder.events("MaterializationRequested") == []
    optional = builder.build(dockerfile.replace(",required", "").replace(" true", " test ! -e /run/secrets/npm"))
    assert optional.code == 0, optional.err


def test_a_step_that_is_cached_needs_no_secret(builder: Builder, base: str) -> None:
    dockerfile = f"FROM {base}\nRUN --mount=type=secret,id=tok,required test -e /run/secrets/tok\n"
    builder.must_build(dockerfile, "--secret", "id=tok,env=T", env={"T": SECRET})
    builder.must_build(dockerfile)
    assert len(builder.events("VertexCached")) >= 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--secret", "src=x"), "has no id"),
        (("--secret", "id=a,src=/not/there"), "No such file"),
        (("--secret", "id=a,what=b"), "unknown part"),
        (("--ssh", "default"), "SSH_AUTH_SOCK is not set"),
        (("--ssh", "a=/not/there"), "No such file"),
        (("--allow", "everything"), "no such permission"),
    ],
)
def test_wrong_flags_are_usage_errors(builder: Builder, flags: tuple[str, str], said: str) -> None:
    done = builder.build("FROM scratch\nCOPY Dockerfile /\n", *flags)
    assert (done.code, said in done.err) == (2, True), done.err
    assert done.err.count("\n") == 1


# ---------------------------------------------------------------- binds


def test_a_bind_of_the_context_shows_what_dockerignore_leaves_and_is_read_only(builder: Builder, base: str) -> None:
    builder.write({"src/a": "A", "src/hidden.env": "no", "src/deep/b": "B", ".dockerignore": "**/*.env\n"})
    (builder.context / "src/a").chmod(0o640)
    os.chown(builder.context / "src/a", 1234, 1234)
    done = image(
        builder,
        f"FROM {base}\nWORKDIR /w\n"
        "RUN --mount=target=. ls src src/deep && stat -c '%a %u' src/a && test ! -e src/hidden.env\n"
        "RUN --mount=type=bind,source=src/a,target=/one cat /one && (echo x > /one) 2>/dev/null || touch /refused\n"
        "RUN --mount=type=bind,source=src,target=/rw,rw echo more > /rw/a && rm /rw/deep/b && cat /rw/a\n",
    )
    assert "640 0\n" in output(builder)
    assert "more\n" in output(builder)
    assert (builder.context / "src/a").read_text() == "A"
    assert (builder.context / "src/deep/b").exists()
    assert [sorted(layer) for layer in done[2:]] == [[], ["refused"], []]


def test_a_step_runs_again_when_what_it_mounts_changes_and_only_then(builder: Builder, base: str) -> None:
    dockerfile = f"FROM {base}\nRUN --mount=type=bind,source=src,target=/src cat /src/a\n"
    builder.write({"src/a": "one", "other": "1"})
    builder.must_build(dockerfile)
    builder.write({"other": "2"})
    builder.must_build(dockerfile)
    assert len(builder.events("VertexOutput")) == 1
    builder.write({"src/a": "two"})
    builder.must_build(dockerfile)
    assert output(builder) == "onetwo"


def test_binds_of_stages_and_images(builder: Builder, base: str) -> None:
    done = image(
        builder,
        f"FROM {base} AS made\n"
        "RUN mkdir /made && echo m > /made/file && chown 5:6 /made/file && ln -s file /made/link\n"
        f"FROM {base}\n"
        "RUN --mount=from=made,source=/made,target=/in stat -c '%u %g' /in/file && cat /in/link && "
        "! touch /in/new 2>/dev/null\n"
        f"RUN --mount=from={base},target=/image,rw rm /image/bin/cat && test ! -e /image/bin/cat && cat /etc/passwd\n"
        "RUN --mount=from=made,source=/made/link,target=/just cat /just\n",
    )
    assert "5 6\nm\n" in output(builder)
    assert [sorted(layer) for layer in done[1:]] == [[], [], []]


def test_a_source_that_is_not_there_is_an_input_error(builder: Builder, base: str) -> None:
    done = builder.build(f"FROM {base} AS a\nFROM {base}\nRUN --mount=from=a,source=/nope,target=/x true\n")
    assert (done.code, '"nope": not found' in done.err) == (2, True), done.err
    done = builder.build(f"FROM {base}\nRUN --mount=source=nope,target=/x true\n")
    assert (done.code, '"/nope": not found' in done.err) == (2, True), done.err
    assert builder.leftovers() == []


def test_a_tmpfs_is_empty_bounded_and_gone(builder: Builder, base: str) -> None:
    done = image(
        builder,
        f"FROM {base}\n"
        "RUN --mount=type=tmpfs,target=/data,size=1m ls /data && ! sed -n p /bin/busybox /bin/busybox > /data/big "
        "2>/dev/null && touch /was-bounded\n",
    )
    assert [sorted(layer) for layer in done[1:]] == [["was-bounded"]]


def test_mounts_lie_in_each_other(builder: Builder, base: str) -> None:
    builder.write({"src/a": "A"})
    builder.must_build(
        f"FROM {base}\n"
        "RUN --mount=source=src,target=/t/in --mount=type=tmpfs,target=/t cat /t/in/a && touch /t/x\n"
    )
    done = builder.build(
        f"FROM {base}\nRUN --mount=type=tmpfs,target=/s/none --mount=source=src,target=/s true\n"
    )
    assert (done.code, "mounted read-only" in done.err) == (2, True), done.err


# ---------------------------------------------------------------- caches


def test_a_cache_stays_from_build_to_build_and_out_of_the_image(builder: Builder, base: str) -> None:
    step = "RUN --mount=type=cache,target=/var/cache/x,uid=3,gid=4,mode=0770 "
    done = image(builder, f"FROM {base}\n{step}stat -c '%a %u %g' /var/cache/x && echo one > /var/cache/x/f\n")
    assert "770 3 4\n" in output(builder)
    assert [sorted(layer) for layer in done[1:]] == [[]]
    builder.must_build(f"FROM {base}\n{step}cat /var/cache/x/f\n")
    assert output(builder).endswith("one\n")
    builder.must_build(f"FROM {base}\nRUN --mount=type=cache,target=/var/cache/x test ! -e /var/cache/x/f\n")
    used = [event["data"] for event in builder.events("CacheMountUsed")]
    assert [(use["id"], use["created"]) for use in used] == [
        ("/var/cache/x", True), ("/var/cache/x", False), ("/var/cache/x", True),
    ]  # fmt: skip
    assert used[0]["cache"] == used[1]["cache"] != used[2]["cache"]


def test_a_cache_begins_with_what_from_names(builder: Builder, base: str) -> None:
    dockerfile = (
        f"FROM {base} AS seed\nRUN mkdir -p /s/d && echo seed > /s/d/f && chmod 0711 /s\n"
        f"FROM {base}\nRUN --mount=type=cache,id=c,target=/c,from=seed,source=/s stat -c %a /c; cat /c/d/f; ls /c; "
        "touch /c/added"
    )
    builder.must_build(dockerfile + "\n")
    builder.must_build(dockerfile + " && true\n")
    assert output(builder) == "711\nseed\nd\n711\nseed\nadded\nd\n"


def test_a_cache_begins_with_a_named_directory_or_says_that_it_is_none(builder: Builder, base: str) -> None:
    builder.write({"seed/f": "begun\n"})
    named = f"--build-context=seed={builder.context}/seed"
    mount = "--mount=type=cache,target=/c,from=seed"
    builder.must_build(f"FROM {base}\nRUN {mount} cat /c/f && echo more > /c/f\n", named)
    assert "more" in builder.must_build(f"FROM {base}\nRUN {mount} cat /c/f #\n", named).err
    done = builder.build(f"FROM {base}\nRUN {mount},source=f true\n", named)
    assert done.code == 2
    assert '"f" is not a directory: a cache mount cannot begin with it' in done.err


def test_a_secret_with_a_zero_byte_is_no_variable(builder: Builder, base: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"a\0b")
    mount = "--mount=type=secret,id=s,env=S"
    done = builder.build(f"FROM {base}\nRUN {mount} true\n", "--secret", f"id=s,src={tmp_path}/secret")
    assert done.code == 2
    assert "secret 's' holds a NUL byte: it cannot be a variable (mount it as a file)" in done.err


def test_a_cache_that_is_read_only_cannot_be_written(builder: Builder, base: str) -> None:
    step = "RUN --mount=type=cache,target=/c"
    builder.must_build(
        f"FROM {base}\n{step} echo kept > /c/f\n{step},ro cat /c/f && if touch /c/g; then exit 1; fi\n"
    )
    assert "kept\n" in output(builder)


class Pair:
    """Two builds at once, a before b, whose steps write to one cache. A cache that both share always, `turn`, holds
    what they wait for."""

    def __init__(self, builder: Builder, base: str, sharing: str, script: str) -> None:
        self._builder = builder
        self._running = []
        for name in ("a", "b"):
            file = builder.context / f"Dockerfile.{name}"
            file.write_text(
                f"FROM {base}\nRUN --mount=type=cache,target=/turn "
                f"--mount=type=cache,id=one,target=/c,sharing={sharing} "
                f"me={name}; echo $me >> /c/log; touch /turn/$me; {script}; echo $me >> /c/log\n"
            )
            self._running.append(builder.start("build", str(builder.context), "-f", str(file), "--progress", "plain"))
            if name == "a":
                wait_until(lambda: self.marks("a"))

    def marks(self, name: str) -> list[Path]:
        """The file by which step `name` says that it is in its cache."""
        return list(self._builder.root.glob(f"cache/*/0/fs/{name}"))

    def ends(self) -> list[str]:
        """Both builds' standard errors, when they are done."""
        done = [(*process.communicate(timeout=PATIENCE), process.returncode) for process in self._running]
        assert [code for _, _, code in done] == [0, 0], done
        return [err for _, err, _ in done]

    def logs(self) -> list[list[str]]:
        """What was written to each instance of the cache."""
        return [log.read_text().split() for log in sorted(self._builder.root.glob("cache/*/*/fs/log"))]


WAIT = "until test -e /turn/{}; do sleep 0.05; done"
MEET = "; ".join(WAIT.format(name) for name in ("a", "b"))


def test_a_locked_cache_is_one_builds_at_a_time_and_the_other_says_that_it_waits(builder: Builder, base: str) -> None:
    builder.must_build(f"FROM {base}\nRUN true\n")
    pair = Pair(builder, base, "locked", WAIT.format("go"))
    wait_until(lambda: "waiting for cache mount 'one'" in output(builder))
    (mark,) = pair.marks("a")
    assert pair.marks("b") == []
    mark.with_name("go").touch()
    first, second = pair.ends()
    assert pair.logs() == [["a", "a", "b", "b"]]
    assert "has cache mount 'one' now" in second.partition("waiting for cache mount 'one'")[2]
    assert "waiting" not in first
    assert "has cache mount" not in first
    waited = [event["data"]["waited"] for event in builder.events("CacheMountUsed") if event["data"]["id"] == "one"]
    assert [seconds > 0 for seconds in waited] == [False, True]


def test_a_shared_cache_is_both_builds_at_once(builder: Builder, base: str) -> None:
    pair = Pair(builder, base, "shared", MEET)
    pair.ends()
    assert len(pair.logs()) == 1
    assert sorted(pair.logs()[0]) == ["a", "a", "b", "b"]


def test_a_private_cache_is_another_one_while_it_is_taken(builder: Builder, base: str) -> None:
    pair = Pair(builder, base, "private", MEET)
    pair.ends()
    assert pair.logs() == [["a", "a"], ["b", "b"]]
    used = [event["data"] for event in builder.events("CacheMountUsed")]
    assert [data["instance"] for data in used if data["id"] == "one"] == [0, 1]


def test_a_cache_that_a_killed_build_held_is_free_again(builder: Builder, base: str) -> None:
    step = f"FROM {base}\nRUN --mount=type=cache,id=k,target=/c,sharing=locked "
    time = long_time()
    builder.write({"Dockerfile": f"{step}touch /c/here; sleep {time}\n"})
    process = builder.start("build", str(builder.context))
    wait_until(lambda: list(builder.root.glob("cache/*/0/fs/here")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not processes(time))
    builder.must_build(f"{step}test -e /c/here\n")
    assert builder.leftovers() == []


def test_an_interrupted_step_puts_everything_away_and_lets_go_of_its_cache(builder: Builder, base: str) -> None:
    builder.write({"src/a": "A"})
    step = (
        "RUN --mount=type=cache,id=k,target=/c,sharing=locked --mount=type=secret,id=s,env=S "
        "--mount=source=src,target=/s,rw "
    )
    time = long_time()
    builder.write({"Dockerfile": f"FROM {base}\n{step}touch /c/here; sleep {time}\n"})
    process = builder.start("build", str(builder.context), "--secret", "id=s,env=S", env={"S": SECRET})
    wait_until(lambda: list(builder.root.glob("cache/*/0/fs/here")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert not processes(time)
    assert builder.leftovers() == []
    assert list(builder.root.glob("locks/cache-*")) == []
    assert len(builder.events("BuildCancelled")) == 1


# ---------------------------------------------------------------- ssh agents


@pytest.fixture
def key(tmp_path: Path) -> Path:
    if not shutil.which("ssh-keygen"):
        pytest.skip("openssh-client is not installed")
    path = tmp_path / "keys/id"
    path.parent.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a comment", "-f", path], check=True)
    return path


@pytest.fixture
def agent(tmp_path: Path, key: Path) -> Iterator[str]:
    """A running agent that has the key."""
    socket = f"/tmp/refledger-test-agent-{os.getpid()}-{time.monotonic_ns()}"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: Path(socket).exists())
        subprocess.run(["ssh-add", "-q", key], env={**os.environ, "SSH_AUTH_SOCK": socket}, check=True)
        yield socket
    finally:
        process.kill()
        process.wait()
        Path(socket).unlink(missing_ok=True)


def test_an_agent_is_forwarded_where_ssh_looks_for_it(builder: Builder, base: str, agent: str) -> None:
    builder.must_build(
        f"FROM {base}\n"
        "RUN --mount=type=ssh,mode=0666,uid=5,gid=6 echo $SSH_AUTH_SOCK && stat -c '%F %a %u %g' $SSH_AUTH_SOCK\n"
        "RUN --mount=type=ssh,id=other test -z \"$SSH_AUTH_SOCK\" && test ! -e /run/buildkit\n",
        "--ssh", "default", env={"SSH_AUTH_SOCK": agent},
    )  # fmt: skip
    assert output(builder) == "/run/buildkit/ssh_agent.0\nsocket 666 5 6\n"
    assert [event["data"]["id"] for event in builder.events("AgentForwarded")] == ["default"]
    missing = builder.build(f"FROM {base}\nRUN --mount=type=ssh,required true\n")
    assert (missing.code, "--ssh default" in missing.err) == (2, True), missing.err


def test_a_key_gets_an_agent_of_its_own_that_no_kill_leaves_behind(builder: Builder, base: str, key: Path) -> None:
    time = long_time()
    builder.write({"Dockerfile": f"FROM {base}\nRUN --mount=type=ssh,id=k test -S $SSH_AUTH_SOCK && sleep {time}\n"})
    process = builder.start("build", str(builder.context), "--ssh", f"k={key}")
    try:
        wait_until(lambda: processes(time))
        agents = _agents_of(process.pid)
        assert len(agents) == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in agents))
    builder.must_build(f"FROM {base}\nRUN --mount=type=ssh,id=k test -S $SSH_AUTH_SOCK\n", "--ssh", f"k={key}")
    assert builder.leftovers() == []
    body = key.read_text().split("\n")[2]
    assert holders(body, builder.root) == []


def _agents_of(pid: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            text = path.read_text()
        except OSError:
            continue
        if text.startswith("Name:\tssh-agent") and f"\nPPid:\t{pid}\n" in text:
            found.append(path.parent.name)
    return found


def test_a_key_with_a_passphrase_is_refused_with_what_to_do(builder: Builder, key: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "a phrase", "-f", key], check=True)
    done = builder.build("FROM scratch\nCOPY Dockerfile /\n", "--ssh", f"k={key}")
    assert (done.code, "passphrase" in done.err) == (2, True), done.err


# ---------------------------------------------------------------- network and security


def test_network_none_has_no_way_out_and_default_is_the_builds(builder: Builder, base: str) -> None:
    builder.must_build(f"FROM {base}\nRUN --network=none ls /sys/class/net\n")
    assert output(builder) == "lo\n"
    here = sorted(path.name for path in Path("/sys/class/net").iterdir())
    builder.must_build(f"FROM {base}\nRUN --network=host ls /sys/class/net\n")
    assert sorted(output(builder).split()[1:]) == here


def test_insecure_lifts_the_sandbox_only_when_allowed_and_says_so_in_the_log(builder: Builder, base: str) -> None:
    dockerfile = (
        f"FROM {base}\nRUN --security=insecure cat /proc/self/status && touch /proc/sys/kernel/domainname && "
        "mkdir /m && /bin/busybox mount -t tmpfs x /m && ls /dev/loop-control\n"
    )
    refused = builder.build(dockerfile)
    assert (refused.code, "--allow security.insecure" in refused.err) == (2, True), refused.err
    builder.must_build(dockerfile, "--allow", "security.insecure")
    mine = re.search(r"CapBnd:\s*(\w+)", Path("/proc/self/status").read_text())
    assert mine
    assert f"CapEff:\t{mine[1]}\n" in output(builder)
    assert "Seccomp:\t0\n" in output(builder)
    assert len(builder.events("SecurityLifted")) == 1
    builder.must_build(f"FROM {base}\nRUN cat /proc/self/status\n", "--allow", "security.insecure")
    assert len(builder.events("SecurityLifted")) == 1
