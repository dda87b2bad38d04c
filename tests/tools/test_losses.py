"""I8: bytes that were promised and are gone are made again, exactly those, or one clear error says what cannot be."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder, base_image, layer_digests
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
DOCKERFILE = """\
FROM {base} AS tools
RUN echo tool > /tool
FROM {base}
RUN echo one > /one
RUN echo two > /two
COPY --from=tools /tool /tool
RUN cat /one /two /tool > /all
"""


class Shipped:
    """An image that was built, pushed through a proxy that may forget blobs, and of whose steps nothing is here."""

    def __init__(self, directory: Path, registry: RegistryProcess, repository: str, proxy: FaultyProxy) -> None:
        self.builder, self.proxy, self.repository = Builder(directory), proxy, repository
        self.base = base_image(registry, f"{repository}/base", layers=2)
        self.dockerfile = DOCKERFILE.format(base=self.base["reference"])
        self.name = f"{proxy.host}/{repository}/app:1"
        self.build(self.dockerfile, "--push", "-t", self.name)
        self.digest = self.exported()["digest"]
        self.layers = [layer["digest"] for layer in self.exported()["layers"]][2:]
        self.forget_here()

    def build(self, dockerfile: str, *args: str, code: int = 0) -> str:
        """Returns what the terminal showed."""
        done = self.builder.build(dockerfile, *args, env=EPOCH)
        assert done.code == code, done.err
        assert self.builder.leftovers() == []
        return done.err

    def exported(self) -> Any:
        return self.builder.events("Exported")[-1]["data"]

    def forget_here(self) -> None:
        """As if the steps' bytes had been demoted."""
        shutil.rmtree(self.builder.root / "snapshots")
        for event in self.builder.events("BlobCreated"):
            Path(self.builder.root, "blobs", *event["data"]["digest"].split(":")).unlink()

    def lose(self, digest: str, method: str = "GET|HEAD") -> None:
        self.proxy.faults.append(Fault(method=method, path=f"/blobs/{digest}", status=404))

    def ended(self, kind: str = "VertexCompleted") -> list[str]:
        """Names of the steps that ended so in the last build, without their places."""
        build = self.builder.builds()[0]["id"]
        names = [event["data"]["name"] for event in self.builder.events(kind, build=build)]
        return [name.partition("] ")[2] for name in names if "] RUN" in name or "] COPY" in name]


@pytest.fixture
def shipped(tmp_path: Path, registry: RegistryProcess, repository: str) -> Iterator[Shipped]:
    with FaultyProxy(registry.host) as proxy:
        yield Shipped(tmp_path, registry, repository, proxy)


LAST = "RUN cat /one /two /tool > /all"
TOOL = "RUN echo tool > /tool"  # in no image that was pushed, so it has to run for the COPY


def test_steps_that_lie_elsewhere_are_hits_and_only_what_runs_on_them_pulls(shipped: Shipped) -> None:
    shipped.build(shipped.dockerfile)
    assert shipped.ended() == []
    assert not shipped.builder.events("LayerPulled")[2:]  # the base's came for the first build
    shipped.build(shipped.dockerfile.replace("/all", "/sum"))
    assert shipped.ended() == ["RUN cat /one /two /tool > /sum"]
    pulled = {event["data"]["digest"] for event in shipped.builder.events("LayerPulled")}
    assert set(shipped.layers[:3]) <= pulled


def test_a_layer_that_its_provider_has_no_more_is_no_hit(shipped: Shipped) -> None:
    shipped.lose(shipped.layers[0])
    shipped.build(shipped.dockerfile, "--push", "-t", shipped.name)
    queried = shipped.builder.events("CacheQueried", build=shipped.builder.builds()[0]["id"])
    assert {event["data"]["reason"] for event in queried if event["data"]["outcome"] == "miss"} == {"bytes-lost"}
    assert sorted(shipped.ended()) == [
        "COPY --from=tools /tool /tool", LAST, "RUN echo one > /one", TOOL, "RUN echo two > /two",
    ]  # fmt: skip
    assert shipped.exported()["digest"] == shipped.digest
    lost = shipped.builder.events("ProviderLost")
    assert {event["data"]["digest"] for event in lost} == {shipped.layers[0]}
    assert not shipped.builder.events("HitRevoked")


