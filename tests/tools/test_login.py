"""`refledger login` and `logout`: checked with real registries, and what they keep serves builds and other tools."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder, Done, refledger
from tests.certificates import Authority
from tests.faulty import Answering
from tests.registry_fixture import HTPASSWD, PASSWORD, USER, RegistryProcess, free_port, push_image
from tests.terminal import AtTerminal
from tests.token_server import Account, TokenServer

SECRET = "hunter 2 $x"


class Person(Builder):
    """Somebody with a home of their own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.file = directory / ".docker" / "config.json"

    def login(self, *args: str, password: str = "") -> Done:
        return refledger("login", *args, env=self.env, stdin=password.encode())

    @property
    def config(self) -> Any:
        return json.loads(self.file.read_text()) if self.file.exists() else None


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path / "home")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A registry that wants USER and PASSWORD, with an image `app`."""
    with RegistryProcess(tmp_path_factory.mktemp("guarded"), htpasswd=HTPASSWD) as process:
        push_image(process.host, "app", [{"a": b"1"}], auth=(USER, PASSWORD))
        yield process


def test_login_serves_other_tools_until_logout(person: Person, guarded: RegistryProcess) -> None:
    done = person.login(guarded.host, "-u", USER, "--password-stdin", password=PASSWORD + "\n")
    assert (done.code, done.out) == (0, "Login Succeeded\n")
    assert f"stored unencrypted in {person.file}" in done.err
    assert person.file.stat().st_mode & 0o777 == 0o600
    read = ["skopeo", "inspect", "--tls-verify=false", "--authfile", str(person.file), f"docker://{guarded.host}/app"]
    assert json.loads(subprocess.run(read, check=True, capture_output=True).stdout)["Architecture"] == "amd64"

    again = person.run("login", guarded.host)
    assert (again.code, again.out) == (0, f"Already logged in to {guarded.host} as {USER}\n")

    assert person.run("logout", guarded.host).out == f"Removing login credentials for {guarded.host}\n"
    assert person.config == {"auths": {}}
    assert subprocess.run(read, capture_output=True, check=False).returncode != 0
    assert person.run("logout", guarded.host).out == f"Not logged in to {guarded.host}\n"


@pytest.mark.root
def test_build_after_login(person: Person, guarded: RegistryProcess) -> None:
    refused = person.build(f"FROM {guarded.host}/app\nLABEL a=b\n")
    assert refused.code == 3
    assert f"refledger login {guarded.host}" in refused.err
    assert person.login(f"https://{guarded.host}/", "-u", USER, "--password-stdin", password=PASSWORD).code == 0
    person.must_build(f"FROM {guarded.host}/app\nLABEL a=b\n")
    assert PASSWORD not in person.run("events", "--json").out


def test_I9_wrong_password_is_one_line_and_changes_nothing(person: Person, guarded: RegistryProcess) -> None:
    assert person.login(guarded.host, "-u", USER, "--password-stdin", password=PASSWORD).code == 0
    before = person.file.read_bytes()
    done = person.login(guarded.host, "-u", USER, "--password-stdin", password=SECRET)
    assert done.code == 3
    assert done.err.startswith(f"ERROR: {guarded.host}: login failed: the registry denies access to its API (401)")
    assert done.err.count("\n") == 1
    for secret in (SECRET, base64.b64encode(f"{USER}:{SECRET}".encode()).decode()):
        assert secret not in done.err + done.out
    assert person.file.read_bytes() == before


def test_credentials_that_are_no_longer_taken_are_said(person: Person, guarded: RegistryProcess) -> None:
    person.file.parent.mkdir()
    auth = base64.b64encode(f"{USER}:{SECRET}".encode()).decode()
    person.file.write_text(json.dumps({"auths": {guarded.host: {"auth": auth}}}))
    done = person.run("login", guarded.host)
    assert done.code == 3
    assert "login failed" in done.err
    with AtTerminal("login", guarded.host, env=person.env) as terminal:
        terminal.expect(f"already logged in to {guarded.host} as {USER}, but: login failed")
        terminal.expect("Username: ")
        terminal.type(USER)
        terminal.expect("Password: ")
        terminal.type(PASSWORD)
        terminal.expect("Login Succeeded")
        assert terminal.end() == 0
        assert PASSWORD not in terminal.screen


def test_password_in_an_argument_is_warned_of(person: Person, guarded: RegistryProcess) -> None:
    done = person.run("login", guarded.host, "-u", USER, "-p", PASSWORD)
    assert done.code == 0
    assert "WARNING: a password in an argument can be seen by others: use --password-stdin" in done.err


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["a.b", "-p", "x"], "a password needs a user name"),
        (["a.b", "--password-stdin"], "a password needs a user name"),
        (["a.b", "-u", "x", "-p", "x", "--password-stdin"], "exclude each other"),
        (["a.b", "-u", "x"], "this is no terminal"),
        (["a.b"], "this is no terminal"),
        (["a.b", "-u", "x", "--password-stdin"], "must not be empty"),
        (["a.b", "-u", "x:y", "-p", "x"], "a user name has no colon"),
        (["a.b/team", "-u", "x", "-p", "x"], "not a registry: 'a.b/team'"),
        (["x y"], "not a registry: 'x y'"),
    ],
)
def test_wrong_usage_asks_nobody(person: Person, args: list[str], what: str) -> None:
    done = person.run("login", *args)
    assert done.code == 2
    assert what in done.err
    assert person.config is None


def test_password_of_many_lines_and_no_end(person: Person) -> None:
    """A cloud's key file is a password; a password without end is none."""
    seen: list[str] = []
    key = '{\n "type": "service_account"\n}'

    def answer(request: Any) -> tuple[int, dict[str, str], bytes]:
        seen.append(request.headers.get("authorization", ""))
        return (200 if seen[-1] else 401), {"WWW-Authenticate": 'Basic realm="x"'}, b""

    with Answering(answer) as server:
        assert person.login(server.host, "-u", "_json_key", "--password-stdin", password=key + "\r\n").code == 0
        endless = person.login(server.host, "-u", "x", "--password-stdin", password="x" * 70_000)
    assert endless.code == 2
    assert base64.b64decode(seen[-1].removeprefix("Basic ")).decode() == f"_json_key:{key}"


