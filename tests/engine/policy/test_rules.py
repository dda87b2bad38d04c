"""What rules decide: table-driven, the same for the same policy, subject and time."""

from __future__ import annotations

import pytest

from engine.graph import ArchiveSource, FetchedSource, GitSource, HttpSource
from engine.policy.parse import parse_policy
from engine.policy.rules import DAY, place_fits
from engine.policy.subjects import (
    Subject,
    created_image,
    export_target,
    fetched,
    named_image,
    named_target,
    pinned_image,
    read_time,
    signed_image,
)
from storage.errors import InputError
from storage.reference import parse_layout, parse_reference
from storage.signing.notes import new_signer

KEY = str(new_signer("ours.example", b"k" * 32).verifier)
OTHER = str(new_signer("ours.example", b"o" * 32).verifier)
DIGEST, ANOTHER = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
NOW = 20_000 * DAY


def image(name: str) -> Subject:
    return named_image(parse_reference(name))


def pin(name: str, digest: str = DIGEST) -> Subject:
    return pinned_image(parse_reference(name), digest)


def made(days: float | None, name: str = "debian:12") -> Subject:
    return Subject("created", image(name).name, name, created=0 if days is None else int(NOW - days * DAY))


def url(text: str) -> Subject:
    found = fetched(HttpSource(text, "f"))
    assert found is not None
    return found


def git(text: str) -> Subject:
    found = fetched(GitSource(text))
    assert found is not None
    return found


def signed(*keys: str) -> Subject:
    return signed_image(parse_reference("debian:12"), DIGEST, keys)


