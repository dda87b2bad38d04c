"""Credentials are found where `docker login` and its helpers left them, and never shown."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from storage.credentials.lookup import Credential, DockerCredentials
from storage.errors import RegistryError

SECRET = "s3cr3t:with:colons"


def auth(user: str = "me", secret: str = SECRET) -> str:
    return base64.b64encode(f"{user}:{secret}".encode()).decode()


def configured(directory: Path, config: Any, **options: Any) -> DockerCredentials:
    text = config if isinstance(config, str) else json.dumps(config)
    (directory / "config.json").write_text(text)
    environ = {"DOCKER_CONFIG": str(directory), "PATH": f"{directory}:/usr/bin:/bin"}
    return DockerCredentials(environ=environ, **options)


def helper(directory: Path, name: str, script: str) -> None:
    path = directory / f"docker-credential-{name}"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)


def lookup(credentials: DockerCredentials, registry: str) -> Credential | None:
    return asyncio.run(credentials.lookup(registry))


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("quay.io", "quay.io"),
        ("https://quay.io/v1/", "quay.io"),
        ("localhost:5000", "localhost:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
    ],
)
def test_auths_are_found_by_host(tmp_path: Path, key: str, registry: str) -> None:
    credentials = configured(tmp_path, {"auths": {key: {"auth": auth()}}})
    assert lookup(credentials, registry) == Credential("me", SECRET)


@pytest.mark.parametrize("registry", ["quay.io:443", "evil.quay.io", "quay.io.evil.org", "io"])
def test_auths_of_another_host_are_not_used(tmp_path: Path, registry: str) -> None:
    assert lookup(configured(tmp_path, {"auths": {"quay.io": {"auth": auth()}}}), registry) is None


def test_tokens_are_read(tmp_path: Path) -> None:
    credentials = configured(tmp_path, {"auths": {"a.b": {"identitytoken": "I"}, "c.d": {"registrytoken": "R"}}})
    assert lookup(credentials, "a.b") == Credential(identity_token="I")
    assert lookup(credentials, "c.d") == Credential(registry_token="R")


def test_no_configuration_is_anonymous(tmp_path: Path) -> None:
    assert lookup(DockerCredentials(tmp_path / "none"), "quay.io") is None
    assert lookup(DockerCredentials(environ={"HOME": str(tmp_path)}), "quay.io") is None


def test_home_is_the_default_place(tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    configured(tmp_path / ".docker", {"auths": {"quay.io": {"auth": auth()}}})
    assert lookup(DockerCredentials(environ={"HOME": str(tmp_path)}), "quay.io") == Credential("me", SECRET)


def test_helper_of_the_host_comes_before_the_store(tmp_path: Path) -> None:
    helper(tmp_path, "one", 'read server; printf \'{"Username":"%s","Secret":"S1"}\' "$server"')
    helper(tmp_path, "two", 'printf \'{"Username":"<token>","Secret":"S2"}\'')
    credentials = configured(tmp_path, {"credHelpers": {"quay.io": "one"}, "credsStore": "two"})
    assert lookup(credentials, "quay.io") == Credential("quay.io", "S1")
    assert lookup(credentials, "ghcr.io") == Credential(identity_token="S2")


def test_helper_is_asked_for_docker_hub_by_its_old_name(tmp_path: Path) -> None:
    helper(tmp_path, "one", 'read server; printf \'{"Username":"%s","Secret":"S1"}\' "$server"')
    found = lookup(configured(tmp_path, {"credsStore": "one"}), "docker.io")
    assert found == Credential("https://index.docker.io/v1/", "S1")


def test_helper_without_credentials_falls_back_to_auths(tmp_path: Path) -> None:
    helper(tmp_path, "one", "echo credentials not found in native keychain; exit 1")
    config = {"credsStore": "one", "auths": {"quay.io": {"auth": auth()}}}
    assert lookup(configured(tmp_path, config), "quay.io") == Credential("me", SECRET)
    assert lookup(configured(tmp_path, config), "ghcr.io") is None


@pytest.mark.parametrize(
    ("script", "what"),
    [
        (f"echo {SECRET}; exit 3", "exit code 3"),
        (f"echo {SECRET}", "did not answer"),
        (f"echo '[\"{SECRET}\"]'", "did not answer"),
        ('echo \'{"Username":1,"Secret":2}\'', "did not answer"),
        ("sleep 60", "no answer within"),
    ],
)
def test_I9_broken_helper_is_one_line_without_its_output(tmp_path: Path, script: str, what: str) -> None:
    helper(tmp_path, "bad", script)
    seconds = 0.3 if "sleep" in script else 20.0
    with pytest.raises(RegistryError, match=what) as caught:
        lookup(configured(tmp_path, {"credsStore": "bad"}, helper_seconds=seconds), "quay.io")
    assert caught.value.kind == "auth"
    assert SECRET not in str(caught.value)


def test_missing_helper_names_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="docker-credential-gone"):
        lookup(configured(tmp_path, {"credsStore": "gone"}), "quay.io")


def test_helper_names_cannot_leave_the_path(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="names the credential helper"):
        lookup(configured(tmp_path, {"credsStore": "x/../../bin/sh"}), "quay.io")


@pytest.mark.parametrize(
    "config",
    ['{"auths": {"quay.io": {"auth": "' + SECRET, "[1]", {"auths": {"quay.io": {"auth": SECRET}}}, "[" * 100_000,
     {"auths": {"quay.io": {"auth": SECRET + "\u00e9"}}}],
)  # fmt: skip
def test_I9_damaged_configuration_is_one_line_without_its_contents(tmp_path: Path, config: Any) -> None:
    with pytest.raises(RegistryError) as caught:
        lookup(configured(tmp_path, config), "quay.io")
    assert caught.value.kind == "auth"
    assert str(tmp_path) in caught.value.where
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("field", ["username", "password", "identitytoken", "registrytoken"])
def test_I9_what_no_request_can_carry_is_refused_and_not_quoted(tmp_path: Path, field: str) -> None:
    kept = {"auths": {"r.example": {field: f"{SECRET}\ud800" if field in {"username", "password"} else f"{SECRET}\n"}}}
    with pytest.raises(RegistryError, match="has damaged credentials") as raised:
        lookup(configured(tmp_path, kept), "r.example")
    assert SECRET not in str(raised.value)


def test_I9_a_helper_that_answers_what_no_request_can_carry_is_named(tmp_path: Path) -> None:
    helper(tmp_path, "odd", """printf '{"Username": "<token>", "Secret": "%s\\\\n"}' """ + SECRET)
    with pytest.raises(RegistryError, match="answered with what no request") as raised:
        lookup(configured(tmp_path, {"credsStore": "odd"}), "r.example")
    assert SECRET not in str(raised.value)


def test_I9_a_credential_does_not_show_itself() -> None:
    assert SECRET not in repr(Credential("me", SECRET, SECRET, SECRET))


def test_a_configuration_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(RegistryError, match="cannot be read: Is a directory"):
        lookup(DockerCredentials(tmp_path), "r.example")
