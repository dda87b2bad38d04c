"""`compression`, `compression-level` and `force-compression` of flags, as `docker buildx build` has them."""

from __future__ import annotations

from collections.abc import Mapping

from storage.interfaces import Compression

KEYS = ("compression", "compression-level", "force-compression")


def compression_of(fields: Mapping[str, str], *, force: bool) -> Compression:
    """What `fields` ask for; `force` is the value of the third one. Raises InputError, which says what there is."""
    kind, text = fields.get("compression") or "gzip", fields.get("compression-level", "")
    level = int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else -1 if text else None
    if kind != "gzip" or level is not None:
        from storage.compression import checked  # reason: it brings the libraries along

        checked(kind, level)
    return Compression(kind, level, force)  # type: ignore[arg-type]  # checked above
