"""Which part of an index is meant: the manifest of one platform, or an index of some."""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import InputError, VerificationError
from engine.images.place import descriptors
from engine.images.read import ImageReader, Manifest
from storage.digest import Digest, canonical_json, parse_json, sha256
from storage.interfaces.images import Platform, Provider
from storage.platform import choose_platform, normalise

ATTESTED = "vnd.docker.reference.digest"
"""The annotation by which BuildKit's attestations name the manifest that they are of."""


async def chosen(
    images: ImageReader, provider: Provider, top: Manifest, platforms: Sequence[Platform], where: str
) -> Manifest:
    """What `platforms` leave of `top`: of an index one manifest, or for several a new index of these with their
    attestations; an image that is no index as it is, when it is for what was asked. Raises InputError, RegistryError,
    VerificationError."""
    if not top.is_index:
        await _must_be(images, provider, top, platforms, where)
        return top
    found = dict.fromkeys(choose_platform(top.fields, platform).digest for platform in platforms)
    if len(platforms) > 1:
        part = _part(top, found, where)
        images.blobs.put(part.data)
        return part
    return await images.manifest(provider, next(iter(found)), where)


def _part(index: Manifest, wanted: dict[Digest, None], where: str) -> Manifest:
    """`index` with the entries `wanted` and what is attested of them only, all else as it was."""
    listed = descriptors(index.fields, "manifests", where)
    stay = [entry for blob, entry in listed if blob.digest in wanted or blob.annotations.get(ATTESTED) in wanted]
    fields = {**index.fields, "manifests": stay}
    data = canonical_json(fields)
    return Manifest(sha256(data), data, fields)


async def _must_be(
    images: ImageReader, provider: Provider, image: Manifest, platforms: Sequence[Platform], where: str
) -> None:
    """Raises InputError when the one image there is, is for another platform than all of `platforms`."""
    configs = descriptors(image.fields, "config", where)
    if not configs:
        raise InputError("the artifact is for no platform", where=where, hint="leave --platform out")
    data = await images.config(provider, configs[0][0], where)
    try:
        config = parse_json(data)
        is_for = normalise(Platform(*(str(config.get(key) or "") for key in ("os", "architecture", "variant"))))
    except (ValueError, AttributeError) as error:
        raise VerificationError("the image's config is malformed", where=where) from error
    if set(platforms) != {is_for}:
        asked = ", ".join(map(str, platforms))
        raise InputError(f"the image is for {is_for}, not {asked}", where=where, hint="it is no index")
