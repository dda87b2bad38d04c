"""Exports in another compression: what is converted, what is fetched for it, what is remembered, and what stays."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from engine import events as e
from engine.errors import InputError, MaterializationError
from engine.exporters.conversion import kind_of
from engine.exporters.reading import drain
from engine.exporters.transfer import Transfer
from engine.refs.ref import Layer, Ref, Remote
from projections.cache_index import CacheIndex
from projections.history import History
from projections.runner import Views
from storage.blobs import DirectoryBlobs
from storage.digest import Digest, sha256
from storage.interfaces.images import Compression, Descriptor, Provider
from storage.interfaces.layers import Look
from storage.packing import BlobConverter
from tests.chunked import Made, estargz, gzipped
from tests.engine.exporters.kit import transfer_in
from tests.engine.refs.kit import Kit, kit, push_layers, remote
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess, digest_of, push_blob
from tests.storage.layers.trees import file, info, make_tar
from tests.storage.registry.kit import noise
from tests.storage.tar.tars import Member, write
from tools.known import LogAnswers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers need root")
EPOCH = 1_500_000_000
KINDS = ("gzip", "zstd", "uncompressed", "estargz")


def tar_of(*names: str, mtime: int = 1_700_000_000) -> bytes:
    return make_tar(
        info("d", mtime=mtime), *(file(f"d/{name}", name.encode() + noise(50_000, 1), mtime=mtime) for name in names)
    )


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Kit]:
    with kit(tmp_path / "root") as made:
        yield made


def transfer(parts: Kit, build: str = "b1") -> Transfer:
    """As the next export has it: with what the log knows by now."""
    parts.root.views.catch_up(parts.root.log)
    return transfer_in(parts, LogAnswers(CacheIndex(parts.root.views)), build)


async def step(parts: Kit, name: str, files: dict[str, bytes]) -> Layer:
    """A layer that a step made."""
    writer = parts.snapshots.compose(name)
    writer.directory(b"", Look(0o755, 0, 0, 1_700_000_000 * 10**9))
    for path, data in files.items():
        writer.file(path.encode(), Look(0o644, 0, 0, 1_700_000_000 * 10**9), len(data), [data])
    writer.commit()
    return Layer(snapshot=name, created=1)


def kinds(layers: Sequence[Layer]) -> list[str]:
    return [kind_of(layer.blob) for layer in layers if layer.blob]


async def content(made: Transfer, layer: Layer) -> bytes:
    """The tar in the blob of `layer`."""
    out = bytearray()
    await drain(made.reader.read(layer, lambda _: None), out.extend)
    assert layer.blob is not None
    assert (sha256(bytes(out)), len(out)) == (layer.blob.digest, layer.blob.size)
    tar = bytes(out)
    if layer.blob.media_type.endswith("gzip"):
        tar = gzip.decompress(tar)
    elif layer.blob.media_type.endswith("zstd"):
        tar = zstandard.ZstdDecompressor().stream_reader(tar).readall()
    assert sha256(tar) == layer.diff_id
    return tar


def names(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getnames()


def test_without_force_only_what_a_step_made_is_compressed_as_asked_and_nothing_is_fetched(
    parts: Kit, registry: RegistryProcess, repository: str
) -> None:
    base = [gzipped(tar_of("a")), estargz(tar_of("b"))]
    push_layers(registry.host, repository, base)

    async def run() -> None:
        ref = remote([registry.host], repository, base)
        ref = Remote("step", (*ref.layers, await step(parts, "b1-copy", {"x": noise(5000, 2)})))
        mark = registry.mark()
        for kind in KINDS:
            layers = await transfer(parts).pack(ref, None, None, Compression(kind))  # type: ignore[arg-type]
            assert kinds(layers) == ["gzip", "estargz", kind]
            assert layers[:2] == ref.layers[:2]
            assert [name for name in names(await content(transfer(parts), layers[2])) if name == "x"] == ["x"]
        assert registry.layer_gets([one.descriptor["digest"] for one in base], since=mark) == []
        assert parts.events("MaterializationRequested") == []

    asyncio.run(run())


@pytest.mark.parametrize("kind", KINDS)
def test_I2_force_converts_only_layers_in_another_compression_and_only_those_are_fetched(
    parts: Kit, registry: RegistryProcess, repository: str, kind: Any
) -> None:
    base = [gzipped(tar_of("a")), estargz(tar_of("b"))]
    push_layers(registry.host, repository, base)
    digests = [one.descriptor["digest"] for one in base]

    async def run() -> None:
        ref = remote([registry.host], repository, base)
        mark = registry.mark()
        exporting = transfer(parts)
        layers = await exporting.pack(ref, None, None, Compression(kind, force=True))
        assert kinds(layers) == [kind, kind]
        other = [digest for digest, own in zip(digests, ("gzip", "estargz"), strict=True) if own != kind]
        assert sorted(line.blob for line in registry.layer_gets(digests, since=mark)) == sorted(other)
        moved = sum(line.bytes for line in registry.layer_gets(digests, since=mark))

        for layer, old, made in zip(layers, ref.layers, base, strict=True):
            if layer == old:
                continue
            tar = await content(exporting, layer)
            assert layer.providers == ()
            if kind != "estargz":
                assert layer.diff_id == old.diff_id
            assert [name for name in names(tar) if name.startswith("d")] == [
                name for name in names(gzip.decompress(made.blob)) if name.startswith("d")
            ]

        events = [event for event in parts.root.log.read() if event.type != "PullProgressed"]
        (asked,) = [event for event in events if event.type == "MaterializationRequested"]
        assert (asked.data["reason"], asked.data["layers"]) == ("export", other)
        pulled = [event for event in events if event.type == "LayerPulled"]
        assert all(event.seq > asked.seq for event in pulled)
        assert sum(event.data["bytes"] for event in pulled) == moved
        made_of = {event.data["source"]: event.data for event in events if event.type == "BlobCreated"}
        assert set(made_of) == set(other)
        assert {one["compression"] for one in made_of.values()} == {kind}
        (here,) = [event for event in events if event.type == "Materialized"]
        assert (here.data["bytes"], here.data["whole"]) == (moved, False)
        assert not any(parts.materializer.kept.mountable(layer) for layer in ref.layers), "nothing is unpacked"
        assert not any(parts.materializer.blobs.size(Digest(digest)) for digest in digests), "nor kept as it came"

    asyncio.run(run())
    assert parts.leftovers() == []


def test_the_second_export_converts_and_fetches_nothing(
    parts: Kit, registry: RegistryProcess, repository: str
) -> None:
    base = [gzipped(tar_of("a")), gzipped(tar_of("b"))]
    push_layers(registry.host, repository, base)

    async def run() -> None:
        ref = remote([registry.host], repository, base)
        ref = Remote("step", (*ref.layers, await step(parts, "b1-copy", {"x": b"x"})))
        zstd = Compression("zstd", force=True)
        first = await transfer(parts).pack(ref, None, None, zstd)
        mark, count = registry.mark(), len(parts.events("BlobCreated"))
        assert await transfer(parts, "b2").pack(ref, None, None, zstd) == first
        assert len(parts.events("BlobCreated")) == count == 3
        assert registry.requests()[mark:] == []

        # another kind, and another level, are other blobs; the first ones are still known
        other = await transfer(parts, "b2").pack(ref, None, None, Compression("zstd", 19, force=True))
        plain = await transfer(parts, "b2").pack(ref, None, None, Compression("uncompressed", force=True))
        assert len({layer.blob.digest for layer in (*first, *other, *plain) if layer.blob}) == 9
        assert await transfer(parts, "b2").pack(ref, None, None, zstd) == first

        # a converted blob that is lost is made again, as the same one
        lost = first[0].blob
        assert lost is not None
        (parts.root.path / "blobs/sha256" / lost.digest.hex).unlink()
        assert await transfer(parts, "b3").pack(ref, None, None, zstd) == first
        assert parts.materializer.blobs.size(lost.digest) == lost.size

    asyncio.run(run())


def test_who_got_a_converted_blob_is_remembered_so_it_need_not_stay_here(
    parts: Kit, registry: RegistryProcess, repository: str
) -> None:
    base = [gzipped(tar_of("a"))]
    push_layers(registry.host, repository, base)

    async def run() -> None:
        ref = remote([registry.host], repository, base)
        zstd = Compression("zstd", force=True)
        (layer,) = await transfer(parts).pack(ref, None, None, zstd)
        assert layer.blob is not None
        path = parts.root.path / "blobs/sha256" / layer.blob.digest.hex
        target = Provider.of(registry.host, f"{repository}/pushed")
        push_blob(registry.host, target.repository, path.read_bytes())
        moved = {"digest": str(layer.blob.digest), "transport": "uploaded", "bytes": layer.blob.size, "source": ""}
        await transfer(parts).facts.record(
            e.Exported(kind="image", target="t", digest="d", layers=(moved,), provider=target.to_json())
        )
        path.unlink()
        exporting, mark = transfer(parts, "b2"), registry.mark()
        (again,) = await exporting.pack(ref, None, None, zstd)
        assert registry.requests()[mark:] == []
        assert (again.blob, again.providers) == (layer.blob, (target,))
        assert names(await content(exporting, again)) == ["d", "d/a"]

    asyncio.run(run())


def test_a_damaged_converted_blob_is_made_anew_before_a_byte_of_it_goes_out(
    parts: Kit, registry: RegistryProcess, repository: str
) -> None:
    base = [gzipped(tar_of("a"))]
    push_layers(registry.host, repository, base)

    async def run() -> None:
        ref = remote([registry.host], repository, base)
        exporting = transfer(parts)
        (layer,) = await exporting.pack(ref, None, None, Compression("estargz", force=True))
        assert layer.blob is not None
        path = parts.root.path / "blobs/sha256" / layer.blob.digest.hex
        whole = path.read_bytes()
        path.write_bytes(whole[:-60] + bytes(60))
        store = DirectoryBlobs(parts.root.path, owner="b2", lost=lambda *_: None)
        exporting.reader.blobs = exporting.conversion.blobs = parts.materializer.fetcher.blobs = store
        exporting.conversion.converter = BlobConverter(store)
        assert names(await content(exporting, layer)) == [
            ".no.prefetch.landmark", "d", "d/a", "stargz.index.json",
        ]  # fmt: skip
        assert path.read_bytes() == whole

    asyncio.run(run())


def test_a_blob_or_a_layer_that_is_here_is_not_fetched_to_be_converted(
    parts: Kit, registry: RegistryProcess, repository: str
) -> None:
    like_a_gzip = write([Member(b"\x1f\x8b\x08", data=b"b")], "gnu")
    stored, laid_out = gzipped(tar_of("a")), gzipped(like_a_gzip)
    push_layers(registry.host, repository, [stored, laid_out])

    async def run() -> None:
        ref = remote([registry.host], repository, [stored, laid_out])
        parts.materializer.blobs.put(stored.blob)
        await parts.materializer.materialize(Remote("one", ref.layers[1:]), vertex=None, reason="run")
        images = parts.materializer.layers.name == "erofs"
        mark = registry.mark()
        layers = await transfer(parts).pack(ref, None, None, Compression("zstd", force=True))
        assert kinds(layers) == ["zstd", "zstd"]
        fetched = [line.blob for line in registry.layer_gets([stored.descriptor["digest"]], since=mark)]
        assert fetched == []
        if images:
            assert registry.requests()[mark:] == []
            assert [one["reason"] for one in parts.events("MaterializationRequested")] == ["run"]

    asyncio.run(run())


def test_I3_a_damaged_stored_blob_is_found_out_and_the_layer_fetched(
    parts: Kit, registry: RegistryProcess, repository: str
) -> None:
    made = gzipped(tar_of("a"))
    push_layers(registry.host, repository, [made])
    path = parts.root.path / "blobs/sha256" / digest_of(made.blob).partition(":")[2]
    parts.materializer.blobs.put(made.blob)
    path.write_bytes(made.blob[:-20] + bytes(20))

    async def run() -> None:
        parts.materializer.fetcher.blobs = DirectoryBlobs(parts.root.path, owner="b2", lost=lambda *_: None)
        ref = remote([registry.host], repository, [made])
        exporting = transfer(parts)
        (layer,) = await exporting.pack(ref, None, None, Compression("zstd", force=True))
        assert names(await content(exporting, layer)) == ["d", "d/a"]
        assert len(parts.events("LayerPulled")) == 1

    asyncio.run(run())


def test_I3_a_damaged_layer_is_found_out_while_it_is_converted_and_fetched(
    parts: Kit, registry: RegistryProcess, repository: str
) -> None:
    made = gzipped(tar_of("a"))
    push_layers(registry.host, repository, [made])

    async def run() -> None:
        ref = remote([registry.host], repository, [made])
        await parts.materializer.materialize(ref, vertex=None, reason="run")
        image = parts.root.path / "layers" / f"{made.descriptor['diff_id'].partition(':')[2]}.erofs"
        if not image.exists():
            pytest.skip("layers are directories here, of which no tar is made")
        before = image.stat()
        data = image.read_bytes()
        image.write_bytes(data.replace(noise(50_000, 1), noise(50_000, 2)))
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
        exporting = transfer(parts)
        (layer,) = await exporting.pack(ref, None, None, Compression("zstd", force=True))
        assert noise(50_000, 1) in await content(exporting, layer)
        assert len(parts.events("LayerPulled")) == 2
        (lost,) = parts.events("LocalLost")
        assert (lost["kind"], lost["name"]) == ("layer", made.descriptor["diff_id"])

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["zstd", "estargz"])
def test_I3_wrong_bytes_leave_nothing_and_the_next_provider_is_asked(
    parts: Kit, registry: RegistryProcess, repository: str, kind: Any
) -> None:
    """Both ways to be wrong: a blob that is not its digest, and one whose content is not the diff ID."""
    good = gzipped(tar_of("a"))
    for name in ("good", "bad", "worse"):
        push_layers(registry.host, f"{repository}/{name}", [good])
    wrong = Made(good.blob, {**good.descriptor, "diff_id": digest_of(b"another layer")}, {})

    async def run() -> None:
        with pytest.raises(MaterializationError, match="content has the digest"):
            await transfer(parts).pack(
                remote([registry.host], f"{repository}/good", [wrong]), None, None, Compression(kind, force=True)
            )
        assert parts.events("BlobCreated") == []
        assert not list((parts.root.path / "blobs").glob("sha256/*"))
        assert len(parts.events("MaterializationFailed")) == 1
        assert len(parts.events("PullFailed")) == 1

        flipped = Fault("GET", "/blobs/", flip=True)
        with FaultyProxy(registry.host, flipped) as wrong_bytes:
            force = Compression(kind, force=True)
            lied_to = remote([wrong_bytes.host], f"{repository}/bad", [good])
            with pytest.raises(MaterializationError, match=r"the copy at .* is damaged"):
                await transfer(parts).pack(lied_to, None, None, force)
            assert parts.events("BlobCreated") == []
            assert not list((parts.root.path / "blobs").glob("sha256/*"))
            assert flipped.fired
            nobody, worse = (
                Provider.of(host, f"{repository}/{name}")
                for host, name in ((registry.host, "nobody"), (wrong_bytes.host, "worse"))
            )
            (layer,) = remote([registry.host], f"{repository}/good", [good]).layers
            ref = Remote("three", (Layer(layer.diff_id, layer.blob, (nobody, worse, *layer.providers)),))
            (converted,) = await transfer(parts).pack(ref, None, None, force)
        assert kinds([converted]) == [kind]
        lost = [(one["provider"]["repository"], one["class"]) for one in parts.events("ProviderLost")[-2:]]
        assert lost == [(f"{repository}/nobody", "missing"), (f"{repository}/worse", "corrupt")]

    asyncio.run(run())
    assert parts.leftovers() == []


def test_rewriting_clamps_a_base_and_keeps_what_has_no_later_times(
    parts: Kit, registry: RegistryProcess, repository: str
) -> None:
    base = [gzipped(tar_of("late")), gzipped(tar_of("early", mtime=EPOCH - 5)), estargz(tar_of("too"))]
    push_layers(registry.host, repository, base)

    async def run() -> None:
        ref = remote([registry.host], repository, base)
        ref = Remote("step", (*ref.layers, await step(parts, "b1-copy", {"x": b"x"})))
        exporting = transfer(parts)
        layers = await exporting.pack(ref, EPOCH, None, Compression("zstd"), True)
        assert kinds(layers) == ["gzip", "gzip", "estargz", "zstd"], "blobs keep their compression unless it is forced"
        assert layers[1] == ref.layers[1]
        assert len([one for one in parts.events("BlobCreated") if one["snapshot"]]) == 1
        assert len(parts.events("BlobCreated")) == 4, "a step's layer has no later times from the start"
        assert {layers[0].diff_id, layers[2].diff_id}.isdisjoint({ref.layers[0].diff_id, ref.layers[2].diff_id})
        for layer in layers:
            with tarfile.open(fileobj=io.BytesIO(await content(transfer(parts), layer))) as archive:
                assert max(one.mtime for one in archive) <= EPOCH

        mark = registry.mark()
        assert await transfer(parts, "b2").pack(ref, EPOCH, None, Compression("zstd"), True) == layers
        assert registry.requests()[mark:] == [], "what needed no change is remembered too"
        forced = await transfer(parts, "b2").pack(ref, EPOCH, None, Compression("zstd", force=True), True)
        assert kinds(forced) == ["zstd"] * 4
        assert forced[0].diff_id == layers[0].diff_id
        assert forced[1].diff_id == ref.layers[1].diff_id
        # without an epoch there is nothing to clamp to
        assert (await transfer(parts, "b2").pack(ref, None, None, Compression(), True))[:3] == ref.layers[:3]

    asyncio.run(run())


def test_foreign_layers_stay_what_they_are(parts: Kit) -> None:
    blob = Descriptor(
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Digest(digest_of(b"foreign")), 7
    )
    ref = Remote("windows", (Layer(Digest(digest_of(b"diff")), blob),))

    async def run() -> None:
        assert await transfer(parts).pack(ref, EPOCH, None, Compression("zstd", force=True), True) == ref.layers

    asyncio.run(run())


def test_a_level_that_there_is_not_is_an_input_error_and_leaves_nothing(parts: Kit) -> None:
    async def run() -> None:
        ref: Ref = Remote("step", (await step(parts, "b1-copy", {"x": b"x"}),))
        with pytest.raises(InputError, match="zstd has no level 23"):
            await transfer(parts).pack(ref, None, None, Compression("zstd", 23))

    asyncio.run(run())
    assert parts.events("BlobCreated") == []
    assert parts.leftovers() == []


def test_I4_outputs_at_once_fetch_and_convert_a_layer_once(
    parts: Kit, registry: RegistryProcess, repository: str
) -> None:
    base = [gzipped(tar_of("a"))]
    push_layers(registry.host, repository, base)

    async def run() -> None:
        ref = remote([registry.host], repository, base)
        exporting, mark = transfer(parts), registry.mark()
        found = await asyncio.gather(
            *(exporting.pack(ref, None, None, Compression("zstd", force=True)) for _ in range(3))
        )
        assert found[0] == found[1] == found[2]
        assert len(registry.layer_gets([base[0].descriptor["digest"]], since=mark)) == 1

    asyncio.run(run())
    assert len(parts.events("BlobCreated")) == 1
    assert len(parts.events("LayerPulled")) == 1


def test_a_converted_blob_is_a_copy_of_its_layer_and_its_bytes_count_as_pulled(
    parts: Kit, registry: RegistryProcess, repository: str
) -> None:
    made = gzipped(tar_of("a"))
    push_layers(registry.host, repository, [made])

    async def run() -> Sequence[Layer]:
        ledger = transfer(parts).facts
        ref = remote([registry.host], repository, [made])
        await ledger.record(
            e.BuildStarted(frontend="f", definition="d", options={}, context=None, engine_version="1", host={})
        )
        await ledger.record(
            e.RemoteCreated(
                ref=ref.id, layers=tuple(layer.to_json() for layer in ref.layers),
                providers=tuple(one.to_json() for one in ref.layers[0].providers),
            )
        )  # fmt: skip
        return await transfer(parts).pack(ref, None, None, Compression("zstd", force=True))

    (layer,) = asyncio.run(run())
    assert layer.blob is not None
    views: Views = parts.root.views
    views.catch_up(parts.root.log)
    rows = views.query("SELECT item, digest, converted FROM copies ORDER BY converted")
    assert rows == [
        (f"layer/{layer.diff_id}", made.descriptor["digest"], 0), (f"layer/{layer.diff_id}", layer.blob.digest, 1),
    ]  # fmt: skip
    assert History(views).get("b1").bytes_pulled == len(made.blob)
    assert CacheIndex(views).blob_of(str(layer.diff_id)) is None, "the layer's own blob is the one it came as"


def test_tools_read_what_was_converted(
    parts: Kit, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    base = [gzipped(tar_of("a", "b"))]
    push_layers(registry.host, repository, base)

    async def run() -> None:
        ref = remote([registry.host], repository, base)
        for kind, command in {"estargz": "--gzip", "gzip": "--gzip", "zstd": "--zstd", "uncompressed": "-v"}.items():
            exporting = transfer(parts)
            (layer,) = await exporting.pack(ref, None, None, Compression(kind, force=True))  # type: ignore[arg-type]
            out = bytearray()
            await drain(exporting.reader.read(layer, lambda _: None), out.extend)
            (tmp_path / kind).write_bytes(out)
            listed = subprocess.run(
                ["tar", command, "-tf", str(tmp_path / kind)], check=True, capture_output=True, text=True
            )
            assert "d/b" in listed.stdout

    asyncio.run(run())
