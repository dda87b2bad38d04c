"""Digests and the canonical bytes they are taken of.

Sources: OCI image-spec, descriptor.md (digest grammar) and config.md (chain ID formula).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from storage.errors import InputError

_DEEPEST = 100
_CHUNK = 1 << 20
_GRAMMAR = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


class Digest(str):
    """`<algorithm>:<lower-case hex>`, checked when made; equal and hashable as its text."""

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:  # noqa: PYI034  reason: nothing subclasses it
        """Raises InputError when `text` is not a sha256 or sha512 digest."""
        if isinstance(text, Digest):
            return text
        if not _GRAMMAR.fullmatch(text):
            raise InputError(f"not a digest: {text[:100]!r}", hint="a digest reads sha256:<64 hexadecimal digits>")
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        """`sha256` or `sha512`."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """The hexadecimal part."""
        return self.partition(":")[2]

    @property
    def short(self) -> str:
        """Twelve hexadecimal digits, for people."""
        return self.hex[:12]


class Hasher:
    """Incremental digest; `update` releases the interpreter lock on buffers over 2 KiB."""

    __slots__ = ("_algorithm", "_hash", "size")

    def __init__(self, algorithm: str = "sha256") -> None:
        self._algorithm = algorithm
        self._hash = hashlib.new(algorithm)
        self.size = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Count and hash `data`."""
        self._hash.update(data)
        self.size += len(data)

    def digest(self) -> Digest:
        """The digest of all bytes seen so far."""
        return Digest(f"{self._algorithm}:{self._hash.hexdigest()}")


def sha256(data: bytes) -> Digest:
    """The sha256 digest of `data`."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def digest_of(data: bytes, algorithm: str) -> Digest:
    """The digest of `data` by `algorithm`."""
    hasher = Hasher(algorithm)
    hasher.update(data)
    return hasher.digest()


def digest_read(read: Callable[[int], bytes], algorithm: str) -> Digest:
    """The digest of all that `read` gives, asked for so many bytes at most, until it gives none."""
    hasher = Hasher(algorithm)
    while data := read(_CHUNK):
        hasher.update(data)
    return hasher.digest()


def canonical_json(value: Any) -> bytes:
    """The one encoding digests are taken of: UTF-8, keys sorted, no spaces. Primitives, lists, string-keyed dicts."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def plain_json(value: Any) -> bytes:
    """The same, but for the order of the keys, which stays as it is."""
    return orjson.dumps(value)


def digest_json(value: Any) -> Digest:
    """The sha256 digest of `canonical_json(value)`."""
    return sha256(canonical_json(value))


def chain_ids(diff_ids: Iterable[Digest]) -> list[Digest]:
    """The chain ID of every prefix of `diff_ids`, bottom layer first (image-spec config.md, "Layer ChainID")."""
    out: list[Digest] = []
    for diff_id in diff_ids:
        out.append(sha256(f"{out[-1]} {diff_id}".encode()) if out else diff_id)
    return out


def parse_json(data: bytes) -> Any:
    """The value that `data` (UTF-8 JSON) holds. Raises ValueError, also for what is nested more than 100 deep: it could
    be read, but not copied, nor written again as a part of something else."""
    value = orjson.loads(data)
    if data.count(b"[") + data.count(b"{") > _DEEPEST:
        level = [value]
        for _ in range(_DEEPEST):
            inner = (item.values() if isinstance(item, dict) else item for item in level)
            level = [child for children in inner for child in children if isinstance(child, dict | list)]
            if not level:
                break
        else:
            raise ValueError(f"nested more than {_DEEPEST} deep")
    return value
