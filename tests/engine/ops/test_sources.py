"""ADD of what lies elsewhere, from the command line to the files in the image, judged by the servers' own logs."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.errors import DiskError
from engine.grants import Grants
from engine.graph import HttpSource
from storage.digest import Digest
from storage.sources import Answer, Known, Login, Sink
from tests.builder import Builder
from tests.web_fixture import Page, Repository, WebServer, git_daemon, git_over_http
from tools.bootstrap import engine
from tools.roots import Root, open_root

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL of a git daemon, and the directory of its repositories."""
    base = tmp_path_factory.mktemp("git")
    with git_daemon(base) as url:
        yield url, base


@pytest.fixture(scope="module")
def project(served: tuple[str, Path]) -> tuple[str, Repository, dict[str, str]]:
    """A repository with a branch, two kinds of tags and a subdirectory; its commits by name."""
    url, base = served
    repository = Repository(base / "project.git")
    commits = {"first": repository.commit({"file": "one", "bin/tool": "#!/bin/sh\n", "docs/a/page": "page"})}
    repository.git("tag", "light")
    repository.git("tag", "-a", "heavy", "-m", "annotated")
    commits["tag"] = repository.git("rev-parse", "heavy")
    repository.git("checkout", "--quiet", "-b", "side")
    (repository.directory / "link").symlink_to("file")
    commits["side"] = repository.commit({"file": "side"})
    repository.git("checkout", "--quiet", "main")
    commits["main"] = repository.commit({"file": "two"})
    return f"{url}/project.git", repository, commits


def files(builder: Builder, dockerfile: str, *args: str) -> dict[str, str]:
    """Build, export, and tell every file of the image: path → content (or link target)."""
    out = builder.root.parent / "out"
    subprocess.run(["rm", "-rf", str(out)], check=True)
    builder.must_build(dockerfile, "--output", f"type=local,dest={out}", *args)
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(out))] = f"-> {path.readlink()}"
        elif path.is_file():
            found[str(path.relative_to(out))] = path.read_bytes().decode("utf-8", "replace")
    return found


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(**contents: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


# ---------------------------------------------------------------- the web


def test_add_url_names_the_file_after_the_url(builder: Builder, web: WebServer) -> None:
    web.put("/a/file.txt", b"hello")
    web.put("/", b"root")
    file = f"{web.url}/a/file.txt"
    got = files(builder, f"FROM scratch\nADD {file}?x=1#y /dir/\nADD {file} /named\nADD {web.url} /\n")
    assert got == {"dir/file.txt": "hello", "named": "hello", "__unnamed__": "root"}


def test_add_url_has_mode_0600_and_last_modified_as_its_time(builder: Builder, web: WebServer) -> None:
    web.put("/dated", b"1", Last_Modified="Fri, 01 Mar 2024 12:00:00 GMT")
    web.put("/undated", b"2")
    files(builder, f"FROM scratch\nADD {web.url}/dated {web.url}/undated /\n")
    dated, undated = ((builder.root.parent / "out" / name).stat() for name in ("dated", "undated"))
    assert stat.S_IMODE(dated.st_mode) == 0o600
    assert (dated.st_uid, dated.st_gid) == (0, 0)
    assert dated.st_mtime == 1709294400
    assert undated.st_mtime == 0


def test_add_url_chmod_and_chown(builder: Builder, web: WebServer) -> None:
    web.put("/tool", b"#!/bin/sh\n")
    files(builder, f"FROM scratch\nADD --chmod=755 --chown=7:8 {web.url}/tool /bin/\n")
    status = (builder.root.parent / "out/bin/tool").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o755, 7, 8)


def test_add_url_checksum_is_checked_and_a_wrong_one_leaves_nothing(builder: Builder, web: WebServer) -> None:
    url = web.put("/file", b"good")
    assert files(builder, f"FROM scratch\nADD --checksum={sha256(b'good')} {url} /f\n") == {"f": "good"}
    failed = builder.build(f"FROM scratch\nADD --checksum={sha256(b'bad')} {url} /f\n")
    assert failed.code == 4
    assert sha256(b"good") in failed.err
    assert "Dockerfile:2" in failed.err
    assert builder.leftovers() == []