def test_I8_a_layer_lost_after_the_hit_is_made_again_with_what_stands_on_it(shipped: Shipped) -> None:
    shipped.lose(shipped.layers[1], "GET")
    shown = shipped.build(shipped.dockerfile.replace("/all", "/sum"))
    assert sorted(shipped.ended()) == [
        "COPY --from=tools /tool /tool", "RUN cat /one /two /tool > /sum", TOOL, "RUN echo two > /two",
    ]  # fmt: skip
    assert shipped.ended("VertexCancelled") == ["RUN cat /one /two /tool > /sum"]
    (revoked,) = shipped.builder.events("HitRevoked")
    assert len(revoked["data"]["reexecuted"]) == 2
    assert "Traceback" not in shown
    shipped.build(shipped.dockerfile.replace("/all", "/sum"), "--push", "-t", shipped.name + "b")
    assert shipped.ended() == []


def test_I8_a_layer_lost_after_the_hit_is_made_again_for_an_export(shipped: Shipped, tmp_path: Path) -> None:
    shipped.lose(shipped.layers[2], "GET")
    shipped.build(shipped.dockerfile, "-o", f"type=oci,dest={tmp_path}/out.tar")
    assert shipped.ended() == [TOOL, "COPY --from=tools /tool /tool", LAST]
    assert shipped.exported()["digest"] == shipped.digest
    assert len(shipped.builder.events("HitRevoked")) == 1


def test_the_terminal_says_calmly_what_is_made_again(shipped: Shipped) -> None:
    shipped.lose(shipped.layers[1], "GET")
    shown = shipped.build(shipped.dockerfile.replace("/all", "/sum"))
    said = [line for line in shown.splitlines() if "is gone" in line]
    assert len(said) == 1, shown
    assert "ERROR" not in shown
    record = json.loads(shipped.builder.run("show", shipped.builder.builds()[0]["id"], "--json").out)
    assert {step["state"] for step in record["steps"]} <= {"done", "cached"}


def test_a_lost_layer_of_a_base_image_is_one_clear_error(shipped: Shipped, registry: RegistryProcess) -> None:
    digest = layer_digests(shipped.base)[1]
    for layer in (shipped.builder.root / "layers").iterdir():
        layer.unlink() if layer.is_file() else shutil.rmtree(layer)
    registry.blob_path(digest).unlink()
    shown = shipped.build(shipped.dockerfile.replace("/all", "/sum"), code=3)
    error = [line for line in shown.splitlines() if line.startswith("ERROR")]
    assert len(error) == 1
    assert digest.partition(":")[2][:12] in error[0]
    assert "needed by [stage-1 5/5] RUN cat" in error[0]
    assert not shipped.builder.events("HitRevoked")


def test_a_stage_rebuilt_to_the_same_files_changes_nothing_behind_the_copy(shipped: Shipped) -> None:
    shipped.build(shipped.dockerfile.replace("echo tool >", "true; echo tool >"))
    assert shipped.ended() == ["RUN true; echo tool > /tool"]
    queried = shipped.builder.events("CacheQueried", build=shipped.builder.builds()[0]["id"])
    late = [event["data"]["outcome"] for event in queried if event["data"]["by"] == "content"]
    assert late == ["hit", "hit"]
    shipped.build(shipped.dockerfile.replace("echo tool >", "true; echo tool >"))
    assert shipped.ended() == []
    shipped.build(shipped.dockerfile.replace("echo tool >", "echo other >"))
    assert shipped.ended() == ["RUN echo other > /tool", "COPY --from=tools /tool /tool", LAST]
