"""What went over the wire between a builder and a registry: the access log's requests by what they were about.

A blob is what the manifests in the registry's storage say it is, so both are read after the requests.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

from tools.lab.loopback_registry import LoopbackRegistry, Request

MANIFEST, CONFIG, CACHE, LAYER = "manifest", "config", "cache metadata", "layer"
ASKED, MOUNTED, UPLOADING, WRITTEN, OTHER = "blob asked for", "mounted", "uploading", "manifest written", "other"
KINDS = (MANIFEST, CONFIG, CACHE, LAYER, ASKED, MOUNTED, UPLOADING, WRITTEN, OTHER)
"""Of requests. The first four are read (a manifest also by HEAD); a blob is asked for by HEAD, whatever the answer."""
_CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Traffic:
    """`requests` by kind; `received`: bytes of what was read, by kind; `uploads`: how many blobs, and `sent`: their
    bytes; `layers`: digests of the layers of which any bytes were read."""

    requests: Mapping[str, int]
    received: Mapping[str, int]
    uploads: int
    sent: int
    layers: frozenset[str]

    @property
    def count(self) -> int:
        """All requests."""
        return sum(self.requests.values())

    @property
    def bytes(self) -> int:
        """All bytes that were read."""
        return sum(self.received.values())


def traffic(registry: LoopbackRegistry, since: int) -> Traffic:
    """What came to `registry` after its first `since` requests."""
    requests = registry.requests()[since:]
    return sort_out(requests, blob_kinds(registry.directory / "data"), lambda digest: _size(registry, digest))


def sort_out(requests: Iterable[Request], kinds: Mapping[str, str], size_of: Callable[[str], int]) -> Traffic:
    """`requests` sorted; `kinds`: of blobs, by digest; `size_of` a blob: bytes."""
    counted: Counter[str] = Counter()
    received: Counter[str] = Counter()
    layers: set[str] = set()
    uploaded: list[str] = []
    for request in requests:
        kind = kind_of(request, kinds)
        counted[kind] += 1
        if request.method == "GET" and request.status in {200, 206}:
            received[kind] += request.bytes
            if kind == LAYER:
                layers.add(request.blob)
        if kind == UPLOADING and request.method == "PUT" and request.status == 201:
            uploaded += parse_qs(request.path.partition("?")[2])["digest"]
    return Traffic(counted, received, len(uploaded), sum(map(size_of, uploaded)), frozenset(layers))


def kind_of(request: Request, kinds: Mapping[str, str]) -> str:
    """One of KINDS. A blob that no manifest names counts as a layer: nothing may look cheaper than it was."""
    path = request.path.partition("?")[0]
    if "/manifests/" in path:
        return WRITTEN if request.method == "PUT" else MANIFEST
    if request.mounted:
        return MOUNTED
    if "/blobs/uploads/" in path:
        return UPLOADING
    if request.blob:
        return ASKED if request.method == "HEAD" else kinds.get(request.blob, LAYER)
    return OTHER


def blob_kinds(data: Path) -> dict[str, str]:
    """What each blob is, as the manifests in the registry's storage directory `data` say (distribution's layout)."""
    kinds: dict[str, str] = {}
    for link in data.glob("docker/registry/v2/repositories/**/_manifests/revisions/*/*/link"):
        manifest = json.loads(_blob(data, link.read_text()).read_bytes())
        for entry in (*manifest.get("layers", ()), *manifest.get("manifests", ()), manifest.get("config")):
            if entry:
                kinds[entry["digest"]] = _kind(entry["mediaType"])
    return kinds


def _kind(media_type: str) -> str:
    if media_type in _CONFIG_TYPES:
        return CONFIG
    return LAYER if ".tar" in media_type else CACHE


def _blob(data: Path, digest: str) -> Path:
    hexa = digest.strip().partition(":")[2]
    return data / "docker/registry/v2/blobs/sha256" / hexa[:2] / hexa / "data"


def _size(registry: LoopbackRegistry, digest: str) -> int:
    return _blob(registry.directory / "data", digest).stat().st_size
