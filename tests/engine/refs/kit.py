"""A root with the real parts that bring layers, in this process, and images in a real registry."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.clock import Clock
from engine.ledger import Ledger
from engine.refs.asked import AskedPaths
from engine.refs.fetch import Fetcher
from engine.refs.materializer import Materializer
from engine.refs.ref import Layer, Remote
from storage.blobs import DirectoryBlobs
from storage.credentials.lookup import DockerCredentials
from storage.digest import Digest
from storage.interfaces.images import Descriptor, Provider
from storage.layers.directory import DirectoryLayers
from storage.layers.erofs.layers import ErofsLayers
from storage.layers.erofs.mount import ErofsMounts
from storage.layers.snapshots import OverlaySnapshots
from storage.partial import DirectoryPartials
from storage.parts.trees import DirectoryParts
from storage.registry import RegistryClient
from tests.chunked import Made
from tests.registry_fixture import OCI_CONFIG, OCI_MANIFEST, digest_of, push_blob, push_manifest
from tools.roots import Root, open_root


@dataclass(frozen=True)
class Kit:
    """What an engine is made of, as far as bytes go."""

    root: Root
    snapshots: OverlaySnapshots
    materializer: Materializer
    asked: AskedPaths
    registry: RegistryClient

    def events(self, *types: str) -> list[dict[str, Any]]:
        """Data of the events of `types`, in order."""
        return [event.data for event in self.root.log.read(types=frozenset(types))]

    def leftovers(self) -> list[str]:
        """What lies in the scratch directory."""
        return [path.name for path in self.root.tmp.iterdir()]


@contextmanager
def kit(directory: Path, *, small: int = 0, build: str = "b1", erofs: bool = True) -> Iterator[Kit]:
    """The parts, in a root at `directory`; layers are EROFS images, where the kernel mounts them, or directories. To be
    used in one event loop."""
    with open_root(directory) as root:
        ledger = Ledger(root.log, build)
        mounts = ErofsMounts(root.path / "mnt", build)
        erofs = erofs and mounts.works
        snapshots = OverlaySnapshots(root.path / "snapshots", root.tmp, build, mounts=mounts)
        registry = RegistryClient(DockerCredentials(), user_agent="test")
        clock = Clock(time.time_ns, time.monotonic)
        images = ErofsLayers(root.path / "layers", root.tmp, build, mounts)
        layers = images if erofs else DirectoryLayers(root.path / "layers", root.tmp, build)
        blobs = DirectoryBlobs(root.path, owner=build)
        partials = DirectoryPartials(root.path / "partial")
        fetcher = Fetcher(blobs, partials, registry, root.locks, ledger, clock)
        materializer = Materializer(layers, snapshots, fetcher, root.locks, ledger, clock)
        parts = DirectoryParts(root.tmp, build)
        asked = AskedPaths(materializer, parts, registry, ledger, clock, small)
        try:
            yield Kit(root, snapshots, materializer, asked, registry)
        finally:
            materializer.close()


def push_layers(host: str, name: str, layers: Sequence[Made], config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Push an image of `layers`, bottom first; returns `{reference, layers}` as push_image does."""
    for layer in layers:
        push_blob(host, name, layer.blob)
    described = [layer.descriptor for layer in layers]
    image = {
        "architecture": "amd64", "os": "linux", "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": [layer["diff_id"] for layer in described]},
    }  # fmt: skip
    data = json.dumps(image).encode()
    manifest = {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": push_blob(host, name, data), "size": len(data)},
        "layers": [{key: value for key, value in layer.items() if key != "diff_id"} for layer in described],
    }  # fmt: skip
    push_manifest(host, name, "latest", json.dumps(manifest).encode(), OCI_MANIFEST)
    return {"reference": f"{host}/{name}:latest", "layers": described}


def remote(hosts: Sequence[str], name: str, layers: Sequence[Made]) -> Remote:
    """The ref of an image of `layers` (bottom first) that repository `name` at all `hosts` has."""
    providers = tuple(Provider.of(host, name) for host in hosts)
    made = tuple(
        Layer(Digest(layer.descriptor["diff_id"]), Descriptor.from_json(layer.descriptor), providers)
        for layer in layers
    )
    return Remote(digest_of(b"".join(layer.blob for layer in layers)), made)
