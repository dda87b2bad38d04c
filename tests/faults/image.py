"""The image that moves in every row of the table: one layer, that does not compress."""

from __future__ import annotations

import gzip
import json

from storage.digest import sha256
from storage.interfaces.images import Descriptor
from tests.registry_fixture import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    RegistryProcess,
    layer_tar,
    push_blob,
    push_manifest,
)
from tests.storage.registry.kit import noise

CONTENT = noise(200_000, seed=11)
TAR = layer_tar({"data": CONTENT})
LAYER = gzip.compress(TAR, 1, mtime=0)
TAGS = ("1", "2", "3")
MIDDLE = 100_000
PLACES = {"first byte": 0, "middle": MIDDLE, "last byte": -1}
"""Of a layer's bytes: the fault comes before the first, in the middle, before the last."""
CONFIG = json.dumps({
    "architecture": "amd64", "os": "linux", "config": {},
    "rootfs": {"type": "layers", "diff_ids": [sha256(TAR)]},
}).encode()  # fmt: skip
BLOBS = {
    data: Descriptor(kind, sha256(data), len(data)) for data, kind in ((LAYER, OCI_LAYER), (CONFIG, OCI_CONFIG))
}
IMAGE = json.dumps({
    "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": BLOBS[CONFIG].to_json(),
    "layers": [BLOBS[LAYER].to_json()],
}).encode()  # fmt: skip


def put_image(registry: RegistryProcess, repository: str) -> None:
    """The image where a row finds it, under three tags."""
    for data in BLOBS:
        push_blob(registry.host, repository, data)
    for tag in TAGS:
        push_manifest(registry.host, repository, tag, IMAGE, OCI_MANIFEST)
