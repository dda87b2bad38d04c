"""Parts of layers that lie elsewhere: their trees, and files of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from storage.interfaces.images import Descriptor


@dataclass(frozen=True, slots=True)
class Seen:
    """What one layer has at a path. `ends`: whatever layers below have there cannot be seen, as this one has something
    else than a directory, a whiteout or an opaque directory there or on the way. `target` of a symbolic link;
    `implied`: a directory whose look the layer does not tell."""

    kind: Literal["missing", "whiteout", "directory", "symlink", "other"]
    ends: bool
    target: bytes = b""
    implied: bool = False


class LayerTree(Protocol):
    """The names of one layer. Paths are relative to its root, without `.`, `..` or slashes at their ends; the empty
    path is the root. Links are never followed. Methods are quick, may read the disk, and raise OSError."""

    def look(self, path: bytes) -> Seen:
        """What is at `path`."""
        ...

    def names(self, path: bytes) -> AbstractSet[bytes]:
        """Names in directory `path`, empty when there is none; those of whiteouts may be among them."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """What is wanted of a layer: `seen`, paths whose entries matter but not their content; `files` with their
    content; `trees`, directories with all that is below. `above` says what the layers above have at a path: nothing, a
    directory (which this layer's adds to, if it is one), or what covers this layer's."""

    seen: AbstractSet[bytes]
    files: AbstractSet[bytes]
    trees: AbstractSet[bytes]
    above: Callable[[bytes], Literal["nothing", "directory", "covers"]]


class PartReader(Protocol):
    """A part of one layer on its way to this disk. Methods raise DiskError."""

    @property
    def ranges(self) -> Sequence[tuple[int, int]]:
        """The ranges of the blob to be read, half open, in order."""
        ...

    @property
    def files(self) -> int:
        """Regular files whose content is in them."""
        ...

    def write(self, data: bytes) -> None:
        """The next bytes of the ranges, in order."""
        ...

    def restart(self) -> None:
        """Forget what was written: the ranges come anew, from the first one on."""
        ...

    def lay_out(self) -> Path:
        """Verify what was written and lay the part out as an overlay lower, which stays until `discard`. Blocking.
        Raises VerificationError, with nothing laid out."""
        ...

    def discard(self) -> None:
        """Drop it, and what was laid out. Harmless when it was done before."""
        ...


class Toc(LayerTree, Protocol):
    """The table of contents of a layer, verified."""

    @property
    def entries(self) -> int:
        """How many it lists."""
        ...

    def part(self, part: Part) -> PartReader:
        """Begin to read `part`. Raises VerificationError for entries that cannot be, DiskError."""
        ...


class LayerParts(Protocol):
    """Looking into layers, and taking parts of them."""

    def tree(self, lower: Path) -> LayerTree:
        """The layer that is laid out at `lower`."""
        ...

    def toc(self, blob: Descriptor) -> Generator[tuple[int, int], bytes, Toc] | None:
        """How to read the table of contents of `blob`: yields ranges of it, is sent their bytes, returns the table.
        None when the descriptor promises none. Raises VerificationError when it is not what the descriptor promises,
        TocUnusable when it is, and is of no use."""
        ...
