"""Documents that a log names: they are small, stored as blobs, and travel with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from storage.interfaces.log import Event


def small_blobs(events: Sequence[Event]) -> Mapping[str, str]:
    """Digests of stored documents that `events` name, and their roles."""
    found: dict[str, str] = {}
    fields = {
        "BuildStarted": (("definition", "definition"),), "DefinitionRead": (("definition", "definition"),),
        "GraphDefined": (("graph", "graph"),), "CacheQueried": (("components", "components"),),
        "CacheRecorded": (("components", "components"),), "ContextScanned": (("listing", "listing"),),
        "SourceResolved": (("manifest", "manifest"), ("config", "config")),
    }  # fmt: skip
    for event in events:
        for name, role in fields.get(event.type, ()):
            digest = event.data.get(name)
            if digest and isinstance(digest, str):
                found.setdefault(digest, role)
    return found
