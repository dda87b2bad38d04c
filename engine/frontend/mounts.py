"""`RUN --mount`: the text of a flag to a Mount. Source: Dockerfile reference, "RUN --mount"; where it is silent,
BuildKit. Raises InputError without a line."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

from engine.errors import InputError
from engine.frontend.config import join_path
from engine.frontend.instructions import Instruction, did_you_mean
from engine.graph import Mount, MountKind, Sharing

_ALIASES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}
_OPTIONS = (
    "type", "from", "source", "target", "readonly", "readwrite", "id", "sharing", "required", "mode", "uid", "gid",
    "size", "env",
)  # fmt: skip
_ONLY_FOR: dict[str, tuple[MountKind, ...]] = {
    "sharing": ("cache",), "required": ("secret", "ssh"), "size": ("tmpfs",), "env": ("secret",),
    "mode": ("cache", "secret", "ssh"), "uid": ("cache", "secret", "ssh"), "gid": ("cache", "secret", "ssh"),
}  # fmt: skip
"""Other options are accepted for every kind, as BuildKit does, and mean nothing where the reference names none."""
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_SIZE = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,9}))? ?([kmgtp]?)i?b?", re.IGNORECASE)
_ID = 2**32 - 1
_LONGEST = 4096
"""Characters of an option: no path has more, and what is mounted where is in the log."""
_VARIABLE = re.compile(r"\$.")


def origins(instruction: Instruction) -> Iterator[str]:
    """The `from` of each mount, "" without one, as far as it can be read; malformed flags are told later."""
    for text in instruction.every("mount"):
        try:
            yield _options(text).get("from", "")
        except InputError:
            continue


def with_origin(text: str, rename: Callable[[str], str]) -> str:
    """A mount whose `from` is what `rename` makes of it; what cannot be read is told later, so it stays as it is."""
    import csv
    import io

    try:
        parts = [field.partition("=") for field in _fields(text)]
    except InputError:
        return text
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(
        f"{key}{equals}{rename(value) if key.lower() == 'from' else value}" for key, equals, value in parts
    )
    return out.getvalue()


def variable_values(instruction: Instruction) -> Iterator[str]:
    """The values of all mounts' options in which variables are replaced. Raises InputError."""
    for text in instruction.every("mount"):
        yield from (value for name, value in _options(text).items() if name != "from")


def parse_mounts(
    instruction: Instruction, expand: Callable[[str], str], directory: str, namespace: str
) -> list[tuple[Mount, str | None]]:
    """The mounts of a RUN, each with what it takes from: a stage's or image's name, "" for the build context, None for
    nothing. `directory`: WORKDIR; `namespace`: BUILDKIT_CACHE_MOUNT_NS. Raises InputError."""
    out: list[tuple[Mount, str | None]] = []
    agents = 0
    for text in instruction.every("mount"):
        options = {name: value if name == "from" else expand(value) for name, value in _options(text).items()}
        kind = _kind(options)
        for name, value in options.items():
            if len(value) > _LONGEST:
                raise InputError(f"{name}= of a mount has {len(value)} characters: more than {_LONGEST}")
        _check(kind, options)
        origin: str | None = options.get("from", "" if kind == "bind" else None)
        if kind not in {"bind", "cache"} or (kind == "cache" and not origin):
            origin = None
        out.append((_mount(kind, options, directory, namespace, agents), origin))
        agents += kind == "ssh" and not options.get("target")
    return out


def _options(text: str) -> dict[str, str]:
    """The options by their first names. An option without a value is true where that has a meaning."""
    options: dict[str, str] = {}
    for field in _fields(text):
        written, equals, value = field.partition("=")
        name = _ALIASES.get(written.lower(), written.lower())
        if name not in _OPTIONS:
            hint = did_you_mean(written, _OPTIONS)
            raise InputError(f"unexpected key '{written}' in --mount={text}", hint=hint)
        if not equals:
            if name not in {"readonly", "readwrite", "required"}:
                raise InputError(f"'{field}' in --mount={text} needs a value", hint=f"write {written}=…")
            value = "true"
        if name == "from" and _VARIABLE.search(value):
            raise InputError(
                f"from={value}: variables are not expanded here", hint="name a stage with FROM and a global ARG"
            )
        if name in {"readonly", "readwrite"}:
            options.pop("readonly" if name == "readwrite" else "readwrite", None)  # the last one counts
        options[name] = value
    return options


def _fields(text: str) -> list[str]:
    import csv  # reason: most builds have no mounts

    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise InputError(f"--mount={text}: {error}", hint='quote a whole option, as in "target=/a,b"') from None
    if len(rows) != 1 or not rows[0]:
        raise InputError("--mount needs options", hint="write --mount=type=cache,target=/path")
    return rows[0]