def test_add_url_with_checksum_asks_nobody_when_it_is_cached(builder: Builder, web: WebServer) -> None:
    url = web.put("/file", b"good")
    dockerfile = f"FROM scratch\nADD --checksum={sha256(b'good')} {url} /f\n"
    builder.must_build(dockerfile)
    assert [request.status for request in web.requests] == [200]
    builder.must_build(dockerfile)
    assert len(web.requests) == 1


def test_add_url_is_not_unpacked_unless_asked(builder: Builder, web: WebServer) -> None:
    archive = gzip.compress(tar_of(inside=b"content"), mtime=0)
    url = web.put("/a.tar.gz", archive)
    assert list(files(builder, f"FROM scratch\nADD {url} /x/\n")) == ["x/a.tar.gz"]
    assert files(builder, f"FROM scratch\nADD --unpack=true {url} /x/\n") == {"x/inside": "content"}


def test_add_unpack_false_keeps_a_local_archive(builder: Builder) -> None:
    builder.write({"a.tar": tar_of(inside=b"content")})
    assert list(files(builder, "FROM scratch\nADD --unpack=false a.tar /x/\n")) == ["x/a.tar"]
    assert files(builder, "FROM scratch\nADD a.tar /x/\n") == {"x/inside": "content"}


@pytest.mark.parametrize("validator", [{"ETag": '"v1"'}, {"Last_Modified": "Fri, 01 Mar 2024 12:00:00 GMT"}])
def test_add_url_is_asked_again_and_not_read_again(builder: Builder, web: WebServer, validator: dict[str, str]) -> None:
    url = web.put("/file", b"same", **validator)
    dockerfile = f"FROM scratch\nADD {url} /f\n"
    builder.must_build(dockerfile)
    builder.must_build(dockerfile)
    assert [request.status for request in web.requests] == [200, 304]
    newest = builder.builds()[0]["id"]
    (resolved,) = builder.events("HttpResolved", build=newest)
    assert resolved["data"]["transferred"] is False
    assert resolved["data"]["digest"] == sha256(b"same")
    assert [event["data"]["outcome"] for event in builder.events("CacheQueried", build=newest)] == ["hit"]


def test_I6_what_came_from_the_web_is_where_the_log_says(builder: Builder, web: WebServer) -> None:
    """A file is the snapshot of a source, and no blob; an archive is one, by the time it is spoken of."""
    url = web.put("/file", b"a file")
    dockerfile = f"FROM scratch\nADD {url} /f\nCOPY inside /\n"
    context = web.put("/context.tar", tar_of(Dockerfile=dockerfile.encode(), inside=b"x"), ETag='"1"')
    for _ in range(2):  # the second time nothing has changed
        done = builder.run("build", context, "--progress", "plain")
        assert done.code == 0, done.err
    told = {event["data"]["url"]: event["data"]["stored"] for event in builder.events("HttpResolved")}
    assert told == {context: True, url: False}
    verified = builder.run("audit", "verify")
    assert verified.code == 0, verified.out


def test_add_url_counts_by_its_content(builder: Builder, web: WebServer) -> None:
    """New content is another result, also under an old ETag's URL; the same content from elsewhere is the same."""
    url = web.put("/file", b"one", ETag='"1"')
    dockerfile = f"FROM scratch\nADD {url} /f\n"
    assert files(builder, dockerfile) == {"f": "one"}
    web.put("/file", b"two", ETag='"2"')
    assert files(builder, dockerfile) == {"f": "two"}
    told = builder.events("HttpResolved")[-1]["data"]
    assert (told["digest"], told["etag"]) == (sha256(b"two"), '"2"'), "the next build goes by it"
    other = web.put("/mirror/file", b"two")
    builder.must_build(f"FROM scratch\nADD {other} /f\n")
    newest = builder.builds()[0]["id"]
    assert [event["data"]["outcome"] for event in builder.events("CacheQueried", build=newest)] == ["hit"]


def test_I2_add_url_is_in_the_log_before_it_is_asked_for(builder: Builder, web: WebServer) -> None:
    url = web.put("/missing", b"")
    web.pages["/missing"] = Page(b"gone", status=404)
    failed = builder.build(f"FROM scratch\nADD {url} /f\n")
    assert failed.code == 3
    assert "does not have the file (404)" in failed.err
    assert [event["data"]["url"] for event in builder.events("SourceRequested")] == [url]
    assert builder.events("HttpResolved") == []


