"""What the command line names as contexts: directories, standard input, and what lies elsewhere."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from storage.errors import InputError

if TYPE_CHECKING:
    from engine.frontend.contexts import NamedContext
    from engine.graph import ArchiveSource, GitSource

_ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[A-Za-z0-9_-]+@[A-Za-z0-9.-]+:|github\.com/")
_BLOCK = 512
"""Bytes that tell a tar from a Dockerfile."""
_LAYOUT = re.compile(r"(?P<path>.*?)(?P<name>(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Given:
    """See BuildRequest and FrontendOptions. `described`, `described_named`: for the log, without credentials."""

    name: str
    described: str
    dockerfile: str | None
    filename: str = "Dockerfile"
    ignore: tuple[str, ...] = ()
    directories: Mapping[str, str] = field(default_factory=dict)
    context: GitSource | ArchiveSource | None = None
    archive: BinaryIO | None = None
    named: Mapping[str, NamedContext] = field(default_factory=dict)
    described_named: Mapping[str, str] = field(default_factory=dict)


def read_contexts(context: str, file: str | None, build_contexts: Sequence[str], *, keep_git_dir: bool) -> Given:
    """The build's own context and the named ones. Raises InputError."""
    if context == "-":
        if file == "-":
            raise InputError("standard input cannot be both the context and the Dockerfile")
        given = _standard_input(file)
    elif _ELSEWHERE.match(context) and not Path(context).is_dir():
        given = _elsewhere(context, file, keep_git_dir)
    else:
        given = _directory(context, file)
    return _with_named(given, build_contexts) if build_contexts else given


def _directory(context: str, file: str | None) -> Given:
    directory = Path(context)
    if not directory.is_dir():
        raise InputError("the build context is not a directory", where=context)
    path = directory / "Dockerfile" if file in {None, "-"} else Path(file)
    text = _standard_text() if file == "-" else _dockerfile(path, directory)
    where = directory.absolute()
    return Given(
        name=where.name,
        described="local",
        dockerfile=text,
        filename="Dockerfile" if file == "-" else path.name,
        ignore=_ignore(directory, path.with_name(path.name + ".dockerignore"), directory / ".dockerignore"),
        directories={"context": str(where)},
    )


def _elsewhere(context: str, file: str | None, keep_git_dir: bool) -> Given:
    from engine.frontend.contexts import context_title, remote_context
    from engine.graph import GitSource
    from engine.record import changed

    source = remote_context(context)
    if source is None:
        raise InputError("the build context is not a directory", where=context[:200])
    if isinstance(source, GitSource) and keep_git_dir:
        source = changed(source, keep_git_dir=True)
    title = context_title(source)
    return Given(
        name=re.split(r"[/:]", title.partition("#")[0].partition("?")[0].rstrip("/"))[-1].removesuffix(".git"),
        described=title,
        dockerfile=_standard_text() if file == "-" else None,
        filename="Dockerfile" if file in {None, "-"} else file,
        context=source,
    )


def _standard_input(file: str | None) -> Given:
    """A tar, maybe compressed, is the context; anything else is the Dockerfile of a build without one."""
    from engine.frontend.contexts import is_archive

    stream = sys.stdin.buffer
    start = stream.read(_BLOCK)
    if is_archive(start):
        archive = cast("BinaryIO", io.BufferedReader(_Continued(start, stream)))
        return Given("stdin", "tar on standard input", None, file or "Dockerfile", archive=archive)
    if file is not None:
        hint = "give the context as a directory, or the Dockerfile inside of a tar"
        raise InputError("both standard input and --file are Dockerfiles", hint=hint)
    if not start.strip():
        raise InputError("standard input is empty", hint="a Dockerfile or a tar is expected on it")
    return Given("stdin", "none", _standard_text(start), directories={"context": ""})


