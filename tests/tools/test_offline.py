"""`refledger build --offline`: what was built here is built again without a network, and what is missing is told."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builder import PROJECT, Builder, Done, base_image
from tests.registry_fixture import RegistryProcess, digest_of, push_image
from tests.waiting import PATIENCE
from tests.web_fixture import Repository, WebServer, git_daemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


def offline(builder: Builder, *args: str, network: bool = False) -> Done:
    """`refledger build --offline ARGS`, where there is no network unless it is given: not even loopback is up."""
    done = subprocess.run(
        [*([] if network else ["unshare", "-n"]), sys.executable, "-m", "tools.cli.main", "build", "--offline",
         "--progress=plain", *args],
        env=builder.env, cwd=PROJECT, text=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def built_offline(builder: Builder, *args: str) -> Done:
    done = offline(builder, str(builder.context), *args)
    assert done.code == 0, done.err
    return done


def newest(builder: Builder, *types: str) -> list[dict[str, Any]]:
    return builder.events(*types, build=builder.builds()[0]["id"])


def missing(builder: Builder) -> list[dict[str, Any]]:
    (found,) = newest(builder, "FoundMissing")
    assert found["data"]["count"] == len(found["data"]["items"])
    assert found["data"]["bytes"] == sum(item["bytes"] for item in found["data"]["items"])
    items: list[dict[str, Any]] = found["data"]["items"]
    return items


# ---------------------------------------------------------------- what works


def test_a_build_that_was_done_before_is_done_again_without_a_network(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    builder.write({"a": "1"})
    builder.must_build(f"FROM {image['reference']}\nCOPY a /a\nRUN cat /a > /b\n")
    done = built_offline(builder)
    assert done.err.count("CACHED") == 3
    assert f"recalled {image['reference']} -> {image['digest']}" in done.err
    (resolved,) = newest(builder, "SourceResolved")
    assert (resolved["data"]["recalled"], resolved["data"]["digest"]) == (True, image["digest"])
    builder.write({"a": "2"})
    changed = built_offline(builder)
    assert "CACHED" not in changed.err


def test_nobody_is_asked_though_the_registry_is_there(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    """A tag stays what it was, as a person who pins by the last build expects."""
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.must_build(f"FROM {image['reference']}\nRUN true\n")
    push_image(registry.host, f"{repository}/base", [{"moved": b"1"}])
    before = registry.mark()
    out = tmp_path / "out"
    done = offline(builder, str(builder.context), "--no-cache", "--output", f"type=local,dest={out}", network=True)
    assert done.code == 0, done.err
    assert (out / "bin/busybox").exists()
    assert registry.requests()[before:] == []


def test_an_image_is_known_however_its_name_was_written(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    bare = image["reference"].removesuffix(":latest")
    builder.must_build(f"FROM {image['reference']}\nRUN true\n")
    for name in (bare, f"{bare}@{image['digest']}", f"{bare}:whatever@{image['digest']}"):
        builder.write({"Dockerfile": f"FROM {name}\nRUN true\n"})
        assert "CACHED" in built_offline(builder).err
    context = f"alias=docker-image://{bare}"
    builder.write({"Dockerfile": "FROM alias\nRUN true\n"})
    built_offline(builder, "--build-context", context)


def test_each_platform_is_what_it_was_when_it_was_built(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.must_build(f"FROM {image['reference']}\nLABEL a=b\n")
    moved = push_image(registry.host, f"{repository}/base", [{"a": b"arm"}], architecture="arm64")
    builder.must_build(f"FROM {image['reference']}\nLABEL a=b\n", "--platform", "linux/arm64")
    for platform, digest in (("linux/amd64", image["digest"]), ("linux/arm64", moved["digest"])):
        built_offline(builder, "--platform", platform)
        (resolved,) = newest(builder, "SourceResolved")
        assert resolved["data"]["digest"] == digest


def test_files_of_the_web_and_repositories_are_what_they_were(
    builder: Builder, web: WebServer, tmp_path: Path
) -> None:
    url = web.put("/file?signature=1", b"old")
    web.put("/file", b"old")
    repository = Repository(tmp_path / "git/lib.git")
    old = repository.commit({"lib": "old"})
    repository.git("tag", "-a", "heavy", "-m", "annotated")
    tag = repository.git("rev-parse", "heavy")
    with git_daemon(tmp_path / "git") as base:
        dockerfile = (
            f"FROM scratch\nADD {url} /web\nADD {base}/lib.git#main /lib\n"
            f"ADD --checksum={tag} {base}/lib.git#heavy /tagged\nCOPY own /\n"
        )
        builder.write({"own": "1"})
        builder.must_build(dockerfile)
        web.put("/file", b"new")
        repository.commit({"lib": "new"})
        asked = len(web.requests)
        builder.write({"own": "2"})
        out = tmp_path / "out"
        done = offline(
            builder, str(builder.context), "--no-cache", "--output", f"type=local,dest={out}", network=True
        )
    assert done.code == 0, done.err
    assert [(out / name).read_text() for name in ("web", "lib/lib", "tagged/lib", "own")] == ["old", "old", "old", "2"]
    assert len(web.requests) == asked
    assert newest(builder, "SourceRequested") == []
    facts = newest(builder, "GitResolved", "HttpResolved")
    assert len(facts) == 3
    assert all(fact["data"]["recalled"] for fact in facts)
    assert {fact["data"]["commit"] for fact in facts if fact["type"] == "GitResolved"} == {old}
    assert built_offline(builder).err.count("CACHED") >= 4


def test_contexts_that_were_fetched_before(builder: Builder, web: WebServer, tmp_path: Path) -> None:
    url = web.put("/Dockerfile", b"FROM scratch\nCOPY <<x /x\nhello\nx\n")
    Repository(tmp_path / "git/app.git").commit({"Dockerfile": "FROM scratch\nCOPY a /\n", "a": "A"})
    with git_daemon(tmp_path / "git") as base:
        for context in (url, f"{base}/app.git"):
            assert builder.run("build", context).code == 0
    for context in (url, f"{base}/app.git"):
        done = offline(builder, context)
        assert done.code == 0, done.err
    shutil.rmtree(builder.root / "snapshots")  # the tar of a context is kept as a blob, the files of a commit are not
    again = offline(builder, url)
    assert again.code == 0, again.err
    lost = offline(builder, f"{base}/app.git")
    assert lost.code == 3, lost.err
    (item,) = missing(builder)
    assert (item["kind"], item["name"]) == ("git", f"{base}/app.git#refs/heads/main")
    assert "its files are not here" in lost.err


def test_an_oci_layout_is_on_this_disk(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = base_image(registry, f"{repository}/base", layers=2)
    layout = tmp_path / "layout"
    copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{image['reference']}", f"oci:{layout}:v1"]
    subprocess.run(copy, check=True)
    builder.write({"Dockerfile": "FROM base\nRUN true\n"})
    built_offline(
        builder, f"--build-context=base=oci-layout://{layout}:v1", "--output", f"type=oci,dest={tmp_path / 'o.tar'}"
    )
    assert len(newest(builder, "LayerPulled")) == 2


def test_checking_a_dockerfile_knows_the_images_that_were_built_on(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = push_image(registry.host, f"{repository}/base", [{"a": b"1"}], config={"Env": ["FROM_BASE=1"]})
    builder.write({"Dockerfile": f"FROM {image['reference']}\nLABEL a=$FROM_BASE\n"})
    unknown = offline(builder, str(builder.context), "--check")
    assert (unknown.code, "could not be asked" in unknown.out) == (0, True)
    assert builder.run("build", str(builder.context)).code == 0
    known = offline(builder, str(builder.context), "--check")
    assert (known.code, "no warnings found" in known.out, "asked" in known.out) == (0, True, False)


# ---------------------------------------------------------------- what is missing


def test_all_images_that_the_log_does_not_know_are_told_at_once(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.write({"Dockerfile": f"FROM {image['reference']}\nCOPY --from=debian:13 / /\nCOPY --from=a/b / /\n"})
    before = registry.mark()
    done = offline(builder, str(builder.context), network=True)
    assert done.code == 3
    assert {item["name"].partition(" ")[0] for item in missing(builder)} == {image["reference"], "debian:13", "a/b"}
    assert {item["kind"] for item in missing(builder)} == {"image"}
    assert "docker.io/library/debian:13" in done.err
    assert done.err.splitlines()[-1] == "ERROR: offline: 3 images are not here (build once without --offline)"
    assert registry.requests()[before:] == []
    shown = builder.run("show", builder.builds()[0]["id"]).out
    assert "debian:13" in shown


def test_a_digest_whose_manifest_is_not_here_is_told(builder: Builder) -> None:
    digest = "sha256:" + "1" * 64
    builder.write({"Dockerfile": f"FROM debian@{digest}\n"})
    done = offline(builder, str(builder.context))
    assert done.code == 3
    (item,) = missing(builder)
    assert item["name"] == f"debian@{digest} (linux/{_architecture()})"
    assert "the manifest is not here" in done.err


def test_all_urls_and_commits_that_the_log_does_not_know_are_told_at_once(builder: Builder) -> None:
    builder.write({"Dockerfile": (
        "FROM scratch\nADD https://example.org/a?token=1 /\nADD https://example.org/b /\n"
        "ADD https://me:pa55@example.org/c.git#v1 /\n"
    )})  # fmt: skip
    done = offline(builder, str(builder.context))
    assert done.code == 3, done.err
    assert [(item["kind"], item["name"]) for item in missing(builder)] == [
        ("url", "https://example.org/a"), ("url", "https://example.org/b"), ("git", "https://example.org/c.git#v1"),
    ]  # fmt: skip
    assert done.err.splitlines()[-1] == (
        "ERROR: offline: 2 URLs and 1 git repository are not here (build once without --offline)"
    )
    assert "pa55" not in json.dumps(builder.events())


def test_a_context_that_the_log_does_not_know_is_told(builder: Builder) -> None:
    done = offline(builder, "https://example.org/context.tar")
    assert done.code == 3
    assert [item["kind"] for item in missing(builder)] == ["archive"]
    assert "https://example.org/context.tar" in done.err


def test_pushing_is_refused_before_anything_happens(builder: Builder) -> None:
    builder.write({"Dockerfile": "FROM scratch\n"})
    for how in (["--push"], ["--output", "type=image,push=true"], ["--output", "type=registry"]):
        done = offline(builder, str(builder.context), "-t", "a/b", *how)
        assert (done.code, "--offline pushes nothing" in done.err) == (2, True)
    assert not (builder.root / "log.db").exists()


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]


def forget(builder: Builder, *names: str) -> None:
    """Let the bytes of layers and snapshots whose names begin so go, as a person might who needs the room."""
    for path in [*(builder.root / "layers").iterdir(), *(builder.root / "snapshots").iterdir()]:
        if path.name.partition(":")[2].startswith(names) or path.name.startswith(names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_every_layer_that_a_step_needs_is_told_before_anything_runs(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    builder.must_build(f"FROM {image['reference']}\nLABEL a=b\n")  # a pointer only
    builder.write({"Dockerfile": (
        f"FROM {image['reference']}\nRUN echo one > /one\nFROM {image['reference']}\nRUN echo two\n"
        "COPY --from=0 /one /one\n"
    )})  # fmt: skip
    before = registry.mark()
    done = offline(builder, str(builder.context), network=True)
    assert done.code == 3
    items = missing(builder)
    assert {item["name"]: item["bytes"] for item in items} == {
        layer["digest"]: layer["size"] for layer in image["layers"]
    }  # fmt: skip
    for item in items:
        assert item["elsewhere"] == [image["reference"].removesuffix(":latest")]
        assert [name.partition("] ")[2] for name in item["needed_by"]] == [
            "RUN echo one > /one", "RUN echo two", "COPY --from=0 /one /one"
        ]  # fmt: skip
    assert newest(builder, "MaterializationRequested", "VertexFailed") == []
    assert registry.requests()[before:] == []
    assert "ERROR: offline: 3 layers are not here" in done.err


def test_a_pointer_whose_bytes_nothing_needs_is_enough(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    builder.must_build(f"FROM {image['reference']}\nLABEL a=b\n")
    builder.write({"new": "1"})
    builder.write({"Dockerfile": f"FROM {image['reference']}\nCOPY --link new /\n"})
    built_offline(builder)


def test_a_copy_needs_only_the_layers_that_answer_for_what_it_takes(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    layers = [{"a/old": b"1"}, {"b/mid": b"2" * 200_000}, {"c/new": b"3"}]
    image = push_image(registry.host, f"{repository}/files", layers)
    taken = f"FROM scratch\nCOPY --from={image['reference']} /c/new /\n"
    builder.must_build(taken)
    assert len(builder.events("LayerPulled")) == 1
    builder.write({"Dockerfile": taken + "COPY <<x /x\nx\n"})
    built_offline(builder, "--no-cache")
    builder.write({"Dockerfile": taken.replace("/c/new", "/b/mid")})
    done = offline(builder, str(builder.context))
    assert done.code == 3
    assert [item["name"] for item in missing(builder)] == [image["layers"][1]["digest"]]


def test_a_step_whose_result_lies_elsewhere_is_run_again_from_what_is_here(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    dockerfile = f"FROM {image['reference']}\nRUN echo made > /made\n"
    builder.must_build(dockerfile, "-t", f"{registry.host}/{repository}/app", "--push")
    first = builder.builds()[0]["id"]
    (packed,) = builder.events("BlobCreated")
    (builder.root / "blobs/sha256" / packed["data"]["digest"].partition(":")[2]).unlink()
    forget(builder, first)
    unneeded = built_offline(builder)
    assert unneeded.err.count("CACHED") == 2
    builder.write({"Dockerfile": dockerfile + "RUN cat /made\n"})
    before = registry.mark()
    done = offline(builder, str(builder.context), network=True)
    assert done.code == 0, done.err
    ran = [event["data"]["name"].partition("] ")[2] for event in newest(builder, "VertexCompleted")]
    assert ran[-2:] == ["RUN echo made > /made", "RUN cat /made"]
    queried = [event["data"] for event in newest(builder, "CacheQueried")]
    assert [(item["outcome"], item["reason"]) for item in queried] == [
        ("miss", "provider-unreachable"), ("miss", "never-built")
    ]  # fmt: skip
    assert registry.requests()[before:] == []


def test_a_layer_that_nothing_here_can_make_again_is_told_with_who_has_it(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    """The base is gone too, which only a registry has: what is told is the least that has to come, all of it."""
    image = base_image(registry, f"{repository}/base", layers=1)
    dockerfile = f"FROM {image['reference']}\nRUN echo made > /made\n"
    target = f"{registry.host}/{repository}/app"
    builder.must_build(dockerfile, "-t", target, "--push")
    (packed,) = builder.events("BlobCreated")
    (builder.root / "blobs/sha256" / packed["data"]["digest"].partition(":")[2]).unlink()
    forget(builder, "")
    builder.write({"Dockerfile": dockerfile + "RUN cat /made\n"})
    done = offline(builder, str(builder.context))
    assert done.code == 3
    items = {item["name"]: item["elsewhere"] for item in missing(builder)}
    assert items.keys() == {image["layers"][0]["digest"], packed["data"]["digest"]}
    assert target in items[packed["data"]["digest"]]
    queried = [event["data"]["outcome"] for event in newest(builder, "CacheQueried")]
    assert queried == ["hit", "miss"]


def test_an_image_whose_base_is_here_as_files_is_written_with_blobs_made_anew(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    """The blob that a layer came as is not kept. Where its tar is, the image is the same but for its compression."""
    image = base_image(registry, f"{repository}/base", layers=2)
    dockerfile = f"FROM {image['reference']}\nRUN echo made > /made\n"
    online, archive = tmp_path / "online.tar", tmp_path / "offline.tar"
    builder.must_build(dockerfile, "--output", f"type=docker,dest={online}", "--snapshotter", "erofs")
    done = built_offline(builder, "--output", f"type=docker,dest={archive}", "--snapshotter", "erofs")
    assert "WARNING: blobs of base layers (2) are not here, and were made anew" in done.err
    (one, config), (two, other) = map(_docker_archive, (online, archive))
    assert config == other
    assert one[:2] == [layer["digest"] for layer in image["layers"]]
    assert two[:2] != one[:2]
    assert two[2:] == one[2:]
    again = built_offline(builder, "--output", f"type=docker,dest={tmp_path / 'again.tar'}", "--snapshotter", "erofs")
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes(), again.err
    assert len(builder.events("BlobCreated")) == 3
    builder.write({"Dockerfile": dockerfile + "RUN cat /made\n"})
    assert "CACHED" in built_offline(builder).err


def _docker_archive(path: Path) -> tuple[list[str], dict[str, Any]]:
    """The layers' digests, each found to be what it is called, and the config."""
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        data = {name: file.read() for name, file in files.items() if file}
    (entry,) = json.loads(data["manifest.json"])
    config = json.loads(data[entry["Config"]])
    digests = [f"sha256:{name.rpartition('/')[2]}" for name in entry["Layers"]]
    for name, digest, diff_id in zip(entry["Layers"], digests, config["rootfs"]["diff_ids"], strict=True):
        assert digest_of(data[name]) == digest
        assert digest_of(gzip.decompress(data[name])) == diff_id
    return digests, config


