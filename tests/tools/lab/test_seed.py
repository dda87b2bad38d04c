"""Base images for the demo and the benches, and the registry they go to."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.errors import HostError
from tools.lab.debian_mirror import DebianMirror
from tools.lab.loopback_registry import LoopbackRegistry, Request
from tools.lab.seed import KINDS, seed

pytestmark = pytest.mark.root


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[LoopbackRegistry]:
    with LoopbackRegistry(tmp_path / "registry") as running:
        yield running


def inspect(reference: str, *options: str) -> dict[str, object]:
    command = ["skopeo", "inspect", "--tls-verify=false", *options, f"docker://{reference}"]
    found: dict[str, object] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def test_a_seeded_image_is_what_the_registry_holds(registry: LoopbackRegistry, tmp_path: Path) -> None:
    made = seed(registry.host, "base/tiny", "busybox", tag="one", cache=tmp_path / "cache dir")
    found = inspect(made.reference)
    assert made.reference == f"{registry.host}/base/tiny:one"
    assert (found["Digest"], found["Layers"]) == (made.digest, [digest for digest, _ in made.layers])
    config = inspect(made.reference, "--config")["config"]
    assert isinstance(config, dict)
    assert config["Cmd"] == ["sh"]
    assert config["Env"] == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]


def test_the_second_time_nothing_is_made(
    registry: LoopbackRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = seed(registry.host, "base/a", "busybox", cache=tmp_path / "cache")
    only_skopeo = tmp_path / "bin"
    only_skopeo.mkdir()
    skopeo = subprocess.run(["which", "skopeo"], check=True, capture_output=True, text=True).stdout.strip()
    (only_skopeo / "skopeo").symlink_to(skopeo)
    monkeypatch.setenv("PATH", str(only_skopeo))
    second = seed(registry.host, "base/b", "busybox", cache=tmp_path / "cache")
    assert second.digest == first.digest
    assert [path.name for path in (tmp_path / "cache").glob("making-*")] == []


def test_a_failing_tool_is_one_error_and_leaves_no_image(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="skopeo failed"):
        seed("127.0.0.1:1", "base/a", "busybox", cache=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "lock"]


def test_kinds_that_share_packages_share_layers() -> None:
    assert KINDS["small"] == KINDS["python"][:1] == KINDS["big"][:1]


def test_the_access_log_counts_what_was_read(registry: LoopbackRegistry, tmp_path: Path) -> None:
    made = seed(registry.host, "base/tiny", "busybox", cache=tmp_path / "cache")
    layers = [digest for digest, _ in made.layers]
    before = len(registry.requests())
    assert registry.blob_gets(layers, since=before) == []
    copied = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{made.reference}", f"dir:{tmp_path}/d"]
    subprocess.run(copied, check=True)
    gets = registry.blob_gets(layers, since=before)
    assert [(get.blob, get.bytes) for get in gets] == list(made.layers)


def test_a_mount_is_told_from_an_upload() -> None:
    path = "/v2/apps/a/blobs/uploads/?from=base&mount=sha256%3Aaa"
    assert Request("POST", path, 201, 0).mounted
    assert not Request("POST", path, 202, 0).mounted


def test_a_stopped_registry_is_gone(tmp_path: Path) -> None:
    registry = LoopbackRegistry(tmp_path).start()
    command = "docker-registry\0serve\0" + str(tmp_path / "config.yml")
    assert command in running()
    registry.stop()
    assert command not in running()


def test_a_registry_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with LoopbackRegistry(tmp_path) as registry, pytest.raises(HostError, match="skopeo failed"):
        seed(registry.host, "base/tiny", "busybox", cache=tmp_path / "cache")


def test_the_host_mirror_is_usable_elsewhere(tmp_path: Path) -> None:
    mirror = DebianMirror.of_host()
    assert {line.partition(" ")[0] for line in mirror.sources.splitlines()} == {"deb"}
    mirror.write_config(tmp_path, seen_as=str(tmp_path))
    asked = subprocess.run(
        ["apt-get", "update", "--print-uris"],
        check=True, capture_output=True, text=True, env={**os.environ, "APT_CONFIG": str(tmp_path / "apt.conf")},
    )  # fmt: skip
    for line in mirror.sources.splitlines():
        _, uri, release, _ = line.split()
        assert f"'{uri.rstrip('/')}/dists/{release}/InRelease'" in asked.stdout
    dumped = subprocess.run(
        ["apt-config", "dump"], check=True, capture_output=True, text=True,
        env={**os.environ, "APT_CONFIG": str(tmp_path / "apt.conf")},
    )  # fmt: skip
    assert f'Dir::State::lists "{tmp_path}/lists";' in dumped.stdout


def running() -> set[str]:
    """Command lines of all processes, arguments separated by NUL."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.add(path.read_text().rstrip("\0"))
        except OSError:
            continue
    return found
