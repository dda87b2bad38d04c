"""Whatever a step may not do in docker's BuildKit it may not do here: the same probes, from inside of both."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder, busybox_layer
from tests.differential.conftest import Builders
from tests.registry_fixture import RegistryProcess, push_image
from tests.security.python_image import PYTHON, python_home, python_layer
from tests.security.test_sandbox import REFUSED, first_disk
from tests.waiting import PATIENCE

NO = REFUSED | {"EAFNOSUPPORT"}
STRICTER = {
    "io_uring_setup": "docker 20.10 allowed it, docker since 25 does not",
    "socket AF_VSOCK": "docker since 23 refuses it",
    "listen to all packets": "no CAP_NET_RAW on the network of the host, which the steps of this docker have as well",
    "send forged packets": "the same",
    "read what the kernel tells of the machine": "/proc/interrupts, which docker masks since 28",
    "write some file of /proc or /sys": "/proc/pressure, which docker's AppArmor profile protects where there is one",
}


def test_what_docker_refuses_is_refused(builders: Builders, registry: RegistryProcess, tmp_path: Path) -> None:
    buildkit = next((oracle for oracle in builders.oracles if oracle.name == "buildkit"), None)
    if buildkit is None:
        pytest.skip(builders.missing["buildkit"])
    image = push_image(
        registry.host, "differential/sandbox", [busybox_layer(), python_layer()],
        config={"Env": ["PATH=/bin", python_home()]}, level=1,
    )  # fmt: skip
    builder = Builder(tmp_path)
    probe = f"RUN {PYTHON} /probe/inside.py {os.getpid()} {first_disk()} nobody\n"
    builder.write({"Dockerfile": f"FROM {image['reference']}\n{probe}"})
    process = buildkit.start(builder.context, (), "sandbox")
    ours = probed(builder.must_build(f"FROM {image['reference']}\n{probe}").err)
    theirs = probed(process.communicate(timeout=PATIENCE)[0])
    refused, refused_there = ({name for name, said in each.items() if str(said) in NO} for each in (ours, theirs))
    assert refused_there - refused == set()
    assert refused - refused_there <= set(STRICTER)
    assert set(ours) == set(theirs)


def probed(said: str) -> dict[str, Any]:
    found = re.search(r"PROBES (\{.*\})", said)
    assert found, said[-2000:]
    result: dict[str, Any] = json.loads(found[1])
    return result
