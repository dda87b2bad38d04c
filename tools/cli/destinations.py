"""Places that are named for results: what would only fail after all the work is found out before it."""

from __future__ import annotations

import errno
from pathlib import Path

import click

from storage.durable import Unfinished, try_place
from storage.errors import DiskError, InputError, RefledgerError


def writable(_ctx: click.Context, _option: click.Parameter, dest: str | None) -> str | None:
    """Callback of options that name a file to be written; `-`, where a command takes that for standard output, is not
    looked at. Raises InputError, DiskError."""
    if dest and dest != "-":
        check_file(dest)
    return dest


def check_file(dest: str) -> None:
    """Raises InputError, or DiskError of a full disk, when no file can be written at `dest`."""
    path = Path(dest)
    try:
        try_place(path)
    except IsADirectoryError:
        what = "a file is to be written, and a directory is there"
        raise InputError(what, where=dest, hint="name a file in it") from None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
            what = "there is no such directory to write to"
            raise InputError(what, where=str(path.parent), hint="make it first") from None
        raise _refused(error, dest) from error


def check_directory(dest: str) -> None:
    """Raises InputError, or DiskError of a full disk, when `dest` cannot be made, or nothing written in it."""
    path = Path(dest).absolute()
    try:
        while not _is_there(path):
            path = path.parent
        Unfinished(path / "refledger").abort()
    except OSError as error:
        raise _refused(error, dest) from error


def _is_there(path: Path) -> bool:
    """Also a link that leads nowhere: no directory is made in its place."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _refused(error: OSError, dest: str) -> RefledgerError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskError.of(error, "nothing can be written here", dest=dest)
    return InputError(f"nothing can be written here: {error.strerror}", where=dest, hint="name another place")
