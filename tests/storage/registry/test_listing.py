"""Tags and referrers come whole, page after page, from the registry that was asked and nobody else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from storage.digest import Digest, sha256
from storage.errors import RegistryError
from storage.interfaces.images import Descriptor, Provider, Referrer
from storage.registry import RegistryClient
from tests.faulty import Answering, Fault, FaultyProxy, Seen
from tests.registry_fixture import OCI_CONFIG, OCI_MANIFEST, WEB, RegistryProcess, push_blob, push_image
from tests.storage.registry.kit import use

INDEX = "application/vnd.oci.image.index.v1+json"
SBOM, SIGNATURE = "application/vnd.example.sbom", "application/vnd.example.signature"
Answer = tuple[int, Mapping[str, str], bytes]


def tags_of(host: str, name: str = "a/b") -> tuple[str, ...]:
    return use(lambda client: client.tags(Provider.of(host, name)))


def referrers_of(host: str, subject: Digest, kind: str = "", name: str = "a/b") -> tuple[Referrer, ...]:
    return use(lambda client: client.referrers(Provider.of(host, name), subject, kind))


def page(entries: list[Any], link: str = "") -> Answer:
    body = json.dumps({"name": "a/b", "tags": entries}).encode()
    return 200, {"Link": link} if link else {}, body


def referrer(number: int, kind: str = SBOM) -> dict[str, Any]:
    digest = sha256(str(number).encode())
    return {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": 7, "artifactType": kind}


def index_of(*entries: dict[str, Any], **headers: str) -> Answer:
    body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}).encode()
    return 200, {"Content-Type": INDEX, **headers}, body


def stored(host: str, name: str, tag: str) -> Any:
    """The manifest that the registry has."""
    answer = WEB.get(f"http://{host}/v2/{name}/manifests/{tag}", headers={"Accept": f"{INDEX}, {OCI_MANIFEST}"})
    return answer.raise_for_status().json()


def artifact(subject: Descriptor, host: str, name: str, note: str = "") -> bytes:
    """An OCI 1.1 artifact without layers, its config pushed."""
    config = push_blob(host, name, b"{}")
    return json.dumps({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": SBOM,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2}, "layers": [],
        "subject": subject.to_json(), "annotations": {"note": note},
    }).encode()  # fmt: skip


# ---------------------------------------------------------------- tags


def test_all_pages_are_read_whether_the_link_is_relative_or_not() -> None:
    def answer(seen: Seen) -> Answer:
        if "last=c" in seen.path:
            return page(["d"])
        if "last=b" in seen.path:
            return page(["c"], f'<http://{server.host}/v2/a/b/tags/list?n=2&last=c>; rel="next"')
        return page(["a", "b"], '</v2/a/b/tags/list?last=b&n=2>; rel=next')

    with Answering(answer) as server:
        assert tags_of(server.host) == ("a", "b", "c", "d")


def test_a_registry_that_bounds_pages_is_asked_without_a_size() -> None:
    with Answering(lambda seen: (400, {}, b"{}") if "n=" in seen.path else page(["a"])) as server:
        assert tags_of(server.host) == ("a",)


def test_null_is_no_tags() -> None:
    with Answering(lambda _: (200, {}, b'{"name":"a/b","tags":null}')) as server:
        assert tags_of(server.host) == ()


def test_a_link_to_another_host_is_not_followed() -> None:
    with (
        Answering(lambda _: page(["stolen"])) as other,
        Answering(lambda _: page(["a"], f'<http://{other.host}/v2/a/b/tags/list>; rel="next"')) as server,
    ):
        with pytest.raises(RegistryError, match=f"refers to {other.host}"):
            tags_of(server.host)
        assert not other.seen


@pytest.mark.parametrize("link", ["</v2/a/b/tags/list>", "</v2/a/b/tags/list?last=a>"])
def test_pages_that_go_in_circles_end(link: str) -> None:
    with Answering(lambda _: page(["a"], f'{link}; rel="next"')) as server:
        with pytest.raises(RegistryError, match="circles"):
            tags_of(server.host)
        assert len(server.seen) <= 2


def test_pages_without_end_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.registry.listing.PAGES", 5)
    with Answering(lambda seen: page(["a"], f'<{seen.path}x>; rel="next"')) as server:
        with pytest.raises(RegistryError, match="no end"):
            tags_of(server.host)
        assert len(server.seen) == 6


def test_too_many_entries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.registry.listing.ENTRIES", 5)
    with (
        Answering(lambda _: page([f"t{number}" for number in range(6)])) as server,
        pytest.raises(RegistryError, match="more than 5 entries"),
    ):
        tags_of(server.host)


@pytest.mark.parametrize("tag", ["../../x", "a b", "a\x1b[31m", "", 7, None, ["a"]])
def test_what_is_no_tag_is_refused(tag: Any) -> None:
    with Answering(lambda _: page([tag])) as server, pytest.raises(RegistryError, match="malformed"):
        tags_of(server.host)


def test_a_later_page_that_passes_is_asked_again() -> None:
    pages = iter([page(["a"], '</v2/a/b/tags/list?last=a>; rel="next"'), (503, {}, b""), page(["b"])])
    with Answering(lambda _: next(pages)) as server:
        assert tags_of(server.host) == ("a", "b")


# ---------------------------------------------------------------- referrers


def test_referrers_come_in_pages_and_are_filtered_here_unless_the_registry_did() -> None:
    subject = sha256(b"subject")

    def answer(seen: Seen) -> Answer:
        assert seen.path.startswith(f"/v2/a/b/referrers/{subject}")
        if "last" in seen.path:
            return index_of(referrer(2, SIGNATURE), referrer(3))
        return index_of(referrer(1), Link=f'</v2/a/b/referrers/{subject}?last=1>; rel="next"')

    with Answering(answer) as server:
        assert len(referrers_of(server.host, subject)) == 3
        assert [one.artifact_type for one in referrers_of(server.host, subject, SBOM)] == [SBOM, SBOM]


def test_what_the_registry_filtered_is_believed() -> None:
    entry = {**referrer(1), "artifactType": ""}  # its manifest's config says the type; the registry knows
    filtered = {"OCI-Filters-Applied": "artifactType"}
    with Answering(lambda _: index_of(entry, **filtered)) as server:
        assert len(referrers_of(server.host, sha256(b"s"), SBOM)) == 1
        assert "artifactType=application%2Fvnd.example.sbom" in server.seen[0].path


@pytest.mark.parametrize("refusal", [(404, {}, b""), (405, {}, b""), (200, {"Content-Type": "text/html"}, b"<html>")])
def test_registry_without_the_api_has_the_list_under_a_tag(refusal: Answer) -> None:
    subject = sha256(b"subject")

    def answer(seen: Seen) -> Answer:
        if seen.path == f"/v2/a/b/manifests/sha256-{subject.hex}":
            return index_of(referrer(1), referrer(2, SIGNATURE))
        return refusal

    with Answering(answer) as server:
        assert [one.artifact_type for one in referrers_of(server.host, subject)] == [SBOM, SIGNATURE]
        assert [one.artifact_type for one in referrers_of(server.host, subject, SIGNATURE)] == [SIGNATURE]


def test_denied_is_not_taken_for_a_lack() -> None:
    with Answering(lambda _: (403, {}, b"")) as server, pytest.raises(RegistryError) as caught:
        referrers_of(server.host, sha256(b"s"))
    assert caught.value.kind == "auth"


@pytest.mark.parametrize("body", [b"{}", b'{"manifests": [{"digest": "sha256:12"}]}', b'{"manifests": 7}', b"[]"])
def test_a_list_that_is_none_is_refused(body: bytes) -> None:
    with (
        Answering(lambda _: (200, {"Content-Type": INDEX}, body)) as server,
        pytest.raises(RegistryError, match="no image index"),
    ):
        referrers_of(server.host, sha256(b"s"))


# ---------------------------------------------------------------- pushing what refers


def pushed_artifacts(host: str, repository: str, count: int) -> tuple[Descriptor, list[bytes]]:
    """An image, and `count` artifacts that refer to it, put at once."""
    import asyncio

    image = push_image(host, repository, [{"a": b"1"}])
    subject = Descriptor(OCI_MANIFEST, Digest(image["digest"]), image["size"])
    made = [artifact(subject, host, repository, str(number)) for number in range(count)]

    async def put(client: RegistryClient) -> None:
        target = Provider.of(host, repository)
        await asyncio.gather(*(client.put_manifest(target, sha256(one), OCI_MANIFEST, one) for one in made))

    use(put)
    return subject, made


def test_a_registry_without_the_api_gets_the_list_kept_for_it(registry: RegistryProcess, repository: str) -> None:
    subject, made = pushed_artifacts(registry.host, repository, 3)
    listed = stored(registry.host, repository, f"sha256-{subject.digest.hex}")
    assert {entry["digest"] for entry in listed["manifests"]} == {str(sha256(one)) for one in made}
    assert {entry["artifactType"] for entry in listed["manifests"]} == {SBOM}
    assert {entry["annotations"]["note"] for entry in listed["manifests"]} == {"0", "1", "2"}
    assert len(referrers_of(registry.host, subject.digest, SBOM, repository)) == 3


def test_what_is_listed_already_is_not_listed_twice(registry: RegistryProcess, repository: str) -> None:
    subject, made = pushed_artifacts(registry.host, repository, 1)
    mark = registry.mark()
    target = Provider.of(registry.host, repository)
    use(lambda client: client.put_manifest(target, "again", OCI_MANIFEST, made[0]))
    assert len(referrers_of(registry.host, subject.digest, name=repository)) == 1
    puts = [line.path for line in registry.requests()[mark:] if line.method == "PUT"]
    assert puts == [f"/v2/{repository}/manifests/again"]


def test_a_registry_that_lists_by_itself_is_left_alone(registry: RegistryProcess, repository: str) -> None:
    image = push_image(registry.host, repository, [{"a": b"1"}])
    subject = Descriptor(OCI_MANIFEST, Digest(image["digest"]), image["size"])
    made = artifact(subject, registry.host, repository)
    said = {"OCI-Subject": str(subject.digest)}
    with FaultyProxy(registry.host, Fault("PUT", "/manifests/", status=201, headers=said)) as proxy:
        target = Provider.of(proxy.host, repository)
        use(lambda client: client.put_manifest(target, "sbom", OCI_MANIFEST, made))
        assert [seen.method for seen in proxy.seen] == ["PUT"]


def test_a_tag_that_somebody_else_uses_is_not_overwritten(registry: RegistryProcess, repository: str) -> None:
    image = push_image(registry.host, repository, [{"a": b"1"}])
    subject = Descriptor(OCI_MANIFEST, Digest(image["digest"]), image["size"])
    tag = f"sha256-{subject.digest.hex}"
    other = push_image(registry.host, repository, [{"b": b"2"}], tag=tag)
    made = artifact(subject, registry.host, repository)
    target = Provider.of(registry.host, repository)
    with pytest.raises(RegistryError, match="no image index"):
        use(lambda client: client.put_manifest(target, "sbom", OCI_MANIFEST, made))
    assert stored(registry.host, repository, tag) == other["manifest"]


def test_skopeo_can_read_the_list_that_we_keep(registry: RegistryProcess, repository: str) -> None:
    subject, made = pushed_artifacts(registry.host, repository, 1)
    name = f"docker://{registry.host}/{repository}:sha256-{subject.digest.hex}"
    told = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", name], check=True, capture_output=True
    ).stdout
    assert [entry["digest"] for entry in json.loads(told)["manifests"]] == [str(sha256(made[0]))]


def test_type_of_an_artifact_without_one_is_that_of_its_config(registry: RegistryProcess, repository: str) -> None:
    image = push_image(registry.host, repository, [{"a": b"1"}])
    subject = {"mediaType": OCI_MANIFEST, "digest": image["digest"], "size": image["size"]}
    made = json.dumps({**image["manifest"], "subject": subject}).encode()
    target = Provider.of(registry.host, repository)
    use(lambda client: client.put_manifest(target, "again", OCI_MANIFEST, made))
    found = referrers_of(registry.host, Digest(image["digest"]), name=repository)
    assert [one.artifact_type for one in found] == [OCI_CONFIG]
