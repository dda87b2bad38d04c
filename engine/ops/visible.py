"""A tree of files as a build sees it: without what .dockerignore hides."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from engine.frontend.dockerignore import IgnoreMatcher
from engine.ops.rootfs import RootDir

GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
"""What is said of a path that leads nowhere."""
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
Judge = Callable[[str, bool], bool | None]
"""Says of a path, and whether it is a directory: yes, no, or None: when there is anything in it."""


class VisibleTree:
    """The tree at `root`, less what `excludes` hide. Paths are relative; but for `real` they have no links in them.
    Methods raise OSError."""

    def __init__(self, root: RootDir, excludes: Sequence[str]) -> None:
        """Raises InputError for a malformed pattern."""
        self.root = root
        self._ignore = IgnoreMatcher(excludes) if excludes else None
        self._seen: dict[str, bool] = {}
        """Hidden directories: is anything visible below?"""

    def real(self, path: str) -> str | None:
        """`path` without symlinks, or None when nothing is there."""
        try:
            real = self.root.resolve(path).lstrip("/")
            self.root.stat(real, follow=False)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise
        return real

    def excluded(self, source: str) -> bool:
        """Does .dockerignore hide it?"""
        return self._ignore is not None and source != "" and self._ignore.excluded(source)

    def there(self, source: str, *, is_dir: bool) -> bool:
        """Is it there for the build?"""
        return self.visible(source) if is_dir else not self.excluded(source)

    def visible(self, source: str) -> bool:
        """Is the directory there for the build: not hidden, or with something below it that is not?"""

        def judge(path: str, is_dir: bool) -> bool | None:
            if not self.excluded(path):
                return True
            return None if is_dir and self._ignore and self._ignore.may_contain_included(path) else False

        return self.holds(source, judge, self._seen)

    def holds(self, source: str, judge: Judge, known: dict[str, bool]) -> bool:
        """Is `judge` true of the directory `source`, or of anything in it? Each directory is looked into once: `known`
        has what was found of others."""
        pending: list[tuple[str, Iterator[tuple[str, bool]]]] = [("", iter([(source, True)]))]
        while pending:
            above, names = pending[-1]
            for name, is_dir in names:
                path = join(above, name)
                found = known.get(path) if is_dir else None
                found = judge(path, is_dir) if found is None else found
                if found is None:
                    pending.append((path, iter(self.names(path))))
                    break
                if found:
                    known.update((at, True) for at, _ in pending[1:])
                    return True
            else:
                pending.pop()
                if pending:
                    known[above] = False
        return False

    @contextmanager
    def directory(self, source: str) -> Iterator[int]:
        """A descriptor of it."""
        fd = self.root.open(source, _DIR_FLAGS)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def scan(self, source: str) -> Iterator[tuple[int, Iterator[os.DirEntry[str]]]]:
        """A descriptor of it, and what is in it."""
        with self.directory(source) as fd, os.scandir(fd) as found:
            yield fd, found

    def names(self, source: str) -> list[tuple[str, bool]]:
        """What is in a directory, each with: is it one itself?"""
        with self.scan(source) as (_, found):
            return [(item.name, item.is_dir(follow_symlinks=False)) for item in found]


def join(directory: str, name: str) -> str:
    """The path of `name` in `directory`, "" for the top of the tree."""
    return f"{directory}/{name}" if directory else name
