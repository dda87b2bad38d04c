"""What `refledger why` says when bytes were gone: in the answer, or after the hit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess
from tests.tools.test_losses import Shipped
from tools.format import short_id

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


class Asked(Shipped):
    """Whose builds are explained."""

    @property
    def where(self) -> str:
        return f"{self.proxy.host}/{self.repository}/app"

    def why(self, *args: str) -> str:
        done = self.builder.run("why", self.builder.builds()[0]["id"], *args)
        assert done.code == 0, done.err
        return done.out

    def told(self) -> Any:
        return json.loads(self.why("--json"))


@pytest.fixture
def asked(tmp_path: Path, registry: RegistryProcess, repository: str) -> Iterator[Asked]:
    with FaultyProxy(registry.host) as proxy:
        yield Asked(tmp_path, registry, repository, proxy)


def test_bytes_that_the_provider_lost_are_named_with_it(asked: Asked) -> None:
    asked.lose(asked.layers[0])
    asked.build(asked.dockerfile)
    text = asked.why()
    assert f"layer {short_id(asked.layers[0])} is gone from {asked.where}\n3 later steps followed" in text
    one = next(step for step in asked.told()["steps"] if "RUN echo one" in step["name"])
    assert (one["reason"], one["gone"]["name"], one["gone"]["provider"]) == (
        "bytes-lost", asked.layers[0], asked.where,
    )  # fmt: skip
    tool = next(step for step in asked.told()["steps"] if "RUN echo tool" in step["name"])
    assert tool["gone"]["kind"] == "vanished"  # it was in no image, and its snapshot was removed


def test_a_provider_that_answers_no_more_is_told_apart_from_one_that_lost_it(asked: Asked) -> None:
    asked.proxy.faults.append(Fault(method="GET|HEAD", path="/app/blobs/", status=503))
    asked.build(asked.dockerfile)
    one = next(step for step in asked.told()["steps"] if "RUN echo one" in step["name"])
    assert (one["reason"], one["gone"]["provider"]) == ("provider-unreachable", asked.where)
    assert f"layer {short_id(asked.layers[0])} could not be asked for at {asked.where}" in asked.why()


def test_I8_a_hit_that_was_revoked_says_what_was_gone_and_what_was_made_again(asked: Asked) -> None:
    asked.lose(asked.layers[1], "GET")
    asked.build(asked.dockerfile.replace("/all", "/sum"))
    says = f"its result was cached, but layer {short_id(asked.layers[1])} is gone from {asked.where}: made again"
    assert says in asked.why()
    assert says in asked.why("RUN echo two")
    steps = {step["name"].partition("] ")[2]: step for step in asked.told()["steps"]}
    two, last = steps["RUN echo two > /two"], steps["RUN cat /one /two /tool > /sum"]
    assert (two["state"], two["reason"], two["gone"]["revoked"]) == ("done", "bytes-lost", True)
    assert (last["state"], last["reason"]) == ("done", "component-changed")  # it was cancelled, then ran
    assert steps["RUN echo one > /one"]["outcome"] == "hit"


def test_a_snapshot_that_is_gone_is_named(asked: Asked) -> None:
    asked.build(asked.dockerfile + "RUN echo x\n")
    (made,) = (event["data"]["ref"] for event in asked.builder.events("LocalCreated")[-1:])
    shutil.rmtree(asked.builder.root / "snapshots")
    asked.build(asked.dockerfile + "RUN echo x\n")
    assert f"layer {made} is gone from this disk" in asked.why()
