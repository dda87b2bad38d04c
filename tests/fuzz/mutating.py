"""Changes to true samples: trees of JSON, and bytes. The same generator gives the same ones."""

from __future__ import annotations

import copy
import random
from typing import Any

from storage.tar.reader import BLOCK

_NUMBERS = [0, 1, -1, 255, 2**31, 2**32, 2**33, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]
_TEXTS = [
    "", "\0", "a\nb", "\x1b[31m", "\u202e", "..", "/", "../../etc", "a/../b", "x" * 5000, "é", "\u0660", "9" * 5000,
    "-1", "sha256:", "sha256:" + "0" * 64,
    "9999-12-31T23:59:60.9999999999Z", "0000-00-00T00:00:00Z", "%2e", "$X", "[", "=",
    "linux/amd64", "http://[", "\\", '"',
]  # fmt: skip
_BYTES = [
    b"\0", b"\xff", b"\n", b" ", b"\r\n", b"\x1b[", b"0", b"9" * 20, b"-1", b"=", b",", b":", b'"', b"/", b"../", b"{",
    b"[", b"\xe2\x80\xae", b"\xed\xa0\x80", b"'''", b"= inf", b"\x80" + bytes(10) + b"\1",
]  # fmt: skip
_PIECES = [1, 2, 4, 16, 64, BLOCK, 2 * BLOCK]


def mutated_json(sample: Any, rng: random.Random) -> Any:
    """A copy of `sample`, which is made of what JSON knows, changed in one place to three."""
    tree = [copy.deepcopy(sample)]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if tree:
            _change(*_place(tree, 0, rng), rng)
    return tree[0] if tree else None


def _place(holder: Any, key: Any, rng: random.Random) -> tuple[Any, Any]:
    """What is to be changed, as what holds it and its key or index there: by a walk, as of all places most are at the
    ends of the longest list."""
    inner = holder[key]
    if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
        return holder, key
    return _place(inner, rng.choice([*inner] if isinstance(inner, dict) else range(len(inner))), rng)


def _change(holder: Any, key: Any, rng: random.Random) -> None:
    value = holder[key]
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1:
            holder[key] = [value]
        case 2 if isinstance(value, list) and value:
            holder[key] = value * rng.choice([2, 3, 50])
        case 3 if isinstance(value, str):
            at = rng.randrange(len(value) + 1)
            holder[key] = value[:at] + rng.choice(_TEXTS) + value[at + rng.randrange(3) :]
        case 4 if isinstance(value, int):
            holder[key] = rng.choice([value ^ 1, value // -2, str(value), value / 2])
        case 5 if isinstance(value, list):
            value[:] = dict.fromkeys(map(str, value)) if rng.random() < 0.5 else value[::-1]
        case _:
            others = [None, True, 0.5, [], {}, ["a"], {"a": 1}]
            holder[key] = rng.choice([rng.choice(_NUMBERS), rng.choice(_TEXTS), *others])


def mutated_bytes(sample: bytes, rng: random.Random) -> bytes:
    """A copy of `sample`, changed in one place to five."""
    data = bytearray(sample)
    for _ in range(rng.choice([1, 1, 2, 3, 5])):
        at, size = rng.randrange(len(data) + 1), rng.choice(_PIECES)
        match rng.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.randrange(256)
            case 2:
                data[at:at] = rng.choice(_BYTES)
            case 3:
                piece = rng.choice(_BYTES)
                data[at : at + len(piece)] = piece
            case 4:
                del data[at : at + size]
            case 5:
                other = rng.randrange(len(data) + 1)
                data[at:at] = data[other : other + size]
            case _:
                data[at : at + size] = rng.choice(_NUMBERS).to_bytes(9, "big", signed=True)[-size:]
    return bytes(data)
