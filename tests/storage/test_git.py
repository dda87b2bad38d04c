"""git's own command line, held so that it trusts nothing but what it is told here."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import git as git_module
from storage.errors import DiskError, HostError, InputError
from storage.git import GitClient
from tests.waiting import PATIENCE
from tests.web_fixture import Repository, git_daemon, git_over_http


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    base = tmp_path_factory.mktemp("served")
    with git_daemon(base) as url:
        yield url, base


def client(tmp_path: Path, **environment: str) -> GitClient:
    return GitClient(tmp_path / "tmp", "test", {"PATH": os.environ["PATH"], **environment})


def test_a_branch_goes_before_a_tag_of_its_name(served: tuple[str, Path], tmp_path: Path) -> None:
    repository = Repository(served[1] / "both.git")
    tagged = repository.commit({"x": "1"})
    repository.git("tag", "same")
    repository.git("checkout", "--quiet", "-b", "same")
    branch = repository.commit({"x": "2"})
    git = client(tmp_path)
    url = f"{served[0]}/both.git"
    assert asyncio.run(git.resolve(url, "same")).id == branch
    assert asyncio.run(git.resolve(url, "refs/tags/same")).id == tagged
    assert asyncio.run(git.resolve(url, "tags/same")).id == tagged


def test_an_empty_repository_and_a_commit_that_is_not_there_are_said(served: tuple[str, Path], tmp_path: Path) -> None:
    empty = Repository(served[1] / "empty.git")
    git, url = client(tmp_path), f"{served[0]}/empty.git"
    with pytest.raises(InputError, match="the repository is empty"):
        asyncio.run(git.resolve(url, ""))
    empty.commit({"x": "1"})
    with pytest.raises(InputError, match="the repository has no commit " + "d" * 40):
        asyncio.run(git.checkout(url, "d" * 40, tmp_path / "tree"))
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("date", [" 18446744073709551615 +0000", " 9223372036854775807 +0000", ""])
def test_a_commit_of_no_time_that_files_can_have_is_checked_out(
    served: tuple[str, Path], tmp_path: Path, date: str
) -> None:
    repository = Repository(served[1] / f"odd{len(date)}.git")
    repository.commit({"x": "1"})
    text = f"tree {repository.git('rev-parse', 'HEAD^{tree}')}\nauthor a <a> 1 +0000\ncommitter a <a>{date}\n\nx\n"
    (tmp_path / "commit").write_text(text)
    commit = repository.git("hash-object", "-t", "commit", "-w", "--literally", str(tmp_path / "commit"))
    repository.git("update-ref", "refs/heads/odd", commit)
    url = f"{served[0]}/odd{len(date)}.git"
    asyncio.run(client(tmp_path).checkout(url, commit, tmp_path / "tree", name="refs/heads/odd"))
    assert (tmp_path / "tree" / "x").stat().st_mtime == 0


@pytest.mark.parametrize(
    ("remote", "ref"),
    [("--upload-pack=touch /tmp/x", ""), ("ext::sh -c id", ""), ("git://h/x", "--exec=id"), ("git://h/x", "a b")],
)
def test_what_looks_like_an_option_is_no_repository(tmp_path: Path, remote: str, ref: str) -> None:
    with pytest.raises(InputError):
        asyncio.run(client(tmp_path).resolve(remote, ref))


def test_files_of_this_machine_are_no_repositories(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "local.git")
    repository.commit({"x": "1"})
    for remote in (str(repository.directory), f"file://{repository.directory}"):
        with pytest.raises(HostError, match="not allowed"):
            asyncio.run(client(tmp_path).resolve(remote, ""))


def test_the_users_settings_and_credential_helpers_do_not_count(tmp_path: Path) -> None:
    Repository(tmp_path / "git/x.git").commit({"x": "1"})
    home = tmp_path / "home"
    home.mkdir()
    marker = tmp_path / "helper-ran"
    header = "Authorization: Basic " + b64encode(b"user:secret").decode()  # it would let them in
    (home / ".gitconfig").write_text(
        f"[credential]\n\thelper = !touch {marker}\n[http]\n\textraHeader = {header}\n"
    )
    with git_over_http(tmp_path / "git", ("user", "secret")) as (url, seen):
        with pytest.raises(HostError) as raised:
            asyncio.run(client(tmp_path, HOME=str(home)).resolve(f"{url}/x.git", ""))
        assert "login" in str(raised.value)
        assert set(seen()) == {""}
    assert not marker.exists()


def test_I9_an_error_does_not_tell_the_login(tmp_path: Path) -> None:
    Repository(tmp_path / "git/x.git").commit({"x": "1"})
    with git_over_http(tmp_path / "git", ("user", "right")) as (url, _), pytest.raises(HostError) as raised:
        asyncio.run(client(tmp_path).resolve(f"{url}/x.git", "", login=("user", "hunter22")))
    assert "hunter22" not in str(raised.value)


def test_a_cancelled_checkout_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    """The far end accepts and never answers."""
    commit = os.urandom(20).hex()

    def processes() -> str:
        return subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout

    async def main() -> None:
        asked = asyncio.Event()

        async def stall(*_: object) -> None:
            asked.set()
            await asyncio.sleep(60)

        server = await asyncio.start_server(stall, "127.0.0.1", 0)
        tree = tmp_path / "tree"
        tree.mkdir()
        remote = f"git://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
        task = asyncio.ensure_future(client(tmp_path).checkout(remote, commit, tree))
        await asyncio.wait_for(asked.wait(), PATIENCE)
        assert commit in processes()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.close()
        assert commit not in processes()

    asyncio.run(main())
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_server_that_stalls_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        git = GitClient(tmp_path / "tmp", "test", {"PATH": os.environ["PATH"]}, patience=0.3)
        with pytest.raises(HostError, match="took longer"):
            await git.resolve(f"git://127.0.0.1:{port}/x", "")
        server.close()

    asyncio.run(main())


def test_programs_are_not_looked_for_in_a_working_tree(tmp_path: Path) -> None:
    """git runs others in there, and PATH may have relative places in it, the empty one too."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "git").write_text(f'#!/bin/sh\necho "$PATH" > {tmp_path}/seen\n')
    (bin_ / "git").chmod(0o755)
    with pytest.raises(InputError, match="empty"):
        asyncio.run(client(tmp_path, PATH=f".:{bin_}::bin:/bin").resolve("git://h/x", ""))
    assert (tmp_path / "seen").read_text() == f"{bin_}:/bin\n"


