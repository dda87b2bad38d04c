"""Credentials for registries, from docker's `config.json` and its credential helpers.

Sources: docker CLI configuration file ("Credential store options"), docker-credential-helpers protocol.
Nothing is read before a registry asks for credentials. Secrets never stand in a repr, an error or a log.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from storage.errors import RegistryError
from storage.reference import DEFAULT_REGISTRY

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_NOT_FOUND = "credentials not found"


@dataclass(frozen=True, slots=True)
class Credential:
    """What a registry or its token server may be shown: user name and password, or an identity (refresh) token, or
    a ready bearer token."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


class Credentials(Protocol):
    """Where credentials come from. Asked anew whenever a registry asks, so a rotated secret is picked up."""

    async def lookup(self, registry: str) -> Credential | None:
        """The credential for `registry` (`host[:port]`, `docker.io` for Docker Hub); None for anonymous.
        Raises RegistryError of kind auth when there should be one but it cannot be had."""
        ...


class Anonymous:
    """No credentials for anybody."""

    async def lookup(self, registry: str) -> Credential | None:  # noqa: ARG002 -- the protocol's signature
        """None."""
        return None


class DockerCredentials:
    """Credentials as `docker login` left them. `config_dir` defaults to `$DOCKER_CONFIG`, then `~/.docker`.

    A helper of `credHelpers` is asked first, then that of `credsStore`, then `auths` is read. A helper gets
    `helper_seconds` to answer.
    """

    def __init__(
        self,
        config_dir: Path | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        helper_seconds: float = 30.0,
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._config_dir = config_dir
        self._helper_seconds = helper_seconds

    async def lookup(self, registry: str) -> Credential | None:
        """See `Credentials.lookup`."""
        config = self._read()
        names = _names(registry)
        helper = _helper_for(config, names)
        if helper:
            found = await self._ask(helper, names[0], registry)
            if found is not None:
                return found
        return _from_auths(config, names, str(self._path()))

    def _path(self) -> Path:
        if self._config_dir is not None:
            return self._config_dir / "config.json"
        directory = self._environ.get("DOCKER_CONFIG")
        if directory:
            return Path(directory) / "config.json"
        return Path(self._environ.get("HOME") or "~").expanduser() / ".docker" / "config.json"

    def _read(self) -> Mapping[str, Any]:
        path = self._path()
        try:
            config = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise _unusable(str(path), f"cannot be read: {error.strerror}", "make it readable for you") from error
        except (ValueError, RecursionError):
            # reason for `from None`: a decoding error quotes the document, which holds secrets
            raise _unusable(str(path), "is not valid JSON", "repair it, or remove it and log in again") from None
        if not isinstance(config, dict):
            raise _unusable(str(path), "is not a JSON object", "repair it, or remove it and log in again")
        return config

    async def _ask(self, helper: str, server: str, registry: str) -> Credential | None:
        """Run `docker-credential-<helper> get` for `server`."""
        program = f"docker-credential-{helper}"
        if not _HELPER_NAME.fullmatch(helper):
            raise _unusable(str(self._path()), f"names the credential helper {helper[:60]!r}", "correct the name")
        process = self._start(program, registry)
        try:
            # reason for a thread: asyncio's processes wait for grandchildren that hold the pipe, beyond any timeout
            out, _ = await asyncio.to_thread(process.communicate, server.encode(), self._helper_seconds)
        except subprocess.TimeoutExpired:
            raise _helper_failed(program, registry, f"gave no answer within {self._helper_seconds:g} s") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return _helper_answer(program, registry, process.returncode, out)

    def _start(self, program: str, registry: str) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [program, "get"], env=dict(self._environ),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            what = f"the credential helper {program} cannot be run: {error.strerror}"
            hint = f"install {program}, or remove it from {self._path()}"
            raise RegistryError(what, kind="auth", where=registry, hint=hint) from error


def _helper_answer(program: str, registry: str, status: int, out: bytes) -> Credential | None:
    if status != 0:
        if _NOT_FOUND in out.decode(errors="replace").lower():
            return None
        raise _helper_failed(program, registry, f"failed with exit code {status}")
    try:
        answer = json.loads(out)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _helper_failed(program, registry, "did not answer with a user name and a secret") from None
    if not (isinstance(username, str) and isinstance(secret, str)):
        raise _helper_failed(program, registry, "did not answer with a user name and a secret")
    if username == "<token>":
        return Credential(identity_token=secret)
    return Credential(username, secret) if username or secret else None


def _names(registry: str) -> tuple[str, ...]:
    """The names `registry` goes by in docker's configuration, the one that helpers are asked for first."""
    if registry == DEFAULT_REGISTRY:
        return (DOCKER_HUB_KEY, "index.docker.io", DEFAULT_REGISTRY, "registry-1.docker.io")
    return (registry,)


def _host_of(key: str) -> str:
    """The host of a configuration key, which may be a URL: `https://host/v1/` and `host` are the same."""
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _entry(table: Any, names: tuple[str, ...]) -> Any:
    """The entry of `table` for one of `names`: an exact key first, then a key with the same host."""
    if not isinstance(table, dict):
        return None
    for name in names:
        if name in table:
            return table[name]
    hosts = {_host_of(name) for name in names}
    return next((value for key, value in table.items() if _host_of(key) in hosts), None)


def _helper_for(config: Mapping[str, Any], names: tuple[str, ...]) -> str:
    helper = _entry(config.get("credHelpers"), names) or config.get("credsStore")
    return helper if isinstance(helper, str) else ""


def _from_auths(config: Mapping[str, Any], names: tuple[str, ...], where: str) -> Credential | None:
    entry = _entry(config.get("auths"), names)
    if not isinstance(entry, dict):
        return None
    fields = {key: value for key, value in entry.items() if isinstance(value, str)}
    username, password = fields.get("username", ""), fields.get("password", "")
    if fields.get("auth"):
        try:
            decoded = base64.b64decode(fields["auth"], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise _unusable(where, f"has a damaged `auth` for {names[-1]}", "log in again") from None
        username, _, password = decoded.rstrip("\0").partition(":")
    credential = Credential(username, password, fields.get("identitytoken", ""), fields.get("registrytoken", ""))
    return credential if credential != Credential() else None


def _unusable(where: str, what: str, hint: str) -> RegistryError:
    return RegistryError(f"docker's configuration {what}", kind="auth", where=where, hint=hint)


def _helper_failed(program: str, registry: str, what: str) -> RegistryError:
    hint = f"run `{program} list` to see what is wrong with it"
    return RegistryError(f"the credential helper {program} {what}", kind="auth", where=registry, hint=hint)
