"""What registries have from the start."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from storage.digest import Digest, canonical_json, parse_json, sha256
from storage.interfaces.images import Descriptor
from storage.media_types import CONFIG, INDEX, MANIFEST
from storage.parts.estargz import Estargz
from storage.platform import host_platform
from tests.simulation import model
from tests.simulation.hosts import Host
from tests.simulation.inodes import FileSystem
from tests.simulation.oracle import blobs_of
from tests.simulation.registry import MemoryRegistries
from tests.simulation.scenarios import BASES, MIRROR, TARGETS, Scenario

ARCHITECTURE = host_platform().architecture
STOCK, SEEKABLE, FOREIGN = 5, 3, 9
"""So many layers there are; from which number on they are eStargz; that of images for another platform."""
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


def _list_platforms(host: Host, repository: str, manifest: bytes) -> None:
    """Have the tag name an index, in which `manifest` comes behind that of another platform."""
    layer = LAYERS[FOREIGN]
    config = canonical_json({
        "architecture": "s390x", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
    })  # fmt: skip
    foreign = canonical_json({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": Descriptor(CONFIG, host.put_blob(repository, config), len(config)).to_json(),
        "layers": [layer.put(host, repository)],
    })  # fmt: skip
    entries = []
    for data, architecture in ((foreign, "s390x"), (manifest, ARCHITECTURE)):
        host.put_manifest(repository, sha256(data), MANIFEST, data)
        platform = {"architecture": architecture, "os": "linux"}
        entries.append({**Descriptor(MANIFEST, sha256(data), len(data)).to_json(), "platform": platform})
    index = canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
    host.put_manifest(repository, "latest", INDEX, index)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A base layer as a blob."""

    blob: bytes
    diff_id: Digest
    annotations: Mapping[str, str]

    def put(self, host: Host, repository: str) -> dict[str, object]:
        """Have it there; its descriptor."""
        digest = host.put_blob(repository, self.blob)
        return Descriptor(LAYER_TYPE, digest, len(self.blob), self.annotations).to_json()


def _layer(number: int) -> _Layer:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in model.base_layer(number).items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(data), 0o644, 1_600_000_000
            tar.addfile(member, io.BytesIO(data))
    plain = file.getvalue()
    if number < SEEKABLE:
        return _Layer(gzip.compress(plain, 6, mtime=0), sha256(plain), {})
    made = Estargz()
    blob = made.write(plain) + made.finish()
    return _Layer(blob, made.diff_id, made.annotations)


LAYERS = {number: _layer(number) for number in (*range(STOCK), FOREIGN)}
"""Made before any thread is simulated."""


def lay_out(files: FileSystem, registries: MemoryRegistries, scenario: Scenario) -> None:
    """Have the image that builds take from a layout lie on a disk."""
    if scenario.near < 0:
        return
    number = scenario.near % len(scenario.images)
    read = partial(registries.host(BASES).read, f"base{number}")
    top = read("latest")
    assert top is not None
    blobs = {sha256(top): top} | {digest: read(digest) or b"" for digest in blobs_of(read, "latest")}
    for digest, data in blobs.items():
        files.put(f"near{number}/blobs/{digest.replace(':', '/')}", data)
    entry = Descriptor(parse_json(top)["mediaType"], sha256(top), len(top)).to_json()
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    files.put(f"near{number}/oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"}))
    files.put(f"near{number}/index.json", canonical_json(index))


def lose_near(files: FileSystem, pick: int) -> set[str]:
    """A layer of that layout goes, or is damaged: which."""
    for name, layout in files.top.entries.items():
        if name.startswith(b"near"):
            blobs = layout.entries[b"blobs"].entries[b"sha256"]
            layers = sorted(name for name, blob in blobs.entries.items() if blob.data[:1] != b"{")
            lost = layers[pick % len(layers)]
            if pick % 2:
                blobs.entries[lost].data[-1] ^= 1
                files.sync_file(blobs.entries[lost])
            else:
                files.change((blobs, lost, None))
                files.sync_directory(blobs)
            return {f"sha256:{lost.decode()}"}
    return set()


def stock(registries: MemoryRegistries, scenario: Scenario) -> None:
    """Put the base images into their registry and its mirror, and have the last target want a login."""
    host = registries.host(BASES)
    mirror = registries.host(MIRROR)
    for number, layers in enumerate(scenario.images):
        repository = f"base{number}"
        made = [LAYERS[layer] for layer in layers]
        if scenario.lies >= 0 and number == scenario.lies % len(scenario.images):
            made[-1] = replace(made[-1], diff_id=sha256(b"something else"))
        config = canonical_json({
            "architecture": ARCHITECTURE, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in made]},
        })  # fmt: skip
        manifest = canonical_json({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": Descriptor(CONFIG, host.put_blob(repository, config), len(config)).to_json(),
            "layers": [layer.put(host, repository) for layer in made],
        })  # fmt: skip
        top = host.put_manifest(repository, "latest", MANIFEST, manifest)
        assert top[0] == 201, top
        if number % 2:
            _list_platforms(host, repository, manifest)
        host.copy(repository, mirror)
    for number, blob in enumerate(sorted(digest for digest, data in mirror.content.items() if data[:1] != b"{")):
        if scenario.mirror == "corrupt":
            mirror.damage(blob)
        elif scenario.mirror == "partial" and number % 2:
            mirror.lose(blob)
    mirror.up = scenario.mirror != "down"
    *_, closed = [registries.host(name) for name in TARGETS]
    for number in range(len(scenario.programs)):
        closed.readers[f"out{number}"] = closed.writers[f"out{number}"] = frozenset({"builder"})
