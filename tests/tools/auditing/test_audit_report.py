"""`refledger audit report` on real builds: each answer against what was really done, each number against its event."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder, base_image, busybox_layer, layer_digests
from tests.projections.audit.proving import statements, unproved
from tests.registry_fixture import RegistryProcess, push_image
from tests.tools.test_reading import in_window
from tools.text import cells

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

Json = dict[str, Any]
EVIL = "\\033]0;title\\007<b>"


@dataclass(frozen=True)
class Shop:
    """Builds of one root: `first` made everything, `second` was cached, `third` had another file and another base,
    `moved` is a copy to another registry, `lazy` was never looked at, `above` stands on what `third` gave."""

    builder: Builder
    base: str
    layers: list[str]
    lazy_layers: list[str]
    names: dict[str, str]
    first: str
    second: str
    third: str
    moved: str
    lazy: str
    above: str
    failed: str

    def report(self, name: str, *args: str) -> Json:
        done = self.builder.run("audit", "report", name, "--json", *args)
        assert (done.code, done.err) == (0, "")
        told = json.loads(done.out)
        assert isinstance(told, dict)
        return told

    def told(self, build: str) -> Json:
        found = self.report(build)["report"]
        assert isinstance(found, dict)
        return found

    def event(self, *types: str, build: str, **data: object) -> Json:
        """The one event of `build` with this data."""
        (event,) = [e for e in self.builder.events(*types, build=build) if data.items() <= e["data"].items()]
        return event

    def digest(self, build: str) -> str:
        (event,) = self.builder.events("Exported", build=build)
        return str(event["data"]["digest"])


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory, registry: RegistryProcess, second_registry: RegistryProcess
) -> Shop:
    directory = tmp_path_factory.mktemp("an audit")
    builder = Builder(directory)
    image, lazy = base_image(registry, "t/audit/base", layers=2), base_image(registry, "t/audit/lazy", layers=3)
    base = image["reference"]
    host, other = registry.host, second_registry.host
    (directory / "token").write_text("hunter2")
    secret = ("--secret", f"id=token,src={directory}/token")
    dockerfile = (
        f"FROM {base} AS tool\nARG LEVEL=1\n"
        "RUN --mount=type=secret,id=token --mount=type=cache,target=/objects echo $LEVEL > /tool\n"
        f"FROM {base}\nCOPY a /a\nCOPY --from=tool /tool /tool\n"
    )
    builder.write({"a": "one"})

    def build(text: str, *args: str) -> str:
        builder.must_build(text, *args)
        return str(builder.builds()[0]["id"])

    pushed = f"{host}/t/audit/app:1"
    first = build(dockerfile, "-t", pushed, "--push", "--build-arg", "LEVEL=2", *secret)
    second = build(dockerfile, "-t", pushed, "--push", "--build-arg", "LEVEL=2", *secret)
    push_image(host, "t/audit/base", [{"etc/release": b"2"}, busybox_layer()], config={"Env": ["PATH=/bin"]})
    builder.write({"a": "two"})
    third = build(dockerfile, "-t", f"{host}/t/audit/app:2", "--push", "--build-arg", "LEVEL=2", *secret)
    untouched = f"FROM {lazy['reference']}\nENV A=1\n"
    at_lazy = build(untouched, "-t", f"{host}/t/audit/lazy-app:1", "--push")
    moved = build(untouched, "-t", f"{other}/t/audit/lazy-app:1", "--push")
    above = build(f"FROM {host}/t/audit/app:2\nENV B=1\n", "-t", f"{host}/t/audit/above:1", "--push")
    assert builder.build(f"FROM {base}\nRUN printf '{EVIL}'; exit 3\n").code == 1
    failed = builder.builds()[0]["id"]
    return Shop(
        builder, base, layer_digests(image), layer_digests(lazy), {"pushed": pushed, "lazy": lazy["reference"]},
        first, second, third, moved, at_lazy, above, failed,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["first", "second", "third", "moved", "lazy", "above", "failed"])
def test_every_number_is_that_of_an_event_that_says_so(shop: Shop, name: str) -> None:
    events = shop.builder.events()
    told = shop.report(getattr(shop, name), "--reverse")
    assert unproved(told, events) == []
    assert len(list(statements(told))) > 10


def test_the_check_of_numbers_finds_a_wrong_one(shop: Shop) -> None:
    events = shop.builder.events()
    told = shop.report(shop.first)
    last = events[-1]["seq"]
    for path, item in list(statements(told)):
        if path.endswith(("/inputs", "/layers", "/served", "/results")):
            seqs, item["seqs"] = item["seqs"], [last]
            assert unproved(told, events), (path, item)
            item["seqs"] = seqs
    told["report"]["layers"][0]["seqs"] = [last + 1]
    assert len(unproved(told, events)) == 1


def test_the_digest_tells_every_build_that_made_it_and_where_it_went(shop: Shop) -> None:
    told = shop.report(shop.digest(shop.first))
    assert told["kind"] == "digest"
    assert [(item["build"], item["how"], item["target"]) for item in told["made"]] == [
        (build, "image", shop.names["pushed"]) for build in (shop.first, shop.second)
    ]  # fmt: skip
    begun = shop.event("BuildStarted", build=shop.first)
    assert told["made"][0]["engine_version"] == begun["data"]["engine_version"]
    assert told["made"][0]["host"] == begun["data"]["host"]
    assert told["report"]["build"]["id"] == shop.first
    inputs = {(item["kind"], item["name"]): item for item in told["report"]["inputs"]}
    resolved = shop.event("SourceResolved", build=shop.first)
    assert inputs["image", shop.base.replace(":latest", "") + ":latest"]["value"] == resolved["data"]["digest"]
    assert inputs["arg", "LEVEL"]["value"] == "2"
    assert inputs["secret", "token"]["value"] == ""
    assert inputs["definition", "Dockerfile"]["value"] == begun["data"]["definition"]
    assert "hunter2" not in json.dumps(told)


@pytest.mark.parametrize("event", ["layer", "config"])
def test_a_layer_and_a_config_lead_to_the_build_as_well(shop: Shop, event: str) -> None:
    if event == "layer":
        name = shop.builder.events("BlobCreated", build=shop.first)[0]["data"]["digest"]
        assert [item["build"] for item in shop.report(name)["made"]] == [shop.first]
    else:
        (resolved,) = shop.builder.events("SourceResolved", build=shop.above)
        name = resolved["data"]["config"]
        told = shop.report(name, "--reverse")
        assert [item["build"] for item in told["reverse"]] == [shop.above]


def test_each_step_is_executed_or_cached_and_then_by_which_build(shop: Shop) -> None:
    steps = [step for step in shop.told(shop.first)["steps"] if step["outcome"] != "source"]
    assert {step["outcome"] for step in steps} == {"executed"}
    cached = [step for step in shop.told(shop.second)["steps"] if step["outcome"] != "source"]
    assert [step["name"] for step in cached] == [step["name"] for step in steps]
    for step in cached:
        assert (step["outcome"], step["reason"]) == ("cached", "hit")
        assert (step["origin"]["build"], step["origin"]["here"]) == (shop.first, True)


def test_layers_that_were_never_looked_at_are_told_apart_from_those_that_were(shop: Shop) -> None:
    events = shop.builder.events("LayerPulled")
    layers = {layer["digest"]: layer for layer in shop.told(shop.first)["layers"]}
    for digest in shop.layers:
        assert layers[digest]["state"] == "verified"
        assert layers[digest]["provider"] == shop.base.rpartition(":")[0]
        (pulled,) = [event["seq"] for event in events if event["data"]["digest"] == digest]
        assert pulled in layers[digest]["seqs"]
    assert sorted({layer["state"] for layer in layers.values()}) == ["made here", "verified"]
    assert not {"believed", "digest-only"} & {gap["what"] for gap in shop.told(shop.first)["gaps"]}


def test_what_was_mounted_is_believed_and_what_was_streamed_has_its_digest_verified_only(shop: Shop) -> None:
    lazy = shop.report(shop.lazy)["report"]
    shared, *own = shop.lazy_layers  # the other base has the first one too, which a step had to have
    expected = {shared: "verified", **dict.fromkeys(own, "digest only")}
    layers = {layer["digest"]: layer for layer in lazy["layers"]}
    assert {digest: layer["state"] for digest, layer in layers.items()} == expected
    for digest in own:  # it was mounted then; what came by later was verified later
        assert layers[digest]["detail"].endswith("after this build")
    moved = shop.told(shop.moved)
    assert {layer["digest"]: layer["state"] for layer in moved["layers"]} == expected
    exported = shop.event("Exported", build=shop.moved)
    assert {layer["transport"] for layer in exported["data"]["layers"]} == {"streamed"}
    assert [gap["what"] for gap in moved["gaps"]] == ["digest-only", "checkpoint"]
    served = {item["digest"]: item for item in moved["served"] if item["build"] == shop.moved}
    for digest in shop.lazy_layers:
        assert served[digest]["verified"] == ["digest"]
        assert served[digest]["provider"] == shop.names["lazy"].rpartition(":")[0]


def test_a_layer_that_only_registries_had_was_never_verified(tmp_path: Path, registry: RegistryProcess) -> None:
    builder = Builder(tmp_path)
    image = base_image(registry, "t/audit/never", layers=2)
    builder.must_build(f"FROM {image['reference']}\nENV A=1\n", "-t", f"{registry.host}/t/audit/never-app:1", "--push")
    (event,) = builder.events("Exported")
    assert {layer["transport"] for layer in event["data"]["layers"]} == {"mounted"}
    told = json.loads(builder.run("audit", "report", builder.builds()[0]["id"], "--json").out)["report"]
    assert {layer["digest"]: layer["state"] for layer in told["layers"]} == dict.fromkeys(
        layer_digests(image), "never verified"
    )
    assert [gap["what"] for gap in told["gaps"]] == ["believed", "checkpoint"]
    text = builder.run("audit", "report", builder.builds()[0]["id"]).out
    assert "NEVER byte-verified here: 2" in text


def test_taint_is_told_of_steps_of_cached_ones_and_of_what_stands_on_them(shop: Shop) -> None:
    lent = {e["type"]: e["seq"] for e in shop.builder.events("SecretMounted", "CacheMountUsed", build=shop.first)}
    for build in (shop.first, shop.second):
        steps = {step["number"]: step for step in shop.told(build)["steps"]}
        (tainted,) = [step for step in steps.values() if step["taint"]]
        taint = {item["kind"]: item for item in tainted["taint"]}
        assert set(taint) == {"network", "secret", "cache"}
        assert {item["build"] for item in taint.values()} == {shop.first}
        assert taint["secret"]["seqs"] == [lent["SecretMounted"]]
        assert taint["cache"]["seqs"] == [lent["CacheMountUsed"]]
        heirs = [step["name"] for step in steps.values() if step["inherits"]]
        assert heirs == [step["name"] for step in steps.values() if "COPY --from" in step["name"]]
        assert steps[max(steps)]["inherits"] == [tainted["number"]]


def test_a_base_that_a_build_here_made_brings_its_taint(shop: Shop) -> None:
    (image,) = [item for item in shop.told(shop.above)["inputs"] if item["kind"] == "image"]
    assert image["made_by"] == shop.third
    assert {item["kind"] for item in image["taint"]} == {"secret", "cache"}


def test_a_tag_that_moved_is_told_with_the_builds_it_moved_between(shop: Shop) -> None:
    builds = (shop.first, shop.second, shop.third, shop.failed)
    resolved = [shop.event("SourceResolved", build=build) for build in builds]
    one, two = shop.told(shop.third)["resolutions"]
    assert (one["digest"], one["count"], one["seqs"]) == (
        resolved[0]["data"]["digest"], 2, [resolved[0]["seq"], resolved[1]["seq"]]
    )  # fmt: skip
    assert (two["digest"], two["count"], two["seqs"]) == (
        resolved[2]["data"]["digest"], 2, [resolved[2]["seq"], resolved[3]["seq"]]
    )  # fmt: skip


def test_what_differs_from_the_build_before_is_told(shop: Shop) -> None:
    told = shop.told(shop.third)
    assert told["against"] in {shop.first, shop.second}
    kinds = {item["what"]: item for item in told["differences"]}
    assert kinds["source"]["old"] == shop.event("SourceResolved", build=shop.second)["data"]["digest"]
    assert kinds["source"]["new"] == shop.event("SourceResolved", build=shop.third)["data"]["digest"]
    assert kinds["result"]["new"] == shop.digest(shop.third)
    assert any("(/a changed)" in item["name"] or "(a changed)" in item["name"] for item in told["differences"])
    assert "definition" not in kinds
    assert shop.told(shop.second)["differences"] == []


@pytest.mark.parametrize("what", ["base", "layer", "result", "build", "context"])
def test_everything_built_from_something_is_found_also_through_others(shop: Shop, what: str) -> None:
    resolved = shop.event("SourceResolved", build=shop.third)["data"]["digest"]
    layer = shop.builder.events("RemoteCreated", build=shop.third)[0]["data"]["layers"][0]["digest"]
    context = shop.event("ContextScanned", build=shop.third)["data"]["listing"]
    name = {"base": resolved, "layer": layer, "result": shop.digest(shop.third), "build": shop.third,
            "context": context}[what]  # fmt: skip
    found = {item["build"]: item for item in shop.report(name, "--reverse")["reverse"]}
    both = {shop.third, shop.failed}
    used = {"base": both, "layer": both, "context": {shop.third}}.get(what, set())
    assert set(found) == used | {shop.above}
    assert all(found[build]["depth"] == 1 for build in used)
    if what in {"base", "context"}:
        assert (found[shop.above]["depth"], found[shop.above]["of"]) == (2, shop.digest(shop.third))
    assert found[shop.above]["digests"] == [shop.digest(shop.above)]


def test_failures_are_told_with_their_step(shop: Shop) -> None:
    told = shop.told(shop.failed)
    assert [item["what"] for item in told["attempts"]] == ["VertexFailed", "BuildFailed"]
    (ran,) = [step for step in told["steps"] if step["outcome"] == "failed"]
    assert ran["exit_code"] == 3
    assert {item["step"] for item in told["attempts"]} == {ran["number"]}


@pytest.mark.parametrize("width", [60, 140])
def test_the_text_fits_the_window_and_no_name_can_write_to_it(shop: Shop, width: int) -> None:
    lines = in_window(shop.builder, width, "audit", "report", shop.failed, "--reverse")
    assert max(map(cells, lines)) <= width
    assert not any("\x07" in line or "\x1b" in line for line in lines)
    assert any(EVIL in line for line in lines)
    whole = in_window(shop.builder, width, "audit", "report", shop.digest(shop.first))
    titles = [line for line in whole if line and not line.startswith(" ")]
    assert titles == [
        "Digest", "Build", "Results", "Inputs", "Names over time", "Steps", "Taint", "Layers", "Served by",
        "Tried again, failed, called off", "Let go", "Against the build before", "Where the record is incomplete",
    ]  # fmt: skip


def test_the_page_has_the_audit(shop: Shop) -> None:
    page = shop.builder.run("report", shop.second, "-o", "-").out
    assert '<section id="audit">' in page
    assert f"executed by build {shop.first}, in this log" in page


def test_a_copied_root_tells_the_same_and_what_nobody_named_is_an_input_error(shop: Shop, tmp_path: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in shop.builder.root.rglob("*"))
    assert shop.told(shop.first) == shop.told(shop.first[:8])
    done = shop.builder.run("audit", "report", "sha256:" + "0" * 64)
    assert done.code == 2
    assert "no event of this log names" in done.err
    assert sorted((path, path.stat().st_mtime_ns) for path in shop.builder.root.rglob("*")) == before
