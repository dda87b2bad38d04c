"""Builds by `registries.toml` (an authority of its own, certificates, bounds), and by credentials that end."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builder import Builder, base_image, layer_digests
from tests.certificates import Authority
from tests.registry_fixture import RegistryProcess
from tests.relay import Relay
from tests.token_server import Account, TokenServer
from tests.waiting import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[RegistryProcess]:
    """A registry by TLS, for those with a certificate, that has `base`."""
    with RegistryProcess(tmp_path_factory.mktemp("locked")) as process:
        base_image(process, "base")
    process.tls = authority.tls()
    with process:
        yield process


def table(registry: RegistryProcess, authority: Authority, more: str = "") -> str:
    client = authority.client()
    return (
        f'[registry."{registry.host}"]\nca = "{authority.pair.certificate}"\n'
        f'client_certificate = "{client.certificate}"\nclient_key = "{client.key}"\n{more}'
    )


def test_build_pulls_and_pushes_with_certificates(
    builder: Builder, locked: RegistryProcess, authority: Authority
) -> None:
    base, target = f"{locked.host}/base", f"{locked.host}/made:1"
    dockerfile = f"FROM {base}\nRUN echo made > /made\n"
    file = builder.root / "registries.toml"
    file.parent.mkdir()
    file.write_text(f'[registry."{locked.host}"]\nhttp = false\n')
    stranger = builder.build(dockerfile)
    assert stranger.code == 3
    assert f"the certificate of {locked.host} is not trusted" in stranger.err
    file.write_text(table(locked, authority))
    builder.must_build(dockerfile, "--tag", target, "--push")
    assert any(line.method == "PUT" and line.path == "/v2/made/manifests/1" for line in locked.requests())


def test_build_keeps_to_the_bounds_of_a_registry(
    builder: Builder, locked: RegistryProcess, authority: Authority, tmp_path: Path
) -> None:
    """One connection, asked for by the file that the environment names: pull, run and push go through it."""
    file = tmp_path / "mine.toml"
    file.write_text(table(locked, authority, "connections = 1\nrequests_per_second = 200"))
    done = builder.build(
        f"FROM {locked.host}/base\nRUN echo bound > /bound\n", "--tag", f"{locked.host}/bound:1", "--push",
        env={"REFLEDGER_REGISTRIES": str(file)},
    )  # fmt: skip
    assert done.code == 0, done.err


def test_copy_between_registries_of_one_connection_ends(
    builder: Builder, registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, repository, size=9_000_000, layers=4)
    builder.root.mkdir()
    (builder.root / "registries.toml").write_text(
        "".join(f'[registry."{one.host}"]\nconnections = 1\n' for one in (registry, second_registry))
    )
    done = builder.run("copy", f"{registry.host}/{repository}", f"{second_registry.host}/{repository}")
    assert done.code == 0, done.err
    assert all(second_registry.blob_path(digest).exists() for digest in layer_digests(image))


def test_mistake_in_the_file_is_wrong_input_before_anything_else(builder: Builder) -> None:
    builder.root.mkdir()
    (builder.root / "registries.toml").write_text('[registry."a.b"]\ninsecure = true\n')
    done = builder.build("FROM scratch\nCOPY Dockerfile /\n")
    assert done.code == 2
    assert f'{builder.root}/registries.toml: registry."a.b".insecure is not known here' in done.err
    assert builder.builds() == []


def test_I4_pull_goes_on_for_a_second_build_when_the_first_one_s_token_dies(tmp_path: Path, builder: Builder) -> None:
    """One layer in flight, two builds with credentials of their own: the first one's account is closed meanwhile."""
    rights = {"base": {"pull"}}
    with TokenServer(tmp_path / "tokens", {n: Account(n, rights) for n in ("one", "two")}, seconds=3) as tokens:
        process = RegistryProcess(tmp_path / "guarded")
        with process:
            image = base_image(process, "base", size=4_000_000, layers=2)
        process.token = tokens.registry_auth
        with process, Relay(process.host, 1_500_000) as relay:
            builder.write({"Dockerfile": f"FROM {relay.host}/base\nARG WHO\nRUN echo $WHO\n"})
            first = start_as(builder, "one", relay.host)
            assert relay.held.wait(30)
            tokens.seconds = 300
            second = start_as(builder, "two", relay.host)
            wait_until(lambda: len(builder.events("MaterializationRequested")) == 2)
            time.sleep(3.1)  # the first one's token is dead to the registry now
            del tokens.accounts["one"]
            relay.let_go()
            errors = {name: build.communicate(timeout=90)[1] for name, build in (("one", first), ("two", second))}
            assert second.returncode == 0, errors["two"]
            assert first.returncode == 3
            assert "incorrect username or password" in errors["one"]
            assert f"refledger login {relay.host}" in errors["one"]
            large = image["layers"][1]
            pulled = [event for event in builder.events("LayerPulled") if event["data"]["digest"] == large["digest"]]
            gets = process.layer_gets([large["digest"]])
        assert len(pulled) == 1
        assert [line.status for line in gets] == [200, 206], "what the first one had fetched is not fetched again"
        assert {name for name, _ in tokens.asked} == {"one", "two"}


def start_as(builder: Builder, name: str, host: str) -> subprocess.Popen[str]:
    """A build with the credentials of `name`."""
    config = builder.root.parent / name
    config.mkdir()
    auth = base64.b64encode(f"{name}:{name}".encode()).decode()
    (config / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    arguments = ("build", str(builder.context), "--progress", "plain", "--build-arg", f"WHO={name}")
    return builder.start(*arguments, env={"DOCKER_CONFIG": str(config)})
