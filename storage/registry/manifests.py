"""Manifests as registries serve them: which media types are asked for, and which one some bytes are of. Pure.

Sources: OCI image-spec media-types.md, docker image manifest v2 schema 2, OCI distribution-spec ("Pulling manifests").
"""

from __future__ import annotations

import json

from storage.errors import RegistryError
from storage.media_types import ARTIFACT, DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST

KNOWN = (MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST)
ACCEPT = ", ".join((*KNOWN, ARTIFACT))


def media_type_of(data: bytes, served_as: str, where: str) -> str:
    """The media type of manifest `data`: what it says itself, else what the registry said, else what its fields show.

    In this order because only the bytes are covered by the digest. Raises RegistryError for what no image is made of.
    """
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise RegistryError("the registry's manifest is not a JSON object", kind="transport", where=where)
    if manifest.get("schemaVersion") == 1:
        what = "the image is in docker's schema 1, which carries no digests of its layers"
        raise RegistryError(what, kind="missing", where=where, hint="push it again with a current tool")
    stated = manifest.get("mediaType")
    if isinstance(stated, str) and stated:
        return stated
    if served_as in KNOWN:
        return served_as
    return INDEX if "manifests" in manifest else MANIFEST
