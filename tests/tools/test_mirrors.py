"""Mirrors of registries.toml: asked in order before the registry itself, and not trusted any further than that."""

from __future__ import annotations

import base64
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder, base_image, layer_digests
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess, free_port, push_image

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


class Site:
    """A machine with a root, a registry that has an image, and mirrors of that."""

    def __init__(self, directory: Path, registry: RegistryProcess, repository: str) -> None:
        self.builder = Builder(directory)
        self.directory, self.registry, self.repository = directory, registry, repository
        self.base = base_image(registry, f"{repository}/base", layers=2)
        self.first, self.second = layer_digests(self.base)

    def mirrors(self, *hosts: str, tags: bool = True, origin: str = "") -> None:
        """Write registries.toml."""
        listed = ", ".join(f'{{ host = "{host}", tags = {str(tags).lower()} }}' for host in hosts)
        text = f'[registry."{origin or self.registry.host}"]\nmirrors = [{listed}]\n'
        (self.directory / "registries.toml").write_text(text)
        self.builder.env["REFLEDGER_REGISTRIES"] = str(self.directory / "registries.toml")

    def run(self, *args: str, origin: str = "") -> str:
        """Build with a RUN, which needs all layers; returns the build's id."""
        name = f"{origin or self.registry.host}/{self.repository}/base:latest"
        self.builder.must_build(f"FROM {name}\nRUN cat /data/1 > /copy\n", *args)
        return str(self.builder.builds()[0]["id"])

    def told(self, *types: str, build: str | None = None) -> list[dict[str, Any]]:
        """Data of events."""
        return [event["data"] for event in self.builder.events(*types, build=build)]

    def tried(self, host: str, name: str = "") -> list[dict[str, Any]]:
        """What became of the requests to `host`, for `name` if that is given."""
        found = [fact for fact in self.told("SourceTried") if fact["provider"]["registry"] == host]
        return [fact for fact in found if name in ("", fact["name"])]

    def servers(self) -> dict[str, str]:
        """Who served each layer, by the log."""
        return {fact["digest"]: fact["provider"]["registry"] for fact in self.told("LayerPulled")}


@pytest.fixture
def site(tmp_path: Path, registry: RegistryProcess, repository: str) -> Site:
    return Site(tmp_path, registry, repository)


def gets(proxy: FaultyProxy, digest: str) -> int:
    """How often a blob was asked for."""
    return sum(seen.method == "GET" and seen.path.endswith(digest) for seen in proxy.seen)


@contextmanager
def mirror_of(site: Site, *faults: Fault) -> Iterator[FaultyProxy]:
    """A mirror that misbehaves, named in registries.toml."""
    with FaultyProxy(site.registry.host, *faults) as proxy:
        site.mirrors(proxy.host)
        yield proxy


def test_a_mirror_serves_all_and_is_named_but_not_remembered(site: Site) -> None:
    meant = f"{site.registry.host}/{site.repository}/base"
    with mirror_of(site) as mirror:
        site.run()
        assert site.servers() == {site.first: mirror.host, site.second: mirror.host}
        pulled = site.told("LayerPulled")
        assert {fact["provider"]["mirror_of"] for fact in pulled} == {meant}
        assert {fact["outcome"] for fact in site.tried(mirror.host)} == {"ok"}
        assert {fact["mirror_of"] for fact in site.tried(mirror.host)} == {meant}
        assert site.tried(site.registry.host) == [], "nobody else had to be asked"
        (resolved,) = site.told("SourceResolved")
        assert resolved["provider"]["registry"] == site.registry.host
        assert resolved["resolved_by"]["registry"] == mirror.host
        rows = [json.loads(row) for row in site.builder.run("du", "--json").out.splitlines()]
        holders = {name.partition("/")[0] for row in rows for name in row.get("providers", ())}
        assert holders == {site.registry.host}
        asked = len(mirror.seen)
        del site.builder.env["REFLEDGER_REGISTRIES"]
        site.builder.must_build(f"FROM {site.base['reference']}\nRUN cat /data/1 > /other\n", "--no-cache")
        assert len(mirror.seen) == asked, "a mirror that no file names is not asked"


