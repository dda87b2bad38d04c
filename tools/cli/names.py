"""Names of images as commands take them: in a registry, or in an OCI layout on this disk."""

from __future__ import annotations

from storage.interfaces.images import Reference
from storage.reference import LAYOUT, parse_layout, parse_reference


def image_name(text: str) -> Reference:
    """`[host[:port]/]name[:tag][@digest]`, or `oci-layout://path[:tag][@digest]`, the path from here unless it is
    absolute. Raises InputError."""
    if not text.startswith(LAYOUT):
        return parse_reference(text)
    from tools.cli.contexts import absolute_layout

    return parse_layout(LAYOUT + absolute_layout(text.removeprefix(LAYOUT)))
