"""`build --attest`, `audit provenance` and `audit verify-image` with a real registry: what is attached, and to whom."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from storage.digest import sha256
from tests.builder import Builder, busybox_layer
from tests.engine.attest.test_rpm import database, header
from tests.registry_fixture import (
    OCI_MANIFEST,
    WEB,
    RegistryProcess,
    digest_of,
    push_blob,
    push_image,
    push_manifest,
)

pytestmark = pytest.mark.root
Json = dict[str, Any]
INDEX = "application/vnd.oci.image.index.v1+json"
IN_TOTO, DSSE = "application/vnd.in-toto+json", "application/vnd.dsse.envelope.v1+json"
PROVENANCE, BOM = "https://slsa.dev/provenance/v1", "https://cyclonedx.org/bom"
STATUS = b"""Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9
Description: C library
 more lines

Package: gone
Status: deinstall ok config-files
Version: 1
"""
OS = b'ID=debian\nVERSION_ID="12"\n'


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "a root")


def keygen(builder: Builder, *args: str) -> str:
    done = builder.run("audit", "keygen", "--name", "ci.example", *args)
    assert done.code == 0, done.err
    return next(word for word in done.out.split() if word.startswith("ci.example+"))


def debian(registry: RegistryProcess, name: str, *, more: Mapping[str, bytes] | None = None) -> Json:
    """A base with a shell below, and package databases in a layer of its own."""
    databases = {"var/lib/dpkg/status": STATUS, "etc/os-release": OS, **(more or {})}
    return push_image(registry.host, name, [busybox_layer(), databases], tag="1", config={"Env": ["PATH=/bin"]})


def raw(registry: RegistryProcess, name: str, tag: str = "1") -> bytes:
    """A manifest or index as it is stored."""
    accept = f"{OCI_MANIFEST}, {INDEX}"
    answer = WEB.get(f"http://{registry.host}/v2/{name}/manifests/{tag}", headers={"Accept": accept})
    return answer.raise_for_status().content


def manifest_of(registry: RegistryProcess, name: str, tag: str = "1") -> Json:
    found: Json = json.loads(raw(registry, name, tag))
    return found


def blob(registry: RegistryProcess, descriptor: Mapping[str, Any]) -> bytes:
    return registry.blob_path(descriptor["digest"]).read_bytes()


def statements(registry: RegistryProcess, name: str, tag: str = "1") -> dict[str, Json]:
    """What lies beside the image in the index, by predicate type."""
    index = manifest_of(registry, name, tag)
    manifest = manifest_of(registry, name, index['manifests'][1]['digest'])
    found = [json.loads(blob(registry, layer)) for layer in manifest["layers"]]
    return {one["predicateType"]: one for one in found}


def purls(statement: Mapping[str, Any]) -> set[str]:
    return {one["purl"] for one in statement["predicate"].get("components", []) if "purl" in one}


def verify(builder: Builder, image: str, key: str, *args: str) -> tuple[int, str, str]:
    done = builder.run("audit", "verify-image", image, "--key", key, *args)
    return done.code, done.out, done.err


# ---------------------------------------------------------------- what is attached


def test_an_index_holds_image_and_attestation_manifest_as_buildkit_stores_them(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    base = debian(registry, f"{repository}/base")
    dockerfile = f"FROM {registry.host}/{repository}/base:1\nCOPY app /app\nENV A=1\n"
    builder.write({"app": b"app"})
    image = f"{registry.host}/{repository}:1"
    plain = f"{registry.host}/{repository}:plain"
    builder.must_build(dockerfile, "-t", plain, "--push")
    builder.must_build(dockerfile, "-t", image, "--push", "--attest", "type=provenance", "--sbom", "true")
    top = manifest_of(registry, repository)
    assert top["mediaType"] == INDEX
    first, second = top["manifests"]
    unattested = digest_of(raw(registry, repository, "plain"))
    assert first["digest"] == unattested, "what is attested of an image does not change it"
    assert second["platform"] == {"os": "unknown", "architecture": "unknown"}
    assert second["annotations"] == {
        "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": unattested,
    }  # fmt: skip
    manifest = manifest_of(registry, repository, second['digest'])
    assert [layer["mediaType"] for layer in manifest["layers"]] == [IN_TOTO, IN_TOTO]
    assert [layer["annotations"]["in-toto.io/predicate-type"] for layer in manifest["layers"]] == [PROVENANCE, BOM]
    config = json.loads(blob(registry, manifest["config"]))
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    for layer in manifest["layers"]:
        said = json.loads(blob(registry, layer))
        assert said["subject"][0]["digest"] == {"sha256": unattested.removeprefix("sha256:")}
    made = statements(registry, repository)[PROVENANCE]["predicate"]
    (dependency,) = [one for one in made["buildDefinition"]["resolvedDependencies"] if "uri" in one]
    assert dependency["uri"].startswith(f"pkg:docker/{registry.host}/{repository}/base@1?platform=")
    assert dependency["digest"] == {"sha256": base["digest"].removeprefix("sha256:")}


def test_an_attested_image_is_read_by_skopeo_and_by_our_own_from(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    debian(registry, f"{repository}/base")
    image = f"{registry.host}/{repository}:1"
    builder.must_build(
        f"FROM {registry.host}/{repository}/base:1\nRUN echo hi > /hi\n", "-t", image, "--push", "--provenance", "true",
    )  # fmt: skip
    target = tmp_path / "pulled"
    subprocess.run(
        ["skopeo", "copy", "--src-tls-verify=false", f"docker://{image}", f"oci:{target}:1"],
        check=True, capture_output=True,
    )  # fmt: skip
    out = tmp_path / "files"
    builder.must_build(f"FROM {image}\nRUN cat /hi > /again\n", "-o", f"type=local,dest={out}")
    assert (out / "again").read_text() == "hi\n"


def test_the_oci_layout_and_archive_hold_the_attestations(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    key = keygen(builder)
    debian(registry, f"{repository}/base")
    layout = tmp_path / "layout"
    builder.must_build(
        f"FROM {registry.host}/{repository}/base:1\n", "-t", "x:1", "--sbom", "true",
        "-o", f"type=oci,tar=false,dest={layout}", "-o", f"type=oci,dest={tmp_path}/x.tar",
    )  # fmt: skip
    code, out, err = verify(builder, f"oci-layout://{layout}:1", key, "--json")
    assert code == 0, err
    assert json.loads(out)["claims"][0]["predicate_type"] == BOM
    listed = subprocess.run(["tar", "tf", tmp_path / "x.tar"], capture_output=True, check=True, text=True).stdout
    index = json.loads((layout / "index.json").read_bytes())
    top = next(one for one in index["manifests"] if one["annotations"]["org.opencontainers.image.ref.name"] == "1")
    for one in json.loads((layout / "blobs/sha256" / top["digest"][7:]).read_bytes())["manifests"]:
        assert f"blobs/sha256/{one['digest'][7:]}" in listed


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--attest", "type=provenance"], "no image to attest"),
        (["--attest", "type=vsa", "--push"], "no type 'vsa'"),
        (["--attest", "type=sbom,generator=x", "--push"], "no key 'generator'"),
        (["--provenance", "mode=most", "--push"], "no mode 'most'"),
        (["--sbom", "true", "-o", "type=docker,dest=/tmp/never.tar"], "no place for attestations"),
        (["--sbom", "true", "-o", "type=registry,oci-mediatypes=false"], "docker's manifests have none"),
    ],
)
def test_what_cannot_be_attested_is_refused_before_the_build(builder: Builder, args: list[str], said: str) -> None:
    done = builder.build("FROM scratch\n", "-t", "localhost:1/x:1", *args)
    assert done.code == 2
    assert said in done.err
    assert not builder.root.exists()


# ---------------------------------------------------------------- the SBOM


def test_I2_an_sbom_fetches_no_layer_whose_scan_is_here_and_whole(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    base = debian(registry, f"{repository}/base")
    image = f"{registry.host}/{repository}:1"
    dockerfile = f"FROM {registry.host}/{repository}/base:1\nLABEL a=%s\n"
    builder.must_build(dockerfile % 1, "-t", image, "--push", "--sbom", "true")
    (asked,) = builder.events("MaterializationRequested")
    scanned = builder.events("LayerScanned")
    assert asked["data"]["reason"] == "inspect"
    assert len(scanned) == 2
    assert builder.run("prune", "-a").code == 0
    assert not list((builder.root / "layers").iterdir())
    mark = registry.mark()
    builder.must_build(dockerfile % 2, "-t", image, "--push", "--sbom", "true")
    assert registry.layer_gets([layer["digest"] for layer in base["layers"]], since=mark) == []
    assert len(builder.events("LayerScanned")) == 2
    libc = "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12"
    assert libc in purls(statements(registry, repository)[BOM])
    damaged, gone = (builder.root / "blobs/sha256" / one["data"]["scan"].partition(":")[2] for one in scanned)
    damaged.write_bytes(b"{}")
    gone.unlink()
    builder.must_build(dockerfile % 3, "-t", image, "--push", "--sbom", "true")
    again = builder.events("LayerScanned")[2:]
    assert [one["data"]["scan"] for one in again] == [one["data"]["scan"] for one in scanned]
    assert libc in purls(statements(registry, repository)[BOM])


def test_the_sbom_tells_of_the_final_file_system_and_not_of_what_was_removed(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    rpm = database(tmp_path / "rpmdb.sqlite", [header((1000, b"bash"), (1001, b"5.2"), (1002, b"1.el9"), (1003, 0))])
    key = keygen(builder)
    metadata = b"Metadata-Version: 2.1\nName: Flask\nVersion: 3.0.0\n\nName: not this\n"
    debian(registry, f"{repository}/base", more={
        "usr/lib/python3/site-packages/flask-3.0.0.dist-info/METADATA": metadata,
        "srv/node_modules/@a/b/package.json": b'{"name": "@a/b", "version": "1.2.3", "license": "MIT"}',
        "srv/node_modules/c/package.json": b'{"name": "c", "version": "9.9.9"}',
        "lib/apk/db/installed": b"P:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\n\n",
        "usr/lib/sysimage/rpm/rpmdb.sqlite": rpm.read_bytes(),
        "var/lib/rpm/Packages": b"of another form", "var/lib/rpm/Packages.db": b"",
        "var/db/pkg/app-misc/a-1/PF": b"a-1",
    })  # fmt: skip
    builder.write({"status": STATUS.replace(b"2.36-9", b"2.36-10")})
    done = builder.must_build(
        f"FROM {registry.host}/{repository}/base:1\n"
        "RUN rm -r /usr/lib/python3/site-packages/flask-3.0.0.dist-info /srv/node_modules/c\n"
        "COPY status /var/lib/dpkg/status\n",
        "-t", f"{registry.host}/{repository}:1", "--push", "--sbom", "true",
    )  # fmt: skip
    made = statements(registry, repository)[BOM]
    assert purls(made) == {
        "pkg:deb/debian/libc6@2.36-10?arch=amd64&distro=debian-12", "pkg:npm/%40a/b@1.2.3",
        "pkg:apk/debian/musl@1.2.5-r0?arch=x86_64&distro=debian-12",
        "pkg:rpm/debian/bash@5.2-1.el9?distro=debian-12&epoch=0",
    }  # fmt: skip
    assert made["predicate"]["compositions"][0]["aggregate"] == "incomplete"
    (warning,) = [line for line in done.err.splitlines() if line.startswith("WARNING")]
    assert "may lack packages: var/lib/rpm/Packages: RPM's database as Berkeley DB is not read (2 reasons" in warning
    assert "5 components, and more that it does not name" in verify(builder, f"{registry.host}/{repository}:1", key)[1]


# ---------------------------------------------------------------- provenance


def test_provenance_says_what_it_cannot_know(builder: Builder, registry: RegistryProcess, repository: str) -> None:
    debian(registry, f"{repository}/base")
    builder.write({"app": b"app", "secret": b"hunter2-hunter2"})
    image = f"{registry.host}/{repository}:1"
    builder.must_build(
        f"FROM {registry.host}/{repository}/base:1\nARG V\nCOPY app /app\n"
        "RUN --network=none --mount=type=secret,id=tok true\nRUN echo $V > /v\n",
        "-t", image, "--push", "--provenance", "true", "--build-arg", "V=seven",
        "--secret", f"id=tok,src={builder.context}/secret",
    )  # fmt: skip
    made = statements(registry, repository)[PROVENANCE]["predicate"]
    definition, metadata = made["buildDefinition"], made["runDetails"]["metadata"]
    build = builder.builds()[0]["id"]
    assert metadata["invocationId"] == build
    assert definition["externalParameters"]["args"] == {"V": "seven"}
    assert definition["externalParameters"]["secrets"] == ["tok"]
    assert definition["buildType"] == "urn:refledger:build:dockerfile.v0"
    told = metadata["refledger_completeness"]
    assert told["resolvedDependencies"] is False
    reasons = [(one.get("step", ""), one["reason"]) for one in told["reasons"]]
    assert any(step == "RUN echo seven > /v" and "network" in reason for step, reason in reasons)
    assert any("secret" in step and "secret tok" in reason for step, reason in reasons)
    assert any("context context is a directory" in reason for _, reason in reasons)
    assert "hunter2" not in json.dumps(made)
    done = builder.run("audit", "provenance", build)
    assert done.code == 0, done.err
    again = json.loads(done.out)
    assert again["predicate"]["buildDefinition"] == definition
    assert again["subject"][0]["digest"]["sha256"] == manifest_of(registry, repository)["manifests"][0]["digest"][7:]
    least = json.loads(builder.run("audit", "provenance", build, "--mode", "min").out)["predicate"]
    assert "seven" not in json.dumps(least)


def test_a_step_cached_from_elsewhere_keeps_the_build_that_made_it(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    debian(registry, f"{repository}/base")
    dockerfile = f"FROM {registry.host}/{repository}/base:1\nRUN --network=none echo hi > /hi\n"
    builder.must_build(dockerfile, "--cache-to", f"type=local,dest={tmp_path}/cache")
    (first,) = builder.builds()
    other = Builder(tmp_path / "other root")
    other.must_build(
        dockerfile, "--cache-from", f"type=local,src={tmp_path}/cache", "-t", f"{registry.host}/{repository}:1",
        "--push", "--provenance", "mode=max",
    )  # fmt: skip
    made = statements(registry, repository)[PROVENANCE]["predicate"]
    (step,) = [one for one in made["buildDefinition"]["internalParameters"]["steps"] if "echo hi" in one["name"]]
    assert (step["outcome"], step["originBuild"], step["originInLog"]) == ("cached", first["id"], False)
    told = made["runDetails"]["metadata"]["refledger_completeness"]
    assert told["steps"] is False
    assert any(first["id"] in one["reason"] for one in told["reasons"])


# ---------------------------------------------------------------- oracles


def test_libraries_of_others_accept_statement_and_envelope(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    from google.protobuf.json_format import Parse
    from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance as ProvenancePB
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as StatementPB
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer._key import SSlibKey

    key = keygen(builder)
    debian(registry, f"{repository}/base")
    builder.must_build(
        f"FROM {registry.host}/{repository}/base:1\nRUN true\n", "-t", f"{registry.host}/{repository}:1", "--push"
    )
    signed = builder.run("audit", "provenance", builder.builds()[0]["id"], "--sign")
    assert signed.code == 0, signed.err
    envelope = Envelope.from_dict(json.loads(signed.out))
    public = base64.b64decode(key.split("+", 2)[2])[1:].hex()
    keyid = "+".join(key.split("+")[:2])
    theirs = SSlibKey(keyid, "ed25519", "ed25519", {"public": public})
    assert set(envelope.verify([theirs], 1)) == {keyid}
    payload = json.loads(envelope.payload)
    parsed = Parse(envelope.payload, StatementPB())
    Statement.copy_from_pb(parsed).validate()
    predicate = payload["predicate"]
    assert Parse(json.dumps(predicate), ProvenancePB(), ignore_unknown_fields=True)
    del predicate["runDetails"]["metadata"]["refledger_completeness"]
    known = Parse(json.dumps(predicate), ProvenancePB())  # nothing else of it is a field of our own
    assert known.run_details.builder.id == "urn:refledger:builder"
    assert known.build_definition.resolved_dependencies[0].digest


def test_the_sbom_is_read_back_by_its_library(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    from cyclonedx.model.bom import Bom

    debian(registry, f"{repository}/base")
    builder.must_build(
        f"FROM {registry.host}/{repository}/base:1\n", "-t", f"{registry.host}/{repository}:1", "--push",
        "--sbom", "true",
    )  # fmt: skip
    predicate = statements(registry, repository)[BOM]["predicate"]
    assert predicate["specVersion"] == "1.6"
    read: Any = Bom.from_json(predicate)  # type: ignore[attr-defined]
    assert {one.name for one in read.components} == {"debian", "libc6"}


# ---------------------------------------------------------------- verify-image


def test_verify_image_needs_no_root_and_asks_for_no_layer(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    key = keygen(builder)
    base = debian(registry, f"{repository}/base")
    image = f"{registry.host}/{repository}:1"
    builder.must_build(
        f"FROM {registry.host}/{repository}/base:1\nRUN echo hi > /hi\n", "-t", image, "--push",
        "--provenance", "true", "--sbom", "true",
    )  # fmt: skip
    inner = manifest_of(registry, repository, manifest_of(registry, repository)['manifests'][0]['digest'])
    mark = registry.mark()
    elsewhere = Builder(tmp_path / "nobody")
    code, out, err = verify(elsewhere, image, key, "--require", "sbom", "--require", "provenance")
    assert code == 0, err
    assert "built by urn:refledger:builder" in out
    assert f"from pkg:docker/{registry.host}/{repository}/base" in out
    assert base["digest"] in out
    assert "not complete: RUN echo hi > /hi: ran with network" in out
    assert registry.layer_gets([layer["digest"] for layer in inner["layers"]], since=mark) == []
    assert not elsewhere.root.exists()
    assert [event["data"]["key"] for event in builder.events("Attested")] == ["+".join(key.split("+")[:2])] * 2


def test_verify_image_convicts_the_unsigned_the_other_key_and_the_missing(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    debian(registry, f"{repository}/base")
    dockerfile = f"FROM {registry.host}/{repository}/base:1\n"
    other = Builder(tmp_path / "other")
    stranger = keygen(other)
    name = f"{registry.host}/{repository}"
    builder.must_build(dockerfile + "LABEL a=0\n", "-t", f"{name}:none", "--push")
    builder.must_build(dockerfile + "LABEL a=1\n", "-t", f"{name}:unsigned", "--push", "--sbom", "true")
    key = keygen(builder)
    builder.must_build(dockerfile + "LABEL a=2\n", "-t", f"{name}:1", "--push", "--sbom", "true")
    assert verify(builder, f"{name}:1", key)[0] == 0
    for tag, with_key, said in (
        ("none", key, "nothing is attested"), ("unsigned", key, "not signed"), ("1", stranger, "signed nothing"),
    ):  # fmt: skip
        code, out, err = verify(builder, f"{name}:{tag}", with_key)
        assert (code, out) == (4, "")
        assert said in err
        assert err.count("\n") == 1
    code, _, err = verify(builder, f"{name}:1", key, "--require", "provenance")
    assert (code, "signed nothing of the type" in err) == (4, True)


def attach(registry: RegistryProcess, name: str, subject: Mapping[str, Any], data: bytes, media_type: str) -> None:
    """Attach `data` to `subject` as anybody could who may push, listing it under the tag of its referrers."""
    layer = {"mediaType": media_type, "digest": push_blob(registry.host, name, data), "size": len(data)}
    empty = push_blob(registry.host, name, b"{}")
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2}
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": media_type, "config": config, "layers": [layer],
        "subject": {key: subject[key] for key in ("mediaType", "digest", "size")},
    }).encode()  # fmt: skip
    push_manifest(registry.host, name, digest_of(manifest), manifest, OCI_MANIFEST)
    index = json.dumps({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [{"mediaType": OCI_MANIFEST, "digest": digest_of(manifest), "size": len(manifest),
                       "artifactType": media_type}],
    }).encode()  # fmt: skip
    tag = subject["digest"].replace(":", "-")
    push_manifest(registry.host, name, tag, index, INDEX)


def test_verify_image_convicts_an_attestation_that_was_moved_to_another_image_or_edited(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    key = keygen(builder)
    debian(registry, f"{repository}/base")
    dockerfile = f"FROM {registry.host}/{repository}/base:1\n"
    name = f"{registry.host}/{repository}"
    builder.must_build(dockerfile, "-t", f"{name}:1", "--push", "--sbom", "true")
    (event,) = builder.events("Attested")
    envelope = (builder.root / "blobs/sha256" / event["data"]["envelope"][7:]).read_bytes()
    assert sha256(envelope) == event["data"]["envelope"]
    stranger = push_image(registry.host, f"{repository}/stranger", [{"evil": b"evil"}], tag="1")
    attach(registry, f"{repository}/stranger", {**stranger, "mediaType": OCI_MANIFEST}, envelope, DSSE)
    code, _, err = verify(builder, f"{registry.host}/{repository}/stranger:1", key)
    assert (code, "is about sha256:" in err) == (4, True)
    fields = json.loads(envelope)
    payload = base64.b64decode(fields["payload"]).replace(b"libc6", b"libc7")
    edited = json.dumps({**fields, "payload": base64.b64encode(payload).decode()}).encode()
    first = manifest_of(registry, repository)["manifests"][0]
    attach(registry, repository, first, edited, DSSE)
    code, _, err = verify(builder, f"{name}:1", key)
    assert (code, "is wrong" in err) == (4, True)


def test_verify_image_convicts_a_statement_that_nobody_signed_beside_one_that_is_signed(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    key = keygen(builder)
    debian(registry, f"{repository}/base")
    name = f"{registry.host}/{repository}"
    builder.must_build(
        f"FROM {registry.host}/{repository}/base:1\n", "-t", f"{name}:1", "--push", "--sbom", "true"
    )
    index = manifest_of(registry, repository)
    first, second = index["manifests"]
    manifest = manifest_of(registry, repository, second['digest'])
    said = blob(registry, manifest["layers"][0]).replace(b"libc6", b"libc7")
    manifest["layers"][0] |= {"digest": push_blob(registry.host, repository, said), "size": len(said)}
    data = json.dumps(manifest).encode()
    push_manifest(registry.host, repository, digest_of(data), data, OCI_MANIFEST)
    second |= {"digest": digest_of(data), "size": len(data)}
    top = json.dumps({**index, "manifests": [first, second]}).encode()
    push_manifest(registry.host, repository, "forged", top, index["mediaType"])
    code, _, err = verify(builder, f"{name}:forged", key)
    assert (code, "did not sign" in err) == (4, True)


def test_each_platform_s_image_is_attested_and_verified(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    key = keygen(builder)
    builder.write({"app": b"app", "status": STATUS})
    name = f"{registry.host}/{repository}:1"
    builder.must_build(
        "FROM scratch\nARG TARGETARCH\nCOPY app /app-$TARGETARCH\nCOPY status /var/lib/dpkg/status\n",
        "--platform", "linux/amd64,linux/arm64", "-t", name, "--push", "--attest", "type=sbom",
        "--provenance", "mode=min",
    )  # fmt: skip
    listed = manifest_of(registry, repository)["manifests"]
    images, attests = listed[:2], listed[2:]
    assert [one["platform"]["architecture"] for one in images] == ["amd64", "arm64"]
    about = [one["annotations"]["vnd.docker.reference.digest"] for one in attests]
    assert about == [one["digest"] for one in images]
    code, out, err = verify(builder, name, key, "--json")
    assert code == 0, err
    told = [json.loads(line) for line in out.splitlines()]
    assert [one["image"] for one in told] == about
    assert all({claim["in_index"] for claim in one["claims"]} == {True} for one in told)
    code, out, _ = verify(builder, name, key, "--json", "--platform", "linux/arm64")
    assert [json.loads(line)["image"] for line in out.splitlines()] == about[1:]
    code, out, err = verify(builder, name, key, "--platform", "linux/s390x")
    assert (code, out, "no image for linux/s390x" in err) == (4, "", True)


def test_an_image_without_attest_is_a_manifest_with_no_referrers(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    keygen(builder)
    builder.must_build("FROM scratch\nLABEL a=1\n", "-t", f"{registry.host}/{repository}:1", "--push")
    assert manifest_of(registry, repository)["mediaType"] == OCI_MANIFEST
    tags = WEB.get(f"http://{registry.host}/v2/{repository}/tags/list").json()["tags"]
    assert tags == ["1"]
    assert builder.events("Attested", "LayerScanned") == []
