"""The log tells of every layer that is mountable here, however it came to be."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path

import pytest

from engine.events import Demoted, LayerPulled
from engine.ledger import Ledger
from engine.refs.ref import Remote
from projections.cache_index import CacheIndex
from projections.usage import Usage
from storage.digest import Digest
from storage.durable import fsync_directory
from storage.layers import checked
from storage.layers.erofs.header import SEAL
from tests.chunked import gzipped
from tests.engine.refs.kit import Kit, kit, push_layers, remote
from tests.registry_fixture import RegistryProcess
from tests.storage.layers.trees import file, make_tar
from tools.known import LogAnswers

MADE = gzipped(make_tar(file("f", b"whoever laid it out")))
DIFF_ID = Digest(MADE.descriptor["diff_id"])


def lay_out(parts: Kit) -> None:
    """As a process does that dies before it says so."""
    parts.materializer.layers.unpack(DIFF_ID, MADE.descriptor["mediaType"], io.BytesIO(MADE.blob))


def knowing(parts: Kit) -> Kit:
    views, log = parts.root.views, parts.root.log
    parts.materializer.kept.known = LogAnswers(CacheIndex(views), lambda: views.catch_up(log))
    return parts


def use(parts: Kit, ref: Remote) -> bytes:
    local = asyncio.run(parts.materializer.materialize(ref, vertex="v", reason="run"))
    return (local.lowers[0] / "f").read_bytes()


def pulled() -> LayerPulled:
    looked, digest = ("digest", "diff_id"), MADE.descriptor["digest"]
    return LayerPulled(digest=digest, bytes=9, provider={}, seconds=1, verified=looked, diff_id=str(DIFF_ID))


@pytest.fixture
def ref(registry: RegistryProcess, repository: str) -> Remote:
    push_layers(registry.host, repository, [MADE])
    return remote([registry.host], repository, [MADE])


@pytest.mark.parametrize("erofs", [True, False])
def test_a_layer_that_no_event_tells_of_is_looked_at_and_told_once(tmp_path: Path, ref: Remote, *, erofs: bool) -> None:
    for build in ("b1", "b2", "b3"):
        with kit(tmp_path / "root", build=build, erofs=erofs) as parts:
            if build == "b1":
                lay_out(parts)
                continue
            assert use(knowing(parts), ref) == b"whoever laid it out"
            looked = "diff_id" if parts.materializer.layers.name == "erofs" else "seal"
            assert parts.events("LayerLaidOut", "LayerPulled") == [
                {"diff_id": str(DIFF_ID), "digest": MADE.descriptor["digest"], "how": "found", "verified": [looked]}
            ]


def test_I3_a_layer_that_no_event_tells_of_is_read_to_its_end_and_had_anew_when_it_is_damaged(
    tmp_path: Path, ref: Remote
) -> None:
    with kit(tmp_path / "root") as parts:
        if parts.materializer.layers.name != "erofs":
            pytest.skip("a tree of files does not keep its bytes as they came")
        lay_out(parts)
        (image,) = (tmp_path / "root/layers").iterdir()
        image.write_bytes(image.read_bytes().replace(b"whoever", b"nobody!"))
        os.utime(image, ns=(SEAL, SEAL))
    with kit(tmp_path / "root", build="b2") as parts:
        assert use(knowing(parts), ref) == b"whoever laid it out"
        assert parts.events("LayerLaidOut") == []
        assert [lost["problem"] for lost in parts.events("LocalLost")] == ["corrupt"]
        assert len(parts.events("LayerPulled")) == 1


def test_whoever_lays_a_layer_out_has_the_time_to_say_so(tmp_path: Path, ref: Remote) -> None:
    async def run(parts: Kit, facts: Ledger) -> None:
        lock = parts.root.locks.try_acquire(f"layer-{DIFF_ID}")
        assert lock is not None
        with lock:
            lay_out(parts)
            using = asyncio.ensure_future(parts.materializer.materialize(ref, vertex="v", reason="run"))
            await asyncio.sleep(0.2)
            assert not using.done()
            await facts.record(pulled())
        await using

    with kit(tmp_path / "root") as parts:
        asyncio.run(run(knowing(parts), Ledger(parts.root.log, "b2")))
        assert parts.events("LayerLaidOut") == []


def test_I4_a_waiter_tells_of_what_the_one_he_waited_for_left(tmp_path: Path, ref: Remote) -> None:
    async def run(parts: Kit) -> None:
        lock = parts.root.locks.try_acquire(f"layer-{DIFF_ID}")
        assert lock is not None
        with lock:
            using = asyncio.ensure_future(parts.materializer.materialize(ref, vertex="v", reason="run"))
            while not parts.events("MaterializationRequested"):
                await asyncio.sleep(0.01)
            lay_out(parts)
        await using

    with kit(tmp_path / "root") as parts:
        asyncio.run(run(knowing(parts)))
        assert [one["how"] for one in parts.events("LayerLaidOut", "LayerPulled")] == ["found"]


def test_a_layer_unpacked_from_the_blob_that_lies_here_is_here_again(tmp_path: Path, ref: Remote) -> None:
    with kit(tmp_path / "root") as parts:
        facts, usage = Ledger(parts.root.log, "b1"), Usage(parts.root.views)
        blob = MADE.descriptor["digest"]
        gone = Demoted(kind="layer", name=str(DIFF_ID), digest=blob, providers=(), policy="prune", bytes=9)
        asyncio.run(_record(facts, pulled(), gone))
        parts.root.views.catch_up(parts.root.log)
        assert usage.tombstone(str(DIFF_ID)) is not None
        parts.materializer.blobs.put(MADE.blob)
        assert use(knowing(parts), ref) == b"whoever laid it out"
        assert [one["how"] for one in parts.events("LayerLaidOut")] == ["unpacked"]
        parts.root.views.catch_up(parts.root.log)
        assert usage.tombstone(str(DIFF_ID)) is None


async def _record(facts: Ledger, *told: LayerPulled | Demoted) -> None:
    for fact in told:
        await facts.record(fact)


@pytest.mark.parametrize("erofs", [True, False])
def test_I6_a_layer_that_is_found_has_a_durable_name_before_it_is_told_of(
    tmp_path: Path, ref: Remote, monkeypatch: pytest.MonkeyPatch, *, erofs: bool
) -> None:
    told_before: list[int] = []
    with kit(tmp_path / "root", erofs=erofs) as parts:
        lay_out(parts)

        def noted(directory: Path) -> None:
            if directory == tmp_path / "root/layers":
                told_before.append(len(parts.events("LayerLaidOut")))
            fsync_directory(directory)

        monkeypatch.setattr(checked, "fsync_directory", noted)
        use(knowing(parts), ref)
        assert len(parts.events("LayerLaidOut")) == 1
    assert told_before == [0]
