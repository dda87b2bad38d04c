"""What a build is made of when it is no Dockerfile: an edit of an image that exists, as a graph like any other.

The stored definition is its JSON, which names everything that the edit was asked for, so that it can be made again.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from engine.events import DefinitionRead
from engine.graph import Graph, ImageLayer
from engine.images.resolver import Resolver
from engine.ledger import Facts
from engine.record import Record
from storage.digest import parse_json
from storage.errors import InputError
from storage.interfaces.blobs import BlobStore

Json = dict[str, Any]
FILENAME = "definition.json"
"""What the stored definition is called, where that of a Dockerfile has its name."""
PLATFORMS_LIMIT = 64
"""Platforms of one image that are edited at once: each costs requests, and an index may list anything."""


class Given(Record):
    """A layer that came as file `name` (as written, `-` for standard input) and is stored here now; `newest`: the
    latest time of a file in it, in seconds since the epoch, 0 for none."""

    name: str
    layer: ImageLayer
    newest: int

    def to_json(self) -> Json:
        """For the stored definition."""
        return {"name": self.name, "layer": self.layer.to_json(), "newest": self.newest}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Given:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError or InputError on anything else."""
        return cls(str(data["name"]), ImageLayer.from_json(data["layer"]), int(data["newest"]))


Take = Callable[[str], Awaitable[Given]]
"""Stores the layer in the file of this name. Raises InputError, DiskError."""


class Definition(Protocol):
    """What an edit was asked for. Plain data."""

    @property
    def frontend(self) -> str:
        """What reads it: `rebase.v0`, `append.v0`."""
        ...

    def to_json(self) -> Json:
        """The stored form."""
        ...

    async def read(self, take: Take) -> Definition:
        """The same with everything stored here that lies in files. Raises what `take` raises."""
        ...

    async def compile(self, resolver: Resolver) -> Graph:
        """One result for each platform. Pure but for `resolver`. Raises InputError and what that raises."""
        ...


async def read_definition(definition: Definition, take: Take, blobs: BlobStore, facts: Facts) -> Definition:
    """`definition`, read; where that told something new, the whole of it is in the log."""
    read = await definition.read(take)
    if read != definition:
        stored = blobs.put(definition_text(read).encode())
        await facts.record(DefinitionRead(definition=str(stored), filename=FILENAME))
    return read


def definition_text(definition: Definition) -> str:
    """The stored form: JSON, a field a line, as people compare two of them."""
    return json.dumps(definition.to_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def parse_definition(frontend: str, text: str) -> Definition:
    """The inverse of `to_json`, for whoever replays a build. Raises InputError."""
    from engine.images.append import Append
    from engine.images.rebase import Rebase

    kinds: dict[str, type[Rebase | Append]] = {Rebase.FRONTEND: Rebase, Append.FRONTEND: Append}
    if frontend not in kinds:
        raise InputError(f"a build of kind {frontend[:40]!r} cannot be made again from its definition")
    try:
        return kinds[frontend].from_json(parse_json(text.encode()))
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        raise InputError(f"the stored definition is damaged: {error}") from error


async def platforms_of(image: str, asked: tuple[str, ...], resolver: Resolver) -> tuple[str, ...]:
    """The platforms to edit `image` for. Raises InputError and what `resolver` raises."""
    found = asked or await resolver.platforms(image)
    if len(found) > PLATFORMS_LIMIT:
        hint = f"at most {PLATFORMS_LIMIT} are edited at once: name them with --platform"
        raise InputError(f"the image is there for {len(found)} platforms", where=image, hint=hint)
    return found
