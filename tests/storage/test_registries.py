"""`registries.toml`: what it says of hosts and mirrors, and how it complains."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from storage.errors import InputError
from storage.interfaces.images import Mirror, Provider
from storage.reference import LAYOUT_REGISTRY
from storage.registries import HostSettings, Registries, find, load, parse
from tests.certificates import Authority

HERE = Path("/etc/refledger")
DEBIAN = Provider.of("docker.io", "library/debian")


def read(text: str) -> Registries:
    return parse(text, "registries.toml", HERE)


def mirrors(text: str, provider: Provider = DEBIAN) -> list[str]:
    return [str(mirror.provider) for mirror in read(text).mirrors(provider)]


def test_mirrors_keep_their_order_and_prefixes() -> None:
    text = """
    [registry."docker.io"]
    mirrors = [{ host = "one.local:5000", prefix = "hub" }, { host = "two.local", tags = false }, "three.local/a/b"]
    """
    assert read(text).mirrors(DEBIAN) == (
        Mirror(Provider.of("one.local:5000", "hub/library/debian"), tags=True),
        Mirror(Provider.of("two.local", "library/debian"), tags=False),
        Mirror(Provider.of("three.local", "a/b/library/debian"), tags=True),
    )
    assert read(text).mirrors(Provider.of("quay.io", "library/debian")) == ()
    assert read(text).mirrors(Provider.of(LAYOUT_REGISTRY, "/somewhere")) == ()


def test_longest_key_wins_and_is_replaced() -> None:
    text = """
    [registry."docker.io"]
    mirrors = ["all.local"]
    [registry."docker.io/library"]
    mirrors = ["some.local/official"]
    [registry."docker.io/library/debian"]
    mirrors = ["one.local/debian", "nameless.local"]
    [registry."docker.io/private"]
    mirrors = []
    """
    assert mirrors(text) == ["one.local/debian"]
    assert mirrors(text, Provider.of("docker.io", "library/alpine")) == ["some.local/official/alpine"]
    assert mirrors(text, Provider.of("docker.io", "library2/alpine")) == ["all.local/library2/alpine"]
    assert mirrors(text, Provider.of("docker.io", "private/x")) == []


def test_docker_hub_and_upper_case_are_one_host() -> None:
    assert mirrors('[registry."Index.Docker.io"]\nmirrors = ["m.local"]') == ["m.local/library/debian"]
    assert read('[registry."docker.io"]\nconnections = 2').settings("registry-1.docker.io").connections == 2
    assert read('[registry."QUAY.io"]\nconnections = 2').settings("quay.io").connections == 2


def test_nobody_is_a_mirror_of_itself() -> None:
    assert mirrors('[registry."docker.io"]\nmirrors = ["docker.io", "m.local"]') == ["m.local/library/debian"]


@pytest.mark.parametrize(
    ("written", "asked", "port", "found"),
    [
        ("a.b:5000", "a.b:5000", 443, True), ("a.b:5000", "a.b", 443, False), ("a.b", "a.b:5000", 443, False),
        ("a.b", "a.b:443", 443, True), ("a.b:443", "a.b", 443, True), ("a.b:80", "a.b", 80, True),
        ("a.b:80", "a.b", 443, False), ("[::1]:5000", "[::1]:5000", 443, True),
    ],
)  # fmt: skip
def test_settings_are_found_by_host_and_port(written: str, asked: str, port: int, found: bool) -> None:
    registries = read(f'[registry."{written}"]\nconnections = 3')
    assert registries.settings(asked, port).connections == (3 if found else None)


@pytest.mark.parametrize(
    ("lines", "host", "plain"),
    [
        ("", "10.0.0.1:5000", False), ("", "127.0.0.1:5000", True), ("", "localhost:443", False),
        ("http = true", "10.0.0.1:5000", True), ("http = false", "127.0.0.1:5000", False),
        ("connections = 1", "127.0.0.1:5000", True), ('ca = "x"', "127.0.0.1:5000", False),
    ],
)  # fmt: skip
def test_plain_http_is_for_loopback_unless_said(lines: str, host: str, plain: bool) -> None:
    text = f'[registry."{host}"]\n{lines}' if lines else ""
    assert read(text).settings(host).http is plain


def test_everything_of_a_host() -> None:
    text = """
    [registry."a.b"]
    ca = "ca.pem"
    client_certificate = "/keys/me.pem"
    client_key = "me.key"
    requests_per_second = 20
    connections = 8
    """
    assert read(text).settings("a.b") == HostSettings(
        False, HERE / "ca.pem", Path("/keys/me.pem"), HERE / "me.key", 20.0, 8
    )


TABLE = '[registry."a.b"]\n'


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("registry = [", "is not TOML: "),
        ("registry = 5", "registry must hold tables"),
        ("[registries]", "registries is not known here"),
        ('registry."a.b" = 5', 'registry."a.b" must be a table'),
        ('[registry."https://a.b"]', 'registry."https://a.b" is not host[:port]'),
        ('[registry."*.a.b"]', 'registry."*.a.b" is not host[:port]'),
        ('[registry."a.b:99999"]', "is not host[:port]"),
        ('[registry."a.b/UP"]', "is not host[:port]"),
        ('[registry."a.b"]\n[registry."A.B"]', 'registry."A.B" is there twice'),
        (TABLE + "insecure = true", 'registry."a.b".insecure is not known here: there are mirrors, http, ca'),
        (TABLE + "http = 1", 'registry."a.b".http must be true or false'),
        (TABLE + 'http = true\nca = "x"', 'registry."a.b".http is true'),
        (TABLE + 'ca = ["x"]', 'registry."a.b".ca must be the name of a PEM file'),
        (TABLE + 'ca = ""', 'registry."a.b".ca must be the name of a PEM file'),
        (TABLE + 'client_key = "x"', 'registry."a.b".client_key needs client_certificate'),
        (TABLE + "requests_per_second = 0", 'registry."a.b".requests_per_second must be more than 0'),
        (TABLE + "requests_per_second = inf", 'registry."a.b".requests_per_second must be more than 0'),
        (TABLE + "requests_per_second = true", 'registry."a.b".requests_per_second must be a number'),
        (TABLE + "connections = 0", 'registry."a.b".connections must be from 1 to'),
        (TABLE + "connections = 1.5", 'registry."a.b".connections must be a whole number'),
        (TABLE + "mirrors = 5", 'registry."a.b".mirrors must be a list'),
        (TABLE + "mirrors = [5]", 'registry."a.b".mirrors[0] must be a table'),
        (TABLE + 'mirrors = ["m.b/"]', 'registry."a.b".mirrors[0] ends in /'),
        (TABLE + 'mirrors = ["m.b", {}]', 'registry."a.b".mirrors[1].host must be host[:port]'),
        (TABLE + 'mirrors = [{host = "m.b", prefix = "/x"}]', "mirrors[0].prefix must be the start"),
        (TABLE + 'mirrors = [{host = "m.b", tags = "no"}]', "mirrors[0].tags must be true or false"),
        (TABLE + 'mirrors = [{host = "m.b", url = "x"}]', "mirrors[0].url is not known here: there are host,"),
        ('[registry."a.b/c"]\nca = "x"', 'registry."a.b/c".ca is a setting of a host'),
    ],
)
def test_mistakes_name_file_and_key(text: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    assert what in caught.value.what
    assert caught.value.where == "registries.toml"
    assert caught.value.exit_code == 2


def test_file_is_looked_for_in_three_places(tmp_path: Path) -> None:
    assert find({}, tmp_path) in {None, Path("/etc/refledger/registries.toml")}
    (tmp_path / "registries.toml").write_text("")
    assert find({}, tmp_path) == tmp_path / "registries.toml"
    assert find({"REFLEDGER_REGISTRIES": "other.toml"}, tmp_path) == Path("other.toml")
    assert load(None) == load(tmp_path / "registries.toml") == Registries()


def test_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"other\.toml: cannot be read: No such file.*REFLEDGER_REGISTRIES names it"):
        load(tmp_path / "other.toml")
    (tmp_path / "other.toml").write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        load(tmp_path / "other.toml")


def test_certificates_are_looked_at_when_the_file_is_read(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    client, other = authority.client(), authority.client("other")
    file = tmp_path / "registries.toml"

    def failure(lines: str) -> str:
        file.write_text(f'[registry."a.b"]\n{lines}')
        with pytest.raises(InputError) as caught:
            load(file)
        assert caught.value.where == str(file)
        return caught.value.what

    (tmp_path / "junk.pem").write_text("junk")
    assert 'registry."a.b".ca names' in failure('ca = "none.pem"')
    assert failure('ca = "."').endswith("cannot be read: Is a directory")
    assert 'registry."a.b".ca does not hold certificates' in failure('ca = "junk.pem"')
    assert "client_certificate does not hold a certificate and its key" in failure('client_certificate = "client.pem"')
    wrong = f'client_certificate = "client.pem"\nclient_key = "{other.key.name}"'
    assert "client_certificate does not hold a certificate and its key" in failure(wrong)
    file.write_text(f'[registry."a.b"]\nca = "authority.pem"\nclient_certificate = "{client.certificate}"\n'
                    f'client_key = "{client.key}"')  # fmt: skip
    assert load(file).settings("a.b").ca == tmp_path / "authority.pem"


def test_encrypted_key_is_an_error_not_a_question(tmp_path: Path) -> None:
    client, locked = Authority(tmp_path).client(), tmp_path / "locked"
    command = ["openssl", "ec", "-in", str(client.key), "-aes256", "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    file = tmp_path / "registries.toml"
    file.write_text('[registry."a.b"]\nclient_certificate = "client.pem"\nclient_key = "locked"')
    with pytest.raises(InputError, match="client_key is encrypted"):
        load(file)


def test_example_of_the_documentation_means_what_it_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "registries.md").read_text()
    example = page.split("```toml\n")[1].split("```")[0]
    found = read(example)
    assert [(str(mirror.provider), mirror.tags) for mirror in found.mirrors(DEBIAN)] == [
        ("mirror.example:5000/hub/library/debian", True), ("cache.example/library/debian", False)
    ]  # fmt: skip
    assert mirrors(example, Provider.of("docker.io", "team/app")) == ["mirror.example:5000/ours/app"]
    assert mirrors(example, Provider.of("docker.io", "team/secret")) == []
    assert found.settings("mirror.example:5000") == HostSettings(
        False, HERE / "mirror-ca.pem", HERE / "me.pem", HERE / "me.key", 20.0, 8
    )
    assert found.settings("registry.lab:5000").http is True


def test_every_key_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "registries.md").read_text()
    with pytest.raises(InputError) as caught:
        read(TABLE + "x = 1")
    keys = caught.value.what.partition("there are ")[2].split(", ")
    assert len(keys) == 7
    assert [key for key in keys if f"`{key}`" not in page] == []


def test_without_any_mirror_there_is_none() -> None:
    assert Registries().mirrors(DEBIAN) == ()


def test_authorities_alone_need_no_certificate_of_ours(tmp_path: Path) -> None:
    ca = Authority(tmp_path).pair.certificate
    (tmp_path / "registries.toml").write_text(f'[registry."r.example"]\nca = "{ca.name}"\n')
    assert load(tmp_path / "registries.toml").settings("r.example").ca == ca
