"""What the reading commands say of a root: the same whoever asks, and of whichever copy of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_OF_A_BUILD = (
    ("show", "BUILD", "--json"), ("show", "BUILD", "--at", "+1s", "--json"), ("why", "BUILD", "--json"),
    ("why", "BUILD", "5", "--key", "--json"), ("output", "BUILD", "--json"), ("audit", "report", "BUILD", "--json"),
    ("audit", "provenance", "BUILD"), ("audit", "provenance", "BUILD", "--mode", "min"), ("bundle", "BUILD", "-o", "-"),
    ("bundle", "BUILD", "--full", "-o", "-"), ("bundle", "BUILD", "--full", "--redact", "a", "-o", "-"),
)  # fmt: skip
_OF_ALL = (
    ("events", "--json"), ("history", "--json"), ("refs", "--json"), ("du", "--json"), ("du", "--json", "--verbose"),
    ("audit", "prove", "3"), ("audit", "verify", "--json"), ("rebuild", "--check"),
)  # fmt: skip


def readings(builds: Sequence[str], digest: str) -> Iterator[tuple[str, ...]]:
    """Commands, by their words; `digest`: of an image that was made."""
    yield from _OF_ALL
    yield ("audit", "report", digest, "--json", "--reverse")
    for build in builds:
        yield from (tuple(build if word == "BUILD" else word for word in words) for words in _OF_A_BUILD)
