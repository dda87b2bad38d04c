"""What an index of several members lists, and when it is a member's own bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from engine.images.combine import (
    Annotation,
    Member,
    combine,
    config_platform,
    image_entry,
    platform_name,
)
from engine.images.read import Manifest
from storage.digest import sha256
from storage.errors import InputError
from storage.interfaces.images import Platform
from storage.media_types import DOCKER_LIST, INDEX, MANIFEST
from storage.platform import parse_platform

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
Json = dict[str, Any]
AMD, ARM, ARM7 = ({"os": "linux", "architecture": "amd64"}, {"os": "linux", "architecture": "arm64"},
                  {"os": "linux", "architecture": "arm", "variant": "v7"})  # fmt: skip


def manifest(fields: Json) -> Manifest:
    data = json.dumps(fields, indent=3).encode()  # not how Refledger writes, so that kept bytes show
    return Manifest(sha256(data), data, fields)


def image(name: str, platform: Json | None = None, kind: str = MANIFEST, **more: Any) -> Member:
    made = manifest({"schemaVersion": 2, "mediaType": kind, "annotations": {"name": name}, **more})
    return Member(made, (image_entry(made, platform),))


def index(*members: Member, kind: str = INDEX, platforms: dict[str, Json] | None = None, **more: Any) -> Member:
    entries = [entry for member in members for entry in member.entries]
    made = manifest({"schemaVersion": 2, "mediaType": kind, "manifests": entries, **more})
    return Member(made, tuple(entries), platforms or {})


def attestation(of: Member) -> Member:
    member = image(f"attests {of.manifest.digest}", {"os": "unknown", "architecture": "unknown"})
    said = {"vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": str(of.manifest.digest)}  # fmt: skip
    return Member(member.manifest, ({**member.entries[0], "annotations": said},))


def listed(members: Sequence[Member], **options: Any) -> list[str]:
    return [entry["digest"] for entry in combine(members, **options).fields["manifests"]]


def digests(*members: Member) -> list[str]:
    return [str(member.manifest.digest) for member in members]


def test_images_are_listed_in_order_with_platform_and_size() -> None:
    amd, arm = image("a", AMD), image("b", ARM)
    made = combine([amd, arm])
    assert made.fields == {
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [
            {"mediaType": MANIFEST, "digest": str(one.manifest.digest), "size": len(one.manifest.data),
             "platform": platform}
            for one, platform in ((amd, AMD), (arm, ARM))
        ],
    }  # fmt: skip
    assert sha256(made.data) == made.digest
    assert json.loads(made.data) == made.fields


def test_of_two_members_for_one_platform_the_later_one_is_taken() -> None:
    old, new, arm = image("old", AMD), image("new", {**AMD, "variant": "v1"}), image("arm", ARM)
    assert listed([old, arm, new]) == digests(arm, new)
    assert listed([new, arm, old]) == digests(arm, old)


def test_what_one_index_lists_twice_for_one_platform_stays() -> None:
    gzip, zstd = image("gzip", AMD), image("zstd", AMD)  # as podman's --add-compression makes them
    both = index(gzip, zstd)
    assert listed([both, image("arm", ARM)])[:2] == digests(gzip, zstd)
    assert listed([both, new := image("new", AMD)]) == digests(new)


@pytest.mark.parametrize("differs", [{"os.version": "10.0.17763.1"}, {"os.features": ["win32k"]}, {"variant": "v3"}])
def test_platforms_that_a_runtime_tells_apart_are_two(differs: Json) -> None:
    one, other = image("one", {"os": "windows", "architecture": "amd64"}), image("other", {
        "os": "windows", "architecture": "amd64", **differs,
    })  # fmt: skip
    assert listed([one, other]) == digests(one, other)


def test_attestations_stay_with_their_image_and_go_with_it() -> None:
    amd, arm, new = image("a", AMD), image("b", ARM), image("new", AMD)
    source = index(amd, arm, attestation(amd), attestation(arm))
    assert listed([source, image("riscv", {"os": "linux", "architecture": "riscv64"})])[:4] == [
        entry["digest"] for entry in source.entries
    ]
    assert listed([source, new]) == digests(arm, attestation(arm), new)
    assert listed([source], platforms=[parse_platform("linux/amd64")]) == digests(amd, attestation(amd))


def test_an_index_that_nothing_changes_is_kept_byte_for_byte() -> None:
    amd, arm = image("a", AMD), image("b", ARM)
    source = index(amd, arm, attestation(amd), annotations={"of": "the index"})
    assert combine([source]) is source.manifest
    assert combine([source, amd, arm]) is source.manifest  # appending what is there
    assert combine([source], platforms=[Platform("linux", "amd64"), Platform("linux", "arm64")]) is source.manifest
    silent = index(Member(amd.manifest, (image_entry(amd.manifest, None),)), platforms={digests(amd)[0]: AMD})
    assert combine([silent]) is silent.manifest, "a platform that is only inferred changes nothing"


def test_one_image_becomes_an_index_of_one() -> None:
    assert listed([image("a", AMD)]) == digests(image("a", AMD))


def test_all_docker_is_a_manifest_list_and_one_oci_member_makes_an_index() -> None:
    docker = image("a", AMD, DOCKER), image("b", ARM, DOCKER)
    assert combine(docker).media_type == DOCKER_LIST
    assert combine([*docker, image("c", ARM7)]).media_type == INDEX
    annotated = combine(docker, [Annotation("index", "a", "b")])
    assert (annotated.media_type, annotated.fields["annotations"]) == (INDEX, {"a": "b"})


def test_annotations_go_where_they_are_meant() -> None:
    amd, arm = image("a", AMD), image("b", ARM)
    source = index(amd, arm, attestation(amd), annotations={"kept": "yes", "changed": "old"})
    made = combine([source], [
        Annotation("index", "changed", "new"),
        Annotation("manifest-descriptor", "all", "1"),
        Annotation("manifest-descriptor", "one", "2", Platform("linux", "arm64")),
    ])  # fmt: skip
    assert made.fields["annotations"] == {"kept": "yes", "changed": "new"}
    first, second, attests = made.fields["manifests"]
    assert first["annotations"] == {"all": "1"}
    assert second["annotations"] == {"all": "1", "one": "2"}
    assert attests == source.entries[2]
    assert source.entries[0].get("annotations") is None, "members are not changed"


def test_an_annotation_for_a_platform_that_is_not_there_says_what_is() -> None:
    wanted = Annotation("manifest-descriptor", "a", "b", Platform("linux", "s390x"))
    with pytest.raises(InputError, match=r"no image for linux/s390x.*linux/amd64") as raised:
        combine([image("a", AMD)], [wanted])
    assert raised.value.exit_code == 2


def test_a_filter_that_leaves_nothing_says_what_there_is() -> None:
    with pytest.raises(InputError, match=r"nothing is left.*linux/amd64, linux/arm64"):
        combine([index(image("a", AMD), image("b", ARM))], platforms=[parse_platform("linux/s390x")])


def test_what_an_index_does_not_say_is_added_from_configs() -> None:
    amd = image("a", AMD)
    silent = index(Member(amd.manifest, (image_entry(amd.manifest, None),)), platforms={digests(amd)[0]: AMD})
    made = combine([silent, image("b", ARM)])
    assert [entry["platform"] for entry in made.fields["manifests"]] == [AMD, ARM]
    assert listed([silent, new := image("new", AMD)]) == digests(new)


def test_the_same_image_twice_is_listed_once_with_all_that_is_said_of_it() -> None:
    amd = image("a", AMD)
    one = Member(amd.manifest, ({**amd.entries[0], "annotations": {"a": "1", "b": "1"}},))
    two = Member(amd.manifest, ({**amd.entries[0], "annotations": {"b": "2"}},))
    (entry,) = combine([index(one), index(two)]).fields["manifests"]
    assert entry == {**amd.entries[0], "annotations": {"a": "1", "b": "2"}}


def test_one_image_that_is_listed_for_two_platforms_stays_so() -> None:
    either = image("runs anywhere", AMD)
    both = Member(either.manifest, (either.entries[0], {**either.entries[0], "platform": ARM}))
    source = index(both)
    assert combine([source]) is source.manifest
    made = combine([source, image("b", ARM7), either])
    assert [entry["platform"] for entry in made.fields["manifests"]] == [AMD, ARM, ARM7]
    assert [entry["digest"] for entry in made.fields["manifests"][:2]] == digests(either) * 2
    twice = index(either, either)
    assert combine([twice]) is twice.manifest


def test_artifacts_say_their_type_and_replace_nothing() -> None:
    sbom = image("sbom", artifactType="application/spdx+json")
    made = combine([image("a", AMD), sbom, image("other", artifactType="application/spdx+json")])
    assert [entry.get("artifactType") for entry in made.fields["manifests"]] == [None, *["application/spdx+json"] * 2]
    assert platform_name(made.fields["manifests"][1]) == "application/spdx+json"


def test_platforms_come_from_configs_as_they_are() -> None:
    full = {"os": "windows", "architecture": "amd64", "variant": "v2", "os.version": "10.0", "os.features": ["x"]}
    assert config_platform({**full, "rootfs": {}, "created": "x"}) == full
    assert config_platform({"os": "linux"}) is None
    assert config_platform({"os": ["linux"], "architecture": 3}) is None
    assert config_platform({**AMD, "variant": "", "os.features": "x"}) == AMD
