"""Caches written to a real registry and to directories, and read again, judged by the registry's own log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

from engine.cache import facts
from engine.cache.chain import CacheChain
from engine.cache.config import MEDIA_TYPE
from engine.cache.imports import CacheImports
from engine.errors import DiskError, HostError, MaterializationError, RefledgerError
from engine.exporters.exporters import Built
from engine.exporters.image import compose
from engine.graph import HistoryStep, Result
from engine.record import changed
from engine.refs.ref import Layer, Remote
from engine.solver.answers import Asking
from storage.blobs import DirectoryBlobs
from storage.digest import Digest, sha256
from storage.layout.source import WithLayouts
from storage.media_types import DOCKER_LIST, MANIFEST
from storage.media_types import INDEX as OCI_INDEX
from tests.engine.cache.kit import CREATED, Caches, Project, caches, found_for, names, project
from tests.engine.exporters.kit import NothingKnown
from tests.registry_fixture import WEB, RegistryProcess, get_json, push_blob, push_manifest
from tools.cli.caches import read_targets

T = TypeVar("T")
ALL = ["RUN other", "RUN first", "RUN second"]


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def manifest_of(registry: RegistryProcess, repository: str, tag: str = "c") -> Any:
    url = f"http://{registry.host}/v2/{repository}/manifests/{tag}"
    return WEB.get(url, headers={"Accept": f"{MANIFEST}, {OCI_INDEX}, {DOCKER_LIST}"}).json()


def blob_of(registry: RegistryProcess, repository: str, entry: Mapping[str, Any]) -> Any:
    return get_json(registry.host, f"/v2/{repository}/blobs/{entry['digest']}")


# ---------------------------------------------------------------- registry


def test_a_cache_travels_without_a_layer_being_read(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = project(registry, f"{repository}/app")
    ref = f"{registry.host}/{repository}/cache:c"
    mark = registry.mark()
    with caches(tmp_path / "a") as one:
        assert run(one.export(made, f"type=registry,ref={ref},mode=max")) == []
        (exported,) = one.parts.events("CacheExported")
    assert registry.layer_gets(made.layers, since=mark) == []
    assert len(registry.mounts(since=mark)) == 4
    assert {layer["transport"] for layer in exported["layers"]} == {"mounted"}
    assert (exported["mode"], exported["records"]) == ("max", 4)  # one step has a key by content besides
    mark = registry.mark()
    with caches(tmp_path / "b") as other:
        imports = run(other.load(made, ref))
        (imported,) = other.parts.events("CacheImported")
        kept = [other.parts.materializer.blobs.size(Digest(name)) for name in imported["metadata"]]
    reads = [line for line in registry.requests()[mark:] if line.method == "GET"]
    assert len(reads) == 3, "manifest, config and facts"
    assert sum(line.bytes for line in reads) == imported["bytes"]
    assert registry.layer_gets(made.layers, since=mark) == []
    assert imported["digest"] == exported["digest"]
    assert None not in kept and len(kept) == 2
    founds = found_for(made, imports)
    assert names(founds) == ALL
    (second,) = founds["RUN second"]
    assert second.ref.id == "b0-second-1"
    assert (second.origin_build, second.importer) == ("b0", ref)
    assert [layer.diff_id for layer in second.ref.layers] == [
        layer.diff_id for layer in made.solution.refs[made.steps[2].digest].layers
    ]
    assert [layer.created for layer in second.ref.layers] == [0, CREATED + 2, CREATED + 3]
    assert {str(provider) for layer in second.ref.layers for provider in layer.providers} == {
        f"{registry.host}/{repository}/cache"
    }
    assert not any(layer.snapshot for layer in second.ref.layers), "nothing of it is on this disk"
    assert founds["RUN other"][0].origin_build == "older"
    assert (imports.started("older"), imports.started("b0"), imports.started("b9")) == (500, 1000, 0)


def test_a_result_is_found_by_content_too(registry: RegistryProcess, repository: str, tmp_path: Path) -> None:
    made = project(registry, f"{repository}/app")
    ref = f"{registry.host}/{repository}/cache:c"
    second = made.steps[2].digest
    by_content = made.solution.resolved[second].digest
    with caches(tmp_path) as one:
        run(one.export(made, f"type=registry,ref={ref},mode=max"))
    with caches(tmp_path / "b") as other:
        imports = run(other.load(made, ref))
    assert [found.resolved for found in found_for(made, imports)["RUN second"]] == [by_content]
    assert [(found.ref.id, found.resolved) for found in imports.lookup(second, by_content)] == [("b0-second-1", "")]
    assert imports.lookup(second, sha256(b"another key")) == []


def test_mode_min_has_what_the_image_is_made_of(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = project(registry, f"{repository}/app")
    ref = f"{registry.host}/{repository}/cache:c"
    with caches(tmp_path) as one:
        run(one.export(made, f"type=registry,ref={ref}"))
        imports = run(one.load(made, ref))
    assert names(found_for(made, imports)) == ["RUN first", "RUN second"]
    described = [entry["digest"] for entry in manifest_of(registry, f"{repository}/cache")["layers"][:-1]]
    assert described == [made.layers[0], *made.layers[2:]]


@pytest.mark.parametrize("form", ["image-manifest=true", "image-manifest=false", "oci-mediatypes=false"])
def test_a_registry_takes_every_form_of_the_manifest(
    registry: RegistryProcess, repository: str, tmp_path: Path, form: str
) -> None:
    made = project(registry, f"{repository}/app")
    ref = f"{registry.host}/{repository}/cache:c"
    with caches(tmp_path) as one:
        run(one.export(made, f"type=registry,ref={ref},mode=max,{form}"))
        imports = run(one.load(made, ref))
    assert names(found_for(made, imports)) == ALL
    document = manifest_of(registry, f"{repository}/cache")
    assert ("config" in document) == (form == "image-manifest=true")
    entries = document.get("manifests") or [*document["layers"], document["config"]]
    types = [entry["mediaType"] for entry in entries]
    assert types.count(MEDIA_TYPE) == types.count(facts.MEDIA_TYPE) == 1
    assert all(entry["annotations"]["containerd.io/uncompressed"] for entry in entries[:4])


def test_a_cache_without_our_facts_is_a_cache(registry: RegistryProcess, repository: str, tmp_path: Path) -> None:
    """As after a tool that copies only what it knows."""
    made = project(registry, f"{repository}/app")
    name = f"{repository}/cache"
    with caches(tmp_path) as one:
        run(one.export(made, f"type=registry,ref={registry.host}/{name}:c,mode=max"))
        document = manifest_of(registry, name)
        document["layers"] = [entry for entry in document["layers"] if entry["mediaType"] != facts.MEDIA_TYPE]
        push_manifest(registry.host, name, "bare", json.dumps(document).encode(), document["mediaType"])
        imports = run(one.load(made, f"{registry.host}/{name}:bare"))
    (second,) = found_for(made, imports)["RUN second"]
    assert second.origin_build == ""
    assert second.ref.id.startswith("sha256:"), "named by its layers"
    assert second.ref.layers[-1].created == CREATED + 3, "annotations tell it"


# ---------------------------------------------------------------- local


def test_a_directory_is_a_cache_and_an_oci_layout(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = project(registry, f"{repository}/app")
    other = project(registry, f"{repository}/app2", salt="2")
    layout = tmp_path / "cache"

    async def exchange(one: Caches) -> Any:
        await one.export(made, f"type=local,dest={layout},mode=max")
        await one.export(other, f"type=local,dest={layout},mode=max,tag=two")
        await one.export(made, f"type=local,dest={layout}")  # the name moves, other names stay
        loaded = await one.load(made, f"type=local,src={layout}")
        return loaded, await one.load(other, f"type=local,src={layout},tag=two")

    with caches(tmp_path / "a") as one:
        first, second = run(exchange(one))
        (layer, *_) = found_for(made, first)["RUN second"][0].ref.layers
        (provider,) = layer.providers
        assert layer.blob is not None
        assert run(one.exporter(made).mover.source.exists(provider, layer.blob.digest))
    assert names(found_for(made, first)) == ["RUN first", "RUN second"]
    assert names(found_for(other, second)) == ALL
    index = json.loads((layout / "index.json").read_text())
    tags = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]]
    assert sorted(tags) == ["latest", "two"]
    for digest in made.layers:
        assert sha256((layout / "blobs/sha256" / digest[7:]).read_bytes()) == digest
    digest = next(entry["digest"] for entry in index["manifests"] if entry["annotations"].popitem()[1] == "two")
    with caches(tmp_path / "b") as one:
        assert names(found_for(other, run(one.load(other, f"type=local,src={layout},digest={digest}")))) == ALL


# ---------------------------------------------------------------- inline


def exported_image(one: Caches, made: Project) -> Any:
    (result,) = made.graph.results
    _, first, second = made.steps
    ref = made.solution.refs[result.vertex]
    exporter = one.exporter(made)
    extra = exporter.inline(Built(result, ref, 1))
    history = (HistoryStep("RUN first", first.digest), HistoryStep("RUN second", second.digest))
    base = ({"created": "2024-01-01T00:00:00Z", "created_by": "base"},)
    described = Result(result.vertex, "linux/amd64", {"os": "linux", "architecture": "amd64"}, base, history)
    return compose(described, ref.layers, 1, None, now=0, extra=extra), exporter


def test_an_image_is_its_own_cache(registry: RegistryProcess, repository: str, tmp_path: Path) -> None:
    made = project(registry, f"{repository}/app")
    with caches(tmp_path) as one:
        image, exporter = exported_image(one, made)
        assert run(exporter.export(read_targets(["type=inline"]))) == []
        (told,) = one.parts.events("CacheExported")
        push_blob(registry.host, f"{repository}/app", image.config)
        push_manifest(registry.host, f"{repository}/app", "inline", image.manifest, image.media_type)
        mark = registry.mark()
        imports = run(one.load(made, f"type=registry,ref={registry.host}/{repository}/app:inline"))
    assert registry.layer_gets(made.layers, since=mark) == []
    founds = found_for(made, imports)
    assert names(founds) == ["RUN first", "RUN second"]
    assert founds["RUN first"][0].ref.id == "b0-first-1"
    assert [layer.created for layer in founds["RUN second"][0].ref.layers] == [0, CREATED + 2, CREATED + 3]
    assert (told["records"], told["digest"]) == (3, "")
    config = json.loads(image.config)
    assert isinstance(config["moby.buildkit.cache.v0"], str), "bytes, as Go writes them into JSON"


@pytest.mark.parametrize(
    "change",
    [
        {"moby.buildkit.cache.v0": "%%%"}, {"moby.buildkit.cache.v0": 7}, {"moby.buildkit.cache.v0": "e30="},
        {"rootfs": {"diff_ids": []}}, {"rootfs": None}, {"history": [7]}, {"refledger.cache.v1": {"version": 1}},
    ],
)  # fmt: skip
def test_a_malformed_inline_cache_is_told_and_nothing_else(
    registry: RegistryProcess, repository: str, tmp_path: Path, change: dict[str, Any]
) -> None:
    made = project(registry, f"{repository}/app")
    with caches(tmp_path) as one:
        image, _ = exported_image(one, made)
        config = json.dumps({**json.loads(image.config), **change}).encode()
        document = json.loads(image.manifest)
        document["config"] |= {"digest": push_blob(registry.host, f"{repository}/app", config), "size": len(config)}
        push_manifest(registry.host, f"{repository}/app", "bad", json.dumps(document).encode(), image.media_type)
        imports = run(one.load(made, f"{registry.host}/{repository}/app:bad"))
        (failed,) = one.parts.events("CacheImportFailed")
    assert failed["class"] == "corrupt"
    assert names(found_for(made, imports)) == []


# ---------------------------------------------------------------- what goes wrong


def test_sources_that_cannot_be_read_leave_the_others(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = project(registry, f"{repository}/app")
    ref = f"{registry.host}/{repository}/cache:c"
    with caches(tmp_path) as one:
        run(one.export(made, f"type=registry,ref={ref},mode=max"))
        sources = [
            f"{registry.host}/{repository}/cache:none", "type=registry,ref=127.0.0.1:9/nobody/there",
            f"type=local,src={tmp_path}/nowhere", f"type=registry,ref={ref}",
        ]  # fmt: skip
        imports = run(one.load(made, *sources))
        failed = {event["source"]: event["class"] for event in one.parts.events("CacheImportFailed")}
    assert failed == dict(zip(sources, ["missing", "transport", "missing"], strict=False))
    founds = found_for(made, imports)
    assert names(founds) == ALL
    assert founds["RUN first"][0].importer == f"type=registry,ref={ref}"


def test_of_several_sources_the_first_is_asked_first(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = project(registry, f"{repository}/app")
    refs = [f"{registry.host}/{repository}/cache-{number}:c" for number in range(2)]
    with caches(tmp_path) as one:
        run(one.export(made, *(f"type=registry,ref={ref}" for ref in refs)))
        imports = run(one.load(made, refs[1], refs[0]))
    assert [found.importer for found in found_for(made, imports)["RUN first"]] == [refs[1], refs[0]]


def test_a_step_whose_bytes_are_gone_is_left_out(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    """Of the other stage, which nobody needs any more; the target is another repository, so a mount would need them."""
    made = project(registry, f"{repository}/app", salt=repository)
    gone = made.layers[1]
    WEB.delete(f"http://{registry.host}/v2/{repository}/app/blobs/{gone}").raise_for_status()
    ref = f"{registry.host}/{repository}/cache:c"
    with caches(tmp_path) as one:
        (warning,) = run(one.export(made, f"type=registry,ref={ref},mode=max"))
        imports = run(one.load(made, ref))
    assert "left out 1 of 3 steps" in warning
    assert names(found_for(made, imports)) == ["RUN first", "RUN second"]


class Full(NothingKnown):
    """The catalog of a root whose disk takes nothing."""

    def packed(self, _name: str, _epoch: int | None, _compression: str) -> NoReturn:
        raise DiskError("reading views.db: No space left on device")


def test_what_goes_wrong_on_this_disk_leaves_no_step_out_in_silence(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = project(registry, f"{repository}/app")
    spare = made.steps[0].digest
    lost = Remote("b0-other-1", (*made.solution.known[spare].layers[:1], Layer(snapshot="b0-other-1", created=1)))
    made = replace(made, solution=changed(made.solution, known={spare: lost}))
    ref = f"type=registry,ref={registry.host}/{repository}/cache:c,mode=max"
    with caches(tmp_path) as one:
        (warning,) = run(one.export(made, ref))
        assert "left out 1 of 3 steps" in warning
    with caches(tmp_path) as one:
        exporter = one.exporter(made)
        exporter.transfer.catalog = Full()
        with pytest.raises(DiskError, match="No space left"):
            run(exporter.export(read_targets([ref])))


def test_I8_a_damaged_document_of_a_cache_is_read_anew(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = project(registry, f"{repository}/app")
    ref = f"{registry.host}/{repository}/cache:c"
    lost: list[str] = []
    with caches(tmp_path) as one:
        one.parts.materializer.fetcher.blobs = DirectoryBlobs(
            one.parts.root.path, owner="b1", lost=lambda digest, _: lost.append(digest)
        )
        stored = one.parts.root.path / "blobs" / "sha256"

        async def damage_and_load() -> CacheImports:
            await one.export(made, f"type=registry,ref={ref},mode=max")
            for _ in range(2):
                await one.load(made, ref)
            for path in stored.iterdir():
                path.chmod(0o644)
                path.write_bytes(b"damaged")
            return await one.load(made, ref)

        assert names(found_for(made, run(damage_and_load()))) == ALL
        assert sorted(lost) == sorted(f"sha256:{path.name}" for path in stored.iterdir())
        assert len(lost) == 3
        assert one.parts.events("CacheImportFailed") == []
        first, again, anew = (told["bytes"] for told in one.parts.events("CacheImported"))
        assert (again, anew) == (0, first)  # what is here, and right, is not asked for again


def test_a_target_that_cannot_be_written_fails_or_is_told(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = project(registry, f"{repository}/app")
    wanted = [
        read_targets([one]) for one in ("type=registry,ref=127.0.0.1:9/no/cache:c", f"type=local,dest={tmp_path}/file")
    ]
    (tmp_path / "file").write_text("no directory any more")
    with caches(tmp_path / "a") as one:
        for targets in wanted:
            with pytest.raises(RefledgerError, match="the cache could not be exported: ") as caught:
                run(one.exporter(made).export(targets))
            assert "\n" not in str(caught.value)
            assert caught.value.exit_code == 3
            assert one.parts.events("CacheExportFailed") == []
        ignored = f"type=local,dest={tmp_path}/file,ignore-error=true"
        (warning,) = run(one.export(made, ignored))
        (failed,) = one.parts.events("CacheExportFailed")
    assert failed["target"] == ignored and failed["error"] in warning


def test_a_document_too_large_is_not_read(registry: RegistryProcess, repository: str, tmp_path: Path) -> None:
    made = project(registry, f"{repository}/app")
    name = f"{repository}/cache"
    digest = push_blob(registry.host, name, b"{}")
    config = {"mediaType": MEDIA_TYPE, "digest": digest, "size": 1 << 40}
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [config]}
    push_manifest(registry.host, name, "c", json.dumps(document).encode(), OCI_INDEX)
    mark = registry.mark()
    with caches(tmp_path) as one:
        run(one.load(made, f"{registry.host}/{name}:c"))
        (failed,) = one.parts.events("CacheImportFailed")
    assert failed["class"] == "corrupt" and str(1 << 40) in failed["error"]
    assert registry.layer_gets([digest], since=mark) == []


# ---------------------------------------------------------------- BuildKit's own names


class Named:
    """Whoever knows how BuildKit calls the steps."""

    def __init__(self, chains: Mapping[Digest, Sequence[CacheChain]]) -> None:
        self._chains = chains

    async def chains(self, _asking: Asking) -> Mapping[Digest, Sequence[CacheChain]]:
        return self._chains


def named_steps(made: Project) -> dict[Digest, list[CacheChain]]:
    _, first, second = made.steps
    source = CacheChain("sha256:source")
    context = CacheChain("sha256:context")
    below = CacheChain("sha256:first", (((source, ""),), ((context, "/a"), (CacheChain("sha256:content"), ""))))
    return {first.digest: [below], second.digest: [CacheChain("sha256:second", (((below, ""),),))]}


def test_records_of_buildkit_are_written_with_links_and_found_by_them(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = project(registry, f"{repository}/app")
    ref = f"{registry.host}/{repository}/cache:c"
    with caches(tmp_path) as one:
        run(one.export(made, f"type=registry,ref={ref},mode=max", chains=named_steps(made)))
        chains = named_steps(made)
        imports = run(one.load(made, ref, chains=Named(chains)))
    config = blob_of(registry, f"{repository}/cache", manifest_of(registry, f"{repository}/cache")["config"])
    records = {record["digest"]: record for record in config["records"]}
    assert len(records) == len(config["records"]) == 9
    numbers = {record["digest"]: number for number, record in enumerate(config["records"])}
    first = records["sha256:first"]["inputs"]
    assert first[0] == [{"link": numbers["sha256:source"]}]
    assert sorted(first[1], key=str) == sorted(
        [{"link": numbers["sha256:context"], "selector": "/a"}, {"link": numbers["sha256:content"]}], key=str
    )
    assert "layers" not in records["sha256:source"]
    top = records["sha256:second"]["layers"][0]["layer"]
    assert config["layers"][top]["blob"] == made.layers[3]
    second = made.steps[2].digest
    unknown = sha256(b"a key that the cache does not have")
    (found,) = imports.lookup(second, unknown)
    assert [layer.blob.digest for layer in found.ref.layers if layer.blob] == [
        made.layers[0], *made.layers[2:]
    ]  # fmt: skip
    assert found.origin_build == ""


def test_a_result_is_in_one_record_and_found_by_its_keys_as_well(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    """BuildKit before 0.11 loads any record that has the result, and fails when it is not the one that matched."""
    made = project(registry, f"{repository}/app")
    ref = f"{registry.host}/{repository}/cache:c"
    names = named_steps(made)
    second = made.steps[2].digest
    names[second].append(CacheChain("sha256:another name", names[second][0].inputs))
    with caches(tmp_path) as one:
        run(one.export(made, f"type=registry,ref={ref},mode=max", chains=names))
        imports = run(one.load(made, ref, chains=Named({second: [CacheChain("sha256:something else")]})))
    config = blob_of(registry, f"{repository}/cache", manifest_of(registry, f"{repository}/cache")["config"])
    results = [result["layer"] for record in config["records"] for result in record.get("layers", ())]
    assert len(results) == len(set(results)) == 3
    (found,) = imports.lookup(second, made.solution.keys[second].digest)
    assert (found.ref.id, found.origin_build) == (made.solution.refs[second].id, "b0")


@pytest.mark.parametrize("other", ["digest", "selector", "input", "below"])
def test_another_chain_matches_nothing(
    registry: RegistryProcess, repository: str, tmp_path: Path, other: str
) -> None:
    made = project(registry, f"{repository}/app")
    ref = f"{registry.host}/{repository}/cache:c"
    source, context = CacheChain("sha256:source"), CacheChain("sha256:context")
    match other:
        case "digest":
            wanted = CacheChain("sha256:firs", (((source, ""),), ((context, "/a"),)))
        case "selector":
            wanted = CacheChain("sha256:first", (((source, ""),), ((context, "/b"),)))
        case "input":
            wanted = CacheChain("sha256:first", (((source, ""),),))
        case _:
            wanted = CacheChain("sha256:first", (((CacheChain("sha256:sourc"), ""),), ((context, "/a"),)))
    good = CacheChain("sha256:first", (((source, ""),), ((context, "/a"),)))
    first = made.steps[1].digest
    with caches(tmp_path) as one:
        run(one.export(made, f"type=registry,ref={ref}", chains=named_steps(made)))
        imports = run(one.load(made, ref, chains=Named({first: [wanted], made.steps[2].digest: [good]})))
    assert imports.lookup(first, sha256(b"?")) == []
    assert len(imports.lookup(made.steps[2].digest, sha256(b"?"))) == 1


def test_chains_that_share_much_stay_small(registry: RegistryProcess, repository: str, tmp_path: Path) -> None:
    """Two links a step to the same step below: spelled out, it would be two to the thousandth of records."""
    made = project(registry, f"{repository}/app")
    chain = CacheChain("sha256:0")
    for number in range(1, 1000):
        chain = CacheChain(f"sha256:{number}", (((chain, ""),), ((chain, "/x"),)))
    ref = f"{registry.host}/{repository}/cache:c"
    first = made.steps[1].digest
    with caches(tmp_path) as one:
        run(one.export(made, f"type=registry,ref={ref}", chains={first: [chain]}))
        imports = run(one.load(made, ref, chains=Named({first: [chain]})))
    assert len(imports.lookup(first, sha256(b"?"))) == 1



def test_a_step_that_an_image_needs_is_not_left_out(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = project(registry, f"{repository}/app")
    needed = made.steps[-1].digest
    lost = Remote("b0-second-1", (Layer(snapshot="b0-second-1", created=1),))
    made = replace(made, solution=changed(made.solution, refs={**made.solution.refs, needed: lost}))
    with caches(tmp_path) as one, pytest.raises(MaterializationError):
        run(one.export(made, f"type=registry,ref={registry.host}/{repository}/cache:c,mode=max"))


def test_a_cache_is_not_sent_twice_and_none_is_left_when_all_layers_are_lost(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = project(registry, f"{repository}/app")
    with caches(tmp_path) as one:
        for _ in range(2):
            assert run(one.export(made, f"type=registry,ref={registry.host}/{repository}/cache:c")) == []
        puts = [line.path for line in registry.requests() if line.method == "PUT"]
        sent = [path.partition("digest=")[2] for path in puts if f"{repository}/cache/blobs" in path]
        assert len(sent) == len(set(sent))
        for layer in made.image["layers"]:
            registry.blob_path(layer["digest"]).unlink()
        (warning,) = run(one.export(made, f"type=registry,ref={registry.host}/{repository}/another:c,mode=max"))
        assert "no step has a result that could be kept" in warning


@pytest.mark.parametrize(
    ("error", "kind"), [(DiskError("reading: No space left"), "disk"), (HostError("no helper"), "transport")]
)
def test_what_keeps_a_cache_from_being_read_on_this_machine_is_told_as_that(
    registry: RegistryProcess, repository: str, tmp_path: Path, error: RefledgerError, kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made = project(registry, f"{repository}/app")

    async def failing(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(WithLayouts, "resolve", failing)
    with caches(tmp_path) as one:
        run(one.load(made, f"{registry.host}/{repository}/cache:c"))
        (failed,) = one.parts.events("CacheImportFailed")
    assert failed["class"] == kind


def test_an_image_without_a_cache_in_it_gives_nothing_and_is_no_failure(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = project(registry, f"{repository}/app")
    with caches(tmp_path) as one:
        assert names(found_for(made, run(one.load(made, made.image["reference"])))) == []
        assert one.parts.events("CacheImportFailed") == []
