"""What a policy decides about, as plain data: images, URLs, repositories, what steps ask for, layers, targets. Pure.

Everything is written so that nothing but the thing meant has its name: hosts in their one form and without the default
port, paths decoded and without `..`, no credentials.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from engine.graph import ArchiveSource, FetchedSource, GitSource, Graph, HttpSource, Run, Vertex
from engine.policy.hosts import authority_form, host_form, without_zone
from engine.record import Record
from engine.refs.ref import Layer
from storage.errors import InputError
from storage.interfaces.images import Reference
from storage.reference import LAYOUT_REGISTRY, is_loopback

Json = dict[str, Any]
Kind = Literal[
    "image", "pin", "created", "signature", "url", "git", "network", "privilege", "secret", "ssh", "cache", "layer",
    "export",
]  # fmt: skip
_PORTS = {"http": 80, "https": 443, "ssh": 22, "git": 9418}
_HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+(?:%[a-z0-9._-]+)?\]")
"""Hosts that all readers of a URL agree on: git undoes escapes before it looks for the host."""
_HUB = frozenset({"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_PORTED = re.compile(r":[0-9]+$")
_SCP = re.compile(r"(?:[^@/:]+@)?(?P<host>[A-Za-z0-9.-]+):(?P<path>[^/].*|/.*)")


class Subject(Record):
    """One thing that is decided about. `name`: what patterns are held against; `shown`: how people know it; `digest`
    that an image's name was found to have, or has by itself (`pinned`); `created`: UTC ns, 0 where the image does not
    say; `signers`: keys that vouch for it; `scheme` of a URL; `verified`: every byte of the layer was checked here."""

    kind: Kind
    name: str
    shown: str
    digest: str = ""
    pinned: bool = False
    created: int = 0
    signers: tuple[str, ...] = ()
    scheme: str = ""
    verified: bool = False

    @property
    def places(self) -> tuple[str, ...]:
        """Its `name` as patterns may write it: with the port that goes without saying, too, and without a zone."""
        host, slash, path = self.name.partition("/")
        hosts = [host]
        if slash and not _PORTED.search(host):
            hosts.append(f"{host}:{_PORTS.get(self.scheme, _PORTS['https'])}")
            if not self.scheme and is_loopback(host):
                hosts.append(f"{host}:{_PORTS['http']}")
        hosts += [without_zone(one) for one in hosts if "%" in one]
        return tuple(f"{one}{slash}{path}" for one in hosts)

    @property
    def evidence(self) -> Json:
        """What a decision about it rested on beside the name, for the log."""
        found: Json = {}
        for key in ("digest", "pinned", "created", "scheme", "verified"):
            if value := getattr(self, key):
                found[key] = value
        if self.signers:
            found["signers"] = list(self.signers)
        return found


# ---------------------------------------------------------------- images


def place_name(registry: str, repository: str) -> str:
    """`host/repository`; of an OCI layout `oci-layout/absolute/path`."""
    if registry == LAYOUT_REGISTRY:
        return f"oci-layout{posixpath.normpath('/' + repository.lstrip('/'))}"
    return f"{_registry_form(registry)}/{repository}"


def _registry_form(host: str) -> str:
    """Without the port that goes without saying: that of HTTP, too, where a registry is spoken to in that."""
    host = authority_form(host).removesuffix(f":{_PORTS['https']}")
    if is_loopback(host):
        host = host.removesuffix(f":{_PORTS['http']}")
    return "docker.io" if host in _HUB else host


def pattern_form(pattern: str, kind: Kind) -> str:
    """`pattern` of places with its host in its one form, and as subjects of `kind` are named."""
    host, slash, path = pattern.partition("/")
    if kind == "git":
        path = path.removesuffix(".git")
    return (authority_form(host) if kind in ("git", "url") else _registry_form(host)) + slash + path


def named_image(reference: Reference) -> Subject:
    """An image before anybody was asked for it."""
    name = place_name(reference.registry, reference.repository)
    digest = str(reference.digest or "")
    return Subject("image", name, str(reference), digest=digest, pinned=bool(digest))


def pinned_image(reference: Reference, digest: str) -> Subject:
    """What its name was found to be."""
    name = place_name(reference.registry, reference.repository)
    return Subject("pin", name, str(reference), digest=digest, pinned=reference.digest is not None)


def created_image(reference: Reference, digest: str, config: Mapping[str, Any]) -> Subject:
    """When it says that it was made."""
    name = place_name(reference.registry, reference.repository)
    return Subject("created", name, str(reference), digest=digest, created=read_time(config.get("created")))


def signed_image(reference: Reference, digest: str, signers: tuple[str, ...]) -> Subject:
    """Who vouches for it."""
    name = place_name(reference.registry, reference.repository)
    return Subject("signature", name, str(reference), digest=digest, signers=signers)


def read_time(written: object) -> int:
    """RFC 3339 to UTC ns; 0 for anything else. Registries are not to be trusted with it."""
    if not isinstance(written, str) or len(written) > 64:
        return 0
    text = re.sub(r"(\.\d{6})\d+", r"\1", written.strip().upper().replace("Z", "+00:00"))
    try:
        moment = datetime.fromisoformat(text)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0
    return max(0, int(seconds * 1_000_000_000))


# ---------------------------------------------------------------- what is fetched


def fetched(op: FetchedSource) -> Subject | None:
    """A file or a repository; None for an archive that came on standard input."""
    if isinstance(op, GitSource):
        scheme, name = _located(op.remote)
        return Subject("git", name.removesuffix(".git"), f"{scheme}://{name}", scheme=scheme)
    return located(op.url) if op.url else None


def located(url: str) -> Subject:
    """A file of the web."""
    scheme, name = _located(url)
    return Subject("url", name, f"{scheme}://{name}", scheme=scheme)


def _located(url: str) -> tuple[str, str]:
    """Scheme, and `host[:port]/path`: no credentials, no query, and no way round a pattern by how it is written."""
    if "://" not in url and (scp := _SCP.fullmatch(url)):
        return "ssh", host_form(scp["host"]) + _path(scp["path"])
    try:
        parts = urlsplit(url)
        host, port = host_form(parts.hostname or ""), parts.port
    except ValueError as error:
        raise InputError("the URL cannot be read, so no policy can allow it", hint="write it plainly") from error
    if not _HOST.fullmatch(host):
        raise InputError("the host of the URL cannot be read, so no policy can allow it", hint="write it plainly")
    scheme = parts.scheme.lower()
    return scheme, host + ("" if port in (None, _PORTS.get(scheme)) else f":{port}") + _path(parts.path)


def _path(path: str) -> str:
    # reason: normpath keeps two leading slashes
    return posixpath.normpath("/" + unquote(path).lstrip("/"))


# ---------------------------------------------------------------- steps


def asked_by(vertex: Vertex) -> Iterator[Subject]:
    """What a step asks for beside its inputs."""
    op = vertex.op
    if not isinstance(op, Run):
        return
    yield Subject("network", op.network, f"network {op.network} of {vertex.name}")
    if op.security != "sandbox":
        yield Subject("privilege", f"security.{op.security}", f"security.{op.security} of {vertex.name}")
    for mount in op.mounts:
        if mount.kind in ("secret", "ssh"):
            what = "secret" if mount.kind == "secret" else "ssh agent"
            yield Subject(mount.kind, mount.id, f"{what} {mount.id} of {vertex.name}")


def of_graph(graph: Graph) -> Iterator[tuple[Vertex, Subject]]:
    """All that the steps of `graph` fetch and ask for, images apart: each with its step."""
    for vertex in graph.vertices:
        if isinstance(vertex.op, HttpSource | GitSource | ArchiveSource):
            if (found := fetched(vertex.op)) is not None:
                yield vertex, found
        else:
            for subject in asked_by(vertex):
                yield vertex, subject


# ---------------------------------------------------------------- what goes out, and comes in from caches


def export_target(kind: str) -> Subject:
    """Files that are written: `local`, `tar`, `oci` or `docker`."""
    return Subject("export", kind, f"output type={kind}")


def named_target(reference: Reference) -> Subject:
    """An image, or a cache, that is written to a registry or a layout."""
    return Subject("export", place_name(reference.registry, reference.repository), f"output {reference}")


def imported_cache(reference: Reference) -> Subject:
    """A cache of somebody else that results are taken from."""
    return Subject("cache", place_name(reference.registry, reference.repository), f"cache {reference}")


def result_layer(layer: Layer, *, verified: bool) -> Subject:
    """A layer of what is about to be given out."""
    return Subject("layer", layer.name, f"layer {layer.name[:19]}", verified=verified)
