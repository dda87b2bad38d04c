"""What `refledger build` was given: flags and files to a BuildRequest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from engine.grants import Offered
from storage.errors import InputError
from storage.interfaces.images import Reference
from tools import __version__, roots
from tools.cli.attests import read_attests, shorthands
from tools.cli.contexts import Given, read_contexts

if TYPE_CHECKING:
    from engine.cache.spec import CacheSource, CacheTarget
    from engine.frontend.scope import FrontendOptions
    from engine.output import Output
    from engine.request import BuildRequest


_LATEST = 253_402_300_799
"""Seconds from 1970 to the end of the year 9999, the last one that an image's config can name (RFC 3339)."""


class Asked(NamedTuple):
    """Options of `refledger build`, as they were given."""

    context: str
    file: str | None
    tags: tuple[str, ...]
    target: str
    build_args: tuple[str, ...]
    labels: tuple[str, ...]
    platforms: tuple[str, ...]
    build_contexts: tuple[str, ...]
    outputs: tuple[str, ...]
    push: bool
    annotations: tuple[str, ...]
    attests: tuple[str, ...]
    provenance: str | None
    sbom: str | None
    no_cache: bool
    offline: bool
    cache_from: tuple[str, ...]
    cache_to: tuple[str, ...]
    network: Literal["host", "none"]
    check: bool
    cache_check: bool
    as_json: bool
    secrets: tuple[str, ...]
    ssh: tuple[str, ...]
    allow: tuple[str, ...]
    policies: tuple[str, ...]
    jobs: int | None
    runtime: str | None
    snapshotter: str
    iidfile: str | None
    metadata_file: str | None
    bundle_on_failure: str | None
    on_failure: str | None
    progress: str
    quiet: bool


def read_request(asked: Asked, offered: Offered) -> tuple[BuildRequest, dict[str, str]]:
    """The request, with the names of what is `offered` to it, and the proxy variables of RUN, which are no part of it.
    Raises InputError."""
    from engine.frontend.scope import proxy_environment
    from engine.request import BuildRequest
    from storage.platform import host_platform
    from storage.reference import parse_reference

    args = _assignments(asked.build_args, "--build-arg")
    keep_git_dir = args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR", "") in {"1", "true"}
    given = read_contexts(asked.context, asked.file, asked.build_contexts, keep_git_dir=keep_git_dir)
    proxies = proxy_environment(args)
    names = tuple(parse_reference(tag) for tag in asked.tags)
    platforms = read_platforms(asked.platforms) or (str(host_platform()),)
    epoch = read_epoch(args.get("SOURCE_DATE_EPOCH") or os.environ.get("SOURCE_DATE_EPOCH"))
    outputs = _outputs(asked, names, platforms, epoch)
    attests = read_attests((*asked.attests, *shorthands(asked.provenance, asked.sbom)), outputs)
    cache_from, cache_to = _caches(asked.cache_from, asked.cache_to)
    if asked.offline and not asked.cache_check:
        _refuse_pushes(outputs, cache_to)
    request = BuildRequest(
        dockerfile=given.dockerfile,
        frontend=_frontend(asked, given, args, platforms[0], offered),
        directories=given.directories,
        archive=given.archive,
        platforms=platforms,
        names=names,
        outputs=outputs,
        jobs=asked.jobs or os.cpu_count() or 1,
        no_cache=asked.no_cache,
        cache_from=cache_from,
        cache_to=cache_to,
        epoch=epoch,
        name=given.name,
        version=__version__,
        host=roots.host_facts(),
        offered=offered,
        offline=asked.offline,
        check=asked.cache_check,
        attest=attests,
    )
    public = {name: value for name, value in args.items() if name not in proxies}
    return replace(request, options=_told(request, given, public)), proxies


def _frontend(asked: Asked, given: Given, args: dict[str, str], platform: str, offered: Offered) -> FrontendOptions:
    from engine.frontend.compile import FrontendOptions
    from storage.platform import host_platform

    return FrontendOptions(
        filename=given.filename,
        build_args=args,
        target=asked.target,
        platform=platform,
        build_platform=str(host_platform()),
        ignore=given.ignore,
        labels=_assignments(asked.labels, "--label"),
        network=asked.network,
        entitlements=frozenset(offered.allowed),
        context=given.context,
        named=given.named,
    )


def _told(request: BuildRequest, given: Given, args: dict[str, str]) -> dict[str, object]:
    """What the log says of the options: of secrets the ids alone (I9)."""
    frontend, offered = request.frontend, request.offered
    return {
        "args": args, "target": frontend.target, "platforms": list(request.platforms),
        "secrets": list(offered.secrets), "ssh": list(offered.agents), "allow": list(offered.allowed),
        "context": given.described, "directory": given.directories.get("context", ""),
        "contexts": dict(given.described_named),
        "outputs": [item.written for item in request.outputs],
        "cache_from": [source.written for source in request.cache_from],
        "cache_to": [target.written for target in request.cache_to],
        "no_cache": request.no_cache, "network": frontend.network, "epoch": request.epoch, "jobs": request.jobs,
        **({"offline": True} if request.offline else {}), **({"cache_check": True} if request.check else {}),
        **({"attest": [one.written for one in request.attest]} if request.attest else {}),
    }  # fmt: skip


def _caches(
    cache_from: Sequence[str], cache_to: Sequence[str]
) -> tuple[tuple[CacheSource, ...], tuple[CacheTarget, ...]]:
    if not cache_from and not cache_to:
        return (), ()
    from tools.cli.caches import read_sources, read_targets

    return read_sources(cache_from), read_targets(cache_to)


def _refuse_pushes(outputs: Sequence[Output], caches: Sequence[CacheTarget]) -> None:
    """Raises InputError for what only a build that may ask others can do."""
    if any(output.kind == "image" and output.push for output in outputs):
        hint = "take the image out with --output type=oci, or push it from a build online"
        raise InputError("--offline pushes nothing", hint=hint)
    for cache in caches:
        if cache.kind == "registry":
            raise InputError("--offline pushes no cache", where=cache.written, hint="write it with type=local,dest=DIR")


def _assignments(given: Sequence[str], flag: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not name:
            raise InputError(f"{flag} {item!r} has no name", hint=f"write {flag} NAME=VALUE")
        if equals:
            out[name] = value
        elif name in os.environ:
            out[name] = os.environ[name]
    return out


def read_epoch(text: str | None) -> int | None:
    """SOURCE_DATE_EPOCH in seconds; None when it is not set. Raises InputError."""
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > len(str(_LATEST)) or int(text) > _LATEST:
        raise InputError(f"SOURCE_DATE_EPOCH is {text[:40]!r}", hint="it is a number of seconds since 1970")
    return int(text)


def read_platforms(given: Sequence[str]) -> tuple[str, ...]:
    """All of `--platform A,B --platform C`, each once."""
    from storage.platform import parse_platform

    return tuple(dict.fromkeys(str(parse_platform(part)) for text in given for part in text.split(",") if part))


def _outputs(
    asked: Asked, names: Sequence[Reference], platforms: Sequence[str], epoch: int | None
) -> tuple[Output, ...]:
    if not asked.outputs and not asked.push and not asked.annotations:
        return ()
    from tools.cli.outputs import read_outputs

    return read_outputs(
        asked.outputs, asked.annotations, push=asked.push, names=names, platforms=platforms, epoch=epoch
    )
