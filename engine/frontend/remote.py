"""ADD of what lies elsewhere: files of the web and git repositories. Pure.

Source: Dockerfile reference, "ADD" (`--checksum`, `--keep-git-dir`, "Adding files from a URL", "… a Git repository").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.frontend.urls import check_commit, parse_git, parse_http, redacted, refuse_other
from engine.graph import GitSource, HttpSource
from engine.record import changed
from storage.digest import Digest
from storage.errors import InputError

RemoteSource = HttpSource | GitSource


def remote_source(instruction: str, word: str) -> RemoteSource | None:
    """What `word` (variables replaced) of ADD names elsewhere; None when it is a path. Raises InputError, for COPY
    always."""
    source = parse_git(word) or parse_http(word)
    if source is None:
        refuse_other(word)
        return None
    if instruction != "ADD":
        raise InputError(f"source {redacted(word)!r} can't be a URL for {instruction}", hint="use ADD")
    return source


def with_flags(
    remotes: Sequence[RemoteSource], flags: Mapping[str, str], count: int
) -> tuple[RemoteSource, ...]:
    """`remotes` as `--checksum` and `--keep-git-dir` (variables replaced) want them, among `count` sources in all.
    Raises InputError."""
    checksum = flags.get("checksum", "")
    if checksum and count != 1:
        raise InputError("--checksum can't be specified for several sources", hint="write an ADD for each")
    if checksum and not remotes:
        raise InputError("--checksum requires an HTTP(S) or git source")
    return tuple(_one(source, checksum, flags.get("keep-git-dir")) for source in remotes)


def _one(source: RemoteSource, checksum: str, keep: str | None) -> RemoteSource:
    if isinstance(source, HttpSource):
        return changed(source, digest=_sha256(checksum)) if checksum else source
    check_commit(checksum, source.remote)
    if checksum and source.checksum and checksum != source.checksum:
        raise InputError(f"--checksum={checksum} conflicts with {source.checksum!r} in the URL")
    return changed(source, checksum=checksum or source.checksum, keep_git_dir=keep == "true" or source.keep_git_dir)


def _sha256(checksum: str) -> str:
    digest = Digest(checksum)
    if digest.algorithm != "sha256":
        raise InputError(f"--checksum={checksum}: only sha256 is supported for files of the web")
    return str(digest)


def selected(remotes: Sequence[RemoteSource]) -> tuple[str, ...]:
    """The `sources` of a Copy from the trees of `remotes` laid over one another."""
    if any(isinstance(source, GitSource) for source in remotes):
        return (".",)
    return tuple(dict.fromkeys(_literal(source.filename) for source in remotes if isinstance(source, HttpSource)))


def _literal(name: str) -> str:
    """A pattern that matches `name` alone."""
    return "".join(f"[{char}]" if char in "*?[" else "\\\\" if char == "\\" else char for char in name)


def title(source: RemoteSource) -> str:
    """The name of the step that fetches it."""
    return redacted(source.url if isinstance(source, HttpSource) else _git_title(source))


def _git_title(source: GitSource) -> str:
    where = ":".join(part for part in (source.ref, source.subdir) if part) if source.ref else f":{source.subdir}"
    return source.remote + (f"#{where}" if where != ":" else "")
