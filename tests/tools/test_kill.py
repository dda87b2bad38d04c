"""kill -9 while layers come in, at moments spread over a whole materialization: the next build is as if nothing was."""

from __future__ import annotations

import io
import os
import random
import signal
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder, busybox_layer, layer_digests
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess, digest_of, push_image
from tests.storage.layers.trees import facts
from tests.storage.test_convert import plain
from tests.tools.test_hostile_layers import loops
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

MOMENTS = 6
"""One in each sixth of the materialization."""
RATE = 3_000_000
"""Bytes a second of each layer, so that a build goes through all its states slowly enough to be met in them."""
BLOBS = r"/blobs/sha256:"


@pytest.fixture
def proxy(registry: RegistryProcess) -> Iterator[FaultyProxy]:
    with FaultyProxy(registry.host) as running:
        yield running


def push_layers(host: str, repository: str) -> dict[str, Any]:
    """Four layers of 0.5 to 2 MB that do not compress, and a few hundred files."""
    rng = random.Random(4)
    layers = [
        {f"data{layer}/{number % 7}/{number}": rng.randbytes(layer * 500_000 // 80) for number in range(80)}
        for layer in range(1, 5)
    ]
    return push_image(host, repository, [busybox_layer(), *layers], config={"Env": ["PATH=/bin"]})


@pytest.mark.parametrize("kind", ["erofs", "directory"])
def test_I12_kill_9_at_any_moment_of_a_materialization_then_the_same_build_is_right(
    tmp_path: Path, registry: RegistryProcess, proxy: FaultyProxy, repository: str, kind: str
) -> None:
    reference = push_layers(registry.host, repository)["reference"].replace(registry.host, proxy.host)
    slow = Fault(path=BLOBS, rate=RATE)
    dockerfile = f"FROM {reference}\nRUN echo done > /result\n"

    def build(builder: Builder, *, kill_after: float | None) -> tuple[int, float]:
        """The exit code, and the seconds since the first layer was asked for."""
        builder.write({"Dockerfile": dockerfile})
        asked = len(layer_requests(proxy))
        process = builder.start("build", str(builder.context), "--progress=quiet", "--snapshotter", kind)
        wait_until(lambda: len(layer_requests(proxy)) > asked, process)
        began = time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            process.send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode in {0, -signal.SIGKILL}, err
        return process.returncode, time.monotonic() - began

    proxy.faults.append(slow)
    undisturbed = Builder(tmp_path / "undisturbed")
    code, whole = build(undisturbed, kill_after=None)
    assert code == 0
    wanted = result(undisturbed, kind)
    assert len(wanted) > 320

    killed = 0
    moments = random.Random(kind)
    for number in range(MOMENTS):
        builder = Builder(tmp_path / str(number))
        slow.times = -1
        after = moments.uniform(number, number + 1) * whole / MOMENTS
        code, took = build(builder, kill_after=after)
        if code == 0:  # the machine is quicker than when it was measured
            whole = took
        killed += code != 0
        slow.times = 0
        assert result(builder, kind) == wanted, f"killed after {after:.3f} s"
        assert builder.leftovers() == [], f"killed after {after:.3f} s"
        assert loops(builder.root) == []
        statuses = [build["status"] for build in builder.builds()]
        assert set(statuses) <= {"completed", "interrupted"}
        assert statuses[0] == "completed"
    assert builder.run("rebuild", "--check").code == 0
    assert killed >= MOMENTS // 2


@pytest.mark.parametrize("kind", ["zstd", "estargz"])
def test_I12_kill_9_at_any_moment_of_a_conversion_then_the_same_export_is_right(
    tmp_path: Path, registry: RegistryProcess, proxy: FaultyProxy, repository: str, kind: str
) -> None:
    image = push_layers(registry.host, repository)
    reference = image["reference"].replace(registry.host, proxy.host)
    proxy.faults.append(Fault(path=BLOBS, rate=RATE))

    def export(builder: Builder, *, kill_after: float | None = None) -> bytes:
        """The archive; b"" when it was killed."""
        dest = builder.root.parent / "out.tar"
        dest.unlink(missing_ok=True)
        builder.write({"Dockerfile": f"FROM {reference}\nLABEL a=b\n"})
        asked = len(layer_requests(proxy))
        process = builder.start(
            "build", str(builder.context), "--progress=quiet", "-o",
            f"type=oci,dest={dest},compression={kind},force-compression=true", env={"SOURCE_DATE_EPOCH": "1700000000"},
        )  # fmt: skip
        if kill_after is not None:
            wait_until(lambda: len(layer_requests(proxy)) > asked, process)
            time.sleep(kill_after)
            process.send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode in {0, -signal.SIGKILL}, err
        return dest.read_bytes() if process.returncode == 0 else b""

    wanted = export(Builder(tmp_path / "undisturbed"))
    killed = 0
    for number, after in enumerate((0.0, 0.2, 0.5)):
        builder = Builder(tmp_path / str(number))
        if not number:  # this one cannot end before it is killed
            proxy.faults.insert(0, Fault(path=layer_digests(image)[-1], stall_after=100_000))
        killed += not export(builder, kill_after=after)
        del proxy.faults[:-1]
        again = export(builder)
        # reason: names are digests, and alone would not say whether a layer has other files or only other bytes
        assert blobs_in(again) == blobs_in(wanted), (after, builder.events("BlobCreated", "LayerPulled", "PullFailed"))
        assert again == wanted, f"killed after {after} s"
        assert builder.leftovers() == [], f"killed after {after} s"
    assert builder.run("rebuild", "--check").code == 0
    assert killed >= 1
    mark = len(layer_requests(proxy))
    assert export(builder) == wanted
    assert len(layer_requests(proxy)) == mark, "what was converted once is remembered"


def layer_requests(proxy: FaultyProxy) -> list[str]:
    return [seen.path for seen in proxy.seen if seen.method == "GET" and "/blobs/" in seen.path]


def blobs_in(archive: bytes) -> list[tuple[str, int, str]]:
    """Name, size, and digest of what it expands to, of each file in a tar."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = [(one.name, tar.extractfile(one)) for one in tar if one.isreg()]
        read = [(name, file.read()) for name, file in found if file is not None]
    return [(name, len(data), digest_of(plain(data))) for name, data in read]


def result(builder: Builder, kind: str) -> dict[bytes, tuple[object, ...]]:
    """Everything in the built image, as it is written to a directory. The times of what the step itself made differ."""
    dest = builder.root.parent / "out"
    done = builder.run(
        "build", str(builder.context), "--progress=quiet", "--snapshotter", kind, "-o", f"type=local,dest={dest}"
    )
    assert done.code == 0, done.err
    assert (dest / "result").read_text() == "done\n"
    found = facts(dest)
    assert found[b"/bin/busybox"]
    return {path: said for path, said in found.items() if path not in {b"/", b"/result"}}
