"""Our archives in dockerd: it loads them, and gives each image the id that --iidfile says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.builder import Builder, base_image
from tests.differential.oracles import BuildKit
from tests.registry_fixture import RegistryProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")
NAME = "example.test/app:1"


@pytest.mark.parametrize(
    ("compression", "named"), [("gzip", True), ("uncompressed", True), ("estargz", True), ("gzip", False)]
)
def test_dockerd_loads_an_archive_under_its_id(
    docker: BuildKit, registry: RegistryProcess, repository: str, tmp_path: Path, compression: str, named: bool
) -> None:
    builder = Builder(tmp_path)
    base = base_image(registry, f"{repository}/base", size=50_000)["reference"]
    archive = tmp_path / "image.tar"
    builder.must_build(
        f"FROM {base}\nCOPY <<x /word\n{compression} {named}\nx\nRUN rm /data/1; mkdir /made\nLABEL a=b\n",
        *(["-t", NAME] if named else []), "--iidfile", str(tmp_path / "iid"),
        "-o", f"type=docker,dest={archive},compression={compression},force-compression=true",
    )  # fmt: skip
    iid = (tmp_path / "iid").read_text()
    assert docker.load(archive) == (NAME if named else iid, iid)
    assert docker.read_file(iid, "/word") == f"{compression} {named}\n"
