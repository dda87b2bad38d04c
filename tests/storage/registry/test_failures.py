"""What a failing registry looks like to a person, and how patiently it is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from email.utils import formatdate
from functools import partial

import pytest

from storage.errors import InputError, RegistryError
from storage.interfaces.images import Provider
from storage.reference import parse_reference
from storage.registries import Registries
from storage.registry import RegistryClient
from storage.registry.transport import base_url, locate
from tests.faulty import Answering, Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess, free_port, push_image
from tests.storage.registry.kit import described, fetched, missing_digest, use


def one_line(error: RegistryError) -> str:
    text = str(error)
    assert text.isprintable()
    assert len(text) < 600
    return text


def test_dead_registry_is_tried_with_growing_pauses_then_named() -> None:
    host = f"127.0.0.1:{free_port()}"
    slept: list[float] = []
    with pytest.raises(RegistryError) as caught:
        use(lambda client: client.resolve(parse_reference(f"{host}/a/b:1")), slept=slept)
    assert slept == [0.25, 0.5, 1.0, 2.0]
    assert caught.value.kind == "transport"
    assert one_line(caught.value) == f"{host}/a/b:1: {host} refused the connection (is a registry running at {host}?)"


def test_unknown_host_is_named() -> None:
    with pytest.raises(RegistryError, match="cannot be resolved") as caught:
        use(lambda client: client.resolve(parse_reference("no-such-host.invalid/a/b")), tries=1)
    assert "no-such-host.invalid" in one_line(caught.value)


def test_plain_http_server_asked_by_https_is_named(registry: RegistryProcess) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="https://{registry.host}/token"'}
    answer = (401, challenge, b"")
    with Answering(lambda seen: answer) as server, pytest.raises(RegistryError, match="no TLS") as caught:
        use(lambda client: client.exists(Provider.of(server.host, "a/b"), missing_digest()))
    assert "plain http" in one_line(caught.value)


def test_missing_tag_and_missing_blob_are_told_apart(registry: RegistryProcess, repository: str) -> None:
    push_image(registry.host, repository, [{"a": b"1"}])
    provider = Provider.of(registry.host, repository)
    with pytest.raises(RegistryError, match=r"does not have the manifest \(404\): manifest unknown") as tag:
        use(lambda client: client.resolve(parse_reference(f"{provider}:none")))
    assert (tag.value.kind, tag.value.status, tag.value.where) == ("missing", 404, f"{provider}:none")
    with pytest.raises(RegistryError, match=r"does not have the blob \(404\): blob unknown") as blob:
        use(lambda client: fetched(client, provider, described(b"nobody has this")))
    assert blob.value.kind == "missing"
    assert described(b"nobody has this").digest in blob.value.where


def test_messages_of_a_registry_are_bounded_and_printable() -> None:
    body = json.dumps({"errors": [{"message": "\x1b[2Jgo away\r\n\x00" + "x" * 5000}]}).encode()
    with Answering(lambda seen: (400, {}, body)) as server, pytest.raises(RegistryError, match="go away") as caught:
        use(lambda client: client.manifest(Provider.of(server.host, "a/b"), missing_digest()))
    one_line(caught.value)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[" * 50_000, b"{}", b'{"errors": 5}', b'{"errors": [5, {"message": 5}]}']
)
def test_any_refusal_is_one_line(body: bytes) -> None:
    with Answering(lambda seen: (403, {}, body)) as server, pytest.raises(RegistryError) as caught:
        use(lambda client: client.manifest(Provider.of(server.host, "a/b"), missing_digest()))
    assert caught.value.kind == "auth"
    assert f"refledger login {server.host}" in one_line(caught.value)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_failures_are_retried(registry: RegistryProcess, repository: str, status: int) -> None:
    image = push_image(registry.host, repository, [{"a": b"1"}])
    slept: list[float] = []
    with FaultyProxy(registry.host, Fault("HEAD", times=2, status=status)) as proxy:
        found = use(lambda client: client.resolve(parse_reference(f"{proxy.host}/{repository}")), slept=slept)
    assert found.digest == image["digest"]
    assert slept == [0.25, 0.5]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 501])
def test_final_refusals_are_not_retried(status: int) -> None:
    with Answering(lambda seen: (status, {}, b"")) as server:
        with pytest.raises(RegistryError):
            use(lambda client: client.manifest(Provider.of(server.host, "a/b"), missing_digest()))
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("value", "pause"),
    [
        ("7", 7.0), (formatdate(1_000_030, usegmt=True), 30.0), ("86400", 120.0),
        ("0", 0.25), ("soon", 0.25), ("-5", 0.25),
    ],
)  # fmt: skip
def test_retry_after_is_honoured_within_a_cap(value: str, pause: float) -> None:
    slept: list[float] = []
    with Answering(lambda seen: (429, {"Retry-After": value}, b"")) as server, pytest.raises(RegistryError) as caught:
        provider = Provider.of(server.host, "a/b")
        use(lambda client: client.exists(provider, missing_digest()), slept=slept, clock=lambda: 1_000_000.0, tries=2)
    assert slept == [pause]
    assert "try again later" in one_line(caught.value)


def test_server_that_says_nothing_http_is_one_line() -> None:
    class Rude(Answering):
        async def respond(self, seen: object, writer: object) -> None:
            writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")  # type: ignore[attr-defined]

    with Rude(lambda seen: (200, {}, b"")) as server, pytest.raises(RegistryError) as caught:
        use(lambda client: client.exists(Provider.of(server.host, "a/b"), missing_digest()))
    assert "broke" in one_line(caught.value)


@pytest.mark.parametrize(
    ("registry", "url"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("quay.io", "https://quay.io"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("localhost", "http://localhost"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("localhost:443", "https://localhost:443"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000"),
    ],
)
def test_only_loopback_is_spoken_to_in_plain_http(registry: str, url: str) -> None:
    assert base_url(registry, Registries()) == url


def test_locations_never_leave_https() -> None:
    assert locate("https://a.org/v2/", "http://a.org/x?y=1#z", "w") == "https://a.org/x?y=1"
    assert locate("https://a.org/v2/", "/x", "w") == "https://a.org/x"
    assert locate("http://127.0.0.1:1/", "http://127.0.0.1:2/x", "w") == "http://127.0.0.1:2/x"
    for location in ("http://b.org/", "http://a.org:8080/", "file:///etc/passwd", "ftp://a.org/"):
        with pytest.raises(RegistryError):
            locate("https://a.org/v2/", location, "w")


def test_providers_from_elsewhere_cannot_bend_the_request() -> None:
    for registry, repository in (("a.org@b.org", "x"), ("127.0.0.1:1", "../x"), ("a.org", "x?y")):
        provider = Provider.of(registry, repository)
        with pytest.raises(InputError):
            use(partial(RegistryClient.exists, provider=provider, digest=missing_digest()))


def test_importing_the_package_loads_no_http_library() -> None:
    script = (
        "import sys, storage.registry; early = {'httpx', 'httpcore', 'anyio'} & set(sys.modules);"
        "from storage.registry.clients import load_httpx; load_httpx();"
        "late = {'rich', 'click', 'pygments'} & set(sys.modules); print(early, late, 'httpx._main' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["set()", "set()", "False"]
