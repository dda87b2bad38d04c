"""Image names mean what they mean to docker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import InputError
from storage.reference import check_provider, is_loopback, parse_layout, parse_reference

HEX = "a" * 64
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("written", "complete"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/user/app", "docker.io/user/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:x", "localhost:5000/app:x"),
        ("host:5000", "docker.io/library/host:5000"),
        ("quay.io/a/b/c", "quay.io/a/b/c:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("127.0.0.1:5000/a-b__c.d/e", "127.0.0.1:5000/a-b__c.d/e:latest"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}"),
        (f"quay.io/a/b:1.0@{DIGEST}", f"quay.io/a/b:1.0@{DIGEST}"),
        ("Registry/app", "Registry/app:latest"),
    ],
)
def test_names_are_completed_as_docker_does(written: str, complete: str) -> None:
    reference = parse_reference(written)
    assert str(reference) == complete
    assert reference.written == written


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("", "empty"),
        ("Debian", "lower case"),
        ("quay.io/", "empty"),
        ("a//b", "not a repository name"),
        ("a/b:", "not a tag"),
        ("a:-x", "not a tag"),
        ("a:" + "t" * 129, "not a tag"),
        ("a@sha256:123", "not a digest"),
        ("a@", "not a digest"),
        (HEX, "image id"),
        ("https://quay.io/a", "URL"),
        ("127.0.0.1:70000/x", "host name"),
        ("127.0.0.1:0/x", "host name"),
        ("a b", "not a repository name"),
        ("a/../b", "not a repository name"),
        ("x.y/" + "a" * 260, "255"),
        ("-x.y/a", "host name"),
    ],
)
def test_bad_names_are_refused_with_the_reason_and_a_hint(written: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        parse_reference(written)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_an_input_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InputError:
        return
    assert parse_reference(str(reference)) == type(reference)(
        reference.registry, reference.repository, reference.tag, reference.digest, str(reference)
    )


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True), ("localhost:5000", True), ("127.0.0.1:1", True), ("127.9.9.9", True),
        ("[::1]:5000", True), ("localhost.example.org", False), ("127.0.0.1.example.org", False), ("10.0.0.1", False),
        ("::1", True), ("127.1:5000", True), ("0x7f000001", True), ("2130706433:1", True),
        ("[::ffff:127.0.0.1]:1", True), ("0.0.0.0:5000", True), ("[::]:5000", True), ("[::2]:5000", False),
        ("127.0.0.1.5", False), ("", False), ("10.1:5000", False), ("[::ffff:10.0.0.1]", False), ("fd00::1", False),
    ],
)  # fmt: skip
def test_loopback_is_known_by_name_alone(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    "parts", [("good.org@evil.org", "a"), ("good.org", "a/../../b"), ("good.org", "a?x=1"), ("", "a")]
)
def test_providers_of_foreign_logs_cannot_leave_their_host_or_path(parts: tuple[str, str]) -> None:
    with pytest.raises(InputError):
        check_provider(*parts)


def test_a_layout_without_an_absolute_path_is_refused() -> None:
    with pytest.raises(InputError, match="it has no absolute path"):
        parse_layout("oci-layout://relative:tag")
