"""`refledger replay`: the recorded step on its recorded inputs, wherever those are, and a verdict."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storage.bundle.form import Index, Member
from storage.bundle.reading import read_bundle
from storage.bundle.writing import write_bundle
from storage.digest import sha256
from tests.builder import PROJECT, Builder, base_image
from tests.registry_fixture import RegistryProcess, push_image
from tests.terminal import AtTerminal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

FAILING = """\
FROM {base}
RUN echo made-here > /one
COPY . /app
RUN cat /app/main.c /one; echo no such thing >&2; exit 7
"""


class There:
    """A root where builds were made, and another one on a machine of another name."""

    def __init__(self, directory: Path, registry: RegistryProcess, repository: str) -> None:
        self.directory, self.registry, self.repository = directory, registry, repository
        self.base = base_image(registry, repository, layers=2)["reference"]
        self.builder, self.elsewhere = Builder(directory / "there"), Builder(directory / "elsewhere")
        self.builder.write({"main.c": "int main() {}\n"})

    def build(self, dockerfile: str, *args: str) -> str:
        """The id of the build."""
        self.builder.build(dockerfile.format(base=self.base), *args)
        return str(self.builder.builds()[0]["id"])

    def bundle(self, build: str, *args: str) -> str:
        path = self.directory / f"{build}.bundle"
        done = self.builder.run("bundle", build, "-o", str(path), *args)
        assert done.code == 0, done.err
        return str(path)

    def away(self, *args: str) -> tuple[int, dict[str, Any]]:
        """`refledger replay ARGS --json` on a machine with another name, whose root is another one."""
        shutil.rmtree(self.builder.root, ignore_errors=True)
        command = 'hostname elsewhere && exec "$@"'
        argv = ["unshare", "-u", "sh", "-c", command, "-", sys.executable, "-m", "tools.cli.main", "replay", *args]
        done = subprocess.run(
            [*argv, "--json"], env=self.elsewhere.env, cwd=PROJECT, capture_output=True, text=True, check=False
        )
        assert done.stdout, done.stderr
        assert self.elsewhere.leftovers() == []
        return done.returncode, json.loads(done.stdout)

    def here(self, *args: str) -> tuple[int, dict[str, Any]]:
        done = self.builder.run("replay", *args, "--json")
        assert done.out, done.err
        assert self.builder.leftovers() == []
        return done.code, json.loads(done.out)


@pytest.fixture
def there(tmp_path: Path, registry: RegistryProcess, repository: str) -> There:
    return There(tmp_path, registry, repository)


def test_a_failed_build_fails_the_same_on_another_machine(there: There) -> None:
    build = there.build(FAILING)
    code, verdict = there.away(there.bundle(build))
    assert code == 1
    assert verdict["verdict"] == "same failure"
    assert verdict["now"]["status"] == verdict["then"]["status"] == 7
    assert verdict["output"] == []
    (record,) = there.elsewhere.builds()  # the bundle's events are none of this root's
    started = there.elsewhere.events("BuildStarted")[0]["data"]
    assert started["options"]["replay_of"] == build
    assert started["host"]["hostname"] == "elsewhere"
    assert [e["data"]["name"] for e in there.elsewhere.events("VertexStarted")] == [
        "[4/4] RUN cat /app/main.c /one; echo no such thing >&2; exit 7"
    ]
    assert "made-here" in there.elsewhere.run("output", record["id"]).out
    assert there.elsewhere.run("rebuild", "--check").code == 0


def test_what_a_replay_stands_on_is_told_before_anything_runs(there: There) -> None:
    path = there.bundle(there.build(FAILING.replace("RUN cat", "RUN --mount=type=secret,id=token cat")))
    shutil.rmtree(there.builder.root)
    done = there.elsewhere.run("replay", path, "--progress", "plain")
    before = done.err.partition("#1 ")[0]
    assert "4 layers: 2 in the bundle, 2 at" in before
    assert "secret 'token', unless it is given" in before
    assert "the network as it was" in before
    assert "verdict: same failure" in done.out


def test_a_full_bundle_needs_no_registry(there: There) -> None:
    path = there.bundle(there.build(FAILING), "--full")
    shutil.rmtree(there.builder.root)
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-m", "tools.cli.main", "replay", path, "--all", "--json"],
        env=there.elsewhere.env, cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    verdict = json.loads(done.stdout)
    assert (done.returncode, verdict["verdict"], verdict["fetched"]) == (1, "same failure", 0)


def test_all_steps_run_again_with_the_recorded_context(there: There) -> None:
    path = there.bundle(there.build(FAILING))
    there.builder.write({"main.c": "something else\n"})
    code, verdict = there.away(path, "--all")
    assert (code, verdict["verdict"], verdict["output"]) == (1, "same failure", [])
    assert len(there.elsewhere.events("VertexFailed")) == 1
    assert [e["data"]["name"] for e in there.elsewhere.events("VertexCompleted")][-1] == "[3/4] COPY . /app"


def test_a_context_that_a_failed_run_mounts_goes_along(there: There) -> None:
    build = there.build("FROM {base}\nRUN --mount=type=bind,target=/c cat /c/main.c; exit 3\n")
    code, verdict = there.away(there.bundle(build))
    assert (code, verdict["verdict"], verdict["output"]) == (1, "same failure", [])


def test_verdicts_on_a_step_whose_secret_decides(there: There) -> None:
    (there.directory / "good").write_text("good")
    (there.directory / "bad").write_text("bad")
    step = 'RUN --mount=type=secret,id=k,required [ "$(cat /run/secrets/k)" = good ] || exit 5\n'
    build = there.build("FROM {base}\n" + step, "--secret", f"id=k,src={there.directory}/bad")
    path = there.bundle(build)
    code, verdict = there.away(path, "--secret", f"id=k,src={there.directory}/bad")
    assert (code, verdict["verdict"]) == (1, "same failure")
    code, verdict = there.away(path, "--secret", f"id=k,src={there.directory}/good")
    assert (code, verdict["verdict"]) == (0, "passes now")
    code, verdict = there.away(path)
    assert (code, verdict["verdict"]) == (2, "different failure")


def test_a_missing_secret_is_missing_again(there: There) -> None:
    build = there.build("FROM {base}\nRUN --mount=type=secret,id=k,required cat /run/secrets/k\n")
    code, verdict = there.away(there.bundle(build))
    assert (code, verdict["verdict"]) == (2, "same failure")


def test_inputs_that_nobody_has_are_made_again(there: There) -> None:
    build = there.build(FAILING)
    made = next(event["data"]["ref"] for event in there.builder.events("LocalCreated"))
    shutil.rmtree(there.builder.root / "snapshots" / made)
    done = there.builder.run("replay", build, "--progress", "plain")
    assert "runs again, as nobody has its result: [2/4] RUN echo made-here > /one" in done.err
    assert "verdict: same failure" in done.out
    assert done.code == 1


def test_a_build_that_ended_before_it_had_a_graph_is_read_anew(there: There) -> None:
    name = f"{there.registry.host}/{there.repository}/nobody:1"
    build = there.build(f"FROM {name}\nRUN true\n")
    path = there.bundle(build)
    code, verdict = there.away(path)
    assert (code, verdict["verdict"]) == (3, "same failure")
    push_image(there.registry.host, f"{there.repository}/nobody", [{"a": b"b"}], tag="1")
    code, verdict = there.away(path)
    assert (code, verdict["verdict"]) == (0, "passes now")


def test_a_build_that_was_killed_can_be_bundled_and_its_step_replayed(there: There) -> None:
    step = "RUN --mount=type=secret,id=go [ -e /run/secrets/go ] || sleep 600"
    there.builder.write({"Dockerfile": f"FROM {there.base}\nRUN echo made-here > /one\n{step}\n"})
    process = there.builder.start("build", str(there.builder.context), "--progress", "plain")
    assert process.stderr is not None
    while "[3/3] RUN" not in process.stderr.readline():
        assert process.poll() is None
    process.kill()
    process.communicate()
    build = there.builder.builds()[0]["id"]
    path = there.bundle(build)  # nobody has said yet that it was interrupted
    done = there.builder.run("replay", path, "--verify")
    assert f"build {build} is running: there is no result to verify" in done.err
    checked = there.builder.run("audit", "verify", path)
    assert checked.code == 4
    assert "or the build had died, and nobody had said so, when it was bundled" in checked.err
    (there.directory / "go").write_text("go")
    code, verdict = there.away(path, "--secret", f"id=go,src={there.directory}/go")
    assert (code, verdict["verdict"]) == (0, "passes now")
    assert [e["data"]["name"] for e in there.elsewhere.events("VertexStarted")] == [f"[3/3] {step}"]


def test_a_replay_of_a_bundle_can_be_replayed_itself(there: There) -> None:
    path = there.bundle(there.build(FAILING))
    first = there.away(path)[1]["build"]
    done = there.elsewhere.run("replay", str(first), "--json")
    assert json.loads(done.out)["verdict"] == "same failure"
    last = there.elsewhere.builds()[0]["id"]
    assert len(there.elsewhere.events("VertexStarted", build=last)) == 1


REPRODUCIBLE = """\
FROM {base} AS tools
RUN echo tool > /tool
FROM {base}
COPY . /app
COPY --from=tools /tool /tool
RUN cat /tool /app/main.c > /all
"""


def test_verify_finds_a_build_the_same(there: There) -> None:
    build = there.build(REPRODUCIBLE)
    for code, verdict in (there.here(build, "--verify"), there.away(there.bundle(build), "--verify")):
        assert (code, verdict["verdict"], verdict["compared"]) == (0, "same result", 4)


def test_verify_names_the_first_step_that_differs_and_its_files(there: There) -> None:
    build = there.build(REPRODUCIBLE.replace("echo tool", "cat /proc/sys/kernel/random/uuid"))
    for code, verdict in (there.here(build, "--verify"), there.away(there.bundle(build), "--verify")):
        assert (code, verdict["verdict"]) == (4, "different result")
        first = verdict["changed"][0]
        assert first["files"] == [{"path": "tool", "how": ["content"]}]
        assert len(verdict["changed"]) == 3
    done = there.elsewhere.run("replay", str(there.directory / f"{build}.bundle"), "--verify", "--progress", "quiet")
    assert "first different result: [tools 2/2] RUN cat /proc/sys/kernel/random/uuid > /tool\n" in done.out
    assert "\n    /tool: content\n" in done.out


def test_verify_counts_times_where_the_build_fixed_them(there: There) -> None:
    step = "RUN touch -d @1500000000 /a && echo > /b\n"
    build = there.build("FROM {base}\n" + step, "--build-arg", "SOURCE_DATE_EPOCH=1600000000")
    assert there.here(build, "--verify")[1]["verdict"] == "same result"
    moved = "RUN touch -d @$((0x$(sed 's/^\\(......\\).*/\\1/' /proc/sys/kernel/random/uuid))) /a\n"
    build = there.build("FROM {base}\n" + moved, "--build-arg", "SOURCE_DATE_EPOCH=1600000000")
    _, verdict = there.here(build, "--verify")
    assert verdict["changed"][0]["files"] == [{"path": "a", "how": ["time"]}]
    build = there.build("FROM {base}\n" + moved)
    assert there.here(build, "--verify")[1]["verdict"] == "same result"


def test_a_bundle_that_was_tampered_with_leaves_nothing_behind(there: There) -> None:
    path = Path(there.bundle(there.build(FAILING)))
    bundle = read_bundle(path)
    graph = next(member for member in bundle.index.blobs if member.role == "graph")
    evil = bundle.small[graph.digest].replace(b"exit 7", b"exit 8")
    blobs = tuple(
        Member(sha256(evil), len(evil), "graph") if member is graph else member
        for member in bundle.index.blobs
        if member.role not in {"layer", "pack"}
    )
    index = Index(bundle.index.build, "x", blobs)
    events = [
        event if event.type != "GraphDefined" else type(event)(
            event.seq, event.time, event.stream, event.version, event.type, event.build, event.vertex, event.cause,
            {**event.data, "graph": str(sha256(evil))},
        )
        for event in bundle.events
    ]  # fmt: skip
    contents = {**bundle.small, sha256(evil): evil}
    made = there.directory / "evil"

    def stored(digest: Any) -> Any:
        file = there.directory / "blob"
        file.write_bytes(contents[digest])
        return file.open("rb")

    write_bundle(str(made), index, events, stored)
    done = there.elsewhere.run("replay", str(made))
    assert done.code == 4
    assert "has a vertex that is not its digest's" in done.err
    assert done.err.count("\n") == 1
    assert there.elsewhere.leftovers() == []
    assert there.elsewhere.builds() == []


# ---------------------------------------------------------------- a terminal in the step

BROKEN = """\
FROM {base}
ENV GREETING=hello
WORKDIR /app
COPY . .
RUN --network=none touch made; grep -c bad main.c && exit 7; true
"""


def test_a_fix_found_in_the_shell_is_a_patch_that_makes_the_build_pass(there: There) -> None:
    there.builder.write({"main.c": "int main() {}\nbad\n"})
    dockerfile = BROKEN.replace("grep -c bad main.c && exit 7; true", '[ -z "$(sed -n /bad/p main.c)" ] || exit 7')
    build, patch = there.build(dockerfile), there.directory / "fix"
    with AtTerminal("replay", build, "--shell", "--patch", str(patch), "--keep", env=there.builder.env) as terminal:
        terminal.expect("(step) /app # ")
        terminal.type("ls made; echo $GREETING; sed -n 1p main.c")
        terminal.expect("made\nhello\nint main() {}\n")  # not the prompt, which comes again when the size is set
        terminal.type("r; echo ended $?")
        terminal.expect("ended 7\n")
        terminal.type("sed -i /bad/d main.c; r; echo now $?")
        terminal.expect("now 0\n")
        terminal.type("exit")
        terminal.expect("changed  /app/main.c")
        terminal.expect("kept as ")
        terminal.expect("verdict: same failure")
        assert terminal.end() == 1
    assert patch.read_text() == "--- a/app/main.c\n+++ b/app/main.c\n@@ -1,2 +1 @@\n int main() {}\n-bad\n"
    subprocess.run(["patch", "-p2", "-i", str(patch)], cwd=there.builder.context, check=True, capture_output=True)
    there.builder.must_build(dockerfile.format(base=there.base))
    kept = [event["data"] for event in there.builder.events("LocalCreated") if event["data"]["ref"].endswith("-shell")]
    assert len(kept[0]["layers"]) == 6
    assert there.builder.leftovers() == []


def test_a_shell_is_brought_along_where_the_image_has_none(there: There) -> None:
    image = push_image(there.registry.host, f"{there.repository}/bare", [{"etc/hello": b"hi"}])["reference"]
    build = there.build(f'FROM {image}\nRUN --network=none ["/nothing", "a b"]\n')
    with AtTerminal("replay", build, "--shell", "--before", env=there.builder.env) as terminal:
        terminal.expect("before it runs")
        terminal.expect("(step) / # ")
        terminal.type("cat /etc/hello; echo; ls -a /; ip -o link | wc -l")
        assert "hi\n" in (shown := terminal.expect("1\n"))
        assert "busybox" not in shown
        terminal.type("exit")
        terminal.expect("nothing was changed in the shell")
        assert terminal.end() == 1
    assert there.builder.leftovers() == []


def test_a_failing_build_opens_the_shell_and_leaves_a_bundle(there: There) -> None:
    there.builder.write({"Dockerfile": f"FROM {there.base}\nRUN --mount=type=tmpfs,target=/t echo x > /t/x; exit 9\n"})
    path, context = there.directory / "b", str(there.builder.context)
    flags = ("--on-failure", "shell", "--bundle-on-failure", str(path))
    with AtTerminal("build", context, *flags, env=there.builder.env) as t:
        t.expect("which failed with exit code 9")
        t.expect("(step) / # ")
        t.type("ls -d /t && exit")
        t.expect("nothing was changed")
        assert t.end() == 1
    assert there.away(str(path))[1]["verdict"] == "same failure"


def test_a_shell_without_a_terminal_is_refused(there: There) -> None:
    done = there.builder.run("replay", "abc", "--shell")
    assert done.code == 2
    assert "needs a terminal" in done.err


def test_I8_what_turns_out_to_be_damaged_is_made_again_once_with_what_it_took_of_the_context(there: There) -> None:
    text = "FROM {base}\nRUN echo a > /a\nRUN echo b > /b\nCOPY main.c /\nRUN cat /main.c /a /b && exit 3\n"
    build = there.build(text, "--snapshotter", "directory")
    for tree in there.builder.root.glob("snapshots/*/fs"):
        for name in {"a", "b"} & {path.name for path in tree.iterdir()}:
            (tree / name).write_text("somebody else's")
    code, verdict = there.here(build)
    assert (code, verdict["verdict"]) == (1, "same failure")
    replayed = there.builder.builds()[0]["id"]
    ran = [event["data"]["name"] for event in there.builder.events("VertexCompleted", build=replayed)]
    steps = [step for name in ran if (step := name.partition("] ")[2]).startswith(("RUN", "COPY"))]
    assert steps == ["RUN echo a > /a", "RUN echo b > /b", "COPY main.c /"]
    assert len(there.builder.events("HitRevoked", build=replayed)) == 1
