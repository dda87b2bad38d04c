"""`--cache-from` and `--cache-to`, as `docker buildx build` has them (docs.docker.com/build/cache/backends)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.cache.spec import CacheSource, CacheTarget
from storage.digest import Digest
from storage.errors import InputError
from storage.interfaces.images import Reference
from storage.reference import LAYOUT_REGISTRY, is_tag, parse_reference
from tools.cli.compression import KEYS, compression_of
from tools.cli.destinations import check_directory
from tools.cli.fields import split, truth

_FROM, _TO = "--cache-from", "--cache-to"
_KNOWN = {
    (_FROM, "registry"): {"ref"},
    (_FROM, "local"): {"src", "digest", "tag"},
    (_TO, "registry"): {"ref", "mode", "image-manifest", "oci-mediatypes", *KEYS},
    (_TO, "local"): {"dest", "tag", "mode", "image-manifest", "oci-mediatypes", *KEYS},
    (_TO, "inline"): {"mode"},
}
"""Keys besides `type` and `ignore-error`."""


def read_sources(given: Sequence[str]) -> tuple[CacheSource, ...]:
    """All of `--cache-from`. Raises InputError."""
    return tuple(_source(text, fields) for text in given for fields in _entries(_FROM, text))


def read_targets(given: Sequence[str]) -> tuple[CacheTarget, ...]:
    """All of `--cache-to`. Raises InputError."""
    return tuple(_target(text, fields) for text in given for fields in _entries(_TO, text))


def _entries(flag: str, text: str) -> list[dict[str, str]]:
    """The fields of each cache in `text`: a bare name is one in a registry, and several may stand side by side."""
    try:
        parts = [part.strip() for part in split(flag, text) if part.strip()]
    except InputError as error:
        raise InputError(f"{flag} {_shown(text)} is not a list of key=value", hint=_hint(flag)) from error
    if not any("=" in part for part in parts):
        for part in parts:
            if part in ("inline", "local", "registry", "gha", "s3", "azblob"):
                raise InputError(f"{flag} {part}: that would be an image of this name", hint=f"write type={part},…")
        return [{"type": "registry", "ref": part} for part in parts]
    fields: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{flag} {_shown(text)} has a part that is no key=value", hint=_hint(flag))
        fields[key.lower()] = value
    kind = fields.get("type", "")
    if (flag, kind) not in _KNOWN:
        if (flag, kind) == (_FROM, "inline"):
            raise InputError(f"{flag} type=inline: say where it is", hint="write type=registry,ref=IMAGE")
        what = f"no cache type {kind[:40]!r}" if kind else "no type"
        raise InputError(f"{flag} {_shown(text)} has {what}", hint=_hint(flag))
    if unknown := sorted(fields.keys() - _KNOWN[flag, kind] - {"type", "ignore-error"}):
        raise InputError(f"{flag} type={kind} has no {unknown[0][:40]!r}", hint=_hint(flag))
    truth(flag, fields, "ignore-error", default=False)
    return [fields]


def _source(text: str, fields: Mapping[str, str]) -> CacheSource:
    """A failure to read it is a warning in any case, so `ignore-error` says nothing new."""
    written = text if "=" in text else fields["ref"]
    if fields["type"] == "local":
        digest = Digest(fields["digest"]) if fields.get("digest") else None
        return CacheSource(written, _layout(_FROM, fields, "src", digest))
    return CacheSource(written, _reference(_FROM, fields))


def _target(text: str, fields: Mapping[str, str]) -> CacheTarget:
    written = text if "=" in text else fields["ref"]
    mode = fields.get("mode", "min").lower()
    if mode not in ("min", "max"):
        raise InputError(f"{_TO} has no mode {mode[:40]!r}", hint="the modes are min and max")
    ignore = truth(_TO, fields, "ignore-error", default=False)
    if fields["type"] == "inline":
        return CacheTarget(written, "inline", ignore_error=ignore)
    oci = truth(_TO, fields, "oci-mediatypes", default=True)
    as_image = truth(_TO, fields, "image-manifest", default=oci)
    if as_image and not oci:
        raise InputError(f"{_TO}: an image manifest of a cache is OCI's", hint="leave oci-mediatypes=false out")
    kind = fields["type"]
    where = _layout(_TO, fields, "dest", None) if kind == "local" else _reference(_TO, fields)
    if kind == "registry" and where.digest:
        raise InputError(f"{_TO} {_shown(where.written)} names a digest", hint="a cache is written under a tag")
    if kind == "local" and not ignore:
        check_directory(where.written)
    compression = compression_of(_TO, fields)
    return CacheTarget(written, kind, where, mode, as_image, oci, ignore, compression)  # type: ignore[arg-type]  # checked


def _reference(flag: str, fields: Mapping[str, str]) -> Reference:
    if not fields.get("ref"):
        raise InputError(f"{flag} type=registry has no ref", hint=_hint(flag))
    return parse_reference(fields["ref"])


def _layout(flag: str, fields: Mapping[str, str], key: str, digest: Digest | None) -> Reference:
    directory, tag = fields.get(key, ""), fields.get("tag", "")
    if not directory:
        raise InputError(f"{flag} type=local has no {key}", hint=_hint(flag))
    if tag and not is_tag(tag):
        raise InputError(f"{flag}: {tag[:140]!r} is not a tag", hint="up to 128 letters, digits, '_', '.' and '-'")
    path = str(Path(directory).absolute())
    return Reference(LAYOUT_REGISTRY, path, tag or ("" if digest or flag == _FROM else "latest"), digest, directory)


def _shown(text: str) -> str:
    """What of `text` may be shown: keys only, since values of other types of caches may be credentials."""
    if "=" not in text:
        return text[:100]
    return ",".join(part.partition("=")[0][:20] + "=…" if "=" in part else "…" for part in text.split(","))[:100]


def _hint(flag: str) -> str:
    where = {"--cache-from": "src", "--cache-to": "dest"}[flag]
    inline = ", or type=inline" if flag == _TO else ""
    return f"write {flag} type=registry,ref=NAME or type=local,{where}=DIR{inline}"
