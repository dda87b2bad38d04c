"""Platforms: their names, this host's, and the choice among those of an index. Pure.

Sources: OCI image-spec image-index.md (`platform`), containerd's platform normalisation (aliases, default variants).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from storage.errors import InputError
from storage.interfaces.images import Descriptor, Platform

_ARCHITECTURES = {
    "x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "i486": "386", "i586": "386",
    "i686": "386", "ppc64el": "ppc64le", "loongarch64": "loong64", "armhf": "arm",
    "armel": "arm", "armv7l": "arm", "armv8l": "arm", "armv6l": "arm", "armv5l": "arm",
}  # fmt: skip
_VARIANTS = {"armhf": "v7", "armel": "v6", "armv7l": "v7", "armv8l": "v7", "armv6l": "v6", "armv5l": "v5"}
_BASE_VARIANT = {"arm64": "v8", "amd64": "v1"}
_PART = re.compile(r"[A-Za-z0-9_.-]+")


def normalise(platform: Platform) -> Platform:
    """The one spelling of `platform`: lower case, Go's architecture names, no variant where it is the base one
    (`arm64/v8`, `amd64/v1`), and `v7` for plain `arm`."""
    architecture = platform.architecture.lower()
    variant = platform.variant.lower() or _VARIANTS.get(architecture, "")
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if variant.isdigit():
        variant = f"v{variant}"
    if variant == _BASE_VARIANT.get(architecture):
        variant = ""
    if architecture == "arm" and not variant:
        variant = "v7"
    os_name = platform.os.lower()
    return Platform("darwin" if os_name == "macos" else os_name, architecture, variant)


def host_platform() -> Platform:
    """The platform of the running kernel."""
    name = os.uname()
    return normalise(Platform(name.sysname, name.machine))


def parse_platform(text: str) -> Platform:
    """`os/architecture[/variant]`, normalised. Raises InputError."""
    parts = text.split("/")
    if len(parts) not in {2, 3} or not all(_PART.fullmatch(part) for part in parts):
        raise InputError(f"not a platform: {text[:100]!r}", hint="a platform reads os/architecture, as in linux/arm64")
    return normalise(Platform(*parts))


class NoPlatformError(InputError):
    """The image is not there for the platform."""


def list_platforms(index: Mapping[str, Any]) -> list[Platform]:
    """The platforms that `index` has images for, each once, in its order; not those of attestations. Raises
    InputError."""
    found = [platform for entry in _entries(index) if (platform := _platform_of(entry)) is not None]
    return list(dict.fromkeys(platform for platform in found if _is_of_an_image(platform)))


def choose_platform(index: Mapping[str, Any], wanted: Platform) -> Descriptor:
    """The manifest of `index` (an OCI index or docker manifest list as JSON) that suits `wanted` best: the same
    variant, else the newest older one that the same processor runs, else an entry without a platform.

    Attestations and other entries for `unknown/unknown` are never chosen. Raises NoPlatformError that names what there
    is, InputError.
    """
    wanted = normalise(wanted)
    best: tuple[int, Mapping[str, Any]] | None = None
    seen: list[str] = []
    for entry in _entries(index):
        platform = _platform_of(entry)
        if platform is not None and not _is_of_an_image(platform):
            continue
        seen.append(str(platform) if platform else "unnamed")
        rank = _rank(platform, wanted)
        if rank is not None and (best is None or rank < best[0]):
            best = (rank, entry)
    if best is None:
        there = ", ".join(sorted(set(seen))) or "none"
        raise NoPlatformError(f"the image has no manifest for {wanted}", hint=f"it has: {there[:400]}")
    try:
        return Descriptor.from_json(best[1])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the image index is malformed: the entry for {wanted} is no descriptor") from error


def _entries(index: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    entries = index.get("manifests")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError("the image index is malformed: it has no list of manifests")
    return entries


def _platform_of(entry: Mapping[str, Any]) -> Platform | None:
    platform = entry.get("platform")
    if not isinstance(platform, dict):
        return None
    text = [platform.get(key) or "" for key in ("os", "architecture", "variant")]
    return normalise(Platform(*(part if isinstance(part, str) else "" for part in text)))


def _is_of_an_image(platform: Platform) -> bool:
    return "unknown" not in {platform.os, platform.architecture}


def _rank(platform: Platform | None, wanted: Platform) -> int | None:
    """0 for the same platform, more for an older variant, None when `wanted` does not run it."""
    if platform is None:
        return 1000  # reason: single-platform indexes written by hand often leave it out
    if (platform.os, platform.architecture) != (wanted.os, wanted.architecture):
        return None
    if platform.variant == wanted.variant:
        return 0
    newest, level = _level(wanted), _level(platform)
    return newest - level if newest is not None and level is not None and level < newest else None


def _level(platform: Platform) -> int | None:
    """The variant as a number; the base variant counts as what it stands for."""
    variant = platform.variant or _BASE_VARIANT.get(platform.architecture, "")
    match = re.fullmatch(r"v([0-9]{1,3})", variant)
    return int(match[1]) if match else None
