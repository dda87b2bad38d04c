"""Is each statement of a report proved by the events that it names?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Json = dict[str, Any]
_STATED = ("digest", "diff_id", "snapshot", "ref", "key", "target", "value", "name", "image",
           "statement", "policy", "rule", "reference", "root", "of", "id")
_OF_SEVERAL = frozenset({"/differences/name", "/steps/name"})
"""Put together, or told by the stored graph."""


def statements(value: object, path: str = "") -> Iterator[tuple[str, Json]]:
    """Every object with `seqs` below this plain data, with its place (numbers of lists left out)."""
    if isinstance(value, dict):
        if "seqs" in value:
            yield path, value
        for key, item in value.items():
            yield from statements(item, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from statements(item, path)


def unproved(report: Json, events: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the report says without an event that says it: no `seqs`, a `seq` that is not in the log, or a digest or
    name that is in none of the events that are named for it. `events`: the whole log, as `events --json` has it."""
    known = {event["seq"]: event for event in events}
    wrong = []
    for path, item in statements(report):
        if not item["seqs"] or not set(item["seqs"]) <= set(known):
            wrong.append(f"{path}: {item['seqs']} of {item}")
            continue
        proof = [known[seq] for seq in item["seqs"]]
        for key in _STATED:
            stated = item.get(key)
            place = f"/{path.rpartition('/')[2]}/{key}"
            if not isinstance(stated, str) or not stated or place in _OF_SEVERAL:
                continue
            if not _said(path, stated, proof):
                wrong.append(f"{path}: {key} {stated!r} is in none of the events {item['seqs']}")
    return wrong


def _said(path: str, stated: str, proof: Sequence[Mapping[str, Any]]) -> bool:
    if path.endswith("/taint") and not any(stated in texts(event) for event in proof):
        # nothing but the stored graph has the network, and what was not given
        return any(event["type"] in {"GraphDefined", "CacheRecorded"} for event in proof)
    said = {text for event in proof for text in texts(event)}
    return stated in said or ("#" in stated and stated.partition("#")[0] in said)  # a repository and its ref


def texts(value: object) -> set[str]:
    """All texts (and numbers, as texts) of this plain data, names of fields among them."""
    if isinstance(value, Mapping):
        return {*value, *(text for item in value.values() for text in texts(item))}
    if isinstance(value, (list, tuple)):
        return {text for item in value for text in texts(item)}
    return {str(value)}