@pytest.mark.parametrize(
    ("rule", "subject", "allowed"),
    [
        ('kind="images"\nallow=["docker.io"]', image("debian:12"), True),
        ('kind="images"\nallow=["docker.io"]', image("ghcr.io/a/b"), False),
        ('kind="images"\nallow=["docker.io/library/*"]', image("debian"), True),
        ('kind="images"\nallow=["docker.io/library/*"]', image("evil/debian"), False),
        ('kind="images"\nallow=["docker.io/library/*"]\ndeny=["docker.io/library/debian"]', image("debian"), False),
        ('kind="images"\ndeny=["docker.io"]', image("ghcr.io/a/b"), True),
        ('kind="images"\nallow=["*.corp.example"]', image("a.corp.example/x"), True),
        ('kind="images"\nallow=["*.corp.example/**"]', image("evil.example/a.corp.example/x"), False),
        ('kind="images"\nallow=["corp.example"]', image("corp.example.evil.example/x"), False),
        ('kind="images"\nallow=["corp.example"]', image("corp.example:5000/x"), False),
        ('kind="images"\nallow=["corp.example:*"]', image("corp.example:5000/x"), True),
        ('kind="images"\ndeny=["evil.example"]', image("evil.example:443/x"), False),
        ('kind="images"\ndeny=["evil.example:443"]', image("evil.example/x"), False),
        ('kind="images"\ndeny=["Evil.example/X"]', image("EVIL.example/x"), True),
        ('kind="images"\ndeny=["Evil.example/x"]', image("EVIL.example/x"), False),
        ('kind="images"\ndeny=["docker.io/evil/*"]', image("registry-1.docker.io/evil/x"), False),
        ('kind="images"\ndeny=["docker.io/evil/*"]', image("registry.hub.docker.com/evil/x"), False),
        ('kind="images"\ndeny=["index.docker.io"]', image("debian"), False),
        ('kind="images"\ndeny=["registry-1.docker.io:443/library/*"]', image("debian"), False),
        ('kind="digests"\nimages=["docker.io:443"]', pin("debian:12"), False),
        ('kind="images"\nallow=["oci-layout/srv/**"]', named_image(parse_layout("oci-layout:///srv/a:1")), True),
        ('kind="images"\nallow=["oci-layout/srv/**"]', named_image(parse_layout("oci-layout:///srv/../a")), False),
        ('kind="images"\nallow=[]', image("debian"), False),
        ('kind="digests"', pin("debian:12"), False),
        ('kind="digests"', pin(f"debian:12@{DIGEST}"), True),
        ('kind="digests"\nimages=["ghcr.io"]', pin("debian:12"), None),
        (f'kind="digests"\ndigests=["{DIGEST}"]', pin("debian:12"), True),
        (f'kind="digests"\ndigests=["{DIGEST}"]', pin(f"debian@{ANOTHER}", ANOTHER), False),
        ('kind="age"\nmax="30d"', made(29.9), True),
        ('kind="age"\nmax="30d"', made(30.1), False),
        ('kind="age"\nmax="30d"', made(None), False),
        ('kind="age"\nmax="30d"', made(-1), False),
        ('kind="age"\nmax="30d"\nimages=["docker.io/library/busybox"]', made(99), None),
        (f'kind="signatures"\nkeys=["{KEY}"]', signed(), False),
        (f'kind="signatures"\nkeys=["{KEY}"]', signed(OTHER), False),
        (f'kind="signatures"\nkeys=["{KEY}", "{OTHER}"]', signed(OTHER), True),
        ('kind="urls"\nallow=["example.org/pub/**"]', url("https://example.org/pub/a/b?x=1"), True),
        ('kind="urls"\nallow=["example.org/pub/**"]', url("https://example.org/pub/../etc"), False),
        ('kind="urls"\nallow=["example.org/pub/**"]', url("https://example.org/pub/%2e%2e/etc"), False),
        ('kind="urls"\nallow=["example.org"]', url("https://EXAMPLE.org:443/x"), True),
        ('kind="urls"\nallow=["example.org"]', url("https://example.org:8443/x"), False),
        ('kind="urls"\nallow=["example.org"]', url("https://example.org@evil.example/x"), False),
        ('kind="urls"\nallow=["example.org"]', url("https://example.org./x"), True),
        ('kind="urls"\ndeny=["example.org:443"]', url("https://example.org/x"), False),
        ('kind="urls"\nallow=["example.org:443"]', url("http://example.org/x"), False),
        ('kind="urls"\nallow=["[fe80::1%25eth0]:8080"]', url("http://[FE80::1%25eth0]:8080/x"), True),
        ('kind="urls"\nschemes=["https"]', url("http://example.org/x"), False),
        ('kind="git"\nallow=["git.example/ours/*"]', git("https://git.example/ours/app.git"), True),
        ('kind="git"\nallow=["git.example/ours/*"]', git("git@git.example:ours/app.git"), True),
        ('kind="git"\ndeny=["git.example/ours/app.git"]', git("git@git.example:ours/app.git"), False),
        ('kind="git"\ndeny=["git.example/ours/app.git"]', git("https://git.example/ours/app"), False),
        ('kind="git"\nallow=["git.example/ours/*"]', git("ssh://git@git.example/theirs/app"), False),
        ('kind="git"\nallow=["git.example"]\nschemes=["https", "ssh"]', git("git://git.example/a"), False),
        ('kind="git"\nallow=["xn--bcher-kva.example"]', git("https://bücher.example/a.git"), True),
        ('kind="network"\nallow=["none"]', Subject("network", "host", "s"), False),
        ('kind="network"\nallow=["none"]', Subject("network", "none", "s"), True),
        ('kind="privileges"\nallow=[]', Subject("privilege", "security.insecure", "s"), False),
        ('kind="privileges"\nallow=["security.insecure"]', Subject("privilege", "security.insecure", "s"), True),
        ('kind="secrets"\nallow=["npm*"]', Subject("secret", "npm/token", "s"), True),
        ('kind="secrets"\ndeny=["prod-*"]', Subject("secret", "prod-db", "s"), False),
        ('kind="ssh"\nallow=[]', Subject("ssh", "default", "s"), False),
        ('kind="caches"\nallow=["cache.example"]', Subject("cache", "cache.example/a", "s"), True),
        ('kind="layers"', Subject("layer", "x", "s", verified=True), True),
        ('kind="layers"', Subject("layer", "x", "s"), False),
        ('kind="exports"\nallow=["corp.example/**", "oci"]', named_target(parse_reference("corp.example/a/b")), True),
        ('kind="exports"\nallow=["corp.example/**", "oci"]', export_target("oci"), True),
        ('kind="exports"\nallow=["corp.example/**", "oci"]', export_target("local"), False),
        ('kind="images"\nallow=[]', Subject("network", "host", "s"), None),
    ],
)
def test_rules_decide(rule: str, subject: Subject, allowed: bool | None) -> None:
    decision = parse_policy(f'[[rule]]\nname="r"\n{rule}\n'.encode(), "p.toml").decide(subject, NOW)
    assert (None if decision is None else decision.against is None) == allowed
    if decision is not None and decision.against is not None:
        assert decision.detail
        assert decision.remedy


