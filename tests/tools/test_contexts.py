"""Contexts of every kind, from the command line to the files in the image."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.builder import Builder, Done, base_image, layer_digests, refledger
from tests.registry_fixture import RegistryProcess
from tests.web_fixture import Repository, WebServer, git_daemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


def tar_of(contents: Mapping[str, str], uid: int = 0) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in contents.items():
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.gid = len(text), uid, uid
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def build(builder: Builder, *args: str, stdin: bytes = b"") -> tuple[Done, dict[str, str]]:
    """`refledger build ARGS` with an export: how it ended, and the files of the image."""
    out = builder.root.parent / "out"
    subprocess.run(["rm", "-rf", str(out)], check=True)
    done = refledger(
        "build", "--progress=plain", f"--output=type=local,dest={out}", *args, env=builder.env, stdin=stdin
    )
    found = {str(path.relative_to(out)): _text(path) for path in sorted(out.rglob("*")) if path.is_file()}
    return done, found


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


# ---------------------------------------------------------------- standard input


@pytest.mark.parametrize("compress", [bytes, lambda data: gzip.compress(data, mtime=0), bz2.compress, lzma.compress])
def test_a_tar_on_standard_input_is_the_context(builder: Builder, compress: Callable[[bytes], bytes]) -> None:
    context = tar_of({"Dockerfile": "FROM scratch\nCOPY a b/ /x/\n", "a": "A", "b/c": "C"})
    done, files = build(builder, "-", stdin=compress(context))
    assert done.code == 0, done.err
    assert files == {"x/a": "A", "x/c": "C"}


def test_a_tar_on_standard_input_with_another_dockerfile_in_it(builder: Builder) -> None:
    context = tar_of({"build/Other": "FROM scratch\nCOPY a /\n", "a": "A"})
    done, files = build(builder, "-", "-f", "build/Other", stdin=context)
    assert (done.code, files) == (0, {"a": "A"})
    missing, _ = build(builder, "-", stdin=context)
    assert missing.code == 2
    assert "there is no 'Dockerfile' in the context" in missing.err


def test_what_is_wrong_in_the_dockerfile_of_a_tar_is_shown(builder: Builder) -> None:
    done, _ = build(builder, "-", stdin=tar_of({"Dockerfile": "FROM scratch\nCOPY\n"}))
    assert (done.code, "   2 | >>> COPY" in done.err) == (2, True), done.err


def test_files_of_a_tar_keep_their_owners(builder: Builder) -> None:
    done, _ = build(builder, "-", stdin=tar_of({"Dockerfile": "FROM scratch\nCOPY a /\n", "a": "A"}, uid=7))
    assert done.code == 0, done.err
    assert (builder.root.parent / "out/a").stat().st_uid == 7


def test_a_dockerfile_on_standard_input_has_no_context(builder: Builder) -> None:
    done, files = build(builder, "-", stdin=b"FROM scratch\nCOPY <<x /x\nhello\nx\n")
    assert (done.code, files) == (0, {"x": "hello\n"})
    large, _ = build(builder, "-", stdin=b"FROM scratch\n#".ljust((16 << 20) + 1, b"#"))
    assert (large.code, large.err) == (2, "ERROR: standard input: it is larger than 16777216 bytes\n")
    failed, _ = build(builder, "-", stdin=b"FROM scratch\nCOPY a /\n")
    assert failed.code == 2
    assert '"/a": not found' in failed.err
    assert "Dockerfile:2" in failed.err
    assert builder.leftovers() == []


def test_a_dockerfile_on_standard_input_beside_a_directory(builder: Builder) -> None:
    builder.write({"a": "A", "hidden": "h", ".dockerignore": "hidden\n"})
    done, files = build(builder, str(builder.context), "-f", "-", stdin=b"FROM scratch\nCOPY . /\n")
    assert done.code == 0, done.err
    assert files == {".dockerignore": "hidden\n", "a": "A"}


def test_standard_input_cannot_be_everything(builder: Builder) -> None:
    both, _ = build(builder, "-", "-f", "-", stdin=b"FROM scratch\n")
    assert both.code == 2
    named, _ = build(builder, "-", "-f", "Dockerfile", stdin=b"FROM scratch\n")
    assert named.code == 2
    empty, _ = build(builder, "-", stdin=b"")
    assert (empty.code, "standard input is empty" in empty.err) == (2, True)


def test_a_broken_tar_is_told_in_one_line(builder: Builder) -> None:
    context = gzip.compress(tar_of({"Dockerfile": "FROM scratch\n", "a": "A" * 100_000}))
    done, _ = build(builder, "-", stdin=context[: len(context) // 2])
    assert done.code == 2
    assert "standard input" in done.err
    assert builder.leftovers() == []


# ---------------------------------------------------------------- elsewhere


def test_a_tar_of_the_web_is_the_context_and_is_asked_for_again(builder: Builder, web: WebServer) -> None:
    files = {"Dockerfile": "FROM scratch\nCOPY a /\n", "a": "A", "other": "1"}
    url = web.put("/context.tar.gz", gzip.compress(tar_of(files)), ETag='"1"')
    done, found = build(builder, url)
    assert (done.code, found) == (0, {"a": "A"}), done.err
    build(builder, url)
    assert [request.status for request in web.requests] == [200, 304]
    web.put("/context.tar.gz", gzip.compress(tar_of(files | {"other": "2"})), ETag='"2"')
    build(builder, url)
    newest = builder.builds()[0]["id"]
    outcomes = [event["data"]["outcome"] for event in builder.events("CacheQueried", build=newest)]
    assert outcomes == ["hit"]  # what is copied has not changed
    (read,) = builder.events("DefinitionRead", build=newest)
    stored = builder.root / "blobs/sha256" / read["data"]["definition"].partition(":")[2]
    assert stored.read_text() == files["Dockerfile"]


def test_a_dockerfile_of_the_web(builder: Builder, web: WebServer) -> None:
    url = web.put("/some/Dockerfile", b"FROM scratch\nCOPY <<x /x\nhello\nx\n")
    done, files = build(builder, url)
    assert (done.code, files) == (0, {"x": "hello\n"}), done.err


def test_a_git_repository_is_the_context(builder: Builder, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "git/app.git")
    repository.commit({"Dockerfile": "FROM scratch\nCOPY . /\n", "a": "A", "sub/Dockerfile": "FROM scratch\nCOPY b /\n",
                       "sub/b": "B", "Bad": "FROM scratch\nCOPY a /a\nCOPY sub /a\n"})  # fmt: skip
    with git_daemon(tmp_path / "git") as base:
        whole, files = build(builder, f"{base}/app.git")
        assert whole.code == 0, whole.err
        assert {"Dockerfile", "a", "sub/b"} <= set(files)
        part, files = build(builder, f"{base}/app.git#main:sub")
        assert (part.code, files) == (0, {"b": "B"})
        other, files = build(builder, f"{base}/app.git", "-f", "sub/Dockerfile")
        assert (other.code, '"/b": not found' in other.err) == (2, True)
        _, files = build(builder, f"{base}/app.git", "--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1")
        assert ".git/config" in files
        bad, _ = build(builder, f"{base}/app.git", "-f", "Bad")
        assert bad.code == 2, bad.err
        assert ">>> COPY sub /a" in bad.err
        repository.commit({"unused": "x"})
        build(builder, f"{base}/app.git#main:sub")
    newest = builder.builds()[0]
    assert newest["name"] == "app"
    outcomes = [event["data"]["outcome"] for event in builder.events("CacheQueried", build=newest["id"])]
    assert outcomes == ["hit"]
    shown = builder.run("show", builder.builds()[1]["id"])
    assert ">>> COPY sub /a" in shown.out


def test_a_dockerfile_that_links_out_of_its_repository_is_not_read(builder: Builder, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("FROM scratch\nCOPY . /\n# of the host\n")
    repository = Repository(tmp_path / "git/evil.git")
    (repository.directory / "Dockerfile").symlink_to(secret)
    repository.commit({})
    with git_daemon(tmp_path / "git") as base:
        done, _ = build(builder, f"{base}/evil.git")
    assert done.code == 2
    assert "there is no 'Dockerfile'" in done.err


@pytest.mark.parametrize("context", ["file:///etc", "ftp://host/x.tar", "https:///nothing"])
def test_contexts_that_nobody_fetches_are_refused(builder: Builder, context: str) -> None:
    done, _ = build(builder, context)
    assert done.code == 2


# ---------------------------------------------------------------- named


def test_a_named_directory_with_an_ignore_file_of_its_own(builder: Builder, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name, text in {"kept": "k", "dropped": "d", ".dockerignore": "dropped\n.dockerignore\n"}.items():
        (other / name).write_text(text)
    builder.write({"Dockerfile": "FROM scratch\nCOPY --from=extra . /extra/\nCOPY own /\n", "own": "o"})
    done, files = build(builder, str(builder.context), "--build-context", f"extra={other}")
    assert done.code == 0, done.err
    assert files == {"extra/kept": "k", "own": "o"}
    (other / "dropped").write_text("changed")
    build(builder, str(builder.context), "--build-context", f"extra={other}")
    newest = builder.builds()[0]["id"]
    assert {event["data"]["outcome"] for event in builder.events("CacheQueried", build=newest)} == {"hit"}
    (other / "kept").write_text("changed")
    _, files = build(builder, str(builder.context), "--build-context", f"extra={other}")
    assert files["extra/kept"] == "changed"


def test_from_a_named_directory(builder: Builder, tmp_path: Path) -> None:
    other = tmp_path / "rootfs"
    other.mkdir()
    (other / "file").write_text("f")
    builder.write({"Dockerfile": "FROM rootfs\nLABEL a=b\nCOPY own /\n", "own": "o"})
    done, files = build(builder, str(builder.context), "--build-context", f"rootfs={other}")
    assert (done.code, files) == (0, {"file": "f", "own": "o"}), done.err


def test_a_named_context_goes_before_a_stage_and_an_image(builder: Builder, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("from the context")
    dockerfile = (
        "FROM does-not-exist.invalid/x AS base\nRUN never\n"
        "FROM scratch\nCOPY --from=base /file /1\nCOPY --from=debian:12 /file /2\nCOPY --from=busybox /file /3\n"
    )
    builder.write({"Dockerfile": dockerfile})
    contexts = [f"--build-context={name}={other}" for name in ("base", "debian:12", "docker.io/library/busybox:latest")]
    done, files = build(builder, str(builder.context), *contexts)
    assert done.code == 0, done.err
    assert set(files.values()) == {"from the context"}
    assert len(files) == 3


def test_a_named_context_that_is_a_stage(builder: Builder) -> None:
    dockerfile = "FROM scratch AS made\nCOPY a /\nFROM nowhere.invalid/x\nCOPY --from=there.invalid/y /a /b\n"
    builder.write({"Dockerfile": dockerfile, "a": "A"})
    targets = ["--build-context=nowhere.invalid/x=target:made", "--build-context=there.invalid/y=target:made"]
    done, files = build(builder, str(builder.context), *targets)
    assert (done.code, files) == (0, {"a": "A", "b": "A"}), done.err


def test_a_named_git_repository_and_a_named_tar(builder: Builder, web: WebServer, tmp_path: Path) -> None:
    Repository(tmp_path / "git/lib.git").commit({"lib": "L"})
    url = web.put("/data.tar", tar_of({"data": "D"}))
    builder.write({"Dockerfile": "FROM scratch\nCOPY --from=lib lib /\nCOPY --from=data data /\n"})
    with git_daemon(tmp_path / "git") as base:
        contexts = [f"--build-context=lib={base}/lib.git#main", f"--build-context=data={url}"]
        done, files = build(builder, str(builder.context), *contexts)
        assert (done.code, files) == (0, {"lib": "L", "data": "D"}), done.err
        build(builder, str(builder.context), *contexts)
    newest = builder.builds()[0]["id"]
    assert {event["data"]["outcome"] for event in builder.events("CacheQueried", build=newest)} == {"hit"}


def test_an_unused_named_context_is_asked_for_nothing(builder: Builder, web: WebServer) -> None:
    builder.write({"Dockerfile": "FROM scratch\nLABEL a=b\n"})
    done, _ = build(builder, str(builder.context), "--build-context", f"x={web.url}/x.tar")
    assert (done.code, web.requests) == (0, []), done.err


def test_a_named_image_takes_the_place_of_a_base(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.write({"Dockerfile": "FROM alpine\nRUN echo ran > /ran\nFROM scratch\nCOPY --from=alpine /bin/sh /sh\n"})
    done, files = build(
        builder, str(builder.context), "--target=0", "--build-context", f"alpine=docker-image://{image['reference']}"
    )
    assert done.code == 0, done.err
    assert files["ran"] == "ran\n"


def test_an_oci_layout_is_a_base_and_only_its_needed_layers_are_read(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = base_image(registry, f"{repository}/base")
    layout = tmp_path / "layout"
    copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{image['reference']}", f"oci:{layout}:v1"]
    subprocess.run(copy, check=True)
    context = f"--build-context=base=oci-layout://{layout}:v1"
    target = f"{registry.host}/{repository}/app:1"
    builder.write({"Dockerfile": "FROM base\nLABEL a=b\n"})
    label = builder.run("build", str(builder.context), context, "-t", target, "--push")
    assert label.code == 0, label.err
    assert builder.events("MaterializationRequested") == []
    assert list((builder.root / "layers").iterdir()) == []
    builder.write({"Dockerfile": "FROM base\nRUN echo ran > /ran\n"})
    done, files = build(builder, str(builder.context), context)
    assert (done.code, files["ran"]) == (0, "ran\n"), done.err
    pulled = {event["data"]["digest"] for event in builder.events("LayerPulled")}
    assert pulled == set(layer_digests(image))
    gone = builder.run("build", str(builder.context), f"--build-context=base=oci-layout://{layout}:v2")
    assert (gone.code, "no such image" in gone.err, "v1" in gone.err) == (2, True, True)


def test_I3_a_damaged_layout_is_noticed(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    layout = tmp_path / "layout"
    copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{image['reference']}", f"oci:{layout}:v1"]
    subprocess.run(copy, check=True)
    blob = layout / "blobs/sha256" / layer_digests(image)[0].partition(":")[2]
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    builder.write({"Dockerfile": "FROM base\nRUN true\n"})
    done, _ = build(builder, str(builder.context), f"--build-context=base=oci-layout://{layout}:v1")
    assert done.code == 4
    assert list((builder.root / "layers").iterdir()) == []


@pytest.mark.parametrize("given", ["noequals", "=x", "x=", "x=/no/such/directory", "x=file:///etc", "x=docker-image://"])
def test_named_contexts_that_are_none(builder: Builder, given: str) -> None:
    builder.write({"Dockerfile": "FROM scratch\n"})
    done, _ = build(builder, str(builder.context), "--build-context", given)
    assert done.code == 2
