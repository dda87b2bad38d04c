"""Build arguments: which are there from the start, and which a FROM or a stage can see.

Source: Dockerfile reference, "ARG" (scope, predefined ARGs, platform ARGs in the global scope).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from engine.frontend.expand import LARGEST, Lexer, too_large
from engine.frontend.instructions import Instruction
from engine.frontend.source import Source
from engine.graph import ArchiveSource, GitSource
from storage.errors import InputError
from storage.platform import parse_platform

if TYPE_CHECKING:
    from engine.frontend.contexts import NamedContext  # it knows stages, and those know scopes

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
PROXY_ARGS = (*_PROXIES, *(name.lower() for name in _PROXIES))
"""Arguments that every RUN sees without ARG; they are not in the history."""
_BUILTIN = (
    "BUILDKIT_BUILD_NAME", "BUILDKIT_CACHE_MOUNT_NS", "BUILDKIT_CONTEXT_KEEP_GIT_DIR", "BUILDKIT_DOCKERFILE_CHECK",
    "BUILDKIT_DOCKERFILE_CHECK_EXPERIMENTAL", "BUILDKIT_GIT_ADVICE", "BUILDKIT_INLINE_CACHE",
    "BUILDKIT_MULTI_PLATFORM", "BUILDKIT_SANDBOX_HOSTNAME", "BUILDKIT_SYNTAX",
)  # fmt: skip
_USED_ELSEWHERE = frozenset({*PROXY_ARGS, *_BUILTIN, "SOURCE_DATE_EPOCH"})
"""Arguments that need no ARG (Dockerfile reference, "BuildKit built-in build args"); most are other engines' switches
and do nothing here."""


@dataclass(frozen=True, slots=True)
class FrontendOptions:
    """`build_args` as --build-arg gave them; `ignore` the patterns of .dockerignore; `labels` those of --label;
    `network` what RUN uses by default, and the most it may ask for; `entitlements` those of --allow; `context` the
    build's own context when it is no directory, `named` those of --build-context by name (context_name); `several`:
    the platform is one of several; `hidden`: build args whose values are not shown in names of steps."""

    filename: str = "Dockerfile"
    build_args: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    platform: str = "linux/amd64"
    build_platform: str = "linux/amd64"
    ignore: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    network: Literal["host", "none"] = "host"
    entitlements: frozenset[str] = frozenset()
    context: GitSource | ArchiveSource | None = None
    named: Mapping[str, NamedContext] = field(default_factory=dict)
    several: bool = False
    hidden: frozenset[str] = frozenset()


def predefined(options: FrontendOptions) -> dict[str, str]:
    """The platform arguments of the global scope. Raises InputError for a platform that is none."""
    out = {"TARGETSTAGE": options.target or "default"}
    for prefix, text in (("TARGET", options.platform), ("BUILD", options.build_platform)):
        platform = parse_platform(text)
        out |= {
            f"{prefix}PLATFORM": str(platform),
            f"{prefix}OS": platform.os,
            f"{prefix}ARCH": platform.architecture,
            f"{prefix}VARIANT": platform.variant,
        }
    return {name: options.build_args.get(name, value) for name, value in out.items()}


def arguments(instruction: Instruction) -> Iterator[tuple[str, str | None]]:
    """Name and default of each argument of an ARG. Raises InputError."""
    if not instruction.args:
        raise InputError("ARG requires at least one argument")
    for word in instruction.args:
        name, equals, default = word.partition("=")
        if not name:
            raise InputError("ARG names can not be blank")
        yield name, default if equals else None


def global_arguments(
    source: Source, before: Iterable[Instruction], options: FrontendOptions, escape: str
) -> dict[str, str]:
    """What FROM can see: predefined arguments and those before the first FROM. Raises DockerfileError, InputError."""
    scope = predefined(options)
    for instruction in before:
        if instruction.name != "ARG":
            hint = "only ARG, comments and directives may stand there"
            raise source.error(f"{instruction.name} comes before the first FROM", instruction.lines, hint)
        try:
            for name, default in arguments(instruction):
                value = options.build_args.get(name)
                if value is None and default is not None:
                    value = Lexer(escape).expand(default, scope)
                if value is not None:
                    scope[name] = value
            if sum(map(len, scope.values())) > LARGEST:
                raise too_large()
        except InputError as error:
            raise source.error(error.what, instruction.lines, error.hint) from error
    return scope


def declare(
    instruction: Instruction, env: Mapping[str, str], scope: Mapping[str, str], options: FrontendOptions, lexer: Lexer
) -> dict[str, str | None]:
    """The values that an ARG within a stage gives: --build-arg, else its default, else the global scope's, else None.

    A default sees the arguments declared before it on the same line, as in BuildKit. Raises InputError.
    """
    out: dict[str, str | None] = {}
    seen = dict(env)
    for name, default in arguments(instruction):
        value = options.build_args.get(name)
        if value is None:
            value = scope.get(name) if default is None else lexer.expand(default, seen)
        out[name] = value
        if value is not None and name not in env:
            seen[name] = value
    return out


def proxy_environment(build_args: Mapping[str, str]) -> dict[str, str]:
    """The proxy variables of RUN, each in both spellings. They are no part of the graph: a proxy changes how a step
    reaches the network, not what it is asked to do, and its URL may hold a password (I9)."""
    out: dict[str, str] = {}
    for name in PROXY_ARGS:
        if name in build_args:
            out.setdefault(name.upper(), build_args[name])
            out.setdefault(name.lower(), build_args[name])
    return out


def unused_arguments(options: FrontendOptions, instructions: Iterable[Instruction]) -> list[str]:
    """Names given by --build-arg that no ARG declares."""
    declared = {
        word.partition("=")[0] for instruction in instructions if instruction.name == "ARG" for word in instruction.args
    }
    known = declared | _USED_ELSEWHERE | set(predefined(options))
    return sorted(name for name in options.build_args if name not in known)
