"""Layers on their way to a registry: the order of ways, and that a layer moves once."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.clock import Clock
from engine.errors import MaterializationError, RefledgerError
from engine.exporters.move import Mover
from engine.exporters.reading import BlobReader
from engine.ledger import Ledger
from engine.refs.ref import Layer
from storage.credentials.lookup import Anonymous
from storage.digest import Digest, sha256
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import ByteStream
from storage.layout.source import WithLayouts
from storage.registry import Limits, RegistryClient
from tests.engine.refs.kit import Kit, kit
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess, push_image
from tests.storage.registry.kit import noise

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the root is made by root")


def mover(parts: Kit, client: RegistryClient) -> Mover:
    source = WithLayouts(client)
    ledger, clock = Ledger(parts.root.log, "b1"), Clock(time.time_ns, time.monotonic)
    reader = BlobReader(parts.materializer.blobs, source, ledger, clock)
    return Mover(source, client, reader, parts.root.locks)


@asynccontextmanager
async def moving(directory: Path) -> AsyncIterator[Mover]:
    with kit(directory, erofs=False) as parts:
        client = RegistryClient(Anonymous(), user_agent="t", limits=Limits(tries=1))
        try:
            yield mover(parts, client)
        finally:
            await client.aclose()


def pushed(registry: RegistryProcess, repository: str, *providers: Provider, count: int = 1) -> list[Layer]:
    """Layers of an image, known to be at `providers`."""
    image = push_image(registry.host, repository, [{f"f{n}": noise(40_000, seed=n)} for n in range(count)])
    return [
        Layer(Digest(one["diff_id"]), Descriptor.from_json(one), providers or (Provider.of(registry.host, repository),))
        for one in image["layers"]
    ]


def verbs(registry: RegistryProcess, since: int) -> list[tuple[str, int]]:
    """Method and status of each request for blobs."""
    return [(line.method, line.status) for line in registry.requests()[since:] if "/blobs/" in line.path]


def to(registry: RegistryProcess, repository: str) -> Provider:
    return Provider(registry.host, repository, f"repository:{repository}:pull,push")


def test_a_mount_costs_one_request(tmp_path: Path, registry: RegistryProcess, repository: str) -> None:
    layers = pushed(registry, f"{repository}/from", count=3)

    async def main() -> list[dict[str, object]]:
        async with moving(tmp_path) as move:
            target = to(registry, f"{repository}/to")
            return [await move.move(layer, target, "n") for layer in layers]

    mark = registry.mark()
    moved = asyncio.run(main())
    assert [one["transport"] for one in moved] == ["mounted"] * 3
    assert verbs(registry, mark) == [("POST", 201)] * 3


def test_what_the_target_is_known_to_have_is_asked_for_and_present(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    pushed(registry, f"{repository}/to")
    places = [Provider.of(registry.host, f"{repository}/{name}") for name in ("from", "to")]
    (layer,) = pushed(registry, f"{repository}/from", *places)

    async def main() -> list[dict[str, object]]:
        async with moving(tmp_path) as move:
            target = to(registry, f"{repository}/to")
            return [await move.move(layer, target, "n") for _ in range(2)]

    mark = registry.mark()
    assert [one["transport"] for one in asyncio.run(main())] == ["present"] * 2
    assert verbs(registry, mark) == [("HEAD", 200)], "and what this build placed or saw there is not asked for again"


def test_a_refused_mount_leads_to_the_next_candidate(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    names = [f"{repository}/{name}" for name in ("refused", "empty", "good")]
    with FaultyProxy(registry.host, Fault("POST", f"from={names[0]}", status=403)) as proxy:
        places = [Provider.of(proxy.host, name) for name in names]
        (layer,) = pushed(registry, names[2], *places)

        async def main() -> dict[str, object]:
            async with moving(tmp_path) as move:
                target = Provider(proxy.host, f"{repository}/to", f"repository:{repository}/to:pull,push")
                return await move.move(layer, target, "n")

        moved = asyncio.run(main())
        assert (moved["transport"], moved["source"], moved["bytes"]) == ("mounted", f"{proxy.host}/{names[2]}", 0)
        asked = [seen.path.rpartition("from=")[2] for seen in proxy.seen if "mount=" in seen.path]
        assert asked == names


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 422, 500])
def test_when_every_mount_is_refused_the_bytes_travel(
    tmp_path: Path, registry: RegistryProcess, repository: str, status: int
) -> None:
    with FaultyProxy(registry.host, Fault("POST", "mount=", status=status)) as proxy:
        (layer,) = pushed(registry, f"{repository}/from", Provider.of(proxy.host, f"{repository}/from"))

        async def main() -> list[dict[str, object]]:
            async with moving(tmp_path) as move:
                target = Provider(proxy.host, f"{repository}/to", f"repository:{repository}/to:pull,push")
                return [await move.move(layer, target, "n"), await move.move(layer, target, "other")]

        moved = asyncio.run(main())
    assert [one["transport"] for one in moved] == ["streamed", "present"]
    assert moved[0]["source"] == str(layer.providers[0])


def test_a_layer_that_lies_here_is_uploaded_before_another_registry_is_asked(
    tmp_path: Path, registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    (layer,) = pushed(registry, f"{repository}/from")
    assert layer.blob is not None
    data = registry.blob_path(layer.blob.digest).read_bytes()

    async def main() -> dict[str, object]:
        async with moving(tmp_path) as move:
            move.reader.blobs.put(data)
            return await move.move(layer, to(second_registry, f"{repository}/to"), "n")

    mark = registry.mark()
    assert asyncio.run(main()) == {
        "digest": str(layer.blob.digest), "transport": "uploaded", "bytes": len(data), "source": ""
    }  # fmt: skip
    assert registry.requests()[mark:] == []


def uploads(registry: RegistryProcess, since: int, repository: str) -> int:
    """Blobs that were put into repositories below `repository`."""
    return sum(
        line.method == "PUT" and line.status == 201 and f"/v2/{repository}" in line.path and "/blobs/" in line.path
        for line in registry.requests()[since:]
    )


def test_moves_of_one_layer_at_once_are_one_upload_and_a_failure_is_its_own(
    tmp_path: Path, registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    (layer,) = pushed(registry, f"{repository}/from")

    async def several(move: Mover, target: Provider) -> Sequence[Any]:
        return await asyncio.gather(*(move.move(layer, target, str(n)) for n in range(5)), return_exceptions=True)

    async def main() -> tuple[Sequence[Any], Sequence[Any]]:
        async with moving(tmp_path) as move:
            good = await several(move, to(second_registry, f"{repository}/to"))
            with FaultyProxy(second_registry.host, Fault("PUT", times=1, status=403)) as proxy:
                return good, await several(move, Provider(proxy.host, f"{repository}/other", "x"))

    mark = second_registry.mark()
    good, mixed = asyncio.run(main())
    assert sorted(one["transport"] for one in good) == ["present"] * 4 + ["streamed"]
    failed = [one for one in mixed if isinstance(one, RefledgerError)]
    moved = sorted(one["transport"] for one in mixed if not isinstance(one, RefledgerError))
    assert len(failed) == 1
    assert moved == ["present"] * 3 + ["streamed"]
    assert uploads(second_registry, mark, f"{repository}/to") == 1
    assert uploads(second_registry, mark, f"{repository}/other") == 1


def test_what_is_there_though_it_could_not_be_mounted_is_not_sent(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    """Another build may just have brought it."""
    (layer,) = pushed(registry, f"{repository}/to", Provider.of(registry.host, f"{repository}/elsewhere"))

    async def main() -> dict[str, object]:
        async with moving(tmp_path) as move:
            return await move.move(layer, to(registry, f"{repository}/to"), "n")

    assert asyncio.run(main())["transport"] == "present"


def test_a_blob_that_is_neither_here_nor_anywhere_cannot_be_made_by_who_only_reads(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    (layer,) = pushed(registry, repository)

    async def main() -> None:
        async with moving(tmp_path) as move:
            await move.move(replace(layer, providers=()), to(registry, f"{repository}/to"), "n")

    with pytest.raises(MaterializationError, match="no provider is known"):
        asyncio.run(main())


class _Halfway(RegistryClient):
    """A registry that kept the first bytes of an upload that broke off."""

    async def upload(
        self, target: Provider, blob: Descriptor, chunks: Callable[[], ByteStream], *,
        resume: Callable[[int], ByteStream] | None = None,
    ) -> None:  # fmt: skip
        assert resume is not None
        stream = resume(10_000)
        self.rest = b"".join([chunk async for chunk in stream])


def test_an_upload_that_goes_on_counts_only_what_it_sent(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    async def main() -> tuple[dict[str, object], bytes]:
        with kit(tmp_path, erofs=False) as parts:
            client = _Halfway(Anonymous(), user_agent="t", limits=Limits(tries=1))
            try:
                digest = parts.materializer.blobs.put(data := noise(40_000))
                layer = Layer(sha256(b"tar"), Descriptor("m", digest, len(data)))
                moved = await mover(parts, client).move(layer, to(registry, f"{repository}/to"), "n")
                return moved, client.rest
            finally:
                await client.aclose()

    moved, rest = asyncio.run(main())
    assert (moved["transport"], moved["bytes"], rest) == ("uploaded", 30_000, noise(40_000)[10_000:])