@pytest.mark.parametrize("damage", [Fault("GET", "", flip=True), Fault("GET", "", status=200, body=b"hello")])
def test_I3_a_mirror_with_wrong_bytes_is_skipped_named_and_not_asked_for_that_blob_again(
    site: Site, second_registry: RegistryProcess, damage: Fault
) -> None:
    damage.path = f"/blobs/{site.second}"
    with mirror_of(site, damage) as mirror:
        target = f"{second_registry.host}/{site.repository}/app:1"
        site.run("--push", "-t", target)  # the push streams the layers: no blob of them was kept
        assert site.servers() == {site.first: mirror.host, site.second: site.registry.host}
        (failed,) = site.told("PullFailed")
        assert (failed["digest"], failed["class"]) == (site.second, "corrupt")
        assert failed["provider"]["registry"] == mirror.host
        assert gets(mirror, site.second) == 1
        assert gets(mirror, site.first) == 2, "it may still be asked for what it has right"
        (exported,) = site.told("Exported")
        sources = {layer["digest"]: layer["source"].partition("/")[0] for layer in exported["layers"]}
        assert (sources[site.first], sources[site.second]) == (mirror.host, site.registry.host)
        (lost,) = site.told("ProviderLost")
        assert (lost["provider"]["registry"], lost["class"]) == (mirror.host, "corrupt")


def test_I3_a_push_begins_anew_when_a_mirror_gave_wrong_bytes(site: Site, second_registry: RegistryProcess) -> None:
    with mirror_of(site, Fault("GET", f"/blobs/{site.second}", flip=True)) as mirror:
        target = f"{second_registry.host}/{site.repository}/app:1"
        site.builder.must_build(f"FROM {site.base['reference']}\nLABEL a=b\n", "--push", "-t", target)
        (exported,) = site.told("Exported")
        sources = {layer["digest"]: layer["source"].partition("/")[0] for layer in exported["layers"]}
        assert sources == {site.first: mirror.host, site.second: site.registry.host}
        assert gets(mirror, site.second) == 1
        (lost,) = site.told("ProviderLost")
        assert (lost["provider"]["registry"], lost["class"]) == (mirror.host, "corrupt")
    assert second_registry.blob_path(site.second).read_bytes() == site.registry.blob_path(site.second).read_bytes()


@pytest.mark.parametrize("output", ["type=oci,dest={}", "type=docker,dest={}", "type=oci,tar=false,dest={}"])
def test_I3_an_archive_begins_anew_when_a_mirror_gave_wrong_bytes(site: Site, output: str) -> None:
    with mirror_of(site, Fault("GET", f"/blobs/{site.second}", flip=True)) as mirror:
        dest = site.directory / "out"
        site.builder.must_build(f"FROM {site.base['reference']}\nLABEL a=b\n", "--output", output.format(dest))
        (exported,) = site.told("Exported")
        sources = {layer["digest"]: layer["source"].partition("/")[0] for layer in exported["layers"]}
        assert sources == {site.first: mirror.host, site.second: site.registry.host}
        assert gets(mirror, site.second) == 1
    blob = site.registry.blob_path(site.second).read_bytes()
    name = f"blobs/sha256/{site.second[7:]}"
    if dest.is_dir():
        assert (dest / name).read_bytes() == blob
    else:
        with tarfile.open(dest) as archive:
            assert archive.extractfile(name).read() == blob  # type: ignore[union-attr]  # it is a file
    assert [path.name for path in dest.parent.iterdir() if path.name.endswith(".part")] == []


def test_what_a_mirror_broke_off_the_registry_goes_on_with(site: Site, second_registry: RegistryProcess) -> None:
    mark = site.registry.mark()
    size = site.base["layers"][1]["size"]
    blob = f"/blobs/{site.second}"
    with mirror_of(site, Fault("GET", blob, times=1, cut_after=200_000), Fault("GET", blob, status=503)) as mirror:
        target = f"{second_registry.host}/{site.repository}/app:1"
        site.builder.must_build(f"FROM {site.base['reference']}\nLABEL a=b\n", "--push", "-t", target)
        (exported,) = site.told("Exported")
        source = next(layer["source"] for layer in exported["layers"] if layer["digest"] == site.second)
        assert [name.partition("/")[0] for name in source.split(", ")] == [mirror.host, site.registry.host]
        tried = site.tried(mirror.host, site.second)
        assert [(fact["outcome"], fact["status"], fact["bytes"]) for fact in tried] == [
            ("transport", 200, 200_000), ("transport", 503, 0), ("transport", 503, 0)
        ]  # fmt: skip
    reads = [line.bytes for line in site.registry.layer_gets([site.second], since=mark) if line.partial]
    assert reads == [size - 200_000]


def test_a_mirror_that_is_down_is_tried_briefly_and_then_left_alone(site: Site) -> None:
    host = f"127.0.0.1:{free_port()}"
    site.mirrors(host)
    site.run()
    assert set(site.servers().values()) == {site.registry.host}
    tried = site.tried(host)
    assert 1 <= len(tried) <= 2
    assert {(fact["outcome"], fact["status"]) for fact in tried} == {("transport", 0)}
    assert "refused the connection" in tried[0]["error"]


