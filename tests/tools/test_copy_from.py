"""COPY --from=<image>, from the command line: what moves, what the log and the last line say of it, and the result."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder, Done
from tests.chunked import MAKERS, Made, ours
from tests.engine.refs.kit import push_layers
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess, push_image
from tests.storage.layers.trees import file, info, make_tar
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")
EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


TAR = make_tar(
    info("usr"), info("usr/bin", mode=0o751), file("usr/bin/tool", b"#!/bin/sh\necho tool\n", mode=0o755, uid=3, gid=4),
    info("usr/bin/t", tarfile.SYMTYPE, linkname="tool"), file("usr/lib/tool/data", noise(9000, 5)),
    file("usr/lib/tool/more", b"more"), file("srv/a", noise(700_000, 1)), file("srv/b", noise(700_000, 2)),
)  # fmt: skip


def layer_of(builder: Builder, dockerfile: str, name: str, *args: str) -> tuple[Done, list[str]]:
    """The digests of the layers that a build makes."""
    out = builder.root.parent / name
    done = builder.must_build(dockerfile, "-o", f"type=oci,dest={out}.tar", *args, env=EPOCH)
    out.mkdir()
    subprocess.run(["tar", "-C", out, "-xf", f"{out}.tar"], check=True)
    return done, _layers(out)


def _layers(layout: Path) -> list[str]:
    def blob(digest: str) -> Any:
        return json.loads((layout / "blobs" / digest.replace(":", "/")).read_bytes())

    index = json.loads((layout / "index.json").read_bytes())
    return [layer["digest"] for layer in blob(index["manifests"][0]["digest"])["layers"]]


@pytest.mark.parametrize("maker", [*MAKERS, ours])
def test_a_copy_by_range_makes_the_same_layer_as_one_from_the_whole_image(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path, maker: Any
) -> None:
    made: Made = maker(TAR)
    image = push_layers(registry.host, repository, [made])
    reference = image["reference"]
    steps = (
        f"FROM scratch\nCOPY --from={reference} /usr/bin/t /usr/lib/tool /x/\n"
        f"COPY --from={reference} /usr/bin/to* /usr/\n"
    )
    mark = registry.mark()
    done, ours = layer_of(builder, steps, "by-range")
    moved = sum(line.bytes for line in registry.layer_gets([made.descriptor["digest"]], since=mark))
    assert 0 < moved < len(made.blob) * 0.05
    facts = builder.events("LayerTocRead", "FilesFetched", "LayerPulled")
    assert sum(event["data"]["bytes"] for event in facts) == moved
    assert [event["type"] for event in facts] == ["LayerTocRead", "FilesFetched", "FilesFetched"]
    assert re.search(r"in [\d.]+s, [\d.]+kB pulled, 1\.\dMB avoided\n", done.err), done.err
    assert "of layers avoided" in done.err
    (record,) = builder.builds()
    assert record["bytes_pulled"] == moved
    assert record["bytes_avoided"] >= len(made.blob) - moved
    assert builder.leftovers() == []

    whole = Builder(tmp_path / "whole")
    mark = registry.mark()
    everything = f"FROM {reference} AS all\nCOPY Dockerfile /\n{steps.replace(reference, 'all')}"
    _, theirs = layer_of(whole, everything, "all")
    assert [line.status for line in registry.layer_gets([made.descriptor["digest"]], since=mark)] == [200]
    assert ours == theirs


def test_one_file_of_an_estargz_that_we_pushed_is_all_that_moves(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    files = {"usr/": b"", "usr/big": noise(3_000_000, 7), "usr/other": noise(500_000, 8)}
    base = push_image(registry.host, f"{repository}/base", [files])
    builder.write({"wanted": noise(40_000, 9), "unwanted": noise(900_000, 10)})
    made = f"{registry.host}/{repository}/made:1"
    builder.must_build(
        f"FROM {base['reference']}\nCOPY wanted unwanted /\n", "-t", made, "-o",
        "type=image,push=true,compression=estargz,force-compression=true",
    )  # fmt: skip
    layers = {event["data"]["digest"]: event["data"]["bytes"] for event in builder.events("BlobCreated")}
    assert len(layers) == 2

    other, mark = Builder(tmp_path / "other"), registry.mark()
    out = tmp_path / "out"
    other.must_build(f"FROM scratch\nCOPY --from={made} /wanted /usr/other /\n", "-o", str(out))
    assert (out / "wanted").read_bytes() == noise(40_000, 9)
    assert (out / "other").read_bytes() == noise(500_000, 8)
    lines = registry.layer_gets(layers, since=mark)
    assert {line.status for line in lines} == {206}
    assert 540_000 < sum(line.bytes for line in lines) < 640_000 < sum(layers.values()) / 6


def test_layers_below_the_answer_are_never_fetched_and_the_last_line_says_so(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = push_image(
        registry.host, repository, [{"low": noise(400_000, 1)}, {"mid": b"mid"}, {"top": noise(200_000, 2)}]
    )
    digests = [layer["digest"] for layer in image["layers"]]
    mark = registry.mark()
    done = builder.must_build(f"FROM scratch\nCOPY --from={image['reference']} /mid /\n")
    assert {line.blob for line in registry.layer_gets(digests, since=mark)} == set(digests[1:])
    assert re.search(r"200kB pulled, 400kB avoided\n", done.err), done.err
    assert [event["data"]["avoided"] for event in builder.events("Materialized")] == [0, image["layers"][0]["size"]]
    refs = [json.loads(line) for line in builder.run("refs", "--json").out.splitlines()]
    assert [ref["materialized"] for ref in refs if ref["kind"] == "remote"] == [False]

    # a later step may need it after all: then it was not avoided
    done = builder.must_build(
        f"FROM scratch\nCOPY --from={image['reference']} /mid /other\nCOPY --from={image['reference']} /low /\n"
    )
    assert "avoided" not in done.err.splitlines()[-2]
    assert builder.builds()[0]["bytes_avoided"] == 0
    assert builder.events("Materialized")[-1]["data"]["whole"] is True


def test_two_builds_at_once_take_the_same_files(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = [maker(TAR) for maker in MAKERS]
    image = push_layers(registry.host, repository, made)
    builder.write({"Dockerfile": f"FROM scratch\nCOPY --from={image['reference']} /usr/lib /lib\n"})
    both = [
        builder.start("build", str(builder.context), "--no-cache", "-o", str(tmp_path / f"out{n}")) for n in range(2)
    ]
    for process in both:
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
    for n in range(2):
        assert (tmp_path / f"out{n}/lib/tool/data").read_bytes() == noise(9000, 5)
    assert builder.leftovers() == []


def test_a_killed_copy_by_range_leaves_nothing_after_the_next_build(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    made = MAKERS[0](TAR)
    push_layers(registry.host, repository, [made])
    path = "/blobs/" + made.descriptor["digest"]
    # the first read is that of the table of contents
    with FaultyProxy(registry.host, Fault(path=path, times=1), Fault(path=path, stall_after=100)) as proxy:
        dockerfile = f"FROM scratch\nCOPY --from=127.0.0.1:{proxy.port}/{repository} /usr/bin/tool /\n"
        builder.write({"Dockerfile": dockerfile})
        process = builder.start("build", str(builder.context))
        wait_until(lambda: any(builder.root.glob("tmp/*")) and sum(path in one.path for one in proxy.seen) > 1, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert builder.leftovers() != []
        proxy.faults.clear()
        done = builder.must_build(dockerfile)
    assert "had been interrupted" in done.err
    assert builder.leftovers() == []


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_a_zstd_chunked_layer_as_skopeo_makes_it(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = push_image(
        registry.host, f"{repository}/gzip",
        [{"usr/": b"", "usr/big": noise(2_000_000, 1), "usr/small": b"small\n", "usr/other": noise(500_000, 2)}],
    )  # fmt: skip
    target = f"{registry.host}/{repository}/chunked:latest"
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false",
         "--dest-compress-format", "zstd:chunked", f"docker://{image['reference']}", f"docker://{target}"],
        check=True, capture_output=True,
    )  # fmt: skip
    out = tmp_path / "out"
    mark = registry.mark()
    builder.must_build(f"FROM scratch\nCOPY --from={target} /usr/small /usr/other /\n", "-o", str(out))
    assert (out / "small").read_bytes() == b"small\n"
    assert (out / "other").read_bytes() == noise(500_000, 2)
    (fetched,) = builder.events("FilesFetched")
    moved = [line for line in registry.requests()[mark:] if line.blob == fetched["data"]["digest"]]
    assert sum(line.bytes for line in moved if line.method == "GET") < 600_000
    assert fetched["data"]["files"] == 2
