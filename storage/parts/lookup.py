"""Looking into single layers, the way an overlay does: what is there, and does it hide what lower layers have?"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from storage.interfaces.parts import Seen
from storage.tar.pack import is_opaque


@dataclass(frozen=True, slots=True)
class Own:
    """What a layer itself says of a path, whatever it says of the way there."""

    kind: Literal["missing", "whiteout", "directory", "symlink", "other"]
    target: bytes = b""
    opaque: bool = False
    implied: bool = False


class Tree(ABC):
    """Implements LayerTree.look on top of `_own`; every path is looked at once."""

    def __init__(self) -> None:
        self._seen: dict[bytes, Seen] = {}

    def look(self, path: bytes) -> Seen:
        """See LayerTree.look."""
        pending = []
        while path not in self._seen:
            pending.append(path)
            if not path:
                break
            path = path.rpartition(b"/")[0]
        for each in reversed(pending):
            above = self._seen[each.rpartition(b"/")[0]] if each else Seen("directory", ends=False)
            self._seen[each] = self._under(each, above)
        return self._seen[pending[0] if pending else path]

    def _under(self, path: bytes, above: Seen) -> Seen:
        if above.kind != "directory":
            return Seen("missing", above.ends)
        own = self._own(path)
        covers = own.kind not in {"directory", "missing"} or own.opaque
        return Seen(own.kind, above.ends or covers, own.target, own.implied)

    @abstractmethod
    def _own(self, path: bytes) -> Own:
        """What is at `path`, whose parent is a directory of this layer."""


class LaidOut(Tree):
    """Implements LayerTree for a layer that is an overlay lower here."""

    def __init__(self, lower: Path, implied: AbstractSet[bytes]) -> None:
        """`implied`: directories whose looks the layer does not tell (see storage.layers.implied)."""
        super().__init__()
        self._lower = os.fsencode(lower)
        self._implied = implied

    def names(self, path: bytes) -> AbstractSet[bytes]:
        """See LayerTree.names."""
        return set(os.listdir(self._place(path))) if self.look(path).kind == "directory" else set()  # noqa: PTH208 - bytes

    def _own(self, path: bytes) -> Own:
        place = self._place(path)
        try:
            found = os.lstat(place)
        except FileNotFoundError:
            return Own("missing")
        if stat.S_ISDIR(found.st_mode):
            return Own("directory", opaque=is_opaque(place), implied=path in self._implied)
        if stat.S_ISLNK(found.st_mode):
            return Own("symlink", os.readlink(place))  # noqa: PTH115 - bytes
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            return Own("whiteout")
        return Own("other")

    def _place(self, path: bytes) -> bytes:
        return self._lower + b"/" + path if path else self._lower
