"""`compression`, `compression-level` and `force-compression` of flags, as `docker buildx build` has them."""

from __future__ import annotations

from collections.abc import Mapping

from storage.interfaces.images import Compression
from tools.cli.fields import truth

KEYS = ("compression", "compression-level", "force-compression")


def compression_of(flag: str, fields: Mapping[str, str]) -> Compression:
    """What `fields` of `flag` ask for. Raises InputError, which says what there is."""
    kind, text = fields.get("compression") or "gzip", fields.get("compression-level", "")
    level = int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else -1 if text else None
    if kind != "gzip" or level is not None:
        from storage.compression import checked  # reason: it brings the libraries along

        checked(kind, level)
    force = truth(flag, fields, "force-compression", default=False)
    return Compression(kind, level, force)  # type: ignore[arg-type]  # checked above
