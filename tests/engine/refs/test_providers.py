"""I8: a layer whose provider lost it comes from any other that the log knows of; when none has it, the error says what
only a person can do."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from engine.errors import MaterializationError
from engine.refs.kept import NothingKnown
from engine.refs.ref import Layer
from storage.digest import Digest
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import BlobStream
from storage.registry import RegistryClient
from tests.chunked import estargz
from tests.engine.refs.kit import Kit, kit, push_layers, remote
from tests.engine.refs.machine import Machine, layer_of
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess, push_image
from tests.storage.layers.trees import file, make_tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

CONTENT = random.Random(3).randbytes(200_000)


class Knows(NothingKnown):
    """A log in which `others` have every blob."""

    def __init__(self, *others: Provider) -> None:
        self._others = others

    def providers(self, _digest: Digest) -> Sequence[Provider]:
        return self._others


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "root")
    yield made
    made.log.close()


@pytest.fixture
def image(registry: RegistryProcess, repository: str) -> dict[str, Any]:
    return push_image(registry.host, repository, [{"data": CONTENT}])


MISSING = Fault("GET|HEAD", "/blobs/", status=404)
DENIED = Fault("GET|HEAD", "/blobs/", status=403)
DAMAGED = Fault("GET", "/blobs/", flip=True)
AWAY = Fault("GET|HEAD", "/blobs/", status=503)


@pytest.mark.parametrize(
    ("fault", "kind"), [(MISSING, "missing"), (DENIED, "auth"), (DAMAGED, "corrupt"), (AWAY, "")],
    ids=["missing", "denied", "damaged", "away"],
)  # fmt: skip
def test_another_provider_that_the_log_knows_is_asked(
    machine: Machine, registry: RegistryProcess, repository: str, image: dict[str, Any], fault: Fault, kind: str
) -> None:
    with FaultyProxy(registry.host, fault) as broken:
        layer = layer_of(image, broken.host)
        asyncio.run(machine.pull([layer], known=Knows(*layer.providers, Provider.of(registry.host, repository))))
        assert layer.diff_id is not None
        assert (machine.root / "layers" / layer.diff_id.hex / "fs/data").read_bytes() == CONTENT
        lost = machine.events("ProviderLost")
        told = [(fact["provider"]["registry"], fact["class"]) for fact in lost]
        assert told == ([(broken.host, kind)] if kind else [])
        assert [fact["provider"]["registry"] for fact in machine.events("PullFailed")] == [broken.host]
        assert machine.lying_about() == []


@pytest.mark.parametrize(
    ("fault", "code", "advice"),
    [(MISSING, 3, "push the image again"), (DAMAGED, 4, "push the image again"), (AWAY, 3, ""), (DENIED, 3, "")],
    ids=["missing", "damaged", "away", "denied"],
)
def test_when_nobody_has_it_the_error_says_what_a_person_can_do(
    machine: Machine, registry: RegistryProcess, repository: str, image: dict[str, Any], fault: Fault, code: int,
    advice: str,
) -> None:  # fmt: skip
    with FaultyProxy(registry.host, fault) as one, FaultyProxy(registry.host, MISSING) as two:
        layer = layer_of(image, two.host)
        with pytest.raises(MaterializationError) as raised:
            asyncio.run(machine.pull([layer], known=Knows(Provider.of(one.host, repository))))
        said = str(raised.value)
        assert raised.value.exit_code == code
        assert raised.value.layer == layer.name
        assert str(layer.blob and layer.blob.digest) in said
        assert one.host in said
        assert two.host in said
        assert advice in said
        assert raised.value.hint
        assert "\n" not in said
    assert list((machine.root / "layers").iterdir()) == []


def test_parts_of_a_layer_come_from_another_provider_too(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    others = [file(f"f{n}", random.Random(n).randbytes(9000)) for n in range(40)]
    made = estargz(make_tar(file("wanted", b"w"), *others))
    push_layers(registry.host, repository, [made])

    async def ask(host: str) -> bytes:
        with kit(tmp_path / "root") as parts:
            parts.materializer.fetcher.known = Knows(Provider.of(registry.host, repository))
            try:
                ref = remote([host], repository, [made])
                async with parts.asked.paths(ref, ["/wanted"], vertex="v", needed_by="COPY") as lowers:
                    content = (lowers[-1] / "wanted").read_bytes()
            finally:
                await parts.registry.aclose()
            assert parts.events("FilesFetched")[-1]["provider"]["registry"] == registry.host
            assert not parts.events("LayerPulled")
            return content

    with FaultyProxy(registry.host, MISSING) as broken:
        assert asyncio.run(ask(broken.host)) == b"w"


def test_a_result_that_nobody_else_has_is_said_to_have_vanished(machine: Machine) -> None:
    with pytest.raises(MaterializationError) as raised:
        asyncio.run(machine.pull([Layer(snapshot="b0-step-1", created=1)]))
    assert (raised.value.kind, raised.value.layer) == ("missing", "b0-step-1")
    (lost,) = machine.events("LocalLost")
    assert (lost["kind"], lost["name"], lost["problem"]) == ("snapshot", "b0-step-1", "vanished")


class Held:
    """A registry client that asks `host` only once it may."""

    def __init__(self, inner: RegistryClient, host: str) -> None:
        self.inner, self.host = inner, host
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def blob(self, provider: Provider, blob: Descriptor, **bounds: Any) -> AsyncIterator[BlobStream]:
        if provider.registry == self.host:
            self.asked.set()
            await self.go_on.wait()
        async with self.inner.blob(provider, blob, **bounds) as stream:
            yield stream


def test_I4_who_joined_a_pull_that_fails_asks_its_own_provider(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = estargz(make_tar(file("salt", repository.encode())))
    push_layers(second_registry.host, repository, [made])
    lost, there = (remote([one.host], repository, [made]) for one in (registry, second_registry))

    async def run(parts: Kit) -> None:
        held = Held(parts.registry, registry.host)
        parts.materializer.fetcher.registry = cast("RegistryClient", held)
        first = asyncio.ensure_future(parts.materializer.materialize(lost, vertex="v", reason="run"))
        await held.asked.wait()
        second = asyncio.ensure_future(parts.materializer.materialize(there, vertex="w", reason="run"))
        while len(parts.events("MaterializationRequested")) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        held.go_on.set()
        with pytest.raises(MaterializationError):
            await first
        await second
        await parts.registry.aclose()

    with kit(tmp_path / "root") as parts:
        asyncio.run(run(parts))
        (pulled,) = parts.events("LayerPulled")
        assert pulled["provider"]["registry"] == second_registry.host
