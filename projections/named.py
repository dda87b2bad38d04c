"""Which bytes of a root its log names, and which of them should be here: folded in one pass. Pure.

A name counts from the event that last said that the bytes are here, until one says that they were let go or lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]
IMAGE = "image document"
Item = tuple[str, str]
"""Kind (blob, layer or snapshot) and name (digest, diff ID or id)."""


@dataclass(slots=True)
class Named:
    """`here`: what should be here, with the event that says so and, for a blob, what it is there for; `gone`: what was
    let go or lost, by event; `remote`: blobs of layers that lie at providers; `elsewhere`: documents that need not be
    here, as the event names a provider that has them."""

    here: dict[Item, tuple[int, str]] = field(default_factory=dict)
    gone: dict[Item, int] = field(default_factory=dict)
    remote: set[str] = field(default_factory=set)
    elsewhere: set[Item] = field(default_factory=set)

    def look(self, seq: int, name: str, data: Json) -> None:
        """One more event. Raises TypeError, AttributeError, KeyError for data of another shape."""
        if name in _LET_GO:
            item = (data["kind"], data["name"])
            if self.here.pop(item, None) is not None:
                self.gone[item] = seq
            return
        if name == "HitRevoked" and self.here.pop(("snapshot", data["digest"]), None) is not None:
            self.gone["snapshot", data["digest"]] = seq
        names = _NAMES.get(name)
        if names is None:
            return
        for kind, value, role in names(data):
            if kind == "remote":
                self.remote.add(value)
            elif value:
                item = (kind, value)
                if role == IMAGE:
                    self.elsewhere.add(item)
                # the first event that names it, since it came (back): that one's claim is what is checked
                self.here.setdefault(item, (seq, role))
                self.gone.pop(item, None)


def _blobs(role: str, *fields: str) -> Callable[[Json], Iterator[tuple[str, str, str]]]:
    def names(data: Json) -> Iterator[tuple[str, str, str]]:
        for one in fields:
            value = data.get(one)
            for digest in value if isinstance(value, list) else (value,):
                if digest:
                    yield "blob", digest, role

    return names


def _started(data: Json) -> Iterator[tuple[str, str, str]]:
    yield from _blobs("definition", "definition", "context")(data)
    for policy in (data.get("options") or {}).get("policies") or ():
        yield "blob", policy["digest"], "policy"


def _downloaded(data: Json) -> Iterator[tuple[str, str, str]]:
    if data.get("stored"):
        yield "blob", data["digest"], "download"


def _created(data: Json) -> Iterator[tuple[str, str, str]]:
    layers = data.get("layers") or ()
    if layers and layers[-1].get("snapshot") == data["ref"]:  # else it only points
        yield "snapshot", data["ref"], ""


def _remote(data: Json) -> Iterator[tuple[str, str, str]]:
    for layer in data["layers"]:
        if digest := layer.get("digest"):
            yield "remote", digest, ""


def _pulled(data: Json) -> Iterator[tuple[str, str, str]]:
    yield "layer", data.get("diff_id") or "", ""


def _packed(data: Json) -> Iterator[tuple[str, str, str]]:
    if data["digest"] != data.get("source"):  # else it was found to be what it should become
        yield "blob", data["digest"], "packed layer"


def _stored(data: Json) -> Iterator[tuple[str, str, str]]:
    yield "blob", data["layer"]["digest"], "layer"


def _exported(data: Json) -> Iterator[tuple[str, str, str]]:
    if data.get("kind") == "index" and data.get("digest"):
        yield "blob", data["digest"], "index"


_LET_GO = frozenset({"Demoted", "Pruned", "LocalLost"})
_NAMES: Mapping[str, Callable[[Json], Iterator[tuple[str, str, str]]]] = {
    "BuildStarted": _started,
    "DefinitionRead": _blobs("definition", "definition"),
    "GraphDefined": _blobs("graph", "graph"),
    "SourceResolved": _blobs(IMAGE, "manifest", "config"),
    "HttpResolved": _downloaded,
    "ContextScanned": _blobs("list of context files", "listing"),
    "ContextKept": _blobs("context files", "listing", "packs"),
    "CacheQueried": _blobs("cache key", "components"),
    "CacheRecorded": _blobs("cache key", "components"),
    "CacheImported": _blobs("cache document", "digest", "metadata"),
    "BlobCreated": _packed,
    "LayerStored": _stored,
    "LayerScanned": _blobs("scan of packages", "scan"),
    "Attested": _blobs("attestation", "statement", "envelope"),
    "Exported": _exported,
    "RemoteCreated": _remote,
    "LocalCreated": _created,
    "LayerPulled": _pulled,
    "LayerLaidOut": _pulled,
}