@pytest.mark.parametrize(
    "remote",
    ["ssh://ours.example%40evil.example/a", "https://evil%2eexample/a.git", "git://ours.example%2fa@evil.example%00/a",
     "https://a..ü/a.git", "https:///a.git", "https://ｅｖｉｌ.example/a.git"],
)  # fmt: skip
def test_a_host_that_git_may_read_otherwise_is_no_host(remote: str) -> None:
    with pytest.raises(InputError, match="so no policy can allow it"):
        git(remote)


def test_the_first_rule_that_objects_is_named_and_all_that_speak_are() -> None:
    rules = "".join(
        f'[[rule]]\nname="{name}"\nkind="images"\n{text}\n'
        for name, text in (("a", 'allow=["docker.io"]'), ("b", 'deny=["docker.io"]'), ("c", "allow=[]"))
    )
    decision = parse_policy(rules.encode(), "p.toml").decide(image("debian"), NOW)
    assert decision is not None
    assert decision.against is not None
    assert (decision.rules, decision.against.name, decision.against.line) == (("a", "b", "c"), "b", 5)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("r?.example/*", "r1.example/x", True), ("r?.example/*", "r.example/x", False), ("r/a?b", "r/a/b", False),
        ("r/a?", "r/a", False), ("r/??", "r/ab", True), ("r?", "r1/any/thing", True), ("r/*", "r/a/b", False),
        ("r/**", "r/a/b", True), ("r/*b", "r/ab", True), ("**/b", "r/a/b", True),
    ],
)  # fmt: skip
def test_stars_and_question_marks_stay_between_slashes(pattern: str, name: str, fits: bool) -> None:
    assert place_fits(pattern, name) == fits


def test_a_pattern_takes_no_exponential_time_on_a_hostile_name() -> None:
    assert not place_fits("**a" * 8 + "b", "a" * 250)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("2024-01-01T00:00:00Z", 1704067200), ("2024-01-01T00:00:00.123456789Z", 1704067200),
        ("2024-01-01T02:00:00+02:00", 1704067200), ("1969-01-01T00:00:00Z", 0), ("0001-01-01T00:00:00Z", 0),
        ("yesterday", 0), ("", 0), (None, 0), (17, 0), ("9" * 100, 0), ("9999-99-99T00:00:00Z", 0),
    ],
)  # fmt: skip
def test_the_time_of_an_image_is_read_or_is_not_known(written: object, seconds: int) -> None:
    assert created_image(parse_reference("a"), DIGEST, {"created": written}).created // 10**9 == seconds
    assert read_time(written) // 10**9 == seconds


def test_no_credential_of_a_url_is_in_what_is_told() -> None:
    sources: list[FetchedSource] = [
        HttpSource("https://me:s3cret@example.org/f?token=s3cret", "f"), GitSource("https://s3cret@git.example/a.git"),
        ArchiveSource("https://me:s3cret@example.org/a.tar"),
    ]  # fmt: skip
    for source in sources:
        assert "s3cret" not in repr(fetched(source))
