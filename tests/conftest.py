"""What tests of every part share: real registries, one process of each for a whole run."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.processes import close_zygotes
from tests.registry_fixture import RegistryProcess

for ignored in (signal.SIGINT, signal.SIGHUP):
    # reason: a shell ignores the one in the background, nohup the other, and all that is started inherits that
    if signal.getsignal(ignored) == signal.SIG_IGN:
        signal.signal(ignored, signal.SIG_DFL)

# reason: how long an example takes is the machine's affair, and a fixture may serve all examples of a test
settings.register_profile(
    "ours", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("ours")

LONG = (
    "tools/test_replay.py", "tools/test_offline.py", "crash/test_crash.py", "tools/test_kill.py",
    "tools/test_shared_caches.py", "tools/test_build.py", "load/test_load.py", "tools/test_collect.py",
    "tools/test_run_mounts.py", "tools/test_reading.py", "tools/test_edits.py", "tools/test_copy.py",
    "tools/test_why.py", "simulation/test_simulation.py", "storage/layers/erofs/test_equality.py",
    "tools/test_losses.py", "tools/drills/test_loss.py", "tools/test_cache_check.py", "tools/test_resume.py",
    "tools/test_browse.py", "tools/test_projects.py", "tools/test_hostile_layers.py",
    "tools/drills/test_prune_under_load.py",
)  # fmt: skip
"""Begun first, so that none of them is what all but one worker wait for at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files by how long they take, where that is long."""
    places = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A registry on loopback. Shared: use repository names of your own (`repository`)."""
    yield from _serve(tmp_path_factory, "registry")


@pytest.fixture(scope="session")
def second_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """Another registry on loopback, to copy to."""
    yield from _serve(tmp_path_factory, "second-registry")


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """A repository name that no other test uses."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.nodeid.removeprefix("tests/").lower()).strip("-")
    return f"t/{words[-120:].strip('-')}"


def _serve(factory: pytest.TempPathFactory, name: str) -> Iterator[RegistryProcess]:
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    with RegistryProcess(factory.mktemp(name)) as process:
        yield process


def pytest_sessionfinish() -> None:
    """What commands were forked from ends with the tests, not some time later."""
    close_zygotes()
