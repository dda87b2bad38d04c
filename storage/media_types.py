"""What manifests and configs of images are called. Pure.

Sources: OCI image-spec media-types.md, docker image manifest v2 schema 2.
"""

from __future__ import annotations

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
"""Of the release candidates of image-spec 1.1 only; some registries keep such signatures and SBOMs."""
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"
"""The config of an artifact that has none: the two bytes `{}` (image-spec manifest.md, "Guidance for an Empty
Descriptor")."""
