"""What is looked at after a crash sees a hole where there is one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.crash.outcomes import lacking
from tests.registry_fixture import OCI_MANIFEST

_INDEX = "application/vnd.oci.image.index.v1+json"


def put(layout: Path, data: bytes, media_type: str) -> dict[str, str]:
    name = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (layout / "blobs/sha256" / name).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{name}"}


def test_I11_what_a_layouts_name_leads_to_is_looked_for_to_the_last_layer(tmp_path: Path) -> None:
    layer, config = put(tmp_path, b"a layer", "layer"), put(tmp_path, b"{}", "config")
    image = put(tmp_path, json.dumps({"config": config, "layers": [layer]}).encode(), OCI_MANIFEST)
    index = put(tmp_path, json.dumps({"manifests": [image]}).encode(), _INDEX)
    (tmp_path / "index.json").write_text(json.dumps({"manifests": [index]}))
    assert list(lacking(tmp_path)) == []
    blobs = {one["digest"]: tmp_path / "blobs" / one["digest"].replace(":", "/") for one in (layer, config, image)}
    for digest, path in blobs.items():
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert list(lacking(tmp_path)) == [digest]
        path.unlink()
        assert list(lacking(tmp_path)) == [digest]
        path.write_bytes(whole)
    (tmp_path / "index.json").write_text('{"manifests": [')
    assert list(lacking(tmp_path)) == ["index.json is torn"]
