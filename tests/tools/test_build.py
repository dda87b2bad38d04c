"""The main job, from the command line to two registries, judged by the registries' own logs and by other tools."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from storage.log.codec import MAX_STATE
from tests.builder import Builder, Done, base_image, layer_digests
from tests.registry_fixture import RegistryProcess, nanoseconds
from tests.tools.test_run_mounts import holders
from tests.waiting import PATIENCE, long_time, processes, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def skopeo_inspect(reference: str, *args: str) -> Any:
    done = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", *args, f"docker://{reference}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


# ---------------------------------------------------------------- laziness


def test_I2_label_only_build_pulls_nothing_and_mounts_each_layer(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    mark = registry.mark()
    target = f"{registry.host}/{repository}/app:1"
    builder.must_build(f"FROM {image['reference']}\nLABEL a=b\n", "-t", target, "--push")
    assert registry.layer_gets(layer_digests(image), since=mark) == []
    assert len(registry.mounts(since=mark)) == len(image["layers"])
    types = [event["type"] for event in builder.events()]
    assert "RemoteCreated" in types
    assert "MaterializationRequested" not in types
    (exported,) = builder.events("Exported")
    assert [layer["transport"] for layer in exported["data"]["layers"]] == ["mounted"] * len(image["layers"])
    assert skopeo_inspect(target)["Labels"] == {"a": "b"}
    assert skopeo_inspect(target)["Digest"] == exported["data"]["digest"]


def test_push_to_another_registry_streams_and_keeps_nothing(
    builder: Builder, registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    target = f"{second_registry.host}/{repository}/app:1"
    builder.must_build(f"FROM {image['reference']}\nLABEL a=b\n", "-t", target, "--push")
    (exported,) = builder.events("Exported")
    assert {layer["transport"] for layer in exported["data"]["layers"]} == {"streamed"}
    here = {path.name for path in (builder.root / "blobs/sha256").iterdir()}
    assert not here & {digest.partition(":")[2] for digest in layer_digests(image)}
    assert list((builder.root / "layers").iterdir()) == []
    assert skopeo_inspect(target)["Layers"] == layer_digests(image)


def test_I2_run_pulls_after_the_request_is_in_the_log(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    mark = registry.mark()
    builder.must_build(f"FROM {image['reference']}\nRUN echo hello > /hello\n")
    gets = registry.layer_gets(layer_digests(image), since=mark)
    (requested,) = builder.events("MaterializationRequested")
    (run,) = [e for e in builder.events("VertexStarted") if "RUN" in e["data"]["name"]]
    assert requested["vertex"] == run["vertex"]
    assert requested["data"]["reason"] == "run"
    first = min(line.started for line in gets)
    assert nanoseconds(requested["time"]) < first
    pulled = {event["data"]["digest"]: event["data"] for event in builder.events("LayerPulled")}
    assert set(pulled) == set(layer_digests(image))
    for digest, facts in pulled.items():
        assert facts["bytes"] == sum(line.bytes for line in gets if line.blob == digest)
        assert facts["verified"] == ["digest", "diff_id"]


def test_the_same_again_is_all_cached_and_reads_no_layer(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    builder.write({"file": "content"})
    dockerfile = f"FROM {image['reference']}\nWORKDIR /work\nCOPY file .\nRUN cat file > copy\n"
    builder.must_build(dockerfile)
    mark = registry.mark()
    os.utime(builder.context / "file", (1, 1))  # a touch is no change
    builder.must_build(dockerfile)
    assert registry.layer_gets(layer_digests(image), since=mark) == []
    newest = builder.builds()[0]
    assert newest["cached"] == 4
    ran = [e for e in builder.events("VertexStarted", build=newest["id"]) if "internal" not in e["data"]["name"]]
    assert ran == []


def test_one_byte_and_one_mode_bit_run_the_copy_again(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.write({"file": "content"})
    dockerfile = f"FROM {image['reference']}\nCOPY file /\nRUN cat /file\n"

    def ran() -> int:
        builder.must_build(dockerfile)
        newest = builder.builds()[0]["id"]
        return sum("internal" not in e["data"]["name"] for e in builder.events("VertexStarted", build=newest))

    assert ran() == 3
    assert ran() == 0
    builder.write({"file": "Content"})
    assert ran() == 3
    (builder.context / "file").chmod(0o755)
    assert ran() == 3
    assert ran() == 0
    asked = builder.events("MaterializationRequested")
    assert {event["build"] for event in asked} == {builder.builds()[-1]["id"]}, "from then on all is here"


def test_I5_another_process_materializes_what_a_dead_one_pointed_at(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    base = f"FROM {image['reference']}\nLABEL a=b\n"
    builder.must_build(base)
    assert builder.events("LayerPulled") == []
    builder.must_build(base + "RUN true\n")
    assert len(builder.events("LayerPulled")) == len(image["layers"])


# ---------------------------------------------------------------- concurrency and crashes


def test_I4_two_processes_on_a_fresh_root_fetch_each_layer_once(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", size=4_000_000)
    mark = registry.mark()
    running = []
    for i in range(2):
        (builder.context / f"D{i}").write_text(f"FROM {image['reference']}\nRUN echo {i} > /i\n")
        file = str(builder.context / f"D{i}")
        running.append(builder.start("build", str(builder.context), "-f", file, "--progress=plain"))
    for process in running:
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
    gets = registry.layer_gets(layer_digests(image), since=mark)
    assert sorted(line.blob for line in gets) == sorted(layer_digests(image))
    # Whoever asked while the other one fetched was served by that fetch, and the log says so.
    fetched = [event["data"]["digest"] for event in builder.events("LayerPulled")]
    asked = [digest for event in builder.events("MaterializationRequested") for digest in event["data"]["layers"]]
    waited = [digest for event in builder.events("Materialized") for digest in event["data"]["waited"]]
    assert sorted(fetched) == sorted(layer_digests(image))
    assert sorted(asked) == sorted(fetched + waited)
    assert builder.leftovers() == []


@pytest.mark.parametrize("moment", ["PullStarted", "VertexOutput"])
def test_I12_kill_9_then_the_same_build_succeeds(
    builder: Builder, registry: RegistryProcess, repository: str, moment: str
) -> None:
    image = base_image(registry, f"{repository}/base", size=8_000_000)
    time = long_time()
    # reason for the secret: the first build cannot be quicker than its killer
    step = f"RUN --mount=type=secret,id=go echo begun; [ -e /run/secrets/go ] || sleep {time}"
    builder.write({"Dockerfile": f"FROM {image['reference']}\n{step}\n"})
    process = builder.start("build", str(builder.context), "--progress=json")
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["type"] == moment:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (interrupted,) = builder.builds()
    assert interrupted["status"] == "running"
    done = builder.run("build", str(builder.context), "--progress=plain", "--secret", "id=go,env=HOME")
    assert done.code == 0, done.err
    statuses = [build["status"] for build in builder.builds()]
    assert statuses == ["completed", "interrupted"]
    assert [e["build"] for e in builder.events("BuildInterrupted")] == [interrupted["id"]]
    assert builder.leftovers() == []
    wait_until(lambda: not processes(time))
    shown = builder.run("show", interrupted["id"])
    assert shown.code == 0
    assert "interrupted" in shown.out


def test_ctrl_c_is_exit_130_and_leaves_nothing(builder: Builder, registry: RegistryProcess, repository: str) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    time = long_time()
    builder.write({"Dockerfile": f"FROM {image['reference']}\nRUN echo begun; sleep {time}\n"})
    process = builder.start("build", str(builder.context), "--progress=json")
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["type"] == "VertexOutput":
            break
    wait_until(lambda: processes(time))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert builder.builds()[0]["status"] == "cancelled"
    (cancelled,) = builder.events("VertexCancelled")
    assert cancelled["data"]["name"] == f"[2/2] RUN echo begun; sleep {time}"
    assert builder.leftovers() == []
    wait_until(lambda: not processes(time))


# ---------------------------------------------------------------- results


def test_the_result_is_read_unpacked_and_run_by_other_tools(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = base_image(registry, f"{repository}/base")
    builder.write({"app/run.sh": "#!/bin/sh\necho works\n"})
    (builder.context / "app/run.sh").chmod(0o755)
    target = f"{registry.host}/{repository}/app:1"
    builder.must_build(
        f"FROM {image['reference']}\nCOPY --chown=app app /app/\nRUN rm /data/1 && ln -s run.sh /app/link\n"
        "USER app\nENTRYPOINT [\"/app/run.sh\"]\n",
        "-t", target, "--push",
    )  # fmt: skip
    layout = f"{tmp_path}/layout:app"
    copy = ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{target}", f"oci:{layout}"]
    subprocess.run(copy, check=True)
    bundle = tmp_path / "bundle"
    subprocess.run(["umoci", "unpack", "--image", layout, str(bundle)], check=True, capture_output=True)
    rootfs = bundle / "rootfs"
    assert (rootfs / "app/run.sh").stat().st_uid == 1000
    assert not (rootfs / "data/1").exists()
    assert (rootfs / "data/2").exists()
    assert (rootfs / "app/link").readlink() == Path("run.sh")
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["terminal"] = False
    (bundle / "config.json").write_text(json.dumps(config))
    runc = ["runc", "run", "-b", str(bundle), f"t{os.getpid()}"]
    ran = subprocess.run(runc, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "works\n"), ran.stderr


def test_all_cached_gives_the_same_digest_without_an_epoch(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    dockerfile = f"FROM {image['reference']}\nRUN echo x > /x\n"
    for i in range(2):
        builder.must_build(dockerfile, "-t", f"{registry.host}/{repository}/out{i}", "--push")
    first, second = builder.events("Exported")
    assert first["data"]["digest"] == second["data"]["digest"]


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_archives_are_read_by_skopeo(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path, kind: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    dest = tmp_path / "image.tar"
    builder.must_build(
        f"FROM {image['reference']}\nRUN echo x > /x\n", "-t", "example.test/app:1", "-o", f"type={kind},dest={dest}"
    )
    archive = "oci-archive" if kind == "oci" else "docker-archive"
    found = json.loads(
        subprocess.run(["skopeo", "inspect", f"{archive}:{dest}"], capture_output=True, text=True, check=True).stdout
    )
    assert len(found["Layers"]) == 4
    assert list(tmp_path.glob(".*.part")) == []


def test_local_output_has_the_files(builder: Builder, tmp_path: Path) -> None:
    builder.write({"a/b": "c"})
    builder.must_build("FROM scratch\nCOPY a /x/\n", "-o", f"type=local,dest={tmp_path}/out")
    assert (tmp_path / "out/x/b").read_text() == "c"


def test_stages_copy_from_each_other_and_unused_ones_never_run(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.must_build(
        f"FROM {image['reference']} AS one\nRUN echo 1 > /one\n"
        "FROM nowhere.invalid/x AS unused\nRUN false\n"
        "FROM scratch\nCOPY --from=one /one /result\n"
        f"COPY --from={image['reference']} /etc/passwd /\n",
        "-o", str(tmp_path / "out"),
    )  # fmt: skip
    assert (tmp_path / "out/result").read_text() == "1\n"
    assert (tmp_path / "out/passwd").read_text().startswith("root:")


def test_I9_a_proxy_reaches_run_and_nothing_that_is_kept(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    args = ["--build-arg", "https_proxy=http://user:hunter22@proxy.test:3128"]
    builder.must_build(f"FROM {image['reference']}\nRUN test -n \"$HTTPS_PROXY\" -a -n \"$https_proxy\"\n", *args)
    assert holders("hunter22", builder.root) == []


# ---------------------------------------------------------------- failures


def failed(done: Done, code: int) -> str:
    """The one error line."""
    assert done.code == code, (done.code, done.err)
    lines = [line for line in done.err.splitlines() if line.startswith("ERROR: ")]
    assert len(lines) == 1, done.err
    return lines[0]


def test_a_failing_run_shows_excerpt_output_and_where_to_look(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    done = builder.build(f"FROM {image['reference']}\nRUN echo before\nRUN echo clue; exit 7\n")
    line = failed(done, 1)
    assert "exit code 7" in line
    assert "Dockerfile:3" in done.err
    assert ">>> RUN echo clue; exit 7" in done.err
    assert "clue" in done.err
    build = builder.builds()[0]
    assert build["status"] == "failed"
    assert f"refledger show {build['id']}" in done.err
    shown = builder.run("show", build["id"])
    assert "clue" in shown.out
    assert ">>> RUN echo clue; exit 7" in shown.out
    assert builder.run("output", build["id"], "3").out == "clue\n"


def test_errors_are_one_line_with_their_exit_code_and_the_root_stays_usable(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    assert "manifest" in failed(builder.build(f"FROM {registry.host}/{repository}/none\nRUN true\n"), 3)
    assert "127.0.0.1:1" in failed(builder.build("FROM 127.0.0.1:1/x\n"), 3)
    assert "Dockerfile:2" in failed(builder.build("FROM scratch\nRUNN x\n"), 2)
    missing = builder.build("FROM scratch\nCOPY missing /\n")
    assert "missing" in failed(missing, 2)
    assert "2 | >>> COPY missing /" in missing.err
    ends = builder.events("VertexFailed", "VertexCompleted", "VertexCancelled", build=builder.builds()[0]["id"])
    assert len(ends) == len(builder.events("VertexStarted", build=builder.builds()[0]["id"]))
    victim = registry.blob_path(layer_digests(image)[1])
    kept = victim.read_bytes()
    victim.write_bytes(bytes(len(kept)))
    assert failed(builder.build(f"FROM {image['reference']}\nRUN true\n"), 4)
    assert builder.leftovers() == []
    assert len(list((builder.root / "layers").iterdir())) <= 2
    victim.write_bytes(kept)
    builder.must_build(f"FROM {image['reference']}\nRUN true\n")


def test_a_full_disk_is_one_line_and_the_root_stays_usable(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", size=12_000_000)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small)], check=True)
    try:
        builder = Builder(small)
        line = failed(builder.build(f"FROM {image['reference']}\nRUN true\n"), 3)
        assert "space" in line
        builder.must_build("FROM scratch\nLABEL a=b\n")
        assert builder.leftovers() == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


# ---------------------------------------------------------------- projections


def test_I1_projections_are_rebuilt_byte_for_byte(builder: Builder, registry: RegistryProcess, repository: str) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.must_build(f"FROM {image['reference']}\nRUN true\n")
    builder.build(f"FROM {image['reference']}\nRUN false\n")
    events = len(builder.events())
    checked = builder.run("rebuild", "--check")
    assert (checked.code, checked.out) == (0, f"the projections equal a fresh fold of {events} events\n")
    before = builder.run("history", "--json").out
    for path in builder.root.glob("views.db*"):
        path.unlink()
    assert builder.run("history", "--json").out == before
    rebuilt = builder.run("rebuild")
    assert (rebuilt.code, rebuilt.out) == (0, f"rebuilt from {events} events\n")
    assert builder.run("history", "--json").out == before


def test_what_an_event_has_no_room_for_is_no_internal_error(builder: Builder) -> None:
    args = [f"--build-arg=A{number}={'x' * 60_000}" for number in range(MAX_STATE // 50_000 + 1)]
    done = builder.build("FROM scratch\nCOPY Dockerfile /\n", *args)
    assert (done.code, "there is more to say of this than an event of the log has room for" in done.err) == (2, True)
    assert "tells the story" not in done.err, "there is none"
    done = builder.build(f"FROM scratch\nRUN --mount=type=bad {'y ' * 20_000}\\\n{'z ' * 20_000}\n")
    assert (done.code, "unsupported mount type 'bad'" in done.err) == (2, True), done.err
    assert builder.builds()[0]["status"] == "failed"
