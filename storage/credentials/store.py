"""Keeping and dropping credentials where docker and this program's own lookups find them.

Sources: docker CLI ("Credential store options": helpers first, else `auths`), docker-credential-helpers protocol.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.credentials.docker_config import DockerConfig, helper_failed, helper_for, keys_for, names_of, unusable
from storage.credentials.lookup import TOKEN_USER, Credential
from storage.durable import make_directories, replace_file


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a credential is now. `helper`: the program that has it; "" when it lies in the file `path`, unencrypted."""

    path: Path
    helper: str = ""


class CredentialStore:
    """Writes docker's configuration, and asks its helpers. Blocking. Methods raise RegistryError of kind auth."""

    def __init__(self, config: DockerConfig | None = None) -> None:
        self._config = config or DockerConfig()

    def keep(self, registry: str, credential: Credential) -> Kept:
        """Keep `credential`, and no other for `registry`: its identity token if it has one, else its password."""
        config = self._config.read()
        helper = helper_for(config, registry)
        server = names_of(registry)[0]
        entry: dict[str, str] = {}
        if helper:
            self._hand_over(helper, server, registry, credential)
        else:
            secret = "" if credential.identity_token else credential.password
            entry["auth"] = b64encode(f"{credential.username}:{secret}".encode()).decode()
            if credential.identity_token:
                entry["identitytoken"] = credential.identity_token
        # reason for an entry without secrets: docker lists there what its helpers keep
        self._write({**config, "auths": {**_without(config.get("auths"), registry), server: entry}})
        return Kept(self._config.path, f"docker-credential-{helper}" if helper else "")

    def drop(self, registry: str) -> bool:
        """Forget the credentials for `registry`; False when there were none."""
        config = self._config.read()
        helper = helper_for(config, registry)
        auths = config.get("auths")
        found = bool(keys_for(auths, registry))
        if helper:
            server = names_of(registry)[0].encode()
            status, _ = self._config.run_helper(helper, "get", server, registry)
            if status == 0:
                found = True
                status, _ = self._config.run_helper(helper, "erase", server, registry)
                if status != 0:
                    raise helper_failed(helper, registry, f"could not erase: exit code {status}")
        if keys_for(auths, registry):
            self._write({**config, "auths": _without(auths, registry)})
        return found

    def _hand_over(self, helper: str, server: str, registry: str, credential: Credential) -> None:
        token = credential.identity_token
        message = {
            "ServerURL": server, "Username": TOKEN_USER if token else credential.username,
            "Secret": token or credential.password,
        }  # fmt: skip
        status, _ = self._config.run_helper(helper, "store", json.dumps(message).encode(), registry)
        if status != 0:
            raise helper_failed(helper, registry, f"did not store the credentials: exit code {status}")

    def _write(self, config: dict[str, Any]) -> None:
        """Replace the file at once, for its owner only; a symbolic link keeps leading to it."""
        path = Path(os.path.realpath(self._config.path))
        data = json.dumps(config, indent="\t").encode() + b"\n"
        try:
            make_directories(path.parent, 0o700)
            replace_file(path, data, mode=0o600, named=True)
        except OSError as error:
            hint = "make it writable for you, or set DOCKER_CONFIG to a directory that is"
            raise unusable(str(path), f"cannot be written: {error.strerror}", hint) from error


def _without(auths: Any, registry: str) -> dict[str, Any]:
    keys = keys_for(auths, registry)
    return {key: value for key, value in auths.items() if key not in keys} if isinstance(auths, dict) else {}
