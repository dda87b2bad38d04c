"""I3: a mirror whose bytes were wrong, whole or by ranges, is not asked for that blob again in the build."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from engine.refs.fill import FetchLimits
from engine.refs.places import Places
from engine.refs.ref import Remote
from storage.digest import Digest
from storage.interfaces.images import Mirror, Provider
from tests.chunked import Made, estargz
from tests.engine.refs.kit import Kit, kit, push_layers, remote
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess
from tests.storage.layers.trees import file, make_tar
from tests.storage.registry.kit import noise

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")
KIB = 1024


def mirrored(parts: Kit, host: str) -> None:
    """Name `host` as a mirror of every registry."""
    parts.materializer.fetcher.places = Places(lambda provider: [Mirror(Provider.of(host, provider.repository))])


def spoiled(registry: RegistryProcess, made: Made, name: str) -> None:
    """Flip a byte of a file's content in the registry's copy."""
    at = next(int(told["offset"]) for told in made.toc["entries"] if told["name"] == name) + 15
    path = registry.blob_path(made.descriptor["digest"])
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_wrong_chunk_condemns_the_mirror_for_the_whole_layer_too(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = estargz(make_tar(*(file(f"f{n}", noise(9000, n)) for n in range(40)), file("salt", repository.encode())))
    for one in (registry, second_registry):
        push_layers(one.host, repository, [made])
    spoiled(second_registry, made, "f7")
    digest, ref = made.descriptor["digest"], remote([registry.host], repository, [made])

    async def ask(parts: Kit) -> bytes:
        try:
            async with parts.asked.paths(ref, ["/f7"], vertex="v", needed_by="COPY") as lowers:
                content = (lowers[-1] / "f7").read_bytes()
            before = second_registry.mark()
            await parts.materializer.materialize(ref, vertex="v", reason="run")
            assert second_registry.layer_gets([digest], since=before) == []
            return content
        finally:
            await parts.registry.aclose()

    with kit(tmp_path / "root") as parts:
        mirrored(parts, second_registry.host)
        assert asyncio.run(ask(parts)) == noise(9000, 7)
        (failed,) = parts.events("PullFailed")
        assert (failed["class"], failed["provider"]["registry"]) == ("corrupt", second_registry.host)
        assert failed["provider"]["mirror_of"] == f"{registry.host}/{repository}"
        assert [fact["provider"]["registry"] for fact in parts.events("FilesFetched", "LayerPulled")] == [
            registry.host, registry.host
        ]  # fmt: skip


def test_wrong_ranges_condemn_the_mirror_for_the_build(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = estargz(make_tar(file("big", noise(3 << 20, 5)), file("salt", repository.encode())))
    push_layers(registry.host, repository, [made])
    ref = remote([registry.host], repository, [made])

    async def twice(parts: Kit, proxy: FaultyProxy) -> None:
        try:
            await parts.materializer.materialize(ref, vertex="v", reason="run")
            asked = len(proxy.seen)
            assert asked > 1
            parts.materializer.layers.discard(made.descriptor["diff_id"])
            other = Remote("other", ref.layers)
            await parts.materializer.materialize(other, vertex="w", reason="run")
            assert len(proxy.seen) == asked
        finally:
            await parts.registry.aclose()

    with FaultyProxy(registry.host, Fault("GET", "/blobs/", flip=True)) as proxy, kit(tmp_path / "root") as parts:
        mirrored(parts, proxy.host)
        parts.materializer.fetcher.limits = FetchLimits(256 * KIB, 1024 * KIB, 4)
        asyncio.run(twice(parts, proxy))
        assert parts.materializer.layers.has(Digest(made.descriptor["diff_id"]))
        assert [fact["provider"]["registry"] for fact in parts.events("PullFailed")] == [proxy.host]
        pulled = parts.events("LayerPulled")
        assert [fact["provider"]["registry"] for fact in pulled] == [registry.host] * 2
        assert {fact["resumed_from"] for fact in pulled} == {0}, "nothing of what was wrong was kept"