def test_add_url_follows_redirects_but_not_for_ever(builder: Builder, web: WebServer) -> None:
    web.put("/real", b"found")
    web.pages["/moved"] = Page(b"", {"Location": "/real"}, 302)
    web.pages["/loop"] = Page(b"", {"Location": "/loop"}, 302)
    web.pages["/file"] = Page(b"", {"Location": "file:///etc/passwd"}, 302)
    assert files(builder, f"FROM scratch\nADD {web.url}/moved /f\n") == {"f": "found"}
    looping = builder.build(f"FROM scratch\nADD {web.url}/loop /f\n")
    assert (looping.code, "more than 10 redirects" in looping.err) == (3, True)
    to_file = builder.build(f"FROM scratch\nADD {web.url}/file /f\n")
    assert (to_file.code, "over file" in to_file.err) == (3, True)


def test_I9_add_url_credentials_are_used_and_never_kept(builder: Builder, web: WebServer) -> None:
    web.put("/private", b"mine")
    web.put("/public", b"yours")
    url = web.url.replace("http://", "http://user:hunter22@") + "/private"
    done = builder.must_build(f"FROM scratch\nADD {web.url}/public /a\nADD {url} /b\n")
    sent = {request.path: request.headers.get("Authorization") for request in web.requests}
    assert sent == {"/public": None, "/private": "Basic " + base64.b64encode(b"user:hunter22").decode()}
    (builder.context / "Dockerfile").unlink()
    (definition,) = [event["data"]["definition"] for event in builder.events("BuildStarted")]
    for path in builder.root.rglob("*"):
        if path.is_file() and path.name != definition.partition(":")[2]:  # the Dockerfile is what its author wrote
            assert b"hunter22" not in path.read_bytes(), path
    assert "hunter22" not in done.err


class Sending:
    """A web that sends so many bytes of anything."""

    def __init__(self, size: int) -> None:
        self._data = bytes(size)

    async def get(
        self, url: str, begin: Callable[[], Sink], *, known: Known | None = None, login: Login | None = None
    ) -> Answer:
        begin()(self._data)
        return Answer(Digest(sha256(self._data)), len(self._data))


