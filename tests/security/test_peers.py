"""Registries and servers that lie about where to go, and documents that are small only on the wire."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from pathlib import Path

import pytest

from engine.errors import InputError, VerificationError
from engine.ops.layer import Tree
from engine.ops.unpack import plan_archive
from storage.bundle.reading import _events
from storage.credentials.lookup import Anonymous
from storage.errors import RegistryError
from storage.interfaces.images import Provider
from storage.interfaces.log import Event
from storage.layout.target import REF_NAME, try_enter
from storage.registry.auth import Authenticator, Challenge
from storage.registry.client import RegistryClient
from storage.registry.limits import Limits
from storage.registry.transport import Transport
from tests.faulty import Answering
from tests.storage.registry.kit import missing_digest, use
from tools.documents import small_blobs


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("javascript:1", "refers to a malformed URL"), ("http://xn--a/", "refers to a malformed URL"),
        ("http://127.0.0.1:-1/", "the registry refers to a malformed URL"),
        ("http://127.0.0.1:99999/", "the registry refers to a malformed URL"), ("http://[::1", "Invalid port"),
        ("http:///x", "redirects in circles"), ("file:///etc/passwd", "refers to nowhere over file, not https"),
        ("http://\x7f/", "Invalid non-printable ASCII character"),
    ],
)  # fmt: skip
def test_a_redirect_to_no_place_is_one_line(location: str, said: str) -> None:
    with Answering(lambda _: (302, {"Location": location}, b"")) as server:
        provider = Provider.of(server.host, "a/b")

        async def ask(client: RegistryClient) -> object:
            return await client.manifest(provider, missing_digest())

        with pytest.raises(RegistryError, match=said) as caught:
            use(ask)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("realm", [
    "http://127.0.0.1:1/t", "https://localhost/t", "https://[::1]:9/t", "https://127.1/t", "https://0x7f000001:8443/t",
    "https://2130706433/t", "https://[::ffff:127.0.0.1]:8443/t", "https://0/t", "https://[::]:9/t",
])  # fmt: skip
def test_a_registry_elsewhere_names_no_token_server_on_this_machine(realm: str) -> None:
    auth = Authenticator(Anonymous(), Transport("tests", Limits()), "tests")
    challenge = Challenge("bearer", {"realm": realm})
    with pytest.raises(RegistryError, match="on this machine: nothing was asked"):
        auth._checked_realm(challenge, "registry.example", "there")
    assert auth._checked_realm(challenge, "localhost:5000", "there") == realm


@pytest.mark.parametrize("seconds", [b"9" * 400, b"1e999", b"-1", b"NaN"])
def test_a_token_lasts_as_long_as_it_says_within_reason(seconds: bytes) -> None:
    challenges: list[str] = []
    with (
        Answering(lambda _: (200, {}, b'{"token": "t", "expires_in": %s}' % seconds)) as tokens,
        Answering(lambda _: (401, {"WWW-Authenticate": challenges[0]}, b"")) as server,
    ):
        challenges.append(f'Bearer realm="http://{tokens.host}/t"')
        with pytest.raises(RegistryError, match=r"denies access|gave no token"):
            use(lambda client: client.exists(Provider.of(server.host, "a/b"), missing_digest()))


# ---------------------------------------------------------------- bombs


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_add_reads_no_header_of_gigabytes(kind: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 1 << 40
    packed = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = packed.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)) + packed.flush()
    with Tree(None) as tree, pytest.raises(InputError, match="an extended header of 1099511627776 bytes"):
        plan_archive(io.BytesIO(data), tree, tree.root, owner=None, now_ns=0)


def test_events_of_a_bundle_are_read_one_at_a_time() -> None:
    with pytest.raises(VerificationError, match=r"events.jsonl:1 is no event"):
        _events(b"\n" * (64 << 20))
    with pytest.raises(VerificationError, match="lists and objects"):
        _events(b"[" * 20_000_001)


@pytest.mark.parametrize("stamp", ["0001-01-01T00:00:00.000000000Z", "9999-12-31T23:59:59.000000000Z"])
def test_events_of_a_bundle_are_of_our_time(stamp: str) -> None:
    said = {"seq": 1, "time": stamp, "stream": "cache", "version": 1, "type": "T", "build": None, "vertex": None,
            "cause": None, "data": {}}  # fmt: skip
    with pytest.raises(VerificationError, match="is no time of a build"):
        _events(json.dumps(said).encode() + b"\n")


def test_documents_that_events_name_are_named_by_text() -> None:
    named = [Event(1, 1, "build/b", 1, "BuildStarted", "b", None, None, {"definition": {"a": 1}})]
    assert small_blobs(named) == {}


def test_what_stands_in_a_layout_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(
        b'{"manifests": [{"annotations": "x"}, {"annotations": {"%s": ["a"]}}]}' % REF_NAME.encode()
    )
    with pytest.raises(InputError, match="is malformed"):
        try_enter(tmp_path, [{"annotations": {REF_NAME: "tag"}}])
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    (tmp_path / "index.json").write_bytes(b'{"manifests": []}')
    (tmp_path / "index.json.lock").unlink()
    (tmp_path / "index.json.lock").symlink_to(outside)
    with pytest.raises(Exception, match="naming the image in the layout"):
        try_enter(tmp_path, [{"annotations": {REF_NAME: "tag"}}])
    assert not outside.exists()
