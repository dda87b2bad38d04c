"""The registry fixture tells the truth: other tests count bytes by it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.registry_fixture import HTPASSWD, PASSWORD, USER, WEB, RegistryProcess, push_image


def test_access_log_counts_whole_and_partial_reads(registry: RegistryProcess, repository: str) -> None:
    image = push_image(registry.host, repository, [{"etc/one": b"1" * 5000}])
    layer = image["layers"][0]
    mark = registry.mark()
    url = f"http://{registry.host}/v2/{repository}/blobs/{layer['digest']}"
    WEB.get(url)
    WEB.get(url, headers={"Range": "bytes=10-"})
    WEB.head(url)
    first, second = registry.layer_gets([layer["digest"]], since=mark)
    assert (first.status, first.bytes, first.partial) == (200, layer["size"], False)
    assert (second.status, second.bytes, second.partial) == (206, layer["size"] - 10, True)
    assert first.started < second.started
    assert first.started % 10**9, "nanoseconds come from the service log"


def test_image_is_one_that_skopeo_reads(registry: RegistryProcess, repository: str) -> None:
    image = push_image(registry.host, repository, [{"a": b"1"}, {"b": b"2"}], config={"Env": ["A=1"]})
    command = ["skopeo", "inspect", "--tls-verify=false", f"docker://{image['reference']}"]
    seen = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert seen["Digest"] == image["digest"]
    assert seen["Layers"] == [layer["digest"] for layer in image["layers"]]


def test_htpasswd_is_enforced(tmp_path: Path) -> None:
    with RegistryProcess(tmp_path / "r", htpasswd=HTPASSWD) as process:
        with pytest.raises(httpx.HTTPStatusError):
            push_image(process.host, "a/b", [{"a": b"1"}])
        push_image(process.host, "a/b", [{"a": b"1"}], auth=(USER, PASSWORD))
