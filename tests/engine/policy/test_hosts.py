"""Hosts have one form: the resolver of this machine says which of them are the same address."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.graph import GitSource, HttpSource
from engine.policy.hosts import authority_form, host_form
from engine.policy.parse import parse_policy
from engine.policy.subjects import Subject, fetched, named_image, named_target
from storage.errors import InputError
from storage.reference import parse_reference

LOOPBACK = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0X7F.1", "0x7f.0x0.0.0x1", "017700000001",
    "0177.0.0.1", "127.000.0.01", "0", "0.0", "0x0", "0.0.0.0", "127.0.0.1.", "[::ffff:127.0.0.1]", "[::FFFF:7f00:1]",
    "[0:0:0:0:0:ffff:127.0.0.1]", "[::ffff:0.0.0.0]",
]  # fmt: skip
LOOPBACK6 = ["[::1]", "[0:0:0:0:0:0:0:1]", "[0000::0001]", "[::0.0.0.1]", "[::1%1]", "[::1%251]", "[::]", "[0::0]"]
OTHERS = ["127.0.0.2", "127.2", "1.2.3.4.5", "127.0.0.256", "4294967296.1", "08.1", "0x.1", "localhost", "127.1.xyz"]


def resolved(host: str) -> str | None:
    """What the resolver reads a written address as, None for a name."""
    try:
        found = socket.getaddrinfo(host, 1, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return str(found[0][4][0])


_number = st.sampled_from(["%d", "0x%x", "0X%X", "0%o", "0x00%x", "00%o"])


@st.composite
def _written(draw: st.DrawFn) -> str:
    value, count = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 4))
    head = [value >> 24 - 8 * at & 255 for at in range(count - 1)]
    last = value & (1 << 32 - 8 * (count - 1)) - 1
    return ".".join(draw(_number) % number for number in [*head, last])


@given(_written() | st.text("0123456789abcdefx.", max_size=12))
@example("0.0.0.08")
@example("0x.1")
@example("256.1")
@example("127..1")
def test_a_written_address_is_what_the_resolver_makes_of_it(host: str) -> None:
    made, address = host_form(host), resolved(host)
    if address is not None:
        assert made == ("127.0.0.1" if address == "0.0.0.0" else address)
    elif not host.endswith("."):  # curl, and so git, leaves such a dot away
        assert made == host


@given(st.ip_addresses(v=6), st.booleans())
def test_an_address_of_ipv6_is_the_same_however_it_is_written(address: IPv6Address, capital: bool) -> None:
    for text in (address.compressed, address.exploded):
        made = host_form(text.upper() if capital else text)
        assert authority_form(text) == made
        assert authority_form(f"[{text}]:0443") == f"{made}:443"
        if address.ipv4_mapped is None and int(address):
            assert ip_address(made.strip("[]")) == address


@pytest.mark.parametrize("host", ["0", "::", "::ffff:0.0.0.0"])
def test_the_unspecified_address_leads_to_this_machine(host: str) -> None:
    form = host_form(host).strip("[]")
    if ":" in host:
        try:
            with socket.socket(socket.AF_INET6) as six:
                six.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
    with socket.socket(socket.AF_INET6 if ":" in form else socket.AF_INET) as listener:
        listener.bind((form, 0))
        listener.listen()
        with socket.create_connection((host, listener.getsockname()[1]), timeout=5):
            pass


def decided(rule: str, subject: Subject) -> bool:
    decision = parse_policy(f'[[rule]]\nname="r"\n{rule}\n'.encode(), "p.toml").decide(subject, 0)
    assert decision is not None
    return decision.against is None


def subjects(host: str) -> list[tuple[str, Subject]]:
    """All that a policy decides on by its host, each with the kind of rule."""
    web, git = (fetched(one) for one in (HttpSource(f"https://{host}/x", "f"), GitSource(f"https://{host}/x.git")))
    assert web is not None
    assert git is not None
    found = [("urls", web), ("git", git)]
    if "%" not in host and not host.endswith(".") and ("." in host or "[" in host):
        image = parse_reference(f"{host}:0443/x")
        found += [("images", named_image(image)), ("exports", named_target(image))]
    if "[" not in host:
        shell = fetched(GitSource(f"git@{host}:x"))
        assert shell is not None
        found.append(("git", shell))
    return found


@pytest.mark.parametrize("host", LOOPBACK)
def test_whoever_denies_an_address_denies_it_however_it_is_written(host: str) -> None:
    for kind, subject in subjects(host):
        for pattern in (*LOOPBACK, "127.0.0.*", "127.1:443", "127.0.0.1/**", "::ffff:127.0.0.1"):
            if ":443" not in pattern or subject.scheme != "ssh":
                assert not decided(f'kind="{kind}"\ndeny=["{pattern}"]', subject), (kind, pattern)
        for pattern in (*OTHERS, *LOOPBACK6):
            assert decided(f'kind="{kind}"\ndeny=["{pattern}"]', subject), (kind, pattern)
        assert decided(f'kind="{kind}"\nallow=["127.1"]', subject)
        assert not decided(f'kind="{kind}"\nallow=["127.2"]', subject)


@pytest.mark.parametrize("host", LOOPBACK6)
def test_the_same_holds_for_ipv6(host: str) -> None:
    for kind, subject in subjects(host):
        for pattern in (*LOOPBACK6, "::1", "0:0::1", "[::*]", "[::1]:443", "[0::1]/x"):
            assert not decided(f'kind="{kind}"\ndeny=["{pattern}"]', subject), (kind, pattern)
        assert decided(f'kind="{kind}"\ndeny=["127.0.0.1", "[::2]"]', subject)


@pytest.mark.parametrize("name", ["127.0.0.1", "127.0.0.1:80", "127.1:080", "[::1]:80", "localhost", "localhost:80"])
def test_a_registry_on_this_machine_is_known_with_and_without_the_port_of_http(name: str) -> None:
    """There is no TLS to it, so that `127.0.0.1/x` and `127.0.0.1:80/x` are one."""
    host = authority_form(name).removesuffix(":80")
    subject = named_image(parse_reference(f"{name}/x"))
    for pattern in (host, f"{host}:80", f"{host}:080/x", f"{host}:*", f"{host[:4]}*:80", name):
        assert not decided(f'kind="images"\ndeny=["{pattern}"]', subject), pattern
    assert decided(f'kind="images"\ndeny=["{host}:81", "10.0.0.1"]', subject)
    away = named_image(parse_reference("corp.example:80/x"))
    assert not decided('kind="images"\nallow=["corp.example"]', away)
    assert decided('kind="images"\nallow=["corp.example:80"]', away)


def test_a_port_is_a_number() -> None:
    for name in ("evil.example:443/x", "evil.example:0443/x", "evil.example:00443/x"):
        assert not decided('kind="images"\ndeny=["evil.example"]', named_image(parse_reference(name)))
        assert not decided('kind="images"\ndeny=["evil.example.:0443"]', named_image(parse_reference(name)))
    assert not decided('kind="images"\ndeny=["a.example:05000"]', named_image(parse_reference("a.example:5000/x")))


@pytest.mark.parametrize(("pattern", "denied"), [
    ("[fe80::1]:8080", True), ("[fe80::1%eth0]:8080", True), ("[FE80:0::1%25eth0]:8080", True),
    ("[fe80::1%eth1]:8080", False), ("fe80::1", False),
])  # fmt: skip
def test_an_address_of_a_link_is_known_with_and_without_the_link(pattern: str, denied: bool) -> None:
    for url in ("http://[fe80::1%25eth0]:8080/x", "http://[fe80:0::1%25eth0]:8080/x"):
        subject = fetched(HttpSource(url, "f"))
        assert subject is not None
        assert decided(f'kind="urls"\ndeny=["{pattern}"]', subject) is not denied


@pytest.mark.parametrize("host", [
    "stra\u00dfe.example", "\U0001f134vil.example", "ev\u00adil.example", "\uff45vil.example", "evil\u3002example",
    "\u03c2.example", "[::1::2]", "[1:2]",
])  # fmt: skip
def test_a_host_that_readers_take_for_different_ones_is_none(host: str) -> None:
    for source in (HttpSource(f"https://{host}/x", "f"), GitSource(f"https://{host}/x")):
        with pytest.raises(InputError, match="so no policy can allow it"):
            fetched(source)


def test_a_pattern_of_other_letters_is_its_ascii_form() -> None:
    subject = fetched(HttpSource("https://b\u00fccher.example/x", "f"))
    assert subject is not None
    for pattern in ("b\u00fccher.example", "B\u00dcCHER.example", "xn--bcher-kva.example", "b\u00fccher.*"):
        assert not decided(f'kind="urls"\ndeny=["{pattern}"]', subject)


def test_numbers_of_any_length_are_read_at_once() -> None:
    for host in ("9" * 5000, "0" * 5000, "0x" + "0" * 5000 + "1", ".".join("1" * 1000)):
        assert host_form(host) in (host, "127.0.0.1", str(IPv4Address(1)))