def _kind(options: dict[str, str]) -> MountKind:
    kind = options.get("type", "bind")
    for known in get_args(MountKind):
        if kind == known:
            found: MountKind = known
            return found
    raise InputError(f"unsupported mount type '{kind}'", hint=did_you_mean(kind, get_args(MountKind)))


def _check(kind: MountKind, options: dict[str, str]) -> None:
    for name, kinds in _ONLY_FOR.items():
        if name in options and kind not in kinds:
            hint = f"it is for mounts of type {' and '.join(kinds)}"
            raise InputError(f"unexpected key '{name}' for mount type '{kind}'", hint=hint)
    if kind != "secret":
        return
    if "from" in options:
        raise InputError("a secret mount takes nothing from='" + options["from"] + "'", hint="name it with id=…")
    if options.get("source") and options.get("id"):
        raise InputError("a secret mount has either id= or source=", hint="leave out source")
    if not (options.get("source") or options.get("id") or options.get("target")):
        raise InputError("a secret mount needs an id", hint="write --mount=type=secret,id=NAME")


def _mount(kind: MountKind, options: dict[str, str], directory: str, namespace: str, agents: int) -> Mount:
    target = options.get("target", "")
    fields: dict[str, Any] = {
        "readonly": _readonly(kind, options),
        "required": _flag("required", options.get("required", "false")),
        "mode": _number("mode", options["mode"], 8, 0o7777) if "mode" in options else -1,
        "uid": _number("uid", options.get("uid", "0"), 10, _ID),
        "gid": _number("gid", options.get("gid", "0"), 10, _ID),
    }
    if kind == "secret":
        name = options.get("id") or options.get("source") or posixpath.basename(target.rstrip("/"))
        if not name:
            raise InputError(f"target '{target}' of a secret mount has no name", hint="write id=NAME")
        env = options.get("env", "")
        if "env" in options and not re.fullmatch(r"[^=\s\0]+", env):
            raise InputError(f"env='{env}' is not the name of a variable")
        fields |= {"id": name, "env": env}
        target = target or ("" if env else f"/run/secrets/{posixpath.basename(name)}")
    elif kind == "ssh":
        fields["id"] = options.get("id") or "default"
        target = target or f"/run/buildkit/ssh_agent.{agents}"
    elif kind == "cache":
        if not target:
            raise InputError("a cache mount needs a target", hint="write --mount=type=cache,target=/path")
        name = options.get("id") or posixpath.normpath(target)
        fields |= {"id": f"{namespace}/{name}" if namespace else name, "sharing": _sharing(options)}
    elif kind == "tmpfs":
        fields["size"] = _size(options.get("size", "0"))
    if kind in {"bind", "cache"}:
        fields["source"] = join_path("/", options.get("source", ""))[1:]
    if kind != "secret" or target:
        target = join_path(directory, target)
        if target == "/":
            raise InputError(f"invalid mount target '{options.get('target', '/')}': the root cannot be mounted over")
    return Mount(kind=kind, target=target, **fields)


def _readonly(kind: MountKind, options: dict[str, str]) -> bool:
    if "readonly" in options:
        return _flag("readonly", options["readonly"])
    if "readwrite" in options:
        return not _flag("readwrite", options["readwrite"])
    return kind not in {"cache", "tmpfs"}


def _sharing(options: dict[str, str]) -> Sharing:
    wanted = options.get("sharing", "shared")
    for known in get_args(Sharing):
        if wanted == known:
            found: Sharing = known
            return found
    raise InputError(f"unsupported sharing value '{wanted}'", hint=did_you_mean(wanted, get_args(Sharing)))


def _flag(name: str, value: str) -> bool:
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    raise InputError(f"invalid value for {name}: '{value}'", hint="it is true or false")


def _number(name: str, text: str, base: int, limit: int) -> int:
    digits = "[0-7]{1,11}" if base == 8 else "[0-9]{1,10}"
    if not re.fullmatch(digits, text, re.ASCII) or int(text, base) > limit:
        hint = "it is an octal mode, as in mode=0755" if base == 8 else "it is a number"
        raise InputError(f"invalid value '{text}' for {name}", hint=hint)
    return int(text, base)


def _size(text: str) -> int:
    """Bytes; k, m, g, t and p are powers of 1024, as docker has it."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise InputError(f"invalid size: '{text}'", hint="write bytes, or as in size=64m")
    whole, fraction, unit = found.groups()
    scale = 1024 ** ("kmgtp".index(unit.lower()) + 1) if unit else 1
    size = int(whole) * scale + (int(fraction) * scale // 10 ** len(fraction) if fraction else 0)
    if size >= 2**63:
        raise InputError(f"invalid size: '{text}' is too large")
    return size
