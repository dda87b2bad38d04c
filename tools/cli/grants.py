"""--secret, --ssh and --allow: what the user lends to a build, read once, before anything else happens."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from engine.grants import INSECURE, Grants, Offered
from storage.errors import InputError
from storage.interfaces.mounts import SecretPlaces
from tools.cli.fields import split
from tools.cli.writing import print_aside

LARGEST = 500 * 1024
"""Bytes of a secret or key; BuildKit has the same bound."""
_ALLOWED = (INSECURE, "network.host")  # the network is the host's anyway unless --network says otherwise


@dataclass(frozen=True, slots=True)
class Lent:
    """`secrets`: values by id; `sockets` of running agents and `keys` (name for messages, content) by id."""

    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    sockets: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, tuple[tuple[str, bytes], ...]] = field(default_factory=dict, repr=False)
    allowed: tuple[str, ...] = ()

    @property
    def offered(self) -> Offered:
        """The names of all that."""
        return Offered(tuple(sorted(self.secrets)), tuple(sorted({*self.sockets, *self.keys})), self.allowed)


def read_grants(secrets: Sequence[str], ssh: Sequence[str], allow: Sequence[str]) -> Lent:
    """Read what the flags name. Raises InputError, which never shows a value."""
    for name in allow:
        if name not in _ALLOWED:
            raise InputError(f"--allow {name}: no such permission", hint=f"there is {' and '.join(_ALLOWED)}")
    values = dict(_secret(text) for text in secrets)
    sockets: dict[str, str] = {}
    keys: dict[str, tuple[tuple[str, bytes], ...]] = {}
    for text in ssh:
        name, _, places = text.partition("=")
        if not name:
            raise InputError(f"--ssh {text!r} has no id", hint="write --ssh default or --ssh ID=SOCKET|KEY[,KEY]")
        sockets.pop(name, None)
        keys.pop(name, None)
        found = [place for place in places.split(",") if place] or [_running_agent(name)]
        if stat.S_ISSOCK(_stat(found[0], f"--ssh {name}").st_mode):
            if len(found) > 1:
                raise InputError(f"--ssh {name} names a socket and more", hint="give one socket, or key files only")
            sockets[name] = os.path.abspath(found[0])  # noqa: PTH100  keeps links, as the agent may be replaced
        else:
            keys[name] = tuple((place, _read(place, f"--ssh {name}")) for place in found)
    return Lent({k: v for k, v in values.items() if v is not None}, sockets, keys, tuple(dict.fromkeys(allow)))


@asynccontextmanager
async def granted(lent: Lent, places: SecretPlaces) -> AsyncIterator[Grants]:
    """The grants of a build, with agents running for its keys. Raises InputError, HostError, DiskError."""
    if not lent.keys:
        yield Grants(lent.secrets, lent.sockets, lent.allowed)
        return
    from engine.ops.ssh_agent import agents_of_keys

    with places.place() as place:
        async with agents_of_keys(lent.keys, place) as started:
            yield Grants(lent.secrets, {**lent.sockets, **started}, lent.allowed)


def _secret(text: str) -> tuple[str, bytes | None]:
    """Id and value; no value when its variable is not set, which is an error only for a step that requires it."""
    fields = _fields(text)
    name = fields.get("id", "")
    kind = fields.get("type", "")
    if not name:
        raise InputError(f"--secret {text!r} has no id", hint="write --secret id=NAME,src=FILE or id=NAME,env=VARIABLE")
    if kind not in ("", "file", "env"):
        raise InputError(f"--secret {text!r}: no type {kind!r}", hint="the types are file and env")
    env, path = fields.get("env", ""), fields.get("src", "")
    if kind == "env" and not env:
        env, path = path or name, ""
    if kind == "file" and not path:
        path = env or name
    if not env and not path:  # as BuildKit: a variable of that name, else a file
        env, path = (name, "") if name in os.environ else ("", name)
    if path:
        return name, _read(path, f"--secret id={name}")
    value = os.environb.get(os.fsencode(env))
    if value is None:
        print_aside(f"WARNING: --secret id={name}: the variable {env} is not set, so there is no such secret")
    elif len(value) > LARGEST:
        raise InputError(f"--secret id={name} is larger than {LARGEST} bytes")
    return name, value


def _fields(text: str) -> dict[str, str]:
    fields = {}
    for part in split("--secret", text):
        key, equals, value = part.partition("=")
        key = {"source": "src"}.get(key.lower(), key.lower())
        if not equals or key not in ("id", "src", "env", "type"):
            raise InputError(f"--secret {text!r} has an unknown part {part!r}", hint="it takes id, src, env and type")
        fields[key] = value
    return fields


def _running_agent(name: str) -> str:
    found = os.environ.get("SSH_AUTH_SOCK", "")
    if not found:
        raise InputError(
            f"--ssh {name}: SSH_AUTH_SOCK is not set, so no agent runs here",
            hint=f"start ssh-agent and ssh-add a key, or write --ssh {name}=KEYFILE",
        )
    return found


def _stat(path: str, what: str) -> os.stat_result:
    try:
        return Path(path).expanduser().stat()
    except OSError as error:
        raise InputError(f"{what}: {error.strerror}", where=path) from None


def _read(path: str, what: str) -> bytes:
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{what}: {error.strerror}", where=path) from None
    if len(data) > LARGEST:
        raise InputError(f"{what}: larger than {LARGEST} bytes", where=path)
    return data