def test_what_a_mirror_does_not_have_the_next_one_is_asked_for(site: Site) -> None:
    lacking = Fault("GET|HEAD", f"/blobs/{site.first}", status=404)
    with FaultyProxy(site.registry.host, lacking) as one, FaultyProxy(site.registry.host) as two:
        site.mirrors(one.host, two.host)
        site.run()
        assert site.servers() == {site.first: two.host, site.second: one.host}
    assert site.told("ProviderLost") == [], "nobody had promised it"
    (tried,) = [fact for fact in site.told("SourceTried") if fact["outcome"] != "ok"]
    assert (tried["status"], tried["outcome"], tried["name"]) == (404, "missing", site.first)


def test_a_tag_is_what_the_mirror_says_unless_it_may_not_say(
    site: Site, second_registry: RegistryProcess
) -> None:
    other = push_image(second_registry.host, f"{site.repository}/base", [{"etc/mirror": b"x"}])
    dockerfile = f"FROM {site.base['reference']}\nLABEL a=b\n"
    site.mirrors(second_registry.host)
    done = site.builder.must_build(dockerfile)
    (resolved,) = site.told("SourceResolved")
    assert (resolved["digest"], resolved["resolved_by"]["registry"]) == (other["digest"], second_registry.host)
    assert f"says {second_registry.host}/{site.repository}/base" in done.out + done.err
    site.mirrors(second_registry.host, tags=False)
    site.builder.must_build(dockerfile)
    resolved = site.told("SourceResolved")[-1]
    assert (resolved["digest"], resolved["resolved_by"]["registry"]) == (site.base["digest"], site.registry.host)


def test_I9_the_registry_and_its_mirror_see_their_own_credentials_only(site: Site) -> None:
    def wants(user: str) -> tuple[str, Fault]:
        header = "Basic " + base64.b64encode(f"{user}:secret-{user}".encode()).decode()
        return header, Fault(".*", "/v2/", headers={"WWW-Authenticate": 'Basic realm="here"'}, demand=header)

    (ours, own), (theirs, mirrored) = wants("origin"), wants("mirror")
    lacking = Fault("GET", f"/blobs/{site.second}", status=404)
    with FaultyProxy(site.registry.host, own) as origin, FaultyProxy(site.registry.host, mirrored, lacking) as mirror:
        auths = {origin.host: ours, mirror.host: theirs}
        config = {"auths": {host: {"auth": header.removeprefix("Basic ")} for host, header in auths.items()}}
        (site.directory / "config.json").write_text(json.dumps(config))
        site.builder.env["DOCKER_CONFIG"] = str(site.directory)
        site.mirrors(mirror.host, origin=origin.host)
        site.run(origin=origin.host)
        assert site.servers() == {site.first: mirror.host, site.second: origin.host}
        for proxy, header in ((origin, ours), (mirror, theirs)):
            shown = {seen.headers["authorization"] for seen in proxy.seen if "authorization" in seen.headers}
            assert shown == {header}
    log = json.dumps(site.builder.events())
    assert "secret-" not in log
    assert ours.removeprefix("Basic ") not in log


def test_refs_says_who_served_a_blob(site: Site) -> None:
    with mirror_of(site, Fault("GET", f"/blobs/{site.second}", flip=True)) as mirror:
        build = site.run()
        name = f"{mirror.host}/{site.repository}/base"
        told = site.builder.run("refs", site.first)
        assert told.code == 0, told.err
        assert f"pulled from {name}, a mirror of {site.registry.host}/{site.repository}/base" in told.out
        assert build in told.out
        answer = json.loads(site.builder.run("refs", site.second[7:25], "--json").out)
        assert answer["ref"] == site.second
        assert [(one["provider"], one["build"]) for one in answer["served"]] == [
            (f"{site.registry.host}/{site.repository}/base", build)
        ]
        assert any("not to be had of" in event["summary"] and mirror.host in event["summary"]
                   for event in answer["life"])  # fmt: skip
        shown: Sequence[dict[str, Any]] = json.loads(site.builder.run("show", build, "--json").out)["steps"]
        places = {one["digest"]: one["provider"] for step in shown for one in step["transfers"]}
        assert places == {site.first: name, site.second: f"{site.registry.host}/{site.repository}/base"}
        lines = site.builder.run("events", "--type", "SourceTried").out.splitlines()
        served = f'"provider": "{name}", "status": 200'
        asked = [f'"name": "{site.second}"' in line and served in line for line in lines]
        assert asked.count(True) == 1, "who was asked for what is on one line, before it is cut"
    assert site.builder.run("refs", "0" * 64).code == 2
