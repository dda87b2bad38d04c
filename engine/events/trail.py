"""The log itself: what vouches for it, and what was erased of it."""

from __future__ import annotations

from typing import ClassVar

from engine.events.fact import Fact, Stream


class CheckpointSigned(Fact):
    """The log's first `size` events were vouched for: `root` of their tree (hexadecimal; storage/leaves.py), and the
    signed `note`, complete (C2SP tlog-checkpoint), whose origin is `origin`."""

    STREAM: ClassVar[Stream] = "log"
    origin: str
    size: int
    root: str
    note: str


class CheckpointPublished(Fact):
    """The checkpoint of `size` and `root` was sent to `target` (a file or a repository), where `digest` names it."""

    STREAM: ClassVar[Stream] = "log"
    size: int
    root: str
    target: str
    digest: str = ""


class CheckpointPublishFailed(Fact):
    """The checkpoint of `size` and `root` could not be sent to `target`: where it is missing, this says why."""

    STREAM: ClassVar[Stream] = "log"
    size: int
    root: str
    target: str
    error: str


class PayloadRedacted(Fact):
    """Values that had been stored apart from their events (detached) were erased, for good, by `by` because of
    `reason`: those whose salted digests are `digests`, of `build`; `vertex`: when all are of one step."""

    STREAM: ClassVar[Stream] = "log"
    digests: tuple[str, ...]
    by: str
    reason: str
    build: str = ""
    vertex: str = ""
