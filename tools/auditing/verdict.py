"""What `refledger audit verify` finds in a root."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from projections.wellformed import Fault
from storage.signing.notes import Checkpoint, Verifier

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint as event `seq` of the log has it; `keys`: those that are trusted and signed it."""

    seq: int
    checkpoint: Checkpoint
    keys: tuple[Verifier, ...]


@dataclass(frozen=True, slots=True)
class Outside:
    """What is known of the log without it: a checkpoint from `source` (a file, a registry, what was last seen)."""

    source: str
    kind: str
    checkpoint: Checkpoint


@dataclass(slots=True)
class Verdict:
    """What was found. `covered`: events that a checkpoint vouches for, one by a trusted key when there are `keys`."""

    events: int = 0
    builds: int = 0
    root: str = ""
    origin: str = ""
    checkpoints: int = 0
    covered: int = 0
    keys: tuple[str, ...] = ()
    trusted: bool = False
    published: int = 0
    named: dict[str, int] = field(default_factory=dict)
    remote: int = 0
    gone: int = 0
    contents: bool = True
    views: str = "none are kept"
    unknown: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def to_json(self) -> Json:
        """The object that `audit verify --json` prints."""
        first = self.faults[0] if self.faults else None
        return {
            "sound": not self.faults, "first": first.to_json() if first else None,
            "faults": [fault.to_json() for fault in self.faults], "events": self.events, "builds": self.builds,
            "root": self.root, "origin": self.origin or None, "checkpoints": self.checkpoints,
            "covered": self.covered, "uncovered": self.events - self.covered, "trusted_keys": list(self.keys),
            "signatures_checked": self.trusted, "published": self.published, "here": self.named,
            "remote": self.remote, "let_go": self.gone, "contents_read": self.contents, "views": self.views,
            "unknown_types": self.unknown,
        }  # fmt: skip
