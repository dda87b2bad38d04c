"""Credentials are kept where docker keeps them, for their owner only, and nothing else of the file changes."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from storage.credentials.docker_config import DockerConfig
from storage.credentials.lookup import Credential, DockerCredentials
from storage.credentials.store import CredentialStore
from storage.errors import RegistryError

SECRET = "s3cr3t:with:colons"
ME = Credential("me", SECRET)
HELPER = """#!/bin/sh
# keeps what it is given in a file by server, as the protocol has it
cd '{directory}' || exit 2
file() {{ tr -c 'a-z0-9\\n' _; }}
case $1 in
store)
    cat > message
    mv message "$(sed 's/.*"ServerURL": "\\([^"]*\\)".*/\\1/' message | file)" ;;
get)
    name=$(file)
    test -f "$name" || {{ echo credentials not found in native keychain; exit 1; }}
    cat "$name" ;;
erase)
    rm "$(file)" ;;
esac
"""


class Home:
    """A directory with docker's configuration, and helpers that work or do not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "config.json"
        self.vault = directory / "vault"
        self.environ = {"DOCKER_CONFIG": str(directory), "PATH": f"{directory}:/usr/bin:/bin"}
        self.store = CredentialStore(DockerConfig(environ=self.environ))

    def helper(self, name: str, script: str = "") -> None:
        self.vault.mkdir(exist_ok=True)
        path = self.directory / f"docker-credential-{name}"
        path.write_text(script or HELPER.format(directory=self.vault))
        path.chmod(0o755)

    def write(self, config: Any) -> None:
        self.file.write_text(json.dumps(config))

    def read(self) -> Any:
        return json.loads(self.file.read_text())

    def lookup(self, registry: str) -> Credential | None:
        return asyncio.run(DockerCredentials(environ=self.environ).lookup(registry))

    def strays(self) -> list[str]:
        return [path.name for path in self.directory.iterdir() if path.name.startswith(".")]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_new_file_is_for_its_owner_only(home: Home) -> None:
    nested = Home(home.directory / "new" / ".docker")
    old = os.umask(0)
    try:
        kept = nested.store.keep("quay.io", ME)
    finally:
        os.umask(old)
    assert (kept.path, kept.helper) == (nested.file, "")
    assert stat.S_IMODE(nested.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(nested.directory.stat().st_mode) == 0o700
    assert nested.read() == {"auths": {"quay.io": {"auth": base64.b64encode(f"me:{SECRET}".encode()).decode()}}}
    assert nested.lookup("quay.io") == ME


def test_everything_else_of_the_file_stays(home: Home) -> None:
    other: dict[str, Any] = {
        "HttpHeaders": {"X": "ü"}, "auths": {"ghcr.io": {"auth": "eDp5", "email": "a@b"}}, "detachKeys": "ctrl-e",
    }  # fmt: skip
    home.write({**other, "plugins": [1, 2.5, None]})
    home.file.chmod(0o644)
    home.store.keep("quay.io", ME)
    assert home.read() == {
        **other, "plugins": [1, 2.5, None], "auths": {**other["auths"], "quay.io": home.read()["auths"]["quay.io"]}
    }  # fmt: skip
    assert list(home.read()) == ["HttpHeaders", "auths", "detachKeys", "plugins"]
    assert stat.S_IMODE(home.file.stat().st_mode) == 0o600
    assert home.store.drop("quay.io") is True
    assert home.read() == {**other, "plugins": [1, 2.5, None]}
    assert home.strays() == []


def test_symbolic_link_stays_one(home: Home) -> None:
    real = home.directory / "elsewhere" / "docker.json"
    real.parent.mkdir()
    real.write_text("{}")
    home.file.symlink_to("elsewhere/docker.json")
    home.store.keep("quay.io", ME)
    assert home.file.is_symlink()
    assert json.loads(real.read_text())["auths"]["quay.io"]["auth"]


def test_docker_hub_goes_by_its_old_name(home: Home) -> None:
    home.write({"auths": {"docker.io": {"auth": "b2xkOm9sZA=="}, "https://registry-1.docker.io/v2/": {}}})
    home.store.keep("docker.io", ME)
    assert list(home.read()["auths"]) == ["https://index.docker.io/v1/"]
    assert home.lookup("docker.io") == ME
    assert home.store.drop("docker.io") is True
    assert home.lookup("docker.io") is None
    assert home.store.drop("docker.io") is False


def test_identity_token_stands_for_the_password(home: Home) -> None:
    home.store.keep("quay.io", Credential("me", SECRET, identity_token="refresh"))
    assert home.lookup("quay.io") == Credential("me", "", "refresh")
    assert base64.b64encode(SECRET.encode()).decode() not in home.file.read_text()


@pytest.mark.parametrize(
    "config", [{"credsStore": "vault"}, {"credHelpers": {"quay.io": "vault"}, "credsStore": "none"}]
)
def test_helper_keeps_it_and_the_file_has_no_secret(home: Home, config: dict[str, Any]) -> None:
    home.helper("vault")
    home.write({**config, "auths": {"quay.io": {"auth": base64.b64encode(b"me:old").decode()}}})
    assert home.store.keep("quay.io", ME).helper == "docker-credential-vault"
    assert home.read() == {**config, "auths": {"quay.io": {}}}
    assert home.lookup("quay.io") == ME
    assert home.store.drop("quay.io") is True
    assert home.read() == {**config, "auths": {}}
    assert home.lookup("quay.io") is None
    assert list(home.vault.iterdir()) == []
    assert home.store.drop("quay.io") is False


def test_helper_keeps_an_identity_token_as_docker_names_it(home: Home) -> None:
    home.helper("vault")
    home.write({"credsStore": "vault"})
    home.store.keep("docker.io", Credential("me", SECRET, identity_token="refresh"))
    (kept,) = home.vault.iterdir()
    assert json.loads(kept.read_text()) == {
        "ServerURL": "https://index.docker.io/v1/", "Username": "<token>", "Secret": "refresh"
    }  # fmt: skip
    assert home.lookup("docker.io") == Credential(identity_token="refresh")


def test_I9_helper_that_fails_is_one_line_and_nothing_is_written(home: Home) -> None:
    home.helper("bad", "#!/bin/sh\ncat; exit 3\n")
    home.write({"credsStore": "bad"})
    with pytest.raises(RegistryError, match="docker-credential-bad did not store the credentials: exit") as caught:
        home.store.keep("quay.io", ME)
    assert SECRET not in str(caught.value)
    assert home.read() == {"credsStore": "bad"}


def test_damaged_file_is_left_alone(home: Home) -> None:
    home.file.write_text('{"auths": ')
    with pytest.raises(RegistryError, match="is not valid JSON"):
        home.store.keep("quay.io", ME)
    assert home.file.read_text() == '{"auths": '
    home.file.write_text("\n")
    home.store.keep("quay.io", ME)
    assert home.lookup("quay.io") == ME


def test_place_that_cannot_be_written_is_one_line(home: Home) -> None:
    (home.directory / "file").write_text("")
    blocked = Home(home.directory / "file" / "docker")
    with pytest.raises(RegistryError, match="docker's configuration cannot be written: Not a directory") as caught:
        blocked.store.keep("quay.io", ME)
    assert caught.value.exit_code == 3
    assert SECRET not in str(caught.value)


def test_I6_a_directory_that_is_made_for_the_file_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync
    synced: list[Path] = []

    def watched(fd: int) -> None:
        fsync(fd)
        synced.append(Path(f"/proc/self/fd/{fd}").readlink())

    monkeypatch.setattr(os, "fsync", watched)
    home = tmp_path / "a home"
    CredentialStore(DockerConfig(environ={"HOME": str(home)})).keep("registry.example", ME)
    assert {tmp_path, home, home / ".docker"} <= set(synced)
    assert stat.S_IMODE((home / ".docker").stat().st_mode) == 0o700


def test_helper_that_does_not_forget_is_one_line(home: Home) -> None:
    home.helper("sticky", "#!/bin/sh\ntest $1 = get\n")
    home.write({"credsStore": "sticky"})
    with pytest.raises(RegistryError, match="docker-credential-sticky could not erase: exit code 1"):
        home.store.drop("r.example")
