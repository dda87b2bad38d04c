"""What an image's manifest and config say, checked and bounded: a registry may say anything. Pure.

Sources: OCI image-spec descriptor.md, manifest.md, config.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import InputError, VerificationError
from engine.graph import ImageLayer
from engine.refs.ref import MOST_LAYERS, of_image, too_much
from storage.digest import Digest, parse_json
from storage.interfaces.images import Descriptor, Provider
from storage.platform import parse_platform

_LARGEST = 1 << 50
"""Bytes of a blob: far above any, and sums of them stay far below what an event's integers hold."""
_MEDIA_TYPE = re.compile(r"[!-~]{1,255}")
_HINT = "inspect it with: skopeo inspect --raw"


def read_descriptor(data: object) -> Descriptor:
    """A descriptor out of a manifest. Raises ValueError that says what is wrong with it."""
    if not isinstance(data, dict):
        raise ValueError("a descriptor is no object")
    media_type, size, annotations = data.get("mediaType"), data.get("size"), data.get("annotations") or {}
    digest = data.get("digest")
    if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
        raise ValueError(f"{str(media_type)[:80]!r} is no media type")
    if type(size) is not int or not 0 <= size <= _LARGEST:
        raise ValueError(f"a blob of {str(size)[:40]!r} bytes")
    if not isinstance(annotations, dict) or not _is_text(annotations):
        raise ValueError("annotations of a blob that are no texts")
    urls = data.get("urls") or []
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise ValueError("URLs of a blob that are no texts")
    try:
        return Descriptor(media_type, Digest(digest if isinstance(digest, str) else ""), size, annotations, tuple(urls))
    except InputError as error:
        raise ValueError(f"{str(digest)[:100]!r} is no digest") from error


def read_config_blob(manifest: Mapping[str, Any], where: str) -> Descriptor:
    """Where the config is. Raises VerificationError."""
    try:
        return read_descriptor(manifest.get("config"))
    except ValueError as error:
        raise not_understood(f"its config: {error}", where) from error


def read_layers(
    manifest: Mapping[str, Any], config: bytes, provider: Provider, where: str
) -> tuple[tuple[ImageLayer, ...], dict[str, Any]]:
    """The layers of an image, and its config. Raises VerificationError."""
    try:
        blobs = manifest.get("layers")
        if not isinstance(blobs, list):
            raise ValueError("it has no list of layers")
        if len(blobs) > MOST_LAYERS:  # before each of them is looked at
            raise ValueError(f"{len(blobs)} layers, more than {MOST_LAYERS}")
        fields = parse_json(config)
        layers = tuple(map(ImageLayer, _diff_ids(fields, len(blobs)), map(read_descriptor, blobs)))
    except ValueError as error:
        raise not_understood(str(error), where) from error
    check_described(layers, provider, where)
    return layers, fields


def check_described(layers: Sequence[ImageLayer], provider: Provider, where: str) -> None:
    """Raises VerificationError for layers that are too many, or whose descriptors, of which everything may be an
    annotation, fill an event."""
    if why := too_much(of_image(layers, provider).layers):
        raise not_understood(f"it has {why}", where)


def read_annotations(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Those of the manifest; what is no text is left out."""
    found = manifest.get("annotations")
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, str)}


def platform_of(config: bytes, where: str) -> str:
    """The platform that an image config names, "" for none. Raises VerificationError."""
    try:
        fields = parse_json(config)
    except ValueError as error:
        raise not_understood("its config is not JSON", where) from error
    parts = [fields.get(key) for key in ("os", "architecture", "variant")] if isinstance(fields, dict) else []
    named = [part for part in parts if isinstance(part, str) and part]
    try:
        return str(parse_platform("/".join(named)))
    except InputError:
        return ""


def _diff_ids(config: Any, blobs: int) -> list[Digest]:
    rootfs = config.get("rootfs") if isinstance(config, dict) else None
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError("its config has no list of diff IDs")
    if len(found) != blobs:
        raise ValueError(f"{blobs} layers but {len(found)} diff IDs")
    if not isinstance(config.get("config") or {}, dict):
        raise ValueError("its config is not an object")
    try:
        return [Digest(item) for item in found]
    except InputError as error:
        raise ValueError(f"a diff ID that is no digest: {error.what}") from error


def _is_text(values: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(value, str) for key, value in values.items())


def not_understood(why: str, where: str) -> VerificationError:
    """An image that is not one."""
    return VerificationError(f"not an image Refledger understands: {why}", where=where, hint=_HINT)
