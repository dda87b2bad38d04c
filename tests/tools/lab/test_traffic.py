"""Requests of an access log, sorted by what they were about: what a bench reports must not look cheaper than it was."""

from __future__ import annotations

from pathlib import Path

from tests.registry_fixture import OCI_MANIFEST, WEB, push_blob, push_image, push_manifest
from tools.lab import traffic
from tools.lab.loopback_registry import LoopbackRegistry, Request
from tools.lab.traffic import kind_of

UNKNOWN = f"sha256:{'0' * 64}"


def test_reading_and_writing_are_counted_by_what_the_manifests_name(tmp_path: Path) -> None:
    with LoopbackRegistry(tmp_path / "registry") as registry:
        image = push_image(registry.host, "one", [{"file": b"content " * 100}])
        described = image["layers"][0]
        layer, size = described["digest"], described["size"]
        before = len(registry.requests())
        url = f"http://{registry.host}/v2/one"
        manifest = WEB.get(f"{url}/manifests/latest", headers={"Accept": OCI_MANIFEST})
        config = WEB.get(f"{url}/blobs/{manifest.json()['config']['digest']}")
        WEB.head(f"{url}/blobs/{layer}")
        WEB.get(f"{url}/blobs/{layer}", headers={"Range": "bytes=0-9"})
        mount = WEB.post(f"http://{registry.host}/v2/two/blobs/uploads/?mount={layer}&from=one")
        assert mount.status_code == 201
        push_blob(registry.host, "two", b"new")
        push_manifest(registry.host, "one", "again", manifest.content, OCI_MANIFEST)
        found = traffic.traffic(registry, before)
    assert size > 10
    assert found.received == {traffic.MANIFEST: len(manifest.content), traffic.CONFIG: len(config.content),
                              traffic.LAYER: 10}  # fmt: skip
    assert found.layers == {layer}
    assert (found.uploads, found.sent) == (1, 3)
    assert found.requests[traffic.ASKED] >= 1
    assert (found.requests[traffic.MOUNTED], found.requests[traffic.WRITTEN]) == (1, 1)


def test_a_blob_that_no_manifest_names_counts_as_a_layer() -> None:
    assert kind_of(Request("GET", f"/v2/a/blobs/{UNKNOWN}", 200, 5), {}) == traffic.LAYER


def test_a_mount_that_was_not_granted_is_an_upload() -> None:
    refused = Request("POST", f"/v2/a/blobs/uploads/?mount={UNKNOWN}&from=b", 202, 0)
    assert kind_of(refused, {}) == traffic.UPLOADING
