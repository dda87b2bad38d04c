"""docker's `config.json`: where it is, what it calls a registry, and the programs that keep credentials for it.

Sources: docker CLI configuration file ("Credential store options"), docker-credential-helpers protocol.
Secrets never stand in an error.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import RegistryError
from storage.reference import DEFAULT_REGISTRY

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """The configuration in `directory`, which defaults to `$DOCKER_CONFIG`, then `~/.docker`. A helper gets
    `helper_seconds` to answer."""

    directory: Path | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    helper_seconds: float = 30.0

    @property
    def path(self) -> Path:
        """Of the file, which need not exist."""
        if self.directory is not None:
            return self.directory / "config.json"
        directory = self.environ.get("DOCKER_CONFIG")
        if directory:
            return Path(directory) / "config.json"
        return Path(self.environ.get("HOME") or "~").expanduser() / ".docker" / "config.json"

    def read(self) -> dict[str, Any]:
        """What the file says; nothing when it is missing or empty. Raises RegistryError."""
        path = self.path
        try:
            text = path.read_bytes()
            config = json.loads(text) if text.strip() else {}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise unusable(str(path), f"cannot be read: {error.strerror}", "make it readable for you") from error
        except (ValueError, RecursionError):
            # reason for `from None`: a decoding error quotes the document, which holds secrets
            raise unusable(str(path), "is not valid JSON", "repair it, or remove it and log in again") from None
        if not isinstance(config, dict):
            raise unusable(str(path), "is not a JSON object", "repair it, or remove it and log in again")
        return config

    def run_helper(self, helper: str, verb: str, data: bytes, registry: str) -> tuple[int, bytes]:
        """Run `docker-credential-<helper> <verb>` with `data` on its input: exit code and output. Blocking. Raises
        RegistryError when it cannot be run or does not end."""
        program = f"docker-credential-{helper}"
        if not _HELPER_NAME.fullmatch(helper):
            raise unusable(str(self.path), f"names the credential helper {helper[:60]!r}", "correct the name")
        try:
            process = subprocess.Popen(
                [program, verb], env=dict(self.environ),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            what = f"the credential helper {program} cannot be run: {error.strerror}"
            hint = f"install {program}, or remove it from {self.path}"
            raise RegistryError(what, kind="auth", where=registry, hint=hint) from error
        try:
            out, _ = process.communicate(data, self.helper_seconds)
        except subprocess.TimeoutExpired:
            raise helper_failed(helper, registry, f"gave no answer within {self.helper_seconds:g} s") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return process.returncode, out


def names_of(registry: str) -> tuple[str, ...]:
    """The names `registry` goes by in docker's configuration, the one that helpers are asked for first."""
    if registry == DEFAULT_REGISTRY:
        return (DOCKER_HUB_KEY, "index.docker.io", DEFAULT_REGISTRY, "registry-1.docker.io")
    return (registry,)


def keys_for(table: Any, registry: str) -> list[str]:
    """The keys of `table` that mean `registry`: exact ones first, then those with the same host (`https://host/v1/`)."""
    if not isinstance(table, dict):
        return []
    names = names_of(registry)
    hosts = {_host_of(name) for name in names}
    exact = [name for name in names if name in table]
    return exact + [key for key in table if key not in exact and _host_of(key) in hosts]


def helper_for(config: Mapping[str, Any], registry: str) -> str:
    """The helper that keeps the credentials of `registry`; "" for none."""
    helpers = config.get("credHelpers")
    keys = keys_for(helpers, registry)
    helper = (helpers[keys[0]] if helpers and keys else None) or config.get("credsStore")
    return helper if isinstance(helper, str) else ""


def unusable(where: str, what: str, hint: str) -> RegistryError:
    """The error for a configuration that cannot be used."""
    return RegistryError(f"docker's configuration {what}", kind="auth", where=where, hint=hint)


def helper_failed(helper: str, registry: str, what: str) -> RegistryError:
    """The error for a helper that did not do its work."""
    program = f"docker-credential-{helper}"
    hint = f"run `{program} list` to see what is wrong with it"
    return RegistryError(f"the credential helper {program} {what}", kind="auth", where=registry, hint=hint)


def _host_of(key: str) -> str:
    """The host of a configuration key, which may be a URL: `https://host/v1/` and `host` are the same."""
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]
