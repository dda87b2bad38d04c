"""Build policies through the command line: what they forbid is not asked for, not run and not given out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.digest import Digest
from storage.interfaces.images import Provider
from storage.signing.dsse import ENVELOPE, IN_TOTO, sign
from storage.signing.notes import Signer, new_signer
from tests.builder import Builder, Done, base_image, layer_digests
from tests.registry_fixture import OCI_MANIFEST, RegistryProcess, digest_of, free_port, get_json, push_blob
from tests.storage.registry.kit import use
from tests.web_fixture import Page, WebServer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


class Policed(Builder):
    """A builder with a policy file."""

    def policy(self, text: str, name: str = "rules.toml") -> str:
        path = self.root.parent / name
        path.write_text(text)
        return str(path)


@pytest.fixture
def builder(tmp_path: Path) -> Policed:
    return Policed(tmp_path)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


def rule(kind: str, *lines: str, name: str = "the rule") -> str:
    return "\n".join(["[[rule]]", f'name = "{name}"', f'kind = "{kind}"', *lines, ""])


def requests_for(registry: RegistryProcess, repository: str) -> list[str]:
    return [line.path for line in registry.requests() if f"/{repository}/" in line.path]


def test_an_image_that_is_not_allowed_is_not_even_asked_for(
    builder: Policed, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=2)
    before = len(requests_for(registry, repository))
    policy = builder.policy("# ours\n" + rule("images", 'allow = ["registry.example"]'))
    done = builder.build(f"FROM {image['reference']}\nRUN true\n", "--policy", policy)
    assert done.code == 4
    error = [line for line in done.err.splitlines() if line.startswith("ERROR: ")]
    assert len(error) == 1
    assert f"{policy}:2: rule 'the rule' forbids {image['reference']}" in error[0]
    assert "(allowed: registry.example)" in error[0]
    assert len(requests_for(registry, repository)) == before
    [decided] = builder.events("PolicyDecided")
    assert (decided["data"]["decision"], decided["data"]["rule"], decided["data"]["line"]) == ("denied", "the rule", 2)
    [build] = builder.builds()
    shown = builder.run("show", build["id"])
    assert "rule 'the rule' forbids" in shown.out


def refused(done: Done, *words: str) -> str:
    """The one line of a refusal, with `words` in it."""
    assert done.code == 4, done.err
    [error] = [line for line in done.err.splitlines() if line.startswith("ERROR: ")]
    for word in words:
        assert word in error
    return error


def test_an_image_that_a_copy_takes_from_is_an_image_too(
    builder: Policed, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/other", layers=2)
    before = len(requests_for(registry, repository))
    policy = builder.policy(rule("images", f'deny = ["{registry.host}/{repository}/*"]'))
    done = builder.build(f"FROM scratch\nCOPY --from={image['reference']} /bin/sh /sh\n", "--policy", policy)
    refused(done, "forbids", "is denied")
    assert len(requests_for(registry, repository)) == before


def test_the_policy_of_the_machine_holds_beside_others_and_no_flag_lifts_it(
    builder: Policed, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=2)
    machine = {"REFLEDGER_POLICY": builder.policy(rule("network", 'allow = ["none"]', name="cut off"), "machine.toml")}
    ours = rule("images", f'allow = ["{registry.host}"]', name="ours")
    own = builder.policy(ours + rule("network", 'allow = ["host"]'))
    dockerfile = f"FROM {image['reference']}\nRUN true\n"
    for flags in ([], ["--policy", own], ["--no-cache"]):
        refused(builder.build(dockerfile, *flags, env=machine), "machine.toml:1", "'cut off'", "network host")
    done = builder.build(dockerfile, "--network", "none", env=machine)
    assert done.code == 0, done.err
    assert builder.run("build", str(builder.context), env={"REFLEDGER_POLICY": "/no/such/file"}).code == 3


def test_a_step_is_refused_with_its_line_before_a_layer_is_pulled_and_also_when_it_is_cached(
    builder: Policed, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=2)
    dockerfile = f"FROM {image['reference']}\nRUN --network=none true\nRUN echo out > /f\n"
    policy = builder.policy(rule("network", 'allow = ["none"]'))
    mark = registry.mark()
    done = builder.build(dockerfile, "--policy", policy)
    refused(done, "rules.toml:1", "network host", "allowed: none")
    assert "3 | >>> RUN echo out > /f" in done.err
    assert not registry.layer_gets(layer_digests(image), since=mark)
    builder.must_build(dockerfile)
    refused(builder.build(dockerfile, "--policy", policy), "network host")


@pytest.mark.parametrize(
    ("kind", "step", "let", "told"),
    [
        ("privileges", "--security=insecure", "security.insecure", "security.insecure of"),
        ("secrets", "--mount=type=secret,id=npm", "npm", "secret npm of"),
        ("ssh", "--mount=type=ssh,id=deploy", "deploy", "ssh agent deploy of"),
    ],
)
def test_what_a_step_is_lent_is_for_the_policy_to_say(
    builder: Policed, registry: RegistryProcess, repository: str, kind: str, step: str, let: str, told: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    dockerfile = f"FROM {image['reference']}\nRUN {step} true\n"
    flags = ["--allow", "security.insecure"] if kind == "privileges" else []
    none = builder.policy(rule(kind, "allow = []"))
    refused(builder.build(dockerfile, *flags, "--policy", none), f"forbids {told}")
    some = builder.policy(rule(kind, f'allow = ["{let}"]'))
    assert builder.build(dockerfile, *flags, "--policy", some).code == 0


def test_an_image_by_tag_is_refused_and_the_line_says_what_to_write(
    builder: Policed, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=2)
    policy = builder.policy(rule("digests"))
    mark = registry.mark()
    error = refused(builder.build(f"FROM {image['reference']}\n", "--policy", policy), "is named without a digest")
    pinned = f"{image['reference']}@{image['digest']}"
    assert f"write {pinned}" in error
    assert not registry.layer_gets(layer_digests(image), since=mark)
    assert builder.build(f"FROM {pinned}\n", "--policy", policy).code == 0
    other = builder.policy(rule("digests", f'digests = ["sha256:{"0" * 64}"]'))
    refused(builder.build(f"FROM {pinned}\n", "--policy", other), "is not on the list")
    listed = builder.policy(rule("digests", f'digests = ["{image["digest"]}"]'))
    assert builder.build(f"FROM {image['reference']}\n", "--policy", listed).code == 0


def test_a_base_that_is_too_old_is_refused(builder: Policed, registry: RegistryProcess, repository: str) -> None:
    image = base_image(registry, f"{repository}/base", layers=2)  # of January 2024
    policy = builder.policy(rule("age", 'max = "30d"'))
    mark = registry.mark()
    refused(builder.build(f"FROM {image['reference']}\n", "--policy", policy), "days old, and may be 30", "a newer one")
    assert not registry.layer_gets(layer_digests(image), since=mark)
    lasting = builder.policy(rule("age", 'max = "5000w"'))
    assert builder.build(f"FROM {image['reference']}\n", "--policy", lasting).code == 0


def attest(registry: RegistryProcess, name: str, image: dict[str, Any], signer: Signer, about: str) -> None:
    """Push a statement about `about` that refers to `image`, signed by `signer`."""
    statement = {
        "_type": "https://in-toto.io/Statement/v1", "predicateType": "https://example.com/reviewed/v1",
        "subject": [{"name": "base", "digest": {"sha256": about.removeprefix("sha256:")}}], "predicate": {},
    }  # fmt: skip
    envelope = sign(IN_TOTO, json.dumps(statement).encode(), signer)
    made = {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": ENVELOPE,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "size": 2,
                   "digest": push_blob(registry.host, name, b"{}")},
        "layers": [{"mediaType": ENVELOPE, "digest": push_blob(registry.host, name, envelope), "size": len(envelope)}],
        "subject": {"mediaType": OCI_MANIFEST, "digest": image["digest"], "size": image["size"]},
    }  # fmt: skip
    data = json.dumps(made).encode()
    target = Provider.of(registry.host, name)
    use(lambda client: client.put_manifest(target, digest_of(data), OCI_MANIFEST, data))


def test_an_image_must_be_vouched_for_by_a_key_of_the_rule(
    builder: Policed, registry: RegistryProcess, repository: str
) -> None:
    name = f"{repository}/base"
    image = base_image(registry, name, layers=2)
    ours, stranger = new_signer("ours.example", b"1" * 32), new_signer("ours.example", b"2" * 32)
    policy = builder.policy(rule("signatures", f'keys = ["{ours.verifier}"]'))
    mark = registry.mark()

    def build() -> Done:
        return builder.build(f"FROM {image['reference']}\n", "--policy", policy)

    refused(build(), "nothing that ours.example signed vouches for it")
    attest(registry, name, image, stranger, image["digest"])
    refused(build(), "nothing that ours.example signed")
    attest(registry, name, image, ours, f"sha256:{'1' * 64}")  # about another image
    refused(build(), "nothing that ours.example signed")
    assert not registry.layer_gets(layer_digests(image), since=mark)
    attest(registry, name, image, ours, image["digest"])
    assert build().code == 0
    told = [event["data"] for event in builder.events("PolicyDecided") if event["data"]["kind"] == "signature"]
    assert [one["decision"] for one in told] == ["denied", "denied", "denied", "allowed"]
    assert told[-1]["evidence"]["signers"] == [str(ours.verifier)]


def test_a_url_that_is_not_allowed_is_not_asked_for(builder: Policed, web: WebServer) -> None:
    web.pages["/a/file"] = Page(b"data")
    host = web.url.removeprefix("http://").rstrip("/")
    policy = builder.policy(rule("urls", f'allow = ["{host}/b/**"]'))
    refused(builder.build(f"FROM scratch\nADD {web.url}/b/../a/file /file\n", "--policy", policy), f"http://{host}/a/file")
    secure = builder.policy(rule("urls", 'schemes = ["https"]'))
    refused(builder.build(f"FROM scratch\nADD {web.url}/a/file /file\n", "--policy", secure), "http is not allowed")
    assert not web.requests
    allowed = builder.policy(rule("urls", f'allow = ["{host}/a/*"]'))
    assert builder.build(f"FROM scratch\nADD {web.url}/a/file /file\n", "--policy", allowed).code == 0


def test_a_redirect_to_what_is_not_allowed_is_not_followed(builder: Policed, web: WebServer) -> None:
    host = web.url.removeprefix("http://")
    web.pages["/in/file"] = Page(status=302, headers={"Location": "/out/file"})
    web.pages["/out/file"] = Page(b"data")
    policy = builder.policy(rule("urls", f'allow = ["{host}/in/**"]'))
    refused(builder.build(f"FROM scratch\nADD {web.url}/in/file /f\n", "--policy", policy), f"forbids http://{host}/out")
    assert [request.path for request in web.requests] == ["/in/file"]


def test_a_repository_that_is_not_allowed_is_not_asked_for_as_context_or_in_a_step(builder: Policed) -> None:
    policy = builder.policy(rule("git", 'allow = ["git.example/ours/*"]'))
    remote = f"http://127.0.0.1:{free_port()}/theirs/app.git"  # where nobody listens: asking would be code 3
    refused(builder.run("build", remote, "--policy", policy), "/theirs/app", "allowed: git.example/ours/*")
    refused(builder.build(f"FROM scratch\nADD {remote} /src\n", "--policy", policy), "/theirs/app")


def test_where_results_go_and_which_caches_are_believed_is_asked_before_anything_else(
    builder: Policed, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=2)
    dockerfile = f"FROM {image['reference']}\nRUN true\n"
    mark = len(requests_for(registry, repository))
    policy = builder.policy(
        rule("exports", f'allow = ["{registry.host}/{repository}/out", "oci"]', name="out")
        + rule("caches", "allow = []", name="no caches")
    )
    there, elsewhere = (f"{registry.host}/{repository}/{name}" for name in ("out:1", "elsewhere:1"))
    tar = builder.root.parent / "out.tar"
    for flags in (
        ["-t", elsewhere, "--push"], ["-t", there, "-t", elsewhere, "--push"], ["--output", f"type=tar,dest={tar}"],
        ["--cache-to", f"type=registry,ref={elsewhere}"],
    ):  # fmt: skip
        refused(builder.build(dockerfile, *flags, "--policy", policy), "rule 'out' forbids output")
    refused(builder.build(dockerfile, "--cache-from", f"type=registry,ref={there}", "--policy", policy), "'no caches'")
    assert len(requests_for(registry, repository)) == mark
    assert not tar.exists()
    done = builder.build(dockerfile, "-t", there, "--push", "--output", f"type=oci,dest={tar}", "--policy", policy)
    assert done.code == 0, done.err
    assert tar.exists()


def test_I2_layers_that_nobody_looked_at_go_nowhere_unless_the_rule_has_them_fetched(
    builder: Policed, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=3)
    builder.write({"f": "x"})
    dockerfile = f"FROM {image['reference']}\nCOPY --link f /f\n"
    target = f"{repository}/out"
    push = ["-t", f"{registry.host}/{target}:1", "--push"]
    mark = registry.mark()
    refused(
        builder.build(dockerfile, *push, "--policy", builder.policy(rule("layers"))), "never byte-verified here",
        "fetch = true",
    )  # fmt: skip
    assert not [line for line in registry.requests()[mark:] if line.method == "PUT" and f"/{target}/" in line.path]
    fetching = builder.policy(rule("layers", "fetch = true"))
    done = builder.build(dockerfile, *push, "--policy", fetching)
    assert done.code == 0, done.err
    assert {line.blob for line in registry.layer_gets(layer_digests(image), since=mark)} == set(layer_digests(image))
    assert get_json(registry.host, f"/v2/{target}/tags/list")["tags"] == ["1"]
    mark = registry.mark()
    assert builder.build(dockerfile, *push, "--policy", builder.policy(rule("layers"))).code == 0
    assert not registry.layer_gets(layer_digests(image), since=mark)


@pytest.mark.parametrize("snapshotter", ["directory", "erofs"])
def test_I12_a_layer_that_lies_here_without_a_word_in_the_log_is_fetched_for_the_rule(
    builder: Policed, registry: RegistryProcess, repository: str, snapshotter: str
) -> None:
    """As a process leaves it that is killed before it can say what it checked."""
    image = base_image(registry, f"{repository}/base", layers=2)
    dockerfile = f"FROM {image['reference']}\nRUN echo x > /x\n"
    options = ["-o", f"type=oci,dest={builder.context}/out.tar", "--snapshotter", snapshotter]
    builder.must_build(dockerfile)
    for path in builder.root.glob("*.db*"):
        path.unlink()
    done = builder.build(dockerfile, *options, "--policy", builder.policy(rule("layers", "fetch = true")))
    assert done.code == 0, done.err
    pulled = [event["data"]["digest"] for event in builder.events("LayerPulled")]
    assert sorted(pulled) == sorted(layer_digests(image))


def test_copies_indexes_and_edits_keep_to_policies_as_well(
    builder: Policed, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=2)
    source, target = image["reference"], f"{registry.host}/{repository}/out:1"
    images = builder.policy(rule("images", 'allow = ["registry.example"]'))
    exports = builder.policy(rule("exports", 'allow = ["registry.example"]'), "exports.toml")
    layers = builder.policy(rule("layers"), "layers.toml")
    mark = len(requests_for(registry, repository))
    for command in (
        ["copy", source, target], ["index", "create", target, source],
        ["rebase", source, "--from", source, "-t", target, "--push"],
    ):  # fmt: skip
        refused(builder.run(*command, "--policy", images), "forbids", source)
        refused(builder.run(*command, "--policy", exports), f"forbids output {target}")
        refused(builder.run(*command, env={"REFLEDGER_POLICY": images}), "forbids", source)
    assert len(requests_for(registry, repository)) == mark
    refused(builder.run("copy", source, target, "--policy", layers), "never byte-verified here")
    allowed = builder.policy(rule("images", f'allow = ["{registry.host}"]'))
    assert builder.run("copy", source, target, "--policy", allowed).code == 0
    assert builder.run("index", "create", target, source, "--policy", allowed).code == 0
    started = builder.events("BuildStarted")[-1]
    assert started["data"]["options"]["policies"] == [
        {"file": allowed, "digest": digest_of(Path(allowed).read_bytes())}
    ]


def test_what_was_allowed_is_told_once_and_names_the_policy_that_is_kept(
    builder: Policed, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    policy = builder.policy(rule("images", f'allow = ["{registry.host}"]'))
    dockerfile = f"FROM {image['reference']} AS a\nRUN true\nFROM {image['reference']}\nCOPY --from=a /bin/sh /x\n"
    builder.must_build(dockerfile, "--policy", policy)
    [decided] = builder.events("PolicyDecided")
    data = decided["data"]
    assert (data["decision"], data["rule"], data["rules"], data["detail"]) == ("allowed", "", ["the rule"], "")
    assert data["subject"] == image["reference"]
    kept = builder.root / "blobs" / "sha256" / Digest(data["policy"]).hex
    assert kept.read_text() == Path(policy).read_text()
    assert builder.run("prune", "--all").code == 0
    assert kept.exists(), "the log stands on it"
    kept.write_text("another one")
    verified = builder.run("audit", "verify")
    assert (verified.code, "policy" in verified.err) == (4, True), verified.err


def test_a_policy_that_is_not_understood_builds_nothing(builder: Policed) -> None:
    policy = builder.policy(rule("images", "alow = []"))
    done = builder.build("FROM scratch\n", "--policy", policy)
    assert done.code == 2
    assert f"{policy}:4: unknown key 'alow'" in done.err
    assert not builder.builds()
    missing = builder.build("FROM scratch\n", "--policy", "/no/policy")
    assert (missing.code, missing.err.count("\n")) == (2, 1), "of a build that did not begin there is no story to tell"
    assert missing.err.startswith("ERROR: /no/policy: there is no such policy ")
