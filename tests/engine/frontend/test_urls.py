"""What a URL in a Dockerfile or on the command line is taken for."""

from __future__ import annotations

import pytest

from engine.frontend.urls import UNNAMED, parse_git, parse_http, redacted, refuse_other, split_login
from engine.graph import GitSource, HttpSource
from storage.errors import InputError

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/a/b.git", GitSource("https://h/a/b.git")),
        ("https://h/b.git#v1", GitSource("https://h/b.git", "v1")),
        ("https://h/b.git#v1:sub/dir/", GitSource("https://h/b.git", "v1", subdir="sub/dir")),
        ("https://h/b.git#:../../etc", GitSource("https://h/b.git", subdir="etc")),
        ("http://h/b.git?ref=v1&subdir=d", GitSource("http://h/b.git", "v1", subdir="d")),
        ("https://h/b.git?tag=v1", GitSource("https://h/b.git", "refs/tags/v1")),
        ("https://h/b.git?branch=refs/heads/x", GitSource("https://h/b.git", "refs/heads/x")),
        ("git://h/b?keep-git-dir&submodules=0", GitSource("git://h/b", keep_git_dir=True, submodules=False)),
        (f"https://h/b.git?commit={SHA}", GitSource("https://h/b.git", SHA, checksum=SHA)),
        (f"https://h/b.git?checksum={SHA[:7]}&ref=v1", GitSource("https://h/b.git", "v1", checksum=SHA[:7])),
        ("git://h/any", GitSource("git://h/any")),
        ("ssh://git@h:22/any#x", GitSource("ssh://git@h:22/any", "x")),
        ("git@h:a/b.git#v1:d", GitSource("git@h:a/b.git", "v1", subdir="d")),
        ("git@h:a/b?ref=v1", GitSource("git@h:a/b", "v1")),
    ],
)  # fmt: skip
def test_git_repositories(text: str, expected: GitSource) -> None:
    assert parse_git(text) == expected


@pytest.mark.parametrize(
    "text", ["https://h/b", "https://h/b.git/", "./b.git", "../x.git", "/x.git", "b.git", "github.com/a/b", "a:b", "ftp://h/b.git"]
)
def test_no_git_repositories(text: str) -> None:
    assert parse_git(text) is None


def test_github_is_a_repository_only_as_a_context() -> None:
    assert parse_git("github.com/a/b#v1", context=True) == GitSource("https://github.com/a/b", "v1")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("https://h/b.git?ref=a#b", "ref conflicts"),
        ("https://h/b.git?ref=", "has no value"),
        ("https://h/b.git?ref=a&ref=b", "several values"),
        ("https://h/b.git?commit=zz", "not the beginning of a commit"),
        ("https://h/b.git?submodules=perhaps", "invalid submodules"),
        ("https://u:secret@h/b.git?x=1", "unexpected query 'x'"),
    ],
)
def test_badly_written_repositories(text: str, what: str) -> None:
    with pytest.raises(InputError, match=what) as raised:
        parse_git(text)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://h/a/b.tar.gz", "b.tar.gz"), ("http://h/a/b?x=/y", "b"), ("https://h/a/", "a"), ("https://h", UNNAMED),
        ("https://h/", UNNAMED), ("https://h/a%20b", "a b"), ("https://h/..", UNNAMED), ("https://h/a%2Fb", "b"),
    ],
)  # fmt: skip
def test_files_of_the_web_are_named_after_their_path(text: str, name: str) -> None:
    found = parse_http(text)
    assert found is not None
    assert found.filename == name


def test_a_fragment_is_no_part_of_a_file() -> None:
    assert parse_http("https://h/a?b=c#d") == HttpSource("https://h/a?b=c", "a")
    assert parse_http("h/a") is None


def test_urls_of_kinds_that_nobody_fetches_are_refused_and_what_is_a_path_is_not() -> None:
    for text in ("file:///etc/passwd", "FILE:///x", "data://x"):
        with pytest.raises(InputError, match="URLs are not fetched"):
            refuse_other(text)
    for text in ("a/path", "https://h/x", "ext::sh -c x://y"):
        refuse_other(text)


def test_I9_credentials_are_parted_from_urls() -> None:
    assert split_login("https://u:p%40x@h:1/a?b#c") == ("https://h:1/a?b#c", ("u", "p@x"))
    assert split_login("https://token@h/a") == ("https://h/a", ("token", ""))
    assert split_login("ssh://git@h/a") == ("ssh://git@h/a", None)
    assert split_login("git@h:a") == ("git@h:a", None)
    assert split_login("https://h/a@b") == ("https://h/a@b", None)
    with pytest.raises(InputError) as raised:
        split_login("ssh://git:hunter22@h/a")
    assert "hunter22" not in str(raised.value)
    assert redacted("https://u:p@ss@h/x") == "https://h/x"  # the login ends at the last @
    told = redacted("ADD https://u:p@h/x ssh://git@h/y git@h:z http://t@h/w /d")
    assert told == "ADD https://h/x ssh://git@h/y git@h:z http://h/w /d"


@pytest.mark.parametrize("url", ["https://h/{long}", "https://h/{long}.git", "git://h/{long}"])
def test_a_url_that_no_event_has_room_for_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"a URL of \d+ characters: more than 8000"):
        text = url.format(long="x" * 8000)
        parse_git(text) or parse_http(text)
