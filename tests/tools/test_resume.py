"""A build that is killed in the middle of a pull, again and again: the next one goes on, and the registry can tell."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.builder import Builder, busybox_layer
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess, push_image

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

MB = 1_000_000
RANGE = 16 << 20


def kill_when(builder: Builder, fault: Fault, digest: str, here: int, before: int) -> None:
    """Build, and kill the build with SIGKILL once the log says that `here` bytes of blob `digest` are here, `before` of
    which were already. It cannot end sooner, nor have much more: `fault` lets little more through."""
    fault.crawl_after = fault.sent + here - before + 2 * MB
    process = builder.start("build", str(builder.context), "--progress=json")
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "PullProgressed" and event["data"]["digest"] == digest and event["data"]["bytes"] >= here:
            break
    else:
        pytest.fail("the build ended before it could be killed")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    ("size", "kills", "connections"),
    [
        (12 * MB, (3 * MB,), 1),  # one request
        (40 * MB, (5 * MB, 20 * MB), 1),  # ranges, one after the other
        (70 * MB, (5 * MB, 35 * MB), 4),  # ranges, several at once
    ],
)
def test_I12_kill_9_in_mid_pull_costs_no_more_than_the_range_on_its_way(
    builder: Builder,
    registry: RegistryProcess,
    repository: str,
    size: int,
    kills: tuple[int, ...],
    connections: int,
) -> None:
    content = random.Random(repository).randbytes(size)
    files: list[dict[str, bytes]] = [busybox_layer(), {"data": content}]
    image = push_image(registry.host, repository, files, level=0, config={"Env": ["PATH=/bin"]})
    digest, total = image["layers"][1]["digest"], image["layers"][1]["size"]
    mark = registry.mark()
    slow = Fault("GET", f"/blobs/{digest}", rate=25 * MB)
    with FaultyProxy(registry.host, slow) as proxy:
        dockerfile = f"FROM {proxy.host}/{repository}\nRUN /bin/busybox sha256sum /data\n"
        builder.write({"Dockerfile": dockerfile})
        for before, here in pairwise((0, *kills)):
            kill_when(builder, slow, digest, here, before)
        slow.crawl_after = None
        builder.must_build(dockerfile)
    build = builder.builds()[0]["id"]
    (pulled,) = [e["data"] for e in builder.events("LayerPulled") if e["data"]["digest"] == digest]
    assert pulled["resumed_from"] >= kills[-1]
    assert pulled["resumed_from"] + pulled["bytes"] == total
    sent = sum(line.bytes for line in registry.layer_gets([digest], since=mark))
    assert total <= sent <= total + len(kills) * connections * RANGE
    assert hashlib.sha256(content).hexdigest() in builder.run("output", build).out
    assert [e["data"]["error"] for e in builder.events("PullFailed")] == []
    assert list((builder.root / "partial").iterdir()) == []
    assert builder.leftovers() == []



@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def test_what_nobody_came_back_for_goes_after_a_week(builder: Builder) -> None:
    builder.must_build("FROM scratch\nLABEL a=b\n")
    places = [builder.root / "partial" / f"sha256-{digit * 64}" for digit in "12"]
    for place, days in zip(places, (6.5, 7.5), strict=True):
        place.mkdir(parents=True)
        (place / "0").write_bytes(b"bytes")
        past = time.time() - days * 86400
        for path in (place / "0", place):
            os.utime(path, (past, past))
    builder.must_build("FROM scratch\nLABEL a=b\n")
    assert list((builder.root / "partial").iterdir()) == places[:1]
