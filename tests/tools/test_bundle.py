"""`refledger bundle`: one file that tells the build and holds what only this machine had, not what must stay."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard

from tests.builder import PROJECT, Builder, Done, base_image
from tests.registry_fixture import RegistryProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

KEY = b"-----BEGIN KEY----- 8f3a91"
FAILING = """\
FROM {base}
RUN echo made-here > /one
COPY . /app
RUN cat /app/src/main.c; echo no such thing >&2; exit 7
"""


class Failed:
    """A build that failed at its last step, and its bundles."""

    def __init__(self, directory: Path, registry: RegistryProcess, repository: str) -> None:
        self.directory, self.builder = directory, Builder(directory / "there")
        self.base = base_image(registry, repository, layers=2)
        self.builder.write({"src/main.c": "int main() {}\n", "src/lib.c": "int lib;\n", "deploy/server.pem": KEY})
        assert self.builder.build(FAILING.format(base=self.base["reference"])).code == 1
        self.build = self.builder.builds()[0]["id"]

    def bundle(self, name: str, *args: str) -> Path:
        path = self.directory / name
        done = self.builder.run("bundle", self.build, "-o", str(path), *args)
        assert done.code == 0, done.err
        return path


@pytest.fixture
def failed(tmp_path: Path, registry: RegistryProcess, repository: str) -> Failed:
    return Failed(tmp_path, registry, repository)


def members(path: Path) -> dict[str, bytes]:
    data = zstandard.ZstdDecompressor().stream_reader(path.read_bytes(), read_across_frames=True).read()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def inspect(path: Path, *args: str) -> Done:
    """In a place with no root, no network and no home."""
    command = ["unshare", "-n", sys.executable, "-m", "tools.cli.main", "bundle", "inspect", str(path), *args]
    env = {"PATH": os.environ["PATH"], "REFLEDGER_ROOT": "/nonexistent", "HOME": "/nonexistent"}
    done = subprocess.run(command, env=env, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_bundle_tells_the_build_with_nothing_else_at_hand(failed: Failed) -> None:
    path = failed.bundle("x")
    shutil.rmtree(failed.builder.root)
    done = inspect(path)
    assert done.code == 0, done.err
    for said in (failed.build, "exit 7", "no such thing", ">>> RUN cat /app/src/main.c", "points at 2 layers"):
        assert said in done.out
    assert failed.base["reference"].partition("/")[0] in done.out
    told = json.loads(inspect(path, "--json").out)
    assert told["build"]["status"] == "failed"
    assert told["layers_bundled"] == 2
    assert told["damage"] is None


def test_the_same_build_gives_the_same_bytes_and_the_root_is_only_read(failed: Failed) -> None:
    before = {path: path.stat().st_mtime_ns for path in failed.builder.root.rglob("*") if path.name != "log.db-shm"}
    assert failed.bundle("x").read_bytes() == failed.bundle("y").read_bytes()
    after = {path: path.stat().st_mtime_ns for path in failed.builder.root.rglob("*") if path.name != "log.db-shm"}
    assert before == after
    assert sorted(path.name for path in failed.directory.iterdir()) == ["there", "x", "y"]


def test_it_holds_the_log_the_definition_and_what_only_this_machine_had(failed: Failed) -> None:
    held = members(failed.bundle("x"))
    events = [json.loads(line) for line in held["events.jsonl"].splitlines()]
    assert events == failed.builder.events(build=failed.build)
    contents = b"".join(held.values())
    for piece in (b"RUN cat /app/src/main.c", b"made-here", b"int main() {}", KEY):
        assert piece in contents
    assert not any(len(data) > 300_000 for data in held.values())  # the base's layers are pointers


def test_full_takes_the_bytes_of_all_layers(failed: Failed) -> None:
    index = json.loads(members(failed.bundle("x", "--full"))["index.json"])
    assert len(index["layers"]) == 4
    assert all("bundled" in layer for layer in index["layers"].values())


@pytest.mark.parametrize("how", [("--redact", "*.pem"), ("--redact", "deploy"), ("--no-context",)])
def test_what_must_not_leave_is_in_no_member(failed: Failed, how: tuple[str, ...]) -> None:
    held = members(failed.bundle("x", *how))
    assert not any(KEY in data for data in held.values())
    assert any(b"made-here" in data for data in held.values())
    assert any(b"int lib;" in data for data in held.values()) == (how[0] == "--redact")
    assert "left out" in inspect(failed.directory / "x").out


@pytest.mark.parametrize("part", range(1, 8))
def test_a_flipped_bit_is_found_and_named_and_what_comes_before_it_is_told(failed: Failed, part: int) -> None:
    data = bytearray(failed.bundle("x").read_bytes())
    at = len(data) * part // 8
    data[at] ^= 0x10
    (failed.directory / "bad").write_bytes(data)
    done = inspect(failed.directory / "bad")
    assert done.code == 4
    assert done.err.count("\n") == 1
    assert str(failed.directory / "bad") in done.err
    if part == 7:  # behind the events
        assert "no such thing" in done.out
        # some bits of compressed data change nothing that they expand to: then no member is at fault
        assert "blobs/sha256/" in done.err or "the digest at its end differs" in done.err


def test_a_truncated_bundle_is_told_as_far_as_it_goes(failed: Failed) -> None:
    data = failed.bundle("x").read_bytes()
    (failed.directory / "bad").write_bytes(data[:-200])
    done = inspect(failed.directory / "bad")
    assert done.code == 4
    assert "truncated" in done.err
    assert "no such thing" in done.out


def test_what_is_no_bundle_is_one_line(failed: Failed) -> None:
    for data in (b"", b"hello", os.urandom(5000), zstandard.compress(b"x" * 5000)):
        (failed.directory / "bad").write_bytes(data)
        done = inspect(failed.directory / "bad")
        assert done.code in {2, 4}
        assert done.err.count("\n") == 1


def test_I9_no_secret_is_in_a_bundle(failed: Failed) -> None:
    value = failed.directory / "value"
    value.write_text("hunter2-is-the-secret")
    step = "RUN --mount=type=secret,id=k cat /run/secrets/k; exit 3\n"
    done = failed.builder.build(f"FROM {failed.base['reference']}\n{step}", "--secret", f"id=k,src={value}")
    assert done.code == 1
    failed.build = failed.builder.builds()[0]["id"]
    held = members(failed.bundle("x", "--full"))
    assert not any(b"hunter2" in data for data in held.values())
    assert any(b'"secrets":["k"]' in data for data in held.values())
