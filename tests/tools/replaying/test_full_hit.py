"""A build that took everything from somebody else's cache can be bundled and replayed as any other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.builder import Builder
from tests.registry_fixture import RegistryProcess, push_image

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


def test_a_base_that_no_step_asked_for_is_known_from_the_graph(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    base = push_image(registry.host, f"{repository}/base", [{"etc/a": b"a"}])["reference"]
    first, fresh = Builder(tmp_path / "first"), Builder(tmp_path / "fresh")
    cache, dockerfile = f"type=registry,ref={registry.host}/{repository}/cache", f"FROM {base}\nWORKDIR /made\n"
    for builder, flags in ((first, ("--cache-to", cache)), (fresh, ("--cache-from", cache))):
        builder.must_build(dockerfile, *flags, "-t", f"{registry.host}/{repository}/app", "--push")
    build = fresh.builds()[0]["id"]
    assert fresh.events("VertexStarted") == []
    replayed = fresh.run("replay", build, "--verify")
    assert replayed.code == 4, "what it was is nowhere as files"
    assert [event["data"]["name"] for event in fresh.events("VertexCompleted")] == ["[2/2] WORKDIR /made"], replayed.err
    bundled = fresh.run("bundle", build, "--full", "-o", str(tmp_path / "b"))
    assert bundled.code == 0, bundled.err
