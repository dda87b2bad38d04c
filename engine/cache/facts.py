"""What Refledger adds to a cache: for each key what it was made of, by which build, as which ref. Pure.

It rides in one more blob of the cache's manifest, which BuildKit takes for a layer that no record names (its importer
collects the descriptors of a manifest by digest, and looks only into those that a result leads to), or in a field of
an image's config. A cache without it is a cache all the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.cache.config import RECORDS
from engine.errors import InputError, VerificationError
from engine.record import Record
from storage.digest import Digest, canonical_json, parse_json

Json = dict[str, Any]
MEDIA_TYPE = "application/vnd.refledger.cachefacts.v1+json"
IMAGE_FIELD = "refledger.cache.v1"
"""Where an image's config has them."""
VERSION = 1
# reason: a ref's id names a stream of the log, and none of those that a person can mistake for another one's
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}", re.ASCII)


class KeyFacts(Record):
    """What a key stands for: `ref` made by `build`; `resolved`: its key by content, "" when that is the key itself;
    `created`: UTC ns for each layer, bottom first, 0 for those of the base; `components`: the key in plain text."""

    ref: str
    build: str = ""
    resolved: str = ""
    created: tuple[int, ...] = ()
    components: tuple[tuple[str, str], ...] = ()


class CacheFacts(Record):
    """`keys` by digest; `builds`: when each of them started, UTC ns."""

    keys: Mapping[str, KeyFacts] = {}
    builds: Mapping[str, int] = {}

    def to_json(self) -> Json:
        """`{version, builds: {id: started}, keys: {digest: {ref, build, resolved, created, components}}}`, less what is
        empty."""
        return {
            "version": VERSION,
            "builds": dict(self.builds),
            "keys": {key: {name: value for name, value in _plain(facts) if value} for key, facts in self.keys.items()},
        }


def _plain(facts: KeyFacts) -> list[tuple[str, Any]]:
    created = list(facts.created) if any(facts.created) else []
    components = [list(component) for component in facts.components]
    return [
        ("ref", facts.ref), ("build", facts.build), ("resolved", facts.resolved), ("created", created),
        ("components", components),
    ]  # fmt: skip


def write(facts: CacheFacts, limit: int) -> bytes:
    """The bytes of `facts`; without the components where they would make more than `limit` of them."""
    data = canonical_json(facts.to_json())
    if len(data) <= limit:
        return data
    bare = {
        key: KeyFacts(one.ref, one.build, one.resolved, one.created) for key, one in facts.keys.items()
    }  # fmt: skip
    return canonical_json(CacheFacts(bare, facts.builds).to_json())


def read(data: bytes, where: str) -> CacheFacts:
    """The facts that `data` holds. Raises VerificationError."""
    try:
        return from_json(parse_json(data))
    except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        what = f"the facts beside the cache cannot be used: {str(error)[:200]}"
        raise VerificationError(what, where=where) from error


def from_json(data: Any) -> CacheFacts:
    """The inverse of `to_json`; of another version nothing. Raises ValueError, KeyError, TypeError, AttributeError or
    InputError."""
    if data["version"] != VERSION:
        return CacheFacts()
    if len(data["keys"]) > RECORDS or len(data["builds"]) > RECORDS:
        raise ValueError("there are too many")
    builds = {_named(build): _time(started) for build, started in data["builds"].items()}
    keys = {str(Digest(key)): _key_facts(item) for key, item in data["keys"].items()}
    return CacheFacts(keys, builds)


def _key_facts(item: Mapping[str, Any]) -> KeyFacts:
    resolved = item.get("resolved", "")
    return KeyFacts(
        ref=_named(item["ref"]),
        build=_named(item["build"]) if item.get("build") else "",
        resolved=str(Digest(resolved)) if resolved else "",
        created=tuple(_time(one) for one in item.get("created", ())),
        components=tuple((_text(name), _text(value)) for name, value in item.get("components", ())),
    )


def _named(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("a ref or build has no name that can be used")
    return value


def _time(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("a time is not a number of nanoseconds")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a component is not text")
    return value