def test_files_that_are_wanted_in_a_directory_are_enough_as_files(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    """Laid out as files a layer has lost its tar: an archive of it cannot be written, a directory can."""
    image = base_image(registry, f"{repository}/base", layers=1)
    files = ["--snapshotter", "directory"]
    builder.must_build(f"FROM {image['reference']}\nRUN echo made > /made\n", *files)
    out = tmp_path / "out"
    built_offline(builder, "--output", f"type=local,dest={out}", *files)
    assert (out / "made").read_text() == "made\n"
    archive = tmp_path / "image.tar"
    done = offline(builder, str(builder.context), "--output", f"type=docker,dest={archive}", *files)
    assert done.code == 3
    (item,) = missing(builder)
    assert item["name"] == image["layers"][0]["digest"]
    assert item["needed_by"] == [f"--output type=docker,dest={archive}"]
    assert "its files are here, but type=docker takes the blob as its registry has it" in done.err
    assert "(build without --offline, or write type=local)" in done.err
    assert not archive.exists()
    builder.write({"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
    built_offline(builder, "--output", f"type=docker,dest={archive}", *files)
    assert archive.exists()


def test_what_a_run_mounts_is_needed_but_not_what_a_cache_begins_with(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    base = base_image(registry, f"{repository}/base", layers=1)
    tools = push_image(registry.host, f"{repository}/tools", [{"tool": b"t"}])
    builder.must_build(f"FROM {base['reference']}\nRUN true\n")
    builder.must_build(f"FROM {tools['reference']}\nLABEL a=b\n")
    mount = f"FROM {base['reference']}\nRUN --mount=type=%s,from={tools['reference']},target=/t echo it\n"
    builder.write({"Dockerfile": mount % "bind"})
    bound = offline(builder, str(builder.context))
    assert bound.code == 3
    assert [item["name"] for item in missing(builder)] == [tools["layers"][0]["digest"]]
    builder.must_build(mount % "cache")
    builder.write({"Dockerfile": (mount % "cache") + "RUN echo more\n"})
    built_offline(builder, "--no-cache")


def test_a_base_that_was_pushed_from_here_since_is_not_taken_for_what_it_was(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    """The log knows better than to build on the old one."""
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.must_build(f"FROM {image['reference']}\nRUN echo 1 > /1\n", "-t", image["reference"], "--push")
    builder.write({"Dockerfile": f"FROM {image['reference']}\nRUN echo 2 > /2\n"})
    pushed = builder.events("Exported")[-1]["data"]["digest"]
    done = offline(builder, str(builder.context))
    assert done.code == 3
    (item,) = missing(builder)
    assert item["detail"] == f"the manifest is not here: {pushed}"


def test_a_cache_in_a_registry_is_not_asked_and_one_on_this_disk_is_read(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    dockerfile = f"FROM {image['reference']}\nRUN echo made > /made\n"
    cache = tmp_path / "cache"
    builder.must_build(dockerfile, "--cache-to", f"type=local,dest={cache},mode=max")
    other = Builder(tmp_path / "other")
    other.must_build(f"FROM {image['reference']}\nRUN true\n")  # the base's files are here, its blob is not
    other.write({"Dockerfile": dockerfile})
    before = registry.mark()
    out, given = tmp_path / "out", f"type=local,src={cache}"
    read = offline(other, str(other.context), "--cache-from", given, "--output", f"type=local,dest={out}")
    assert read.code == 0, read.err
    assert (out / "made").read_text() == "made\n"
    (queried,) = newest(other, "CacheQueried")
    assert (queried["data"]["outcome"], queried["data"]["importer"]) == ("hit", given)
    remote = f"type=registry,ref={registry.host}/{repository}/cache"
    ignored = offline(other, str(other.context), "--cache-from", remote, network=True)
    assert ignored.code == 0, ignored.err
    assert "offline" in json.dumps(newest(other, "CacheImportFailed"))
    for target in (remote, f"{registry.host}/{repository}/cache"):
        pushed = offline(other, str(other.context), "--cache-to", target)
        assert (pushed.code, "--offline pushes no cache" in pushed.err) == (2, True)
    assert registry.requests()[before:] == []
