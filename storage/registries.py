"""`registries.toml`: how registries are reached, and what is asked before them. Parsing is pure; `load` reads files.

Sources of the names: buildkitd.toml (`[registry."host"]`, `mirrors`, `http`), containers-registries.conf(5) (longest
prefix wins, a mirror's name takes the place of what was matched), containerd hosts.toml (own CA beside the system's).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from storage.errors import InputError
from storage.interfaces.images import Mirror, Provider
from storage.reference import DEFAULT_REGISTRY, is_host, is_loopback, is_path
from storage.regular import read_regular

VARIABLE = "REFLEDGER_REGISTRIES"
"""The environment variable that names the file."""
FILE_NAME = "registries.toml"
_LARGEST = 1 << 20  # bytes of it
SYSTEM_FILE = Path("/etc/refledger") / FILE_NAME
_SETTINGS = ("http", "ca", "client_certificate", "client_key", "requests_per_second", "connections")
_MIRROR = ("host", "prefix", "tags")
_HUB = frozenset({DEFAULT_REGISTRY, "index.docker.io", "registry-1.docker.io"})
_MOST_CONNECTIONS = 1000


@dataclass(frozen=True, slots=True)
class HostSettings:
    """How one host is spoken to. `http`: in plain text (None: nothing was written). `ca`: a PEM file of authorities
    that are trusted beside the system's. `client_certificate` and `client_key` (None: in the certificate's file): what
    is shown to a host that asks. `requests_per_second` on average, with bursts of one second's worth; `connections`:
    see Throttle. None: no bound."""

    http: bool | None = None
    ca: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    requests_per_second: float | None = None
    connections: int | None = None


@dataclass(frozen=True, slots=True)
class MirrorRule:
    """One entry of `mirrors`: `host[/prefix]` takes the place of the key that it is listed under."""

    host: str
    prefix: str = ""
    tags: bool = True


@dataclass(frozen=True, slots=True)
class Registries:
    """What the file says: settings by `host[:port]`, mirrors by `host[:port][/path]`."""

    hosts: Mapping[str, HostSettings] = field(default_factory=dict)
    rules: Mapping[str, tuple[MirrorRule, ...]] = field(default_factory=dict)

    def mirrors(self, provider: Provider) -> tuple[Mirror, ...]:
        """What has the repository of `provider` too, in the order in which to ask, by the longest key that names it."""
        if not self.rules:
            return ()
        key = f"{_host(provider.registry)}/{provider.repository}"
        while key not in self.rules:
            key, slash, _ = key.rpartition("/")
            if not slash:
                return ()
        rest = f"{_host(provider.registry)}/{provider.repository}".removeprefix(key).strip("/")
        found = []
        for rule in self.rules[key]:
            repository = "/".join(part for part in (rule.prefix, rest) if part)
            # reason: a key that is a whole repository leaves no name at a mirror without prefix
            if repository and (rule.host, repository) != provider.coordinates:
                found.append(Mirror(Provider.of(rule.host, repository), rule.tags))
        return tuple(found)

    def settings(self, host: str, port: int = 443) -> HostSettings:
        """The settings of `host[:port]`; `port`: the one that is meant where `host` has none."""
        name = _host(host)
        bare = name.removesuffix(f":{port}")
        found = next((self.hosts[key] for key in (f"{bare}:{port}", bare, name) if key in self.hosts), None)
        plain = is_loopback(host) and not host.endswith(":443")
        if found is None:
            return HostSettings(http=plain)
        secure = found.ca is not None or found.client_certificate is not None
        return found if found.http is not None else replace(found, http=plain and not secure)


def find(environ: Mapping[str, str], root: Path) -> Path | None:
    """The file that counts: `$REFLEDGER_REGISTRIES`, that of the root, that of the system; None when there is none."""
    named = environ.get(VARIABLE)
    if named:
        return Path(named)
    return next((path for path in (root / FILE_NAME, SYSTEM_FILE) if path.exists()), None)


def load(path: Path | None) -> Registries:
    """Read the file at `path`, and see whether the files that it names can be used. Raises InputError."""
    if path is None:
        return Registries()
    try:
        text = read_regular(path, _LARGEST).decode()
    except OSError as error:
        hint = f"{VARIABLE} names it" if path.name != FILE_NAME else "make it readable for you"
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), hint=hint) from error
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8", where=str(path), hint="save it as UTF-8") from error
    registries = parse(text, str(path), path.absolute().parent)
    for host, settings in registries.hosts.items():
        _check_files(host, settings, str(path))
    return registries


def parse(text: str, where: str, directory: Path) -> Registries:
    """`text` of the file `where`; relative names in it are below `directory`. Raises InputError that names the key."""
    import tomllib  # reason: most have no such file

    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"is not TOML: {error}", where=where, hint="correct it there") from None
    for key in document:
        if key != "registry":
            raise _wrong(where, key, 'is not known here: tables are written [registry."host"]')
    tables = document.get("registry", {})
    if not isinstance(tables, dict):
        raise _wrong(where, "registry", 'must hold tables: write [registry."host"]')
    hosts: dict[str, HostSettings] = {}
    rules: dict[str, tuple[MirrorRule, ...]] = {}
    keys: set[str] = set()
    for name, table in tables.items():
        reader = _Table(where, directory, f'registry."{name}"', table)
        key = reader.key(name)
        if key in keys:
            raise _wrong(where, reader.name, "is there twice: upper case and other names of one host are the same")
        keys.add(key)
        if "mirrors" in table:
            rules[key] = reader.mirrors()
        if reader.has_settings(key):
            hosts[key] = reader.settings()
    return Registries(hosts, rules)


class _Table:
    """One `[registry."…"]`, read strictly."""

    def __init__(self, where: str, directory: Path, name: str, table: Any) -> None:
        self._where = where
        self._directory = directory
        self.name = name
        if not isinstance(table, dict):
            raise _wrong(where, name, "must be a table")
        self._table: dict[str, Any] = table

    def key(self, name: str) -> str:
        """`name` as it is looked up. Raises InputError when it names no host, and no path at one."""
        host, slash, path = name.partition("/")
        if not is_host(host) or (slash and not is_path(path)):
            raise _wrong(self._where, self.name, "is not host[:port], or host[:port]/path")
        self._only(self._table, ("mirrors", *_SETTINGS), self.name)
        return f"{_host(host)}{slash}{path}"

    def has_settings(self, key: str) -> bool:
        """Is more than mirrors written? Raises InputError when it is, for a path."""
        written = [name for name in _SETTINGS if name in self._table]
        if "/" in key and written:
            raise self._bad(written[0], "is a setting of a host: write it in the table of the host alone")
        return bool(written)

    def settings(self) -> HostSettings:
        """The settings of a host."""
        take = self._take
        rate = take("requests_per_second", (int, float), "a number of requests")
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise self._bad("requests_per_second", "must be more than 0")
        connections = take("connections", (int,), "a whole number")
        if connections is not None and not 1 <= connections <= _MOST_CONNECTIONS:
            raise self._bad("connections", f"must be from 1 to {_MOST_CONNECTIONS}")
        ca, certificate, key = map(self._file, ("ca", "client_certificate", "client_key"))
        if key and not certificate:
            raise self._bad("client_key", "needs client_certificate beside it")
        plain = take("http", (bool,), "true or false")
        if plain and (ca or certificate):
            raise self._bad("http", "is true: plain http has no certificates, leave out the one or the other")
        return HostSettings(plain, ca, certificate, key, None if rate is None else float(rate), connections)

    def mirrors(self) -> tuple[MirrorRule, ...]:
        """The list `mirrors`: names as in image names, or tables."""
        listed = self._take("mirrors", (list,), "a list")
        return tuple(self._mirror(f"{self.name}.mirrors[{index}]", entry) for index, entry in enumerate(listed))

    def _mirror(self, name: str, entry: Any) -> MirrorRule:
        if isinstance(entry, str):
            written, slash, path = entry.partition("/")
            if slash and not path:
                raise _wrong(self._where, name, "ends in /")
            entry = {"host": written, "prefix": path}
        if not isinstance(entry, dict):
            raise _wrong(self._where, name, 'must be a table: write { host = "mirror.example" }')
        self._only(entry, _MIRROR, name)
        host, prefix, tags = entry.get("host"), entry.get("prefix", ""), entry.get("tags", True)
        if not isinstance(host, str) or not is_host(host):
            raise _wrong(self._where, f"{name}.host", "must be host[:port]")
        if not isinstance(prefix, str) or (prefix and not is_path(prefix)):
            raise _wrong(self._where, f"{name}.prefix", "must be the start of a repository name, as in team/hub")
        if not isinstance(tags, bool):
            raise _wrong(self._where, f"{name}.tags", "must be true or false")
        return MirrorRule(_host(host), prefix, tags)

    def _take(self, key: str, kinds: tuple[type, ...], meant: str) -> Any:
        value = self._table.get(key)
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise self._bad(key, f"must be {meant}")
        return value

    def _file(self, key: str) -> Path | None:
        value: str | None = self._take(key, (str,), "the name of a PEM file")
        if value is None:
            return None
        if not value or "\0" in value:
            raise self._bad(key, "must be the name of a PEM file")
        return self._directory / value

    def _only(self, table: Mapping[str, Any], known: tuple[str, ...], name: str) -> None:
        for key in table:
            if key not in known:
                raise _wrong(self._where, f"{name}.{key}", f"is not known here: there are {', '.join(known)}")

    def _bad(self, key: str, why: str) -> InputError:
        return _wrong(self._where, f"{self.name}.{key}", why)


def _check_files(host: str, settings: HostSettings, where: str) -> None:
    """Can TLS use the files of `settings`? Raises InputError."""
    if settings.ca is None and settings.client_certificate is None:
        return
    import ssl

    name = f'registry."{host}"'

    def encrypted() -> str:
        raise _wrong(where, f"{name}.client_key", "is encrypted: nobody is there to type its password")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for key, file in (("ca", settings.ca), ("client_certificate", settings.client_certificate),
                      ("client_key", settings.client_key)):  # fmt: skip
        if file is not None:
            _check_readable(where, f"{name}.{key}", file)
    at = "ca"
    try:
        if settings.ca is not None:
            context.load_verify_locations(settings.ca)
        if settings.client_certificate is not None:
            at = "client_certificate"
            context.load_cert_chain(settings.client_certificate, settings.client_key, encrypted)
    except ssl.SSLError as error:
        meant = "certificates in PEM" if at == "ca" else "a certificate and its key in PEM"
        reason = (error.reason or "unreadable").replace("_", " ").lower()
        raise _wrong(where, f"{name}.{at}", f"does not hold {meant} ({reason})") from error


def _check_readable(where: str, name: str, file: Path) -> None:
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except OSError as error:
        raise _wrong(where, name, f"names {file}, which cannot be read: {error.strerror}") from error


def _host(host: str) -> str:
    """`host[:port]` as it is looked up: in lower case, Docker Hub by one name."""
    name = host.lower()
    return DEFAULT_REGISTRY if name in _HUB else name


def _wrong(where: str, key: str, why: str) -> InputError:
    return InputError(f"{key} {why}", where=where)
