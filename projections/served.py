"""Which registry served a blob, to which build: the direct answer, from the events that name it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from projections.fields import BAD_EVENT, malformed, mapping, objects, size, text, texts
from projections.mentions import READ, Mentions, events_at, streamed_from
from projections.steps import provider_name
from storage.interfaces.log import Event, EventLog

Json = dict[str, Any]
_HOW = {"LayerPulled": "pulled", "LayerTocRead": "its table of contents read", "FilesFetched": "parts of it read"}
_CHECKED = {"LayerTocRead": ("toc",), "FilesFetched": ("chunks",)}


@dataclass(frozen=True, slots=True)
class Served:
    """`provider` (`host/name`; several with commas, where one went on when another broke off), which was asked as a
    mirror of `mirror_of`, "" when it was not, gave `bytes` of blob `digest` to `build`. `how`: for people; `seq` and
    `time` (UTC ns) of the event. `verified` on the way: `digest` and `diff_id` of the whole blob; of parts of it its
    `toc` (by the digest in the manifest) or `chunks` (by those in the table of contents). What is streamed to another
    place is not unpacked here, so nobody looks at its diff ID."""

    digest: str
    provider: str
    mirror_of: str
    how: str
    bytes: int
    build: str
    seq: int
    time: int
    verified: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """The fields, by name."""
        return asdict(self)

    @property
    def whom(self) -> str:
        """The provider, for people (not yet escaped)."""
        return f"{self.provider}, a mirror of {self.mirror_of}" if self.mirror_of else self.provider


def served(log: EventLog, mentions: Mentions, blobs: Iterable[str], *, until: int | None = None) -> list[Served]:
    """Who served `blobs` (digests), in order, up to `until`. Raises LogError."""
    wanted = set(blobs)
    found: list[Served] = []
    for event in events_at(log, mentions.seqs(wanted, {*_HOW, READ}, until=until)):
        try:
            found += [one for one in _served(event) if one.digest in wanted]
        except BAD_EVENT as error:
            raise malformed(event, error) from error
    return found


def _served(event: Event) -> Iterator[Served]:
    data, build = event.data, event.build or ""
    if event.type == "Exported":
        for layer in objects(data, "layers"):
            if source := streamed_from(layer):
                count, how = size(layer, "bytes"), f"streamed to {text(data, 'target', '?')}"
                yield Served(
                    text(layer, "digest"), source, "", how, count, build, event.seq, event.time, ("digest",)
                )  # fmt: skip
        return
    who = mapping(data, "provider")
    checked = _CHECKED.get(event.type) or tuple(texts(data, "verified"))
    yield Served(
        text(data, "digest"), provider_name(who), text(who, "mirror_of", ""), _HOW[event.type], size(data, "bytes"),
        build, event.seq, event.time, checked,
    )  # fmt: skip
