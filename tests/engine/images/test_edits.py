"""Rebase and append as graphs: compiled without a registry, stored, and read again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from engine.errors import InputError
from engine.exporters.exporters import base_layers
from engine.exporters.image import compose
from engine.graph import Graph, ImageLayer, ImageSource, LayerSource, Merge, ResolvedImage, vertex
from engine.images.append import Append
from engine.images.definition import Definition, Given, definition_text, parse_definition
from engine.images.rebase import BASE_DIGEST, BASE_NAME, Rebase
from engine.record import changed
from engine.refs.ref import Layer
from engine.solver.cache import cache_key
from engine.stored import graph_from_json
from storage.digest import Digest, sha256
from storage.interfaces.images import Descriptor, Provider
from storage.platform import NoPlatformError

TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


def layer(text: str, size: int = 9) -> ImageLayer:
    return ImageLayer(sha256(b"diff " + text.encode()), Descriptor(TYPE, sha256(text.encode()), size))


def image(name: str, layers: Sequence[str], architecture: str = "amd64", **more: Any) -> ResolvedImage:
    reference = f"registry.example/{name}"
    config = {
        "architecture": architecture, "os": "linux", "config": more.get("config", {}),
        "history": [{"created_by": text, "created": "2024-01-01T00:00:00Z"} for text in layers],
    }  # fmt: skip
    digest = sha256(f"{name} {architecture}".encode())
    provider = Provider.of("registry.example", name.partition(":")[0])
    return ResolvedImage(
        reference, sha256(name.encode()), digest, f"linux/{architecture}", provider, tuple(map(layer, layers)), config,
        more.get("annotations", {}),
    )  # fmt: skip


class Known:
    """A resolver that knows these images."""

    def __init__(self, *images: ResolvedImage, made: Mapping[Digest, tuple[str, Digest]] | None = None) -> None:
        self.images = images
        self.made = made or {}

    async def resolve(self, wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], ResolvedImage]:
        return {key: self._find(*key) for key in wanted}

    async def platforms(self, written: str) -> tuple[str, ...]:
        return tuple(item.platform for item in self.images if item.reference == written)

    def base_of(self, manifest: Digest) -> tuple[str, Digest] | None:
        return self.made.get(manifest)

    def _find(self, reference: str, platform: str) -> ResolvedImage:
        for item in self.images:
            if reference in {item.reference, f"{item.reference}@{item.digest}"} and (
                item.platform == platform
            ):
                return item
        raise NoPlatformError(f"the image has no manifest for {platform}", where=reference)


def compiled(definition: Definition, *images: ResolvedImage) -> Graph:
    return asyncio.run(definition.compile(Known(*images)))


OLD = image("base:1", ["one", "two"])
NEW = image("base:2", ["three"])
APP = image("app:1", ["one", "two", "own"], annotations={"org.example.kept": "yes"})
REBASE = Rebase("registry.example/app:1", "registry.example/base:1", "registry.example/base:2")


def test_a_rebase_is_two_parts_of_images_and_a_merge() -> None:
    graph = compiled(REBASE, OLD, NEW, APP)
    base, own, merge = graph.vertices
    assert isinstance(base.op, ImageSource)
    assert isinstance(own.op, ImageSource)
    assert (base.op.layers, own.op.layers) == (NEW.layers, APP.layers[2:])
    assert (base.op.provider, own.op.provider) == (NEW.provider, APP.provider)
    assert merge.inputs == (base.digest, own.digest)
    (result,) = graph.results
    assert result.vertex == merge.digest
    assert [entry["created_by"] for entry in result.base_history] == ["three", "own"]
    assert result.annotations == {
        "org.example.kept": "yes", BASE_NAME: "registry.example/base:2", BASE_DIGEST: str(NEW.digest)
    }  # fmt: skip
    assert base_layers(graph, merge.digest) == 2


def test_an_image_without_layers_of_its_own_is_its_base() -> None:
    graph = compiled(REBASE, OLD, NEW, image("app:1", ["one", "two"]))
    assert [entry["created_by"] for entry in graph.results[0].base_history] == ["three"]
    assert base_layers(graph, graph.results[0].vertex) == 1
    graph = compiled(REBASE, image("base:1", []), image("base:2", []), image("app:1", []))
    assert base_layers(graph, graph.results[0].vertex) == 0


def test_annotations_stand_for_what_is_not_said() -> None:
    said = {BASE_NAME: "registry.example/base:1", BASE_DIGEST: str(OLD.digest)}
    app = image("app:1", ["one", "two", "own"], annotations=said)
    again = image("base:1", ["three"])  # what the tag is by now

    class Moved(Known):
        def _find(self, reference: str, platform: str) -> ResolvedImage:
            return OLD if "@" in reference else super()._find(reference, platform)

    graph = asyncio.run(Rebase("registry.example/app:1").compile(Moved(app, again)))
    assert isinstance(graph.vertices[0].op, ImageSource)
    assert graph.vertices[0].op.layers == again.layers


def test_what_was_built_here_is_known_unless_the_image_says_otherwise() -> None:
    known = {APP.manifest: ("registry.example/base:1", OLD.digest)}
    graph = asyncio.run(
        Rebase(APP.reference, new="registry.example/base:2").compile(Known(OLD, NEW, APP, made=known))
    )
    assert [entry["created_by"] for entry in graph.results[0].base_history] == ["three", "own"]
    layout = {APP.manifest: ("oci-layout:///etc", OLD.digest)}
    with pytest.raises(InputError, match="no annotation"):
        asyncio.run(Rebase(APP.reference).compile(Known(OLD, NEW, APP, made=layout)))


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({}, f"no annotation {BASE_NAME}"),
        ({BASE_NAME: "registry.example/base:1"}, f"no annotation {BASE_DIGEST}"),
        ({BASE_NAME: "oci-layout:///etc", BASE_DIGEST: "sha256:" + "0" * 64}, "it is a URL"),
        ({BASE_NAME: "registry.example/base:1", BASE_DIGEST: "sha256:no"}, "is not a digest"),
    ],
)
def test_annotations_that_do_not_help_are_told(annotations: dict[str, str], said: str) -> None:
    app = image("app:1", ["one", "two", "own"], annotations=annotations)
    with pytest.raises(InputError, match=said):
        compiled(Rebase("registry.example/app:1"), OLD, app)


def test_another_machines_base_is_no_base() -> None:
    arm = image("base:2", ["three"], "arm64")
    wrong = changed(arm, platform="linux/amd64")
    with pytest.raises(NoPlatformError, match="the base is for linux/arm64, the image for linux/amd64"):
        compiled(REBASE, OLD, wrong, APP)


def test_platforms_that_a_base_lacks_are_left_out_unless_they_were_asked_for() -> None:
    images = [image(item.reference.rpartition("/")[2], [e["created_by"] for e in item.config["history"]], "arm64")
              for item in (OLD, APP)]  # fmt: skip
    graph = compiled(REBASE, OLD, NEW, APP, *images)
    assert [result.platform for result in graph.results] == ["linux/amd64"]
    (warning,) = graph.warnings
    assert warning.startswith("linux/arm64 is left out: ")
    asked = Rebase(REBASE.image, REBASE.old, REBASE.new, ("linux/amd64", "linux/arm64"))
    with pytest.raises(NoPlatformError):
        compiled(asked, OLD, NEW, APP, *images)


# ---------------------------------------------------------------- append

GIVEN = (Given("a.tar", layer("a"), 1_000_000_000), Given("b.tar", layer("b"), 2_000_000_000))


def composed(graph: Graph, layers: Sequence[ImageLayer]) -> Any:
    made = [Layer(item.diff_id, item.blob) for item in layers]
    sources = [v.op for v in graph.vertices if isinstance(v.op, LayerSource)]
    made[-len(sources) :] = [Layer(op.layer.diff_id, op.layer.blob, created=op.created) for op in sources]
    (result,) = graph.results
    below = base_layers(graph, result.vertex)
    return json.loads(compose(result, made, below, None, now=0, extra={}).config)


def test_an_append_has_a_vertex_and_a_line_of_history_for_each_file() -> None:
    graph = compiled(Append(APP.reference, ("a.tar", "b.tar"), (), ("ENV A=b", "CMD x"), GIVEN), APP)
    base, one, two, merge = graph.vertices
    assert merge.inputs == (base.digest, one.digest, two.digest)
    assert base_layers(graph, merge.digest) == 3
    config = composed(graph, [*APP.layers, *(item.layer for item in GIVEN)])
    assert [entry["created_by"] for entry in config["history"]] == [
        "one", "two", "own", "refledger append a.tar", "refledger append b.tar", "ENV A=b", 'CMD ["/bin/sh" "-c" "x"]'
    ]  # fmt: skip
    assert config["config"] == {"Env": ["A=b"], "Cmd": ["/bin/sh", "-c", "x"]}
    times = [entry["created"] for entry in config["history"]]
    assert times == ["2024-01-01T00:00:00Z"] * 4 + ["2033-05-18T03:33:20Z"] * 3
    assert config["created"] == times[-1]
    assert graph.results[0].annotations == APP.annotations


def test_a_base_from_a_year_that_cannot_be_told_in_nanoseconds_gives_the_last_time_that_can() -> None:
    config = {**APP.config, "created": "9999-12-31T23:59:59Z"}
    graph = compiled(Append(APP.reference, ("a.tar",), (), (), GIVEN[:1]), changed(APP, config=config))
    assert [v.op.created for v in graph.vertices if isinstance(v.op, LayerSource)] == [2**63 - 1]


def test_scratch_with_the_same_file_twice() -> None:
    given = (GIVEN[0], GIVEN[0])
    graph = compiled(Append("scratch", ("a.tar", "a.tar"), ("linux/arm64",), (), given))
    assert len(graph.vertices) == 3
    (result,) = graph.results
    assert result.image == {"architecture": "arm64", "os": "linux", "config": {}}
    assert [step.vertex for step in result.history] == [graph.vertices[1].digest] * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("RUN true", "RUN needs a build"), ("FROM x", "FROM needs a build"), ("ENV", "ENV"), ("", "no instruction"),
        ("ENV A=1\nENV B=2", "no single instruction"), ("EXPOSE no", "port"),
    ],
)  # fmt: skip
def test_a_change_that_is_none_is_told_before_a_file_is_read(change: str, said: str) -> None:
    async def take(_: str) -> Given:
        raise AssertionError("read")

    with pytest.raises(InputError, match=said):
        asyncio.run(Append("scratch", ("a.tar",), ("linux/amd64",), (change,)).read(take))


# ---------------------------------------------------------------- stored


@pytest.mark.parametrize(
    "definition",
    [
        REBASE, Rebase("a", "", "", ("linux/amd64",), keep_config=True),
        Append("scratch", ("a.tar", "b.tar"), ("linux/amd64",), ("ENV A=b",), GIVEN),
    ],
)  # fmt: skip
def test_a_definition_is_read_as_it_was_stored(definition: Definition) -> None:
    assert parse_definition(definition.frontend, definition_text(definition)) == definition


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"image": 1}', "{"])
def test_a_damaged_definition_is_told(text: str) -> None:
    for frontend in ("rebase.v0", "append.v0"):
        with pytest.raises(InputError, match="damaged"):
            parse_definition(frontend, text)
    with pytest.raises(InputError, match="cannot be made again"):
        parse_definition("copy.v0", text)


def test_graphs_of_edits_are_read_as_they_were_stored() -> None:
    for graph in (
        compiled(REBASE, OLD, NEW, APP),
        compiled(Append(APP.reference, ("a.tar", "b.tar"), (), (), GIVEN), APP),
    ):
        again = graph_from_json(json.loads(json.dumps(graph.to_json())))
        assert again == graph
        assert all(vertex(v.op, v.inputs, v.name).digest == v.digest for v in again.vertices)


def test_I10_a_merge_of_before_keeps_its_digest() -> None:
    merge = vertex(Merge(), (Digest("sha256:" + "1" * 64),), "merge")
    assert merge.digest == "sha256:7daa3b3b4a69f9379a3d79757b05b188f42ae347403f37144735ff0f0cf3eb4a"


def test_the_very_blobs_count_in_the_key_of_an_edit() -> None:
    other = Given("a.tar", ImageLayer(GIVEN[0].layer.diff_id, Descriptor(TYPE, sha256(b"other"), 5)), 0)
    graphs = [compiled(Append("scratch", ("a.tar",), ("linux/amd64",), (), (one,))) for one in (GIVEN[0], other)]
    keys = {cache_key(graph.vertices[-1].op, ()).digest for graph in graphs}
    assert len(keys) == 2
    assert cache_key(Merge(), ()).components == (("schema", "1"), ("op", "merge"))


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize("definition", [REBASE, Append(APP.reference, ("a.tar",), (), (), GIVEN[:1])])
def test_an_image_whose_config_is_not_understood_is_named(definition: Definition) -> None:
    odd = image("app:1", ["one", "two", "own"], config={"Env": 7})
    with pytest.raises(InputError, match=r"registry.example/app:1: its config has a Env that is not understood"):
        compiled(definition, OLD, NEW, odd)


def test_an_image_without_one_platform_that_both_bases_have_cannot_be_moved() -> None:
    images = [image("app:1", ["one", "two", "own"], name) for name in ("arm64", "s390x")]
    with pytest.raises(NoPlatformError, match="has no manifest for linux/arm64"):
        compiled(REBASE, OLD, NEW, *images)


def test_an_index_of_very_many_platforms_is_not_edited_by_chance() -> None:
    images = [image("app:1", ["one"], f"m{number}") for number in range(65)]
    with pytest.raises(InputError, match=r"there for 65 platforms .*name them with --platform"):
        compiled(Append(APP.reference, ("a.tar",), (), (), GIVEN[:1]), *images)


def test_a_base_that_is_a_path_of_this_machine_is_nobodys_business() -> None:
    new = changed(NEW, reference="oci-layout:///home/me/base")
    moved = asyncio.run(Rebase(APP.reference, OLD.reference, new.reference).compile(Known(OLD, new, APP)))
    assert moved.results[0].annotations == {"org.example.kept": "yes"}


def test_layers_that_were_read_are_not_read_again() -> None:
    async def take(_: str) -> Given:
        raise AssertionError("read")

    done = Append("scratch", ("a.tar",), ("linux/amd64",), (), GIVEN[:1])
    assert asyncio.run(done.read(take)) is done
