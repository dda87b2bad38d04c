"""What a source or a context written as a URL is: a file of the web, or a git repository. Pure.

Sources: Dockerfile reference ("ADD", "Adding files from a URL", "Adding files from a Git repository"), docker's manual
("Build context", "Git repositories", "URL fragments", "URL queries"); BuildKit for what they leave open.
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from engine.graph import GitSource, HttpSource
from storage.errors import InputError

UNNAMED = "__unnamed__"
"""The name of a file whose URL has no path, as in BuildKit."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCP = re.compile(
    r"(?P<user>[A-Za-z0-9_-]+)@(?P<host>[A-Za-z0-9.-]+):(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#(?P<fragment>.*))?"
)
_LOGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s]*@")  # up to the last @: one may be in the password
_LONGEST = 8000
"""Characters of a URL (RFC 9110, 4.1: at least this many are to be supported); it is in the log."""
_COMMIT = re.compile("[0-9a-f]{1,64}")
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


def parse_git(text: str, *, context: bool = False) -> GitSource | None:
    """The repository that `text` names; None when it is none. `git://` and `ssh://` always are, `user@host:path` too,
    `http(s)://` when the path ends in `.git`; `github.com/…` only as a `context` (else it may be a local path).

    Raises InputError for a repository that is badly written.
    """
    if text.startswith(("./", "../", "/")):
        return None
    if context and text.startswith("github.com/"):
        text = f"https://{text}"
        return _git_url(text)
    scheme = _SCHEME.match(text)
    if scheme is None:
        found = _SCP.fullmatch(text)
        if found is None or len(text) > _LONGEST:
            return None
        remote = f"{found['user']}@{found['host']}:{found['path']}"
        return _located(GitSource(remote), found["query"] or "", found["fragment"] or "", text)
    kind = scheme[1].lower()
    if kind in {"git", "ssh"} or (kind in {"http", "https"} and _split(text).path.endswith(".git")):
        return _git_url(text)
    return None


def parse_http(text: str) -> HttpSource | None:
    """The file that `text` (`http(s)://…`) names, under the last name of its path; None for another text."""
    if not text.startswith(("http://", "https://")):
        return None
    parts = _split(text)
    if not parts.netloc.rpartition("@")[2]:
        raise InputError(f"not a URL: {redacted(text)[:200]!r}: it names no host")
    name = posixpath.basename(posixpath.normpath(unquote(parts.path))) if parts.path else ""
    if name in {"", ".", "..", "/"} or "/" in name or "\0" in name:
        name = UNNAMED
    return HttpSource(urlunsplit((*parts[:4], "")), name)


def refuse_other(text: str) -> None:
    """Raises InputError for a URL of a kind that nobody fetches here, `file:` above all."""
    scheme = _SCHEME.match(text)
    if scheme is not None and scheme[1].lower() not in {"http", "https", "git", "ssh"}:
        hint = "put the file into the context and copy it from there" if scheme[1].lower() == "file" else ""
        raise InputError(f"{redacted(text)[:200]!r}: {scheme[1]}: URLs are not fetched", hint=hint)


def split_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """`url` without credentials, and what was in it: (user, password). The user of ssh is no credential."""
    if not _SCHEME.match(url):
        return url, None
    parts = _split(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at or (parts.scheme == "ssh" and ":" not in login):
        return url, None
    user, _, password = login.partition(":")
    if parts.scheme == "ssh":
        raise InputError(f"{redacted(url)[:200]!r}: ssh takes no password from a URL", hint="use a key or an agent")
    return urlunsplit(parts._replace(netloc=host)), (unquote(user), unquote(password))


def redacted(text: str) -> str:
    """`text` with the credentials of all URLs in it left out (I9); users of ssh stay."""
    return _LOGIN.sub(lambda found: found[0] if found[1] == "ssh://" and ":" not in found[0][6:] else found[1], text)


def _git_url(text: str) -> GitSource:
    parts = _split(text)
    return _located(GitSource(urlunsplit((*parts[:3], "", ""))), parts.query, parts.fragment, text)


def _split(text: str) -> SplitResult:
    if len(text) > _LONGEST:
        raise InputError(f"{redacted(text)[:200]!r}…: a URL of {len(text)} characters: more than {_LONGEST}")
    try:
        return urlsplit(text)
    except ValueError as error:
        raise InputError(f"not a URL: {redacted(text)[:200]!r}: {error}") from error


def _located(source: GitSource, query: str, fragment: str, text: str) -> GitSource:
    """`source` with what `query` (`ref=…&subdir=…`) and `fragment` (`ref:subdir`) say."""
    ref, _, subdir = fragment.partition(":")
    asked = _queried(query, text)
    ref = _agreed("ref", ref, asked.get("ref", ""), text)
    if "tag" in asked and "branch" in asked:
        raise _bad(text, "branch conflicts with tag")
    for name, prefix in (("tag", "refs/tags/"), ("branch", "refs/heads/")):
        if name in asked:
            ref = _agreed("ref", ref, prefix + asked[name].removeprefix(prefix), text)
    checksum = _agreed("checksum", asked.get("checksum", ""), asked.get("commit", ""), text)
    check_commit(checksum, text)
    return GitSource(
        remote=source.remote,
        ref=ref or checksum,
        subdir=_subdir(_agreed("subdir", subdir, asked.get("subdir", ""), text)),
        keep_git_dir=_boolean(asked.get("keep-git-dir", "false"), "keep-git-dir", text),
        submodules=_boolean(asked.get("submodules", "true"), "submodules", text),
        checksum=checksum,
    )


def _queried(query: str, text: str) -> dict[str, str]:
    out: dict[str, str] = {}
    known = ("ref", "tag", "branch", "subdir", "checksum", "commit", "keep-git-dir", "submodules")
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise _bad(text, f"unexpected query {name!r}", f"known: {', '.join(known)}")
        if name in out:
            raise _bad(text, f"query {name!r} has several values")
        if not value and name not in {"keep-git-dir", "submodules"}:
            raise _bad(text, f"query {name!r} has no value")
        out[name] = value or "true"
    return out


def is_commit(ref: str) -> bool:
    """Is it the whole id of a commit, that no server need be asked about?"""
    return len(ref) in {40, 64} and _COMMIT.fullmatch(ref) is not None


def check_commit(checksum: str, text: str) -> None:
    """Raises InputError unless `checksum` is empty or the beginning of a commit's id."""
    if checksum and not _COMMIT.fullmatch(checksum):
        raise _bad(text, f"{checksum[:80]!r} is not the beginning of a commit", "it is made of the digits 0-9 and a-f")


def _agreed(what: str, one: str, other: str, text: str) -> str:
    if one and other and one != other:
        raise _bad(text, f"{what} conflicts: {one!r} and {other!r}")
    return one or other


def _subdir(written: str) -> str:
    """Relative and clean, never above the root; "" for the root."""
    return posixpath.normpath("/" + written).lstrip("/")


def _boolean(value: str, name: str, text: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise _bad(text, f"invalid {name} value: {value!r}", "it is true or false")


def _bad(text: str, why: str, hint: str = "") -> InputError:
    return InputError(f"git repository {redacted(text)[:200]!r}: {why}", hint=hint)
