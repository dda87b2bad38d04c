"""Credentials for registries, from docker's `config.json` and its credential helpers.

Nothing is read before a registry asks for credentials. Secrets never stand in a repr, an error or a log.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from storage.credentials.docker_config import DockerConfig, helper_failed, helper_for, keys_for, names_of, unusable

TOKEN_USER = "<token>"  # noqa: S105 -- a name: what helpers keep an identity token under
_NOT_FOUND = "credentials not found"


@dataclass(frozen=True, slots=True)
class Credential:
    """What a registry or its token server may be shown: user name and password, or an identity (refresh) token, or
    a ready bearer token."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def can_be_shown(self) -> bool:
        """Can requests carry it? Tokens stand in headers as they are, and a library that refuses one would quote it."""
        try:
            (self.username + self.password).encode()
        except UnicodeEncodeError:
            return False
        return all(token.isascii() and token.isprintable() for token in (self.identity_token, self.registry_token))


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
    """Credentials as a login left them (see DockerConfig). A helper of `credHelpers` is asked first, then that of
    `credsStore`, then `auths` is read."""

    def __init__(
        self,
        config_dir: Path | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        helper_seconds: float = 30.0,
    ) -> None:
        self._config = DockerConfig(config_dir, os.environ if environ is None else environ, helper_seconds)

    async def lookup(self, registry: str) -> Credential | None:
        """See `Credentials.lookup`."""
        config = self._config.read()
        helper = helper_for(config, registry)
        if helper:
            server = names_of(registry)[0].encode()
            # reason for a thread: asyncio's processes wait for grandchildren that hold the pipe, beyond any timeout
            status, out = await asyncio.to_thread(self._config.run_helper, helper, "get", server, registry)
            found = _helper_answer(helper, registry, status, out)
            if found is not None and not found.can_be_shown:
                raise helper_failed(helper, registry, "answered with what no request can carry")
            if found is not None:
                return found
        found = _from_auths(config.get("auths"), registry, str(self._config.path))
        if found is not None and not found.can_be_shown:
            raise unusable(str(self._config.path), f"has damaged credentials for {registry}", "log in again")
        return found


def _helper_answer(helper: str, registry: str, status: int, out: bytes) -> Credential | None:
    if status != 0:
        if _NOT_FOUND in out.decode(errors="replace").lower():
            return None
        raise helper_failed(helper, registry, f"failed with exit code {status}")
    try:
        answer = json.loads(out)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise helper_failed(helper, registry, "did not answer with a user name and a secret") from None
    if not (isinstance(username, str) and isinstance(secret, str)):
        raise helper_failed(helper, registry, "did not answer with a user name and a secret")
    if username == TOKEN_USER:
        return Credential(identity_token=secret)
    return Credential(username, secret) if username or secret else None


def _from_auths(auths: Any, registry: str, where: str) -> Credential | None:
    keys = keys_for(auths, registry)
    entry = auths[keys[0]] if keys else None
    if not isinstance(entry, dict):
        return None
    fields = {key: value for key, value in entry.items() if isinstance(value, str)}
    username, password = fields.get("username", ""), fields.get("password", "")
    if fields.get("auth"):
        try:
            decoded = base64.b64decode(fields["auth"], validate=True).decode()
        except ValueError:  # no base64, or no text
            raise unusable(where, f"has a damaged `auth` for {registry}", "log in again") from None
        username, _, password = decoded.rstrip("\0").partition(":")
    credential = Credential(username, password, fields.get("identitytoken", ""), fields.get("registrytoken", ""))
    return credential if credential != Credential() else None
