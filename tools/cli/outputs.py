"""`--output`, `--push` and `--annotation`, as `docker buildx build` has them (docs.docker.com/build/exporters)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast, get_args

from engine.output import Annotation, Form, Output, Part
from storage.errors import InputError
from storage.interfaces.images import Reference
from storage.platform import parse_platform
from storage.reference import parse_reference
from tools.cli.compression import compression_of
from tools.cli.destinations import check_directory, check_file
from tools.cli.fields import split, truth

_FLAG, _ANNOTATION = "--output", "--annotation"
_FORM = (
    "name", "compression", "compression-level", "force-compression", "oci-mediatypes", "rewrite-timestamp",
    "prefer-nondist-layers", "annotation.KEY",
)  # fmt: skip
UNUSED = ("name-canonical", "dangling-name-prefix", "store", "unpack", "registry.insecure")
KEYS: Mapping[str, tuple[str, ...]] = {
    "image": ("push", "push-by-digest", *_FORM),
    "oci": ("dest", "tar", *_FORM),
    "docker": ("dest", *_FORM),
    "local": ("dest", "platform-split"),
    "tar": ("dest", "platform-split"),
}
"""What each type takes; images also what is UNUSED here, as it is said of an image store."""
_ANNOTATED = re.compile(r"annotation(?:-([a-z-]+))?(?:\[([^\]]*)\])?\.(\S+)", re.DOTALL)
_ANNOTATION_PART = re.compile(r"([a-z-]+)(?:\[([^\]]*)\])?")
Fields = Mapping[str, str]


def read_outputs(
    given: Sequence[str], annotations: Sequence[str] = (), *, push: bool = False, names: Sequence[Reference] = (),
    platforms: Sequence[str] | None = None, epoch: int | None = None,
) -> tuple[Output, ...]:  # fmt: skip
    """All that `--output` says, and a push to `names` when only `--push` says so. `names`: of outputs that have none of
    their own; `platforms`: what is built, None when that is not known yet; `epoch`: SOURCE_DATE_EPOCH.
    Raises InputError."""
    everywhere = tuple(found for text in annotations for found in _annotation_flag(text))
    wanted = [_fields(text) for text in given]
    if push and not any(kind == "image" for kind, _ in wanted):
        wanted.insert(0, ("image", {}))
    out = []
    for kind, fields in wanted:
        if kind in ("local", "tar"):
            out.append(_files(kind, fields))
        else:
            out.append(_image(kind, fields, everywhere, names, push=push))
    if everywhere and all(output.of_files for output in out):
        raise InputError(f"{_ANNOTATION} has no image to go to", hint="add --push or --output type=oci,dest=FILE")
    for output in out:
        if platforms is not None:
            _check_platforms(output, platforms)
        if output.form.rewrite and epoch is None:
            hint = "set it in the environment, or with --build-arg"
            raise InputError("rewrite-timestamp=true has no time: SOURCE_DATE_EPOCH is not set", hint=hint)
    _check_places(out)
    return tuple(out)


def _fields(text: str) -> tuple[str, dict[str, str]]:
    """Kind and fields of one `--output`; a bare path is a local directory and `-` a tar, as docker has it."""
    parts = split(_FLAG, text)
    if parts == [text] and "=" not in text:
        return ("tar" if text == "-" else "local"), {"dest": text}
    fields: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals:
            raise InputError(f"{_FLAG} {text[:200]!r} has a part that is no key=value: {part[:100]!r}")
        fields[key if key.lower().startswith("annotation") else key.lower()] = value
    kind = fields.pop("type", "local" if "dest" in fields else "")
    if kind == "registry":
        kind = "image"
        fields.setdefault("push", "true")
    if kind not in KEYS:
        hint = "the types are image, registry, oci, docker, local and tar"
        raise InputError(f"no output type {kind[:40]!r}" if kind else f"{_FLAG} {text[:200]!r} has no type", hint=hint)
    known = (*KEYS[kind], *(() if kind in ("local", "tar") else UNUSED))
    for key in fields:
        if key not in known and not (key.startswith("annotation") and "annotation.KEY" in known):
            raise InputError(f"type={kind} has no key {key[:60]!r}", hint=f"it takes {', '.join(KEYS[kind])}")
    return kind, fields


def _files(kind: str, fields: Fields) -> Output:
    dest = _dest(kind, fields.get("dest", ""), directory=kind == "local")
    divided = truth(_FLAG, fields, "platform-split", default=True) if "platform-split" in fields else None
    return Output(kind, dest, split=divided)  # type: ignore[arg-type]  # the caller knows the kind


def _image(
    kind: str, fields: Fields, everywhere: tuple[Annotation, ...], names: Sequence[Reference], *, push: bool
) -> Output:
    own = [part.strip() for part in fields.get("name", "").split(",") if part.strip()]
    called = tuple(parse_reference(name) for name in own) or tuple(names)
    form = _form(kind, fields, everywhere)
    if truth(_FLAG, fields, "registry.insecure", default=False):
        hint = "registries.toml says how a registry is reached"
        raise InputError("registry.insecure=true is not for an output to say", hint=hint)
    if kind == "image":
        by_digest = truth(_FLAG, fields, "push-by-digest", default=False)
        pushing = push or truth(_FLAG, fields, "push", default=False)
        if pushing:
            _check_names(called, by_digest=by_digest)
        return Output("image", "", form, called, pushing, by_digest)
    directory = not truth(_FLAG, fields, "tar", default=True)
    dest = _dest(kind, fields.get("dest", ""), directory=directory)
    return Output(kind, dest, form, called, directory=directory)  # type: ignore[arg-type]  # KEYS has no others


# ---------------------------------------------------------------- the form of an image


def _form(kind: str, fields: Fields, everywhere: tuple[Annotation, ...]) -> Form:
    compression = compression_of(_FLAG, fields)
    own = tuple(_annotation(key, value) for key, value in fields.items() if key.startswith("annotation"))
    needs_oci = "annotations are" if everywhere or own else ""
    if compression.kind in ("zstd", "estargz"):
        needs_oci = f"compression={compression.kind} is"
    oci = truth(_FLAG, fields, "oci-mediatypes", default=kind != "docker" or bool(needs_oci))
    if needs_oci and not oci:
        raise InputError(f"{needs_oci} OCI's, docker's manifests have none", hint="leave oci-mediatypes=false out")
    annotations = {(one.part, one.platform, one.key): one for one in (*everywhere, *own)}  # the later one counts
    return Form(
        compression,
        oci,
        tuple(annotations.values()),
        truth(_FLAG, fields, "rewrite-timestamp", default=False),
        truth(_FLAG, fields, "prefer-nondist-layers", default=False),
    )


def _annotation(key: str, value: str) -> Annotation:
    """One key of `--output`: `annotation[-PART][[PLATFORM]].KEY`."""
    found = _ANNOTATED.fullmatch(key)
    if found is None:
        hint = "write annotation.KEY=VALUE, annotation-index.KEY=VALUE or annotation[linux/arm64].KEY=VALUE"
        raise InputError(f"{_FLAG}: {key[:100]!r} is no annotation", hint=hint)
    part, platform, name = found.groups()
    return _annotated(_FLAG, part, platform, name, value)


def _annotation_flag(text: str) -> list[Annotation]:
    """`--annotation [PART[[PLATFORM]][,PART…]:]KEY=VALUE`."""
    written, equals, value = text.partition("=")
    before, colon, key = written.partition(":")
    if not equals or not (key if colon else before):
        hint = "write --annotation KEY=VALUE or --annotation index,manifest:KEY=VALUE"
        raise InputError(f"{_ANNOTATION} {text[:100]!r} is no key=value", hint=hint)
    if not colon:
        return [_annotated(_ANNOTATION, None, None, before, value)]
    out = []
    for part in before.split(","):
        found = _ANNOTATION_PART.fullmatch(part)
        if found is None:
            raise InputError(f"{_ANNOTATION}: {part[:60]!r} is no part of an image", hint=_parts())
        out.append(_annotated(_ANNOTATION, found[1], found[2], key, value))
    return out


def _annotated(flag: str, part: str | None, platform: str | None, key: str, value: str) -> Annotation:
    if part is not None and part not in get_args(Part):
        raise InputError(f"{flag}: {part[:60]!r} is no part of an image", hint=_parts())
    place = cast("Part", part or "manifest")
    if platform is not None and place.startswith("index"):
        raise InputError(f"{flag}: an index has all platforms, not {platform[:60]!r} alone")
    return Annotation(place, key, value, "" if platform is None else str(parse_platform(platform)))


def _parts() -> str:
    return f"it is one of {', '.join(get_args(Part))}"


# ---------------------------------------------------------------- what does not go together


def _check_names(names: Sequence[Reference], *, by_digest: bool) -> None:
    if not names:
        raise InputError("there is no name to push to", hint="name the image with -t REGISTRY/NAME:TAG")
    for name in names:
        if name.digest:
            raise InputError(f"{name.written}: what is pushed gets a digest, it has none yet", hint="name a tag")
        if by_digest and ":" in name.written.rpartition("/")[2]:
            raise InputError(f"{name.written}: push-by-digest gives no tag", hint="leave the tag out")


def _check_platforms(output: Output, platforms: Sequence[str]) -> None:
    if len(platforms) > 1 and output.kind == "docker":
        raise InputError("type=docker holds one platform", hint="use type=oci for several")
    for one in output.form.annotations:
        if one.part.startswith("index") and len(platforms) < 2:
            hint = "annotate the manifest, or build for several platforms"
            raise InputError(f"annotation of the {one.part} {one.key!r}: one platform makes no index", hint=hint)
        if one.platform and one.platform not in platforms:
            hint = f"what is built is {', '.join(platforms)}"
            raise InputError(f"annotation of {one.platform} {one.key!r}: that is not built", hint=hint)


def _dest(kind: str, dest: str, *, directory: bool) -> str:
    """Where to; found out now what would only fail after the build."""
    if not dest:
        raise InputError(f"--output type={kind} has no dest", hint=f"write --output type={kind},dest=PATH")
    if dest == "-":
        if directory:
            raise InputError("a directory cannot go to standard output", hint="use type=tar, type=oci or type=docker")
        return dest
    path = Path(dest)
    if directory and path.exists() and not path.is_dir():
        raise InputError(f"type={kind} writes a directory, and a file is there", where=dest, hint="name another dest")
    if not directory and path.is_dir():
        hint = "name a file in it" + (", or write tar=false for a layout" if kind == "oci" else "")
        raise InputError(f"type={kind} writes a file, and a directory is there", where=dest, hint=hint)
    (check_directory if directory else check_file)(dest)
    return dest


def _check_places(outputs: Sequence[Output]) -> None:
    seen: set[str] = set()
    for output in outputs:
        if output.kind == "image":
            continue
        place = output.dest if output.dest == "-" else os.path.realpath(output.dest)
        if place in seen:
            what = "standard output" if place == "-" else output.dest
            raise InputError(f"two outputs go to {what}", hint="give each a dest of its own")
        seen.add(place)
