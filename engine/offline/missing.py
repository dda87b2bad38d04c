"""Something that an offline build needs and that is not here. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from engine.errors import HostError
from engine.events import FoundMissing
from engine.ledger import fitting
from engine.record import Record
from engine.refs.ref import Layer

ONLINE = "build once without --offline"
"""What brings most of what can be missing."""
_PASSED_ON = "build without --offline, or write type=local"
"""For blobs that an archive takes: a build online writes them, and does not keep them."""
_NEEDED_BY, _TITLE = 8, 200
"""Steps that one item names at most, in an event, and characters of each."""


class Missing(Record):
    """`name`: a reference, a URL, a digest, or the id of a snapshot; `size` of its blob in bytes, 0: not known;
    `needed_by`: names of steps, or of exports; `elsewhere`: who has it; `detail`: what else there is to say of it;
    `passing`: its files are here, only an archive wants the blob."""

    kind: Literal["image", "layer", "url", "git", "archive"]
    name: str
    size: int = 0
    needed_by: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    detail: str = ""
    passing: bool = False

    def to_json(self) -> dict[str, Any]:
        """As in FoundMissing.items."""
        return {
            "kind": self.kind, "name": self.name, "bytes": self.size, "elsewhere": list(self.elsewhere),
            "detail": self.detail,
            "needed_by": [name if len(name) <= _TITLE else f"{name[:_TITLE]}…" for name in self.needed_by[:_NEEDED_BY]],
        }  # fmt: skip


def blob_name(layer: Layer) -> str:
    """The name of a missing `layer`."""
    return str(layer.blob.digest) if layer.blob else layer.name


class NotHere(HostError):
    """An offline build cannot go on without `missing`."""

    def __init__(self, missing: Sequence[Missing]) -> None:
        hint = _PASSED_ON if all(item.passing for item in missing) else ONLINE
        super().__init__(f"offline: {counted(missing)} not here", hint=hint)
        self.missing = tuple(missing)

    @property
    def fact(self) -> FoundMissing:
        """For the log."""
        items = fitting([item.to_json() for item in self.missing])
        return FoundMissing(items=items, count=len(self.missing), bytes=sum(item.size for item in self.missing))


_TITLES = {
    "image": ("image", "images"), "layer": ("layer", "layers"), "url": ("URL", "URLs"),
    "git": ("git repository", "git repositories"), "archive": ("archive", "archives"),
}  # fmt: skip


def counted(missing: Sequence[Missing]) -> str:
    """`1 image and 3 layers are`."""
    kinds = [item.kind for item in missing]
    parts = [
        f"{count} {_TITLES[kind][count > 1]}" for kind in dict.fromkeys(kinds) if (count := kinds.count(kind))
    ]
    *most, last = parts
    return (f"{', '.join(most)} and {last}" if most else last) + (" is" if len(missing) == 1 else " are")