@contextmanager
def full(directory: Path) -> Iterator[None]:
    """Have `directory` on a disk on which there is no room any more; nothing else is there when it is left."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory], check=True)
    try:
        with pytest.raises(OSError, match="No space"), (directory / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        try:
            yield
        finally:
            assert [path.name for path in directory.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


async def fetch_on_a_full_disk(root: Root, size: int, kind: str) -> None:
    """Fetch `size` bytes from the web, or unpack them as a context."""
    made, closing = engine(root, "b1", None, {}, "directory", Grants())
    fetcher = made.sources()
    fetcher.web = Sending(size)
    try:
        archive = await fetcher.store(io.BytesIO(bytes(size)))
        with full(root.tmp):
            if kind == "web":
                await fetcher.pin(HttpSource(url="http://web.test/file", filename="file"))
            else:
                await fetcher.fetch(archive, None)
    finally:
        await closing.aclose()


@pytest.mark.parametrize(("kind", "doing"), [("web", "storing a download"), ("archive", "unpacking the context")])
@pytest.mark.parametrize("size", [100, 1 << 20], ids=["found out when the file is closed", "while it is written"])
def test_a_full_disk_is_said_of_what_is_fetched_and_nothing_is_left(
    tmp_path: Path, size: int, kind: str, doing: str
) -> None:
    with open_root(tmp_path / "root") as root, pytest.raises(DiskError, match=f"{doing}: No space left on device"):
        asyncio.run(fetch_on_a_full_disk(root, size, kind))


def test_add_several_urls_make_one_layer_and_the_last_of_a_name_wins(builder: Builder, web: WebServer) -> None:
    web.put("/1/same", b"first")
    web.put("/2/same", b"second")
    web.put("/other", b"other")
    got = files(builder, f"FROM scratch\nADD {web.url}/1/same {web.url}/other {web.url}/2/same /d/\n")
    assert got == {"d/same": "second", "d/other": "other"}
    local = [event for event in builder.events("LocalCreated") if event["data"]["parent"] == "scratch"]
    assert len(local) == 1


def test_add_url_beside_files_of_the_context_and_heredocs(builder: Builder, web: WebServer) -> None:
    web.put("/far", b"far")
    builder.write({"near": "near"})
    got = files(builder, f"FROM scratch\nADD near {web.url}/far <<here /d/\ntext\nhere\n")
    assert got == {"d/near": "near", "d/far": "far", "d/here": "text\n"}


def test_add_url_expands_variables(builder: Builder, web: WebServer) -> None:
    web.put("/v2/file", b"two")
    got = files(builder, f"FROM scratch\nARG V=1\nADD {web.url}/v${{V}}/file /f\n", "--build-arg", "V=2")
    assert got == {"f": "two"}


def test_I6_add_url_fetched_by_a_build_that_failed_is_there_for_the_next(builder: Builder, web: WebServer) -> None:
    """The ref is durable before the log names it."""
    url = web.put("/file", b"good")
    failed = builder.build(f"FROM scratch\nADD {url} /f\nCOPY missing /\n")
    assert failed.code == 2
    (ref,) = [event["data"]["ref"] for event in builder.events("LocalCreated")]
    assert (builder.root / "snapshots" / ref).is_dir()
    builder.must_build(f"FROM scratch\nADD {url} /f\n")
    newest = builder.builds()[0]["id"]
    assert ref not in [event["data"]["ref"] for event in builder.events("LocalCreated", build=newest)]


# ---------------------------------------------------------------- git


def test_add_git_default_branch_with_modes_and_the_commits_time(
    builder: Builder, project: tuple[str, Repository, dict[str, str]]
) -> None:
    url, _, commits = project
    assert files(builder, f"FROM scratch\nADD {url} /src\n") == {
        "src/file": "two", "src/bin/tool": "#!/bin/sh\n", "src/docs/a/page": "page",
    }  # fmt: skip
    out = builder.root.parent / "out/src"
    assert stat.S_IMODE((out / "file").stat().st_mode) == 0o644
    assert stat.S_IMODE((out / "bin/tool").stat().st_mode) == 0o755
    assert stat.S_IMODE((out / "docs").stat().st_mode) == 0o755
    assert (out / "file").stat().st_mtime == 1709294400
    (resolved,) = builder.events("GitResolved")
    assert resolved["data"] == {
        "remote": url, "ref": "", "commit": commits["main"], "name": "refs/heads/main", "tag": "", "recalled": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("#side", "side"), ("#light", "one"), ("#heavy", "one"), ("#refs/heads/side", "side"),
        ("?branch=side", "side"), ("?tag=heavy", "one"), ("?ref=refs/tags/light", "one"),
    ],
)  # fmt: skip
def test_add_git_branch_and_tag(
    builder: Builder, project: tuple[str, Repository, dict[str, str]], suffix: str, content: str
) -> None:
    assert files(builder, f"FROM scratch\nADD {project[0]}{suffix} /\n")["file"] == content


def test_add_git_commit_whole_or_its_beginning(
    builder: Builder, project: tuple[str, Repository, dict[str, str]]
) -> None:
    url, _, commits = project
    for ref in (commits["first"], commits["first"][:8]):
        assert files(builder, f"FROM scratch\nADD {url}#{ref} /\n")["file"] == "one"
    by_query = files(builder, f"FROM scratch\nADD {url}?commit={commits['side']} /\n")
    assert (by_query["file"], by_query["link"]) == ("side", "-> file")


@pytest.mark.parametrize("suffix", ["#:docs", "#main:docs/", "?subdir=docs", "#main:/docs/../docs"])
def test_add_git_subdirectory(
    builder: Builder, project: tuple[str, Repository, dict[str, str]], suffix: str
) -> None:
    assert files(builder, f"FROM scratch\nADD {project[0]}{suffix} /\n") == {"a/page": "page"}


def test_add_git_says_what_is_not_there(builder: Builder, project: tuple[str, Repository, dict[str, str]]) -> None:
    url = project[0]
    for suffix, said in (("#none", "no branch, tag or commit 'none'"), ("#:none", "no directory 'none'")):
        failed = builder.build(f"FROM scratch\nADD {url}{suffix} /\n")
        assert (failed.code, said in failed.err, "Dockerfile:2" in failed.err) == (2, True, True), failed.err
    gone = builder.build(f"FROM scratch\nADD {url.replace('project', 'nothing')} /\n")
    assert gone.code == 3
    assert builder.leftovers() == []


def test_add_git_keep_git_dir(builder: Builder, project: tuple[str, Repository, dict[str, str]]) -> None:
    url, _, commits = project
    plain = files(builder, f"FROM scratch\nADD {url}#heavy /src\n")
    assert not any(".git" in path for path in plain)
    for dockerfile in (f"ADD --keep-git-dir=true {url}#heavy /src", f"ADD {url}?tag=heavy&keep-git-dir /src"):
        files(builder, f"FROM scratch\n{dockerfile}\n")
        source = builder.root.parent / "out/src"

        def git(*arguments: str, where: Path = source) -> str:
            command = ["git", "-c", "safe.directory=*", "-C", str(where), *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

        assert git("rev-parse", "HEAD") == commits["first"]
        assert git("describe", "--exact-match") == "heavy"
        assert git("status", "--porcelain") == ""
        assert git("remote", "get-url", "origin") == url


def test_add_git_checksum_is_the_commit_or_its_beginning(
    builder: Builder, project: tuple[str, Repository, dict[str, str]]
) -> None:
    url, _, commits = project
    for good in (commits["first"], commits["first"][:7], commits["tag"]):
        assert files(builder, f"FROM scratch\nADD --checksum={good} {url}#heavy /\n")["file"] == "one"
    moved = builder.build(f"FROM scratch\nADD --checksum={commits['main']} {url}#heavy /\n")
    assert moved.code == 4
    assert commits["first"] in moved.err


def test_add_git_counts_by_its_commit(builder: Builder, served: tuple[str, Path]) -> None:
    url, base = served
    repository = Repository(base / "moving.git")
    repository.commit({"file": "1"})
    dockerfile = f"FROM scratch\nADD {url}/moving.git /\n"
    assert files(builder, dockerfile) == {"file": "1"}
    fetched = len(builder.events("SourceRequested"))
    builder.must_build(dockerfile)
    newest = builder.builds()[0]["id"]
    assert [event["data"]["outcome"] for event in builder.events("CacheQueried", build=newest)] == ["hit"]
    assert len(builder.events("SourceRequested")) == fetched + 1  # where is it now?, and no more
    repository.commit({"file": "2"})
    assert files(builder, dockerfile) == {"file": "2"}


def test_add_git_brings_submodules_unless_told_otherwise(builder: Builder, served: tuple[str, Path]) -> None:
    url, base = served
    Repository(base / "part.git").commit({"inner": "inner"})
    whole = Repository(base / "whole.git")
    whole.commit({"outer": "outer"})
    whole.git("submodule", "--quiet", "add", f"{url}/part.git", "part")
    whole.git("commit", "--quiet", "-m", "with a part")
    got = files(builder, f"FROM scratch\nADD {url}/whole.git /\n")
    assert (got["outer"], got["part/inner"]) == ("outer", "inner")
    assert not any(".git/" in path or path.endswith("/.git") for path in got)
    assert "part/inner" not in files(builder, f"FROM scratch\nADD {url}/whole.git?submodules=false /\n")


def test_add_git_runs_nothing_that_lies_in_the_repository(builder: Builder, served: tuple[str, Path]) -> None:
    """A submodule by file: could read this machine; hooks and filters could run on it."""
    url, base = served
    secret = Repository(base.parent / "secret-of-the-host")
    secret.commit({"secret": "secret"})
    bad = Repository(base / "bad.git")
    bad.commit({"file": "x", ".gitattributes": "* filter=evil\n"})
    bad.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(secret.directory), "part")
    bad.git("commit", "--quiet", "-m", "evil")
    failed = builder.build(f"FROM scratch\nADD {url}/bad.git /\n")
    assert failed.code == 3
    assert "not allowed" in failed.err
    assert files(builder, f"FROM scratch\nADD {url}/bad.git?submodules=false /\n")["file"] == "x"


def test_I9_add_git_over_http_with_a_login_keeps_it_nowhere(builder: Builder, served: tuple[str, Path]) -> None:
    _, base = served
    Repository(base / "private.git").commit({"file": "mine"})
    with git_over_http(base, ("user", "hunter22")) as (url, _):
        refused = builder.build(f"FROM scratch\nADD {url}/private.git /\n")
        assert refused.code == 3
        assert "login" in refused.err
        with_login = url.replace("http://", "http://user:hunter22@")
        got = files(builder, f"FROM scratch\nADD --keep-git-dir=true {with_login}/private.git /\n")
    assert got["file"] == "mine"
    assert "hunter22" not in got[".git/config"]
    definitions = {event["data"]["definition"].partition(":")[2] for event in builder.events("BuildStarted")}
    for path in builder.root.rglob("*"):
        if path.is_file() and path.name not in definitions:
            assert b"hunter22" not in path.read_bytes(), path


def test_add_git_over_http(builder: Builder, project: tuple[str, Repository, dict[str, str]]) -> None:
    with git_over_http(project[1].directory.parent) as (url, _):
        assert files(builder, f"FROM scratch\nADD {url}/project.git#side:docs /\n") == {"a/page": "page"}


def test_add_git_without_link_out_of_a_subdirectory(builder: Builder, served: tuple[str, Path]) -> None:
    url, base = served
    repository = Repository(base / "linked.git")
    (repository.directory / "out").symlink_to("/etc")
    repository.commit({"file": "x"})
    failed = builder.build(f"FROM scratch\nADD {url}/linked.git#:out /\n")
    assert (failed.code, "no directory 'out'" in failed.err) == (2, True)


# ---------------------------------------------------------------- damage


def damage_sources(builder: Builder) -> list[str]:
    """Change a file of every fetched source, and let go of what steps made; returns the names of the sources."""
    names = []
    for snapshot in (builder.root / "snapshots").iterdir():
        if snapshot.name.startswith("source-"):
            names.append(snapshot.name)
            next(path for path in (snapshot / "fs").rglob("*") if path.is_file()).write_bytes(b"damaged")
        else:
            snapshot.unlink() if snapshot.is_file() else shutil.rmtree(snapshot)
    shutil.rmtree(builder.root / "blobs")
    return names


def lost(builder: Builder) -> set[str]:
    return {event["data"]["name"] for event in builder.events("LocalLost") if event["data"]["problem"] == "corrupt"}


def test_I8_a_fetched_file_that_was_damaged_is_fetched_again(builder: Builder, web: WebServer) -> None:
    url = web.put("/file", b"good", ETag='"1"')
    dockerfile = f"FROM scratch\nADD {url} /f\n"
    builder.must_build(dockerfile)
    damaged = damage_sources(builder)
    assert files(builder, dockerfile) == {"f": "good"}
    assert lost(builder) == set(damaged)
    assert len(damaged) == 1


def test_I8_a_fetched_repository_that_was_damaged_is_fetched_again(
    builder: Builder, project: tuple[str, Repository, dict[str, str]]
) -> None:
    dockerfile = f"FROM scratch\nADD {project[0]} /\n"
    before = files(builder, dockerfile)
    damaged = damage_sources(builder)
    assert files(builder, dockerfile) == before
    assert lost(builder) == set(damaged)
    assert len(damaged) == 1


def test_I8_a_context_from_the_web_that_was_damaged_is_fetched_again(builder: Builder, web: WebServer) -> None:
    archive = gzip.compress(tar_of(Dockerfile=b"FROM scratch\nCOPY file /f\n", file=b"content"), mtime=0)
    url = web.put("/context.tar.gz", archive, ETag='"1"')
    out = builder.context.parent / "out"
    for _ in range(2):
        done = builder.run("build", url, "--progress", "plain", "-o", f"type=local,dest={out}")
        assert done.code == 0, done.err
        assert (out / "f").read_text() == "content"
        shutil.rmtree(out)
        damaged = damage_sources(builder)
    assert lost(builder) == set(damaged)
    assert len(damaged) == 1