def test_token_server_is_asked_and_its_identity_token_kept(person: Person, tmp_path: Path) -> None:
    with TokenServer(tmp_path / "tokens", {"me": Account(SECRET)}) as tokens:
        tokens.refresh = True
        with RegistryProcess(tmp_path / "registry", token=tokens.registry_auth) as process:
            wrong = person.login(process.host, "-u", "me", "--password-stdin", password="nonsense")
            assert wrong.code == 3
            who = f"the token server {tokens.host}"
            assert f"login failed: {who} denies access to a token (401): incorrect username" in wrong.err
            assert person.config is None
            right = person.login(process.host, "-u", "me", "--password-stdin", password=SECRET)
            assert right.code == 0, right.err
            kept: Any = person.config
            entry = kept["auths"][process.host]
            assert entry == {"auth": base64.b64encode(b"me:").decode(), "identitytoken": "refresh-me"}
            assert person.run("login", process.host).out == f"Already logged in to {process.host} as me\n"
    assert [seen.method for seen in tokens.seen] == ["GET", "GET", "POST"]


def test_login_by_own_authority(person: Person, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    server = authority.server()
    tls = {"certificate": str(server.certificate), "key": str(server.key)}
    with RegistryProcess(tmp_path / "registry", htpasswd=HTPASSWD, tls=tls) as process:
        person.root.mkdir()
        (person.root / "registries.toml").write_text(
            f'[registry."{process.host}"]\nca = "{authority.pair.certificate}"\n'
        )
        done = person.login(process.host, "-u", USER, "--password-stdin", password=PASSWORD)
        assert (done.code, done.out) == (0, "Login Succeeded\n"), done.err


def test_helper_takes_it(person: Person, guarded: RegistryProcess, tmp_path: Path) -> None:
    helper = tmp_path / "bin" / "docker-credential-tests"
    helper.parent.mkdir()
    helper.write_text(f"#!/bin/sh\ntest $1 = store && cat > '{tmp_path}/given'\n")
    helper.chmod(0o755)
    person.env["PATH"] = f"{helper.parent}:{person.env['PATH']}"
    person.file.parent.mkdir()
    person.file.write_text('{"credsStore": "tests"}')
    done = person.login(guarded.host, "-u", USER, "--password-stdin", password=PASSWORD)
    assert (done.code, done.err) == (0, "")
    given = json.loads((tmp_path / "given").read_text())
    assert given == {"ServerURL": guarded.host, "Username": USER, "Secret": PASSWORD}
    assert PASSWORD not in person.file.read_text()


def test_registry_that_asks_for_nothing_is_said(person: Person, registry: RegistryProcess) -> None:
    done = person.login(registry.host, "-u", "me", "--password-stdin", password=SECRET)
    assert done.code == 0
    assert f"{registry.host} asked for no credentials: they are kept, but could not be checked" in done.err


def test_nobody_there_is_one_line(person: Person) -> None:
    host = f"127.0.0.1:{free_port()}"
    done = person.login(host, "-u", "me", "--password-stdin", password=SECRET)
    assert done.code == 3
    assert done.err == f"ERROR: {host}: {host} refused the connection (is a registry running at {host}?)\n"
    assert person.config is None
