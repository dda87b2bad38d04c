"""Whatever comes in, a short error of ours goes out, or what was read: nothing else.

Each reader is given true samples that were changed at random, always the same ones; with REFLEDGER_LONG=SECONDS all of
them go on to others for that long. What was found this way has tests of its own where it was mended.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engine.attest.databases import packages
from engine.attest.statement import PROVENANCE, Statement, statement
from engine.attest.verify import summary
from engine.cache import config, facts, manifest
from engine.frontend.config import ImageConfig
from engine.images.contents import read_config_blob, read_layers
from engine.images.inspect import Where, image_layers, image_view, index_entries
from engine.images.read import Manifest
from engine.policy.parse import parse_policy
from engine.stored import graph_from_json
from projections.fields import BAD_EVENT
from projections.history import History
from projections.output import output_lines
from projections.refs import Refs
from projections.runner import Views
from projections.standard import STANDARD
from storage.credentials.lookup import DockerCredentials
from storage.digest import Digest, canonical_json, parse_json, sha256
from storage.errors import RefledgerError
from storage.interfaces.images import Descriptor, Platform, Provider
from storage.interfaces.parts import Part
from storage.parts.members import members
from storage.parts.toc import ChunkedToc
from storage.platform import choose_platform
from storage.registries import parse as parse_registries
from storage.signing.dsse import Envelope, sign
from storage.signing.notes import Note, Verifier, new_signer, sign_note
from storage.tar.filelist import list_tar
from storage.tar.raw import RawTar
from tests.chunked import MAKERS
from tests.engine.frontend.support import Images, compile_text
from tests.fuzz.mutating import mutated_bytes, mutated_json
from tests.projections import story
from tests.projections.asking import MemoryBlobs, why
from tests.storage.tar import tars
from tests.storage.tar.test_reader import Source
from tools.replaying.story import read_story

LONG = float(os.environ.get("REFLEDGER_LONG") or 0)
_LONGEST = 3000
"""Characters of an error: more is a document, and not what is wrong with it."""
HERE = Provider.of("r.example", "a")
ONE, OTHER = (str(sha256(text)) for text in (b"one", b"other"))
SIGNER = new_signer("ci.example/log", bytes(32))


@dataclass(frozen=True)
class Target:
    """`read` reads one of `samples`, changed: bytes, or what JSON knows. `runs`: how many in a plain run."""

    read: Callable[[Any], object]
    samples: tuple[Any, ...]
    runs: int = 300


# ---------------------------------------------------------------- layers

_LAYER = (
    tars.Member(b"d/", tars.DIR), tars.Member(b"d/f", data=b"hello" * 200, xattrs={b"user.a": b"v\0"}),
    tars.Member(b"l", tars.LINK, link=b"../x"), tars.Member(b"c", tars.CHAR, device=(1, 3)), tars.Member(b"d/.wh.x"),
    tars.Member(b"n" * 150, mtime=1_700_000_000_123_456_789, uid=2**31),
    tars.Member(b"s", data=b"a" * 512 + b"b", segments=((0, 512), (4096, 1)), size=8192),
)  # fmt: skip


def _sealed(data: bytes) -> bytes:
    """`data` with the checksums that its headers should have: else hardly a change would be looked at."""
    blocks = bytearray(data)
    for at in range(0, len(blocks) - 511, 512):
        if blocks[at + 257 : at + 262] == b"ustar":
            blocks[at + 148 : at + 156] = b" " * 8
            blocks[at + 148 : at + 156] = b"%06o\0 " % sum(blocks[at : at + 512])
    return bytes(blocks)


def _tar(data: bytes) -> None:
    data = _sealed(data)
    list(list_tar(Source(data, 313)))
    tar, out = RawTar(Source(data)), b""
    for _, header in tar:
        out += tar.padding + header + b"".join(map(bytes, tar.data()))
    assert out + b"".join(tar.rest()) == data


def _table(value: Any) -> None:
    toc = ChunkedToc(canonical_json(value), 1 << 20)
    paths = frozenset(list(toc.nodes)[:100])
    for path in paths:
        toc.look(path)
    list(members(toc, Part(set(), paths - {b""}, frozenset({b""}), lambda _: "nothing")))


# ---------------------------------------------------------------- images, caches, attestations

_BLOB = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": ONE, "size": 8, "annotations": {"a": "b"}}
_MANIFEST = {"schemaVersion": 2, "config": {**_BLOB, "urls": ["https://elsewhere.example"]}, "layers": [_BLOB, _BLOB]}
_CONFIG = {
    "architecture": "arm64", "os": "linux", "variant": "v8", "created": "2020-01-01T00:00:00Z",
    "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], "Labels": {"a": "b"}, "User": "u", "WorkingDir": "/w",
               "ExposedPorts": {"80/tcp": {}}, "OnBuild": ["RUN x"], "Shell": ["/bin/sh", "-c"]},
    "rootfs": {"type": "layers", "diff_ids": [ONE, OTHER]},
    "history": [{"created_by": "x", "comment": "y"}, {"created_by": "e", "empty_layer": True}],
}  # fmt: skip
_INDEX = {
    "manifests": [
        {**_BLOB, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
        {**_BLOB, "platform": {"os": "unknown", "architecture": "unknown"},
         "annotations": {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": ONE}},
    ]
}  # fmt: skip


def _image(made: Any, told: Any) -> None:
    """A manifest and a config."""
    _each(lambda: read_layers(_object(made), canonical_json(told), HERE, "there"))
    top, fields = Manifest(sha256(b""), b"", _object(made)), _object(told)
    _each(
        lambda: read_config_blob(top.fields, "there"),
        lambda: canonical_json(ImageConfig.of_base(fields, "linux/amd64").to_json()),
    )
    layers = image_layers(top, fields, "there")
    canonical_json(image_view(top, None, fields, layers, [Where()] * len(layers)).to_json())


def _index(value: Any) -> None:
    _each(
        lambda: index_entries(Manifest(sha256(b""), b"", _object(value)), "there"),
        lambda: choose_platform(_object(value), Platform("linux", "arm64")),
    )


def _object(value: Any) -> dict[str, Any]:
    """What whoever fetches one makes sure of."""
    return value if isinstance(value, dict) else {}


_CACHE = {
    "layers": [
        {"blob": ONE, "parent": -1, "annotations": {"diffID": OTHER, "size": 9, "createdAt": "2020-01-01T00:00:00.5Z"}},
        {"blob": OTHER, "parent": 0},
    ],
    "records": [
        {"digest": ONE, "layers": [{"layer": 1, "createdAt": "2020-01-01T00:00:00Z"}]},
        {"digest": OTHER, "chains": [{"layers": [0, 1]}], "inputs": [[{"link": 0, "selector": "s"}]]},
    ],
}
_FACTS = {
    "version": facts.VERSION, "builds": {"b" * 12: 5},
    "keys": {ONE: {"ref": "a" * 64, "build": "b" * 12, "resolved": ONE, "created": [1], "components": [["a", "b"]]}},
}  # fmt: skip


def _cache(value: Any) -> None:
    read = config.read(canonical_json(value), "there")
    for layer in read.layers:
        manifest.layer_of(Descriptor("x", layer.blob, 1), layer)
    canonical_json(parse_json(config.write(read)))


_STATEMENT = parse_json(statement({Digest(ONE): "n"}, PROVENANCE, {
    "buildDefinition": {"buildType": "t", "resolvedDependencies": [{"uri": "u", "digest": {"sha256": "a"}}]},
    "runDetails": {"builder": {"id": "b"}, "metadata": {"invocationId": "i", "refledger_completeness": {"x": True}}},
}))  # fmt: skip


def _statement(value: Any) -> None:
    canonical_json(summary(PROVENANCE, Statement.parse(canonical_json(value)).predicate))


def _note(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    told = data.decode("utf-8", "replace")
    _each(lambda: Verifier.parse(text), lambda: Note.parse(told).verified_by([SIGNER.verifier]))


# ---------------------------------------------------------------- roots and bundles

_GRAPH = """\
FROM base AS a
RUN --mount=type=cache,target=/c --mount=type=secret,id=s x
COPY --chown=1:2 <<F /y/
text
F
FROM scratch
ADD https://h.example/f /f
COPY --from=a /y /z
"""


def _graph(value: Any) -> None:
    try:
        graph = graph_from_json(value)
    except BAD_EVENT:  # what whoever reads one expects
        return
    canonical_json(graph.to_json())


def _events(value: Any) -> None:
    """A log whose events have these data, and what is told of it."""
    log = story.full_log()
    given = value if isinstance(value, list) else []
    log.events = [replace(event, data=_object(data)) for event, data in zip(log.events, given, strict=False)]
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        records = History(views).list()
        canonical_json([ref.to_json() for ref in Refs(views).list()])
    for record in records:
        canonical_json(record.to_json())
        _each(
            lambda record=record: read_story(log, record),
            lambda record=record: list(output_lines(log, record)),
            lambda record=record: why(log, MemoryBlobs(), record.id),
        )


# ---------------------------------------------------------------- files of users and hosts

_POLICY = f"""\
[[rule]]
name = "a"
kind = "images"
allow = ["docker.io/**"]
[[rule]]
name = "b"
kind = "age"
max = "30d"
[[rule]]
name = "c"
kind = "signatures"
keys = ["{SIGNER.verifier}"]
"""
_REGISTRIES = b'[registry."r.example"]\nhttp = true\nconnections = 2\nmirrors = ["m.example/x"]\n'
_DATABASES = (
    b"Package: a\nStatus: install ok installed\nVersion: 1.2\nArchitecture: amd64\n more\n\nPackage: b\nVersion: 2\n",
    b"P:a\nV:1\nA:x\nL:MIT\n\nP:b\nV:2\n", b'{"name":"@a/b","version":"1.0.0","license":"MIT"}',
)  # fmt: skip
_LOGINS = {
    "auths": {"r.example": {"auth": "dTpw", "identitytoken": "t"}, "https://index.docker.io/v1/": {"username": "a"}},
    "credHelpers": {"q.example": "pass"},
}


def _login(value: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_text(json.dumps(value))
        asyncio.run(DockerCredentials(Path(place), environ={"PATH": "/nowhere"}).lookup("r.example"))


def _each(*reads: Callable[[], object]) -> None:
    for read in reads:
        try:
            read()
        except RefledgerError as error:
            assert error.what
            assert len(str(error)) < _LONGEST, ascii(str(error)[:_LONGEST])


TARGETS: dict[str, Target] = {
    "tar": Target(_tar, (tars.write(_LAYER), tars.write(_LAYER, "pax", "0.1"), tars.write(_LAYER, "gnu"))),
    "table": Target(_table, tuple(make(tars.write(_LAYER[:6])).toc for make in MAKERS), 600),
    "manifest": Target(lambda value: _image(value, _CONFIG), (_MANIFEST,)),
    "config": Target(lambda value: _image(_MANIFEST, value), (_CONFIG,)),
    "index": Target(_index, (_INDEX,)),
    "cache": Target(_cache, (_CACHE,)),
    "facts": Target(lambda value: facts.read(canonical_json(value), "there"), (_FACTS,)),
    "cache manifest": Target(lambda value: manifest.read(canonical_json(value), "there"), (_MANIFEST, _INDEX)),
    "statement": Target(_statement, (_STATEMENT,)),
    "envelope": Target(lambda value: Envelope.parse(canonical_json(value)).signed_by(SIGNER.verifier),
                       (parse_json(sign("text/plain", b"x", SIGNER)),)),
    "note": Target(_note, (sign_note("a\n5\nAAAA\n", SIGNER).encode(), str(SIGNER.verifier).encode())),
    "graph": Target(_graph, (compile_text(_GRAPH, Images({"base": _CONFIG})).to_json(),), 600),
    "events": Target(_events, ([event.data for event in story.full_log().events],), 30),
    "policy": Target(lambda data: parse_policy(data, "file"), (_POLICY.encode(),)),
    "registries": Target(lambda data: parse_registries(data.decode("latin-1"), "file", Path("/")), (_REGISTRIES,)),
    "databases": Target(lambda data: [packages(kind, data) for kind in ("deb", "apk", "pypi", "npm")], _DATABASES),
    "login": Target(_login, (_LOGINS,)),
}  # fmt: skip


def _run(name: str, seed: int) -> None:
    target, rng = TARGETS[name], random.Random(f"{name} {seed}")
    sample = rng.choice(target.samples)
    given = mutated_bytes(sample, rng) if isinstance(sample, bytes) else mutated_json(sample, rng)
    try:
        _each(lambda: target.read(given))
    except Exception as error:
        raise AssertionError(f"{name}, seed {seed}: {str(given)[:2000]!a}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_changed_at_random_is_read_or_refused(name: str) -> None:
    for seed in range(TARGETS[name].runs):
        _run(name, seed)


@pytest.mark.skipif(not LONG, reason="goes on for ever: set REFLEDGER_LONG=<seconds>")
def test_so_is_what_was_changed_otherwise() -> None:
    deadline, seed = time.monotonic() + LONG, 10_000
    while time.monotonic() < deadline:
        for name in TARGETS:
            _run(name, seed)
        seed += 1
