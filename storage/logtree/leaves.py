"""Events as leaves of the log's Merkle tree: their canonical bytes.

A leaf is the JSON text `{"seq":N,"stream":"…","version":N,"type":"…","state":{…}}`: five members in this order, no
blanks, strings as orjson writes them, and `state` byte for byte as it is stored (storage/log/codec.py). So a leaf is
what the log holds of an event, all of it, and somebody else can make it of `seq`, `stream`, `version`, `type` and that
text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256

import orjson

from storage.log.codec import Row

NOTHING = b""
"""The leaf of a row that is no event: stored with other types than events are, as only tampering does."""


def leaf(row: Row) -> bytes:
    """The canonical bytes of a stored event, or NOTHING."""
    seq, stream, version, name, state = row
    if type(version) is not int or type(state) is not bytes:
        return NOTHING
    try:
        return b'{"seq":%d,"stream":%b,"version":%d,"type":%b,"state":%b}' % (
            seq, orjson.dumps(stream), version, orjson.dumps(name), state,
        )  # fmt: skip
    except TypeError:
        return NOTHING


def leaf_hashes(rows: Iterable[Row]) -> Iterator[bytes]:
    """The leaf hashes (RFC 9162 section 2.1.1) of stored events, in order."""
    names: dict[str, bytes] = {}  # reason: a log has few types, and quoting one costs as much as hashing it
    last, named = "", b""  # reason: what follows on each other is mostly of one stream
    for row in rows:
        seq, stream, version, name, state = row
        try:
            quoted = names.get(name)
            if quoted is None:
                quoted = names[name] = orjson.dumps(name)
            if stream != last:
                last, named = stream, orjson.dumps(stream)
            if type(version) is int and type(state) is bytes:
                yield sha256(
                    b'\0{"seq":%d,"stream":%b,"version":%d,"type":%b,"state":%b}' % (seq, named, version, quoted, state)
                ).digest()
                continue
        except TypeError:
            pass
        yield sha256(b"\0" + leaf(row)).digest()