def a_git(tmp_path: Path, script: str) -> GitClient:
    """One that does what a server may make git do."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "git").write_text(f"#!/bin/sh\n{script}\n")
    (bin_ / "git").chmod(0o755)
    return client(tmp_path, PATH=f"{bin_}:/bin:/usr/bin")


def test_what_a_server_says_without_end_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.git._MOST_PRINTED", 1 << 16)
    git = a_git(tmp_path, 'head -c 400000 /dev/zero; [ "$1" = ls-remote ]')
    with pytest.raises(HostError, match="git ls-remote printed 400000 bytes"):
        asyncio.run(git.resolve("git://h/x", ""))


def test_of_a_flood_of_messages_the_end_is_told_which_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.git._MOST_PRINTED", 1 << 16)
    git = a_git(tmp_path, "yes remote: hello | head -c 400000 >&2; echo fatal: no more >&2; exit 1")
    with pytest.raises(HostError, match="remote: hello") as raised:
        asyncio.run(git.resolve("git://h/x", ""))
    assert len(str(raised.value)) < 1000


def test_a_checkout_that_is_cancelled_at_its_end_has_ended(
    served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is still at it in a thread would meet the removal of the tree."""
    commit = Repository(served[1] / "slow.git").commit({"x": "1"})
    begun, go_on = threading.Event(), threading.Event()
    finish, ended = git_module._finish, []

    def slow(*arguments: Any, **more: Any) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)
        finish(*arguments, **more)
        ended.append(True)

    monkeypatch.setattr(git_module, "_finish", slow)

    async def main() -> None:
        (tmp_path / "tree").mkdir()
        task = asyncio.ensure_future(client(tmp_path).checkout(f"{served[0]}/slow.git", commit, tmp_path / "tree"))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended

    asyncio.run(main())


def test_a_beginning_that_no_commit_has_names_none(served: tuple[str, Path], tmp_path: Path) -> None:
    repository = Repository(served[1] / "begun.git")
    commit = repository.commit({"x": "1"})
    git, url = client(tmp_path), f"{served[0]}/begun.git"
    assert asyncio.run(git.resolve(url, commit[:12])).id == commit
    other = "0" if commit[0] != "0" else "1"
    with pytest.raises(InputError, match=f"no branch, tag or commit '{other * 10}'"):
        asyncio.run(git.resolve(url, other * 10))


def test_what_this_machine_lacks_is_said(served: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(HostError, match="git is not installed"):
        asyncio.run(client(tmp_path, PATH=str(tmp_path)).resolve("git://h/x", ""))
    commit = Repository(served[1] / "disk.git").commit({"sub/x": "1"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full/there").touch()
    with pytest.raises(DiskError, match=r"checking out .*disk\.git: Directory not empty"):
        asyncio.run(client(tmp_path).checkout(f"{served[0]}/disk.git", commit, tmp_path / "full", subdir="sub"))
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="beginning a clone"):
        asyncio.run(client(tmp_path / "file").checkout(f"{served[0]}/disk.git", commit, tmp_path / "tree"))


def test_a_repository_that_is_not_there_is_said_in_the_end(served: tuple[str, Path], tmp_path: Path) -> None:
    """By its commit, by its name, and all of it are asked for."""
    git = client(tmp_path)
    asked = git.checkout(f"{served[0]}/none.git", "d" * 40, tmp_path / "tree", name="refs/heads/x", login=("", "x"))
    with pytest.raises(HostError, match="git fetch failed"):
        asyncio.run(asked)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_lines_of_no_ref_are_passed_over(tmp_path: Path) -> None:
    git = a_git(tmp_path, f"echo warning: odd; printf '{'a' * 40}\\tHEAD\\n'")
    assert asyncio.run(git.resolve("git://h/x", "HEAD")).id == "a" * 40


def test_the_users_attributes_change_no_file(served: tuple[str, Path], tmp_path: Path) -> None:
    repository = Repository(served[1] / "attributes.git")
    commit = repository.commit({"x": "one\ntwo\n"})
    attributes = tmp_path / "home/.config/git/attributes"
    attributes.parent.mkdir(parents=True)
    attributes.write_text("* text eol=crlf\n")
    git = client(tmp_path, HOME=str(tmp_path / "home"))
    asyncio.run(git.checkout(f"{served[0]}/attributes.git", commit, tmp_path / "tree"))
    assert (tmp_path / "tree/x").read_bytes() == b"one\ntwo\n"
