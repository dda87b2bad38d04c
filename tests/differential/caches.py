"""The inline caches that the BuildKit of dockerd exports, and the golden ones that were kept of them.

`python -m tests.differential.caches` builds every case anew and writes the golden files.
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.builder import busybox_layer
from tests.differential.oracles import BuildKit, dockerd
from tests.engine.buildkit.cases import CASES, GOLDEN, dockerfile, lay
from tests.registry_fixture import OCI_MANIFEST, WEB, RegistryProcess, push_image, push_manifest
from tests.waiting import PATIENCE

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
INLINE = ("--build-arg", "BUILDKIT_INLINE_CACHE=1")
_KEPT = ("reference", "digest", "layers", "config")
_FILES = {"tmp/": b"", **busybox_layer(), "etc/group": b"root:x:0:\napp:x:1000:\nstaff:x:50:app\n"}
_CONFIGS: dict[str, dict[str, Any]] = {
    "base": {"Env": ["PATH=/bin"]},
    "rich": {"Env": ["PATH=/bin", "X=y"], "User": "app", "WorkingDir": "/home/x"},
}


def push_bases(registry: RegistryProcess) -> dict[str, dict[str, Any]]:
    """The images that cases stand on, by their names there. `rich` is one of an index."""
    layers = [_FILES, {"data/": b"", "data/1": b"x"}]
    images = {
        name: push_image(registry.host, f"caches/{name}", layers, config=config, level=1)
        for name, config in _CONFIGS.items()
    }
    rich = images["rich"]
    entry = {"mediaType": OCI_MANIFEST, "digest": rich["digest"], "size": rich["size"]}
    platforms = [{"os": "linux", "architecture": name} for name in ("amd64", "s390x")]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{**entry, "platform": p} for p in platforms]}
    push_manifest(registry.host, "caches/rich", "index", json.dumps(index).encode(), OCI_INDEX)
    return images | {"rich": {**rich, "reference": f"{registry.host}/caches/rich:index"}}


def build_inline(docker: BuildKit, context: Path, tag: str, *args: str) -> str:
    """Build `context` with an inline cache and push it; what was said."""
    process = docker.start(context, [*INLINE, *args], tag)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    docker.push(tag)
    return said


def image_config(tag: str) -> dict[str, Any]:
    """The config of the image `HOST/NAME`, as the registry has it."""
    host, _, name = tag.partition("/")
    url = f"http://{host}/v2/{name}"
    accept = {"Accept": f"application/vnd.docker.distribution.manifest.v2+json, {OCI_MANIFEST}"}
    manifest = WEB.get(f"{url}/manifests/latest", headers=accept).raise_for_status().json()
    config: dict[str, Any] = WEB.get(f"{url}/blobs/{manifest['config']['digest']}").raise_for_status().json()
    return config


def inline_cache(tag: str) -> list[dict[str, Any]]:
    """The records in the config of the image `HOST/NAME`."""
    records: list[dict[str, Any]] = json.loads(base64.b64decode(image_config(tag)["moby.buildkit.cache.v0"]))
    return records


def endings(said: str) -> dict[str, str]:
    """How each step ended (`CACHED`, `DONE …`, `ERROR …`), from plain progress; loading and exporting is no step."""
    names: dict[str, str] = {}
    found: dict[str, str] = {}
    for line in said.splitlines():
        number, _, text = line.partition(" ")
        if re.match(r"\[[^\]]*\d+/\d+\] (?!FROM)", text):
            names[number] = text
        elif number in names and re.match("CACHED|DONE|ERROR", text):
            found[names[number]] = text
    return found


def capture(
    host: str, docker: BuildKit, name: str, directory: Path, bases: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What BuildKit exports for a case on `bases`, whose context is laid in `directory`; `host`: the registry."""
    lay(directory)
    references = {base: image["reference"] for base, image in bases.items()}
    (directory / "Dockerfile").write_text(dockerfile(name, references))
    (directory / "Dockerfile").chmod(0o644)
    tag = f"{host}/caches/of-{name}"
    build_inline(docker, directory, tag)
    return inline_cache(tag)


def main() -> None:
    """Write the golden files."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        dockerd() as docker,
        RegistryProcess(Path(scratch) / "registry") as registry,
    ):
        bases = push_bases(registry)
        images = {base: {key: image[key] for key in _KEPT} for base, image in bases.items()}
        for name in CASES:
            directory = Path(scratch) / name
            directory.mkdir()
            golden = {
                "made_by": "python -m tests.differential.caches", "docker": docker.version().strip(),
                "images": images, "records": capture(registry.host, docker, name, directory, bases),
            }  # fmt: skip
            (GOLDEN / f"{name}.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