class _Continued(io.RawIOBase):
    """`start`, and then what `stream` still holds."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._start = start
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = self._start[: len(buffer)] or self._stream.read(len(buffer))
        self._start = self._start[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


# ---------------------------------------------------------------- named contexts


def _with_named(given: Given, build_contexts: Sequence[str]) -> Given:
    from dataclasses import replace

    from engine.frontend.contexts import ImageContext, context_name, named_context
    from engine.frontend.urls import redacted
    from engine.graph import ContextSource
    from storage.reference import LAYOUT

    named: dict[str, NamedContext] = {}
    described: dict[str, str] = {}
    directories = dict(given.directories)
    for item in build_contexts:
        written, equals, value = item.partition("=")
        if not (written and equals and value):
            raise InputError(f"--build-context {item[:200]!r} is not NAME=CONTEXT")
        try:
            name = context_name(written)
        except InputError as error:
            raise InputError(f"--build-context {written!r} cannot be a name: {error.what}") from error
        found = named_context(value)
        if found is None:
            path = Path(value)
            if not path.is_dir():
                raise InputError(f"the context {written!r} is not a directory", where=redacted(value)[:200])
            if name == "context":
                raise InputError("a directory cannot be called context: the build's own is", hint="use another name")
            directories[name] = str(path.absolute())
            found = ContextSource(name, _ignore(path, path / ".dockerignore"))
        elif isinstance(found, ImageContext) and found.reference.startswith(LAYOUT):
            found = ImageContext(LAYOUT + absolute_layout(found.reference.removeprefix(LAYOUT)))
        named[name] = found
        described[name] = redacted(value)
    return replace(given, named=named, directories=directories, described_named=described)


def absolute_layout(text: str) -> str:
    """`path[:tag][@digest]` with an absolute path."""
    found = _LAYOUT.fullmatch(text)
    assert found is not None  # the path takes what the rest does not
    return f"{Path(found['path']).absolute()}{found['name']}"


# ---------------------------------------------------------------- files


def _dockerfile(path: Path, context: Path) -> str:
    data = _content(path, context)
    if data is None:
        raise InputError("there is no such Dockerfile", where=str(path), hint="name it with -f FILE")
    return _text(data, str(path))


def _standard_text(start: bytes = b"") -> str:
    """The Dockerfile that begins with `start` and goes on on standard input."""
    from engine.frontend.source import DOCKERFILE_LIMIT as LIMIT

    return _text(start + sys.stdin.buffer.read(LIMIT + 1 - len(start)), "standard input")


def _text(data: bytes, where: str) -> str:
    from engine.frontend.source import DOCKERFILE_LIMIT as LIMIT

    if len(data) > LIMIT:
        raise InputError(f"it is larger than {LIMIT} bytes", where=where)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError("the Dockerfile is not UTF-8 text", where=where) from error


def _ignore(context: Path, *candidates: Path) -> tuple[str, ...]:
    """The patterns of the first of `candidates` that is there."""
    from engine.frontend.dockerignore import parse_dockerignore

    for candidate in candidates:
        if (data := _content(candidate, context)) is not None:
            return parse_dockerignore(data.decode("utf-8", "replace"))
    return ()


def _content(path: Path, context: Path) -> bytes | None:
    """What is in the file at `path`; None when it is not there. Of one in the context no link leads out of it: whoever
    made the context would have the build tell, and keep, what is in other files of this machine."""
    from engine.frontend.source import DOCKERFILE_LIMIT as LIMIT

    try:
        inside = os.path.relpath(os.path.abspath(path), os.path.abspath(context))  # noqa: PTH100  links are kept
        data = _inside(context, inside, LIMIT) if not inside.startswith("../") else _named(path, LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        if not path.is_symlink():
            return None
        hint = "name the file itself with -f, or copy it there"
        raise InputError("it is a link to something that is not in the context", where=str(path), hint=hint) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if len(data) > LIMIT:
        raise InputError(f"it is larger than {LIMIT} bytes", where=str(path))
    return data


def _inside(context: Path, path: str, limit: int) -> bytes:
    from engine.ops.rootfs import RootDir

    with RootDir(context) as root:
        return root.read_bytes(path, limit + 1)


def _named(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit + 1)
