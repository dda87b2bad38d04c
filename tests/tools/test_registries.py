"""Builds by `registries.toml`: a registry with an authority of its own, that wants to see a certificate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builder import Builder, base_image
from tests.certificates import Authority
from tests.registry_fixture import RegistryProcess

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
    server = authority.server()
    process.tls = {
        "certificate": str(server.certificate), "key": str(server.key), "clientcas": [str(authority.pair.certificate)],
    }  # fmt: skip
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


def test_mistake_in_the_file_is_wrong_input_before_anything_else(builder: Builder) -> None:
    builder.root.mkdir()
    (builder.root / "registries.toml").write_text('[registry."a.b"]\ninsecure = true\n')
    done = builder.build("FROM scratch\nCOPY Dockerfile /\n")
    assert done.code == 2
    assert f'{builder.root}/registries.toml: registry."a.b".insecure is not known here' in done.err
    assert builder.builds() == []
