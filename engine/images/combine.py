"""What an index of several images and indexes lists: an index's JSON from those of its members. Pure.

Sources: OCI image-spec image-index.md, docker's manifest list, BuildKit's "Image attestation storage", and what
`docker buildx imagetools create` makes of the same input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.errors import InputError
from engine.images.read import Manifest
from storage.digest import canonical_json, sha256
from storage.interfaces.images import Platform
from storage.media_types import CONFIG, DOCKER_CONFIG, DOCKER_LIST, INDEX
from storage.platform import normalise

Json = dict[str, Any]
CONFIGS = frozenset({CONFIG, DOCKER_CONFIG})
"""Configs that say what an image runs on; those of other artifacts say what they like."""
_ATTESTS, _SUBJECT = "vnd.docker.reference.type", "vnd.docker.reference.digest"


@dataclass(frozen=True, slots=True)
class Annotation:
    """`key` = `value` on the index itself, or on the descriptors in it, of `platform` or of all."""

    level: Literal["index", "manifest-descriptor"]
    key: str
    value: str
    platform: Platform | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """What goes in. `entries`: descriptors, of an index as it has them, of an image its own; `platforms`: of entries
    that do not say theirs, by digest, as their configs have them."""

    manifest: Manifest
    entries: tuple[Json, ...]
    platforms: Mapping[str, Json] = field(default_factory=dict)


def combine(
    members: Sequence[Member], annotations: Sequence[Annotation] = (), platforms: Sequence[Platform] = ()
) -> Manifest:
    """The index of `members`, of `platforms` alone when there are any. An image takes the place of those for the same
    platform that came with earlier members; what attests an image goes with it. What is one member's index already is
    that, byte for byte. Raises InputError when nothing is left, or an annotation is for a platform that is not there.
    """
    kept = _without_the_gone(_filtered(members, platforms), members)
    if not kept:
        there = ", ".join(sorted({platform_name(entry) for member in members for entry in _known(member)})) or "nothing"
        raise InputError("nothing is left for the index", hint=f"there is: {there[:400]}")
    as_listed = _merged(entry for _, entry in kept)
    forms = (as_listed, [entry for _, entry in kept])
    same = next((one.manifest for one in members if one.manifest.is_index and list(one.entries) in forms), None)
    if same is not None and not annotations:
        return same
    entries = _merged(_with_platform(members[number], entry) for number, entry in kept)
    indexes = [member.manifest for member in members if member.manifest.is_index]
    inherited = indexes[0].fields.get("annotations") if len(indexes) == 1 else None
    own = {str(k): str(v) for k, v in inherited.items()} if isinstance(inherited, dict) else {}
    for one in annotations:
        _annotate(one, own, entries)
    docker = not own and not annotations and all(_is_docker(entry) for entry in entries)
    fields: Json = {"schemaVersion": 2, "mediaType": DOCKER_LIST if docker else INDEX, "manifests": entries}
    if own:
        fields["annotations"] = own
    data = canonical_json(fields)
    return Manifest(sha256(data), data, fields)


def image_entry(manifest: Manifest, platform: Json | None) -> Json:
    """The descriptor of an image or artifact as an index lists it."""
    entry: Json = manifest.descriptor.to_json()
    kind = manifest.fields.get("artifactType")
    if isinstance(kind, str) and kind:
        entry["artifactType"] = kind
    if platform:
        entry["platform"] = platform
    return entry


def config_platform(config: Mapping[str, Any]) -> Json | None:
    """What an index says of the platform of an image with `config` (config.md has the fields by the same names); None
    when the config does not say it."""
    found: Json = {key: value for key in ("os", "architecture", "variant", "os.version")
                   if isinstance(value := config.get(key), str) and value}  # fmt: skip
    features = config.get("os.features")
    if isinstance(features, list) and features and all(isinstance(one, str) for one in features):
        found["os.features"] = features
    return found if "os" in found and "architecture" in found else None


def subject_of(entry: Mapping[str, Any]) -> str:
    """The digest of the image that `entry` attests something of; "" for what is no attestation."""
    annotations = entry.get("annotations")
    if not isinstance(annotations, dict) or annotations.get(_ATTESTS) != "attestation-manifest":
        return ""
    return str(annotations.get(_SUBJECT, ""))


def platform_of(entry: Mapping[str, Any]) -> Platform | None:
    """What `entry` says it runs on, normalised; None for what runs nowhere, or does not say."""
    said = entry.get("platform")
    if not isinstance(said, dict):
        return None
    texts = [value if isinstance(value := said.get(key), str) else "" for key in ("os", "architecture", "variant")]
    if not texts[0] or not texts[1] or "unknown" in texts[:2]:
        return None
    return normalise(Platform(*texts))


def platform_name(entry: Mapping[str, Any]) -> str:
    """For people: `linux/amd64`, with the version of an OS that has one, or what else `entry` is."""
    platform = platform_of(entry)
    if platform is None:
        return "attestation" if subject_of(entry) else str(entry.get("artifactType") or "no platform")
    version = entry["platform"].get("os.version")
    return f"{platform} {version}" if isinstance(version, str) and version else str(platform)


# ---------------------------------------------------------------- the parts

_Kept = list[tuple[int, Json]]
"""Entries, each with the number of its member."""


def _filtered(members: Sequence[Member], platforms: Sequence[Platform]) -> _Kept:
    """All entries, without those that a later member has another image for, or that are for other platforms."""
    latest: dict[tuple[str, ...], set[str]] = {}
    for member in members:
        own: dict[tuple[str, ...], set[str]] = {}
        for entry in _known(member):
            if (key := _key(entry)) is not None:
                own.setdefault(key, set()).add(entry["digest"])
        latest |= own
    out: _Kept = []
    for number, member in enumerate(members):
        for entry, told in zip(member.entries, _known(member), strict=True):
            key = _key(told)
            if key is not None and entry["digest"] not in latest[key]:
                continue
            if platforms and platform_of(told) not in platforms and not subject_of(entry):
                continue
            out.append((number, entry))
    return out


def _without_the_gone(kept: _Kept, members: Sequence[Member]) -> _Kept:
    there = {entry["digest"] for _, entry in kept}
    gone = {entry["digest"] for member in members for entry in member.entries} - there
    return [(number, entry) for number, entry in kept if subject_of(entry) not in gone]


def _known(member: Member) -> list[Json]:
    return [_with_platform(member, entry) for entry in member.entries]


def _with_platform(member: Member, entry: Json) -> Json:
    inferred = member.platforms.get(entry["digest"])
    return {**entry, "platform": inferred} if inferred is not None else entry


def _key(entry: Json) -> tuple[str, ...] | None:
    """What makes two images the same to whoever chooses one (image-index.md); None for what nobody chooses."""
    platform = platform_of(entry)
    if platform is None:
        return None
    said = entry["platform"]
    features = said.get("os.features")
    told = sorted(map(str, features)) if isinstance(features, list) else ()
    return (str(platform), str(said.get("os.version") or ""), *told)


def _merged(entries: Iterable[Json]) -> list[Json]:
    """Each digest once for each platform that it is listed for: what a later entry says of it is added."""
    out: list[Json] = []
    places: dict[tuple[str, Platform | None], int] = {}
    first: dict[str, int] = {}
    for entry in entries:
        digest, platform = entry["digest"], platform_of(entry)
        at = places.get((digest, platform))
        if at is None:  # an entry that says no platform is one with one that does
            at = first.get(digest) if platform is None else places.pop((digest, None), None)
        if at is None:
            at = len(out)
            out.append({})
        places[digest, platform] = at
        first.setdefault(digest, at)
        old = out[at]
        out[at] = {**old, **entry}
        if "annotations" in old or "annotations" in entry:
            out[at]["annotations"] = {**(old.get("annotations") or {}), **(entry.get("annotations") or {})}
    return out


def _annotate(one: Annotation, index: dict[str, str], entries: list[Json]) -> None:
    if one.level == "index":
        index[one.key] = one.value
        return
    images = [entry for entry in entries if not subject_of(entry)]
    chosen = [entry for entry in images if one.platform in (None, platform_of(entry))]
    if not chosen:
        there = ", ".join(sorted({platform_name(entry) for entry in images}))
        raise InputError(f"no image for {one.platform} to be annotated", hint=f"there is: {there[:400]}")
    for entry in chosen:
        entry["annotations"] = {**(entry.get("annotations") or {}), one.key: one.value}


def _is_docker(entry: Json) -> bool:
    return str(entry.get("mediaType", "")).startswith("application/vnd.docker.")


