"""What `refledger build` was given: flags and files to a BuildRequest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from engine.grants import Offered
from storage.errors import InputError
from storage.interfaces.images import Reference
from tools import __version__, roots
from tools.cli.attests import read_attests
from tools.cli.contexts import read_contexts

if TYPE_CHECKING:
    from engine.cache.spec import CacheSource, CacheTarget
    from engine.output import Output
    from engine.request import BuildRequest


_LATEST = 253_402_300_799
"""Seconds from 1970 to the end of the year 9999, the last one that an image's config can name (RFC 3339)."""


def read_request(
    context: str,
    file: str | None,
    *,
    tags: Sequence[str],
    target: str,
    build_args: Sequence[str],
    labels: Sequence[str],
    platforms: Sequence[str],
    build_contexts: Sequence[str],
    outputs: Sequence[str],
    annotations: Sequence[str],
    attests: Sequence[str],
    push: bool,
    no_cache: bool,
    offline: bool,
    cache_check: bool,
    cache_from: Sequence[str],
    cache_to: Sequence[str],
    network: Literal["host", "none"],
    jobs: int | None,
    offered: Offered,
) -> tuple[BuildRequest, dict[str, str]]:
    """The request, and the proxy variables of RUN, which are no part of it. Raises InputError."""
    from engine.frontend.compile import FrontendOptions
    from engine.frontend.scope import proxy_environment
    from engine.request import BuildRequest
    from storage.platform import host_platform
    from storage.reference import parse_reference

    args = _assignments(build_args, "--build-arg")
    keep_git_dir = args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR", "") in {"1", "true"}
    given = read_contexts(context, file, build_contexts, keep_git_dir=keep_git_dir)
    proxies = proxy_environment(args)
    names = tuple(parse_reference(tag) for tag in tags)
    host = str(host_platform())
    targets = read_platforms(platforms) or (host,)
    epoch = read_epoch(args.get("SOURCE_DATE_EPOCH") or os.environ.get("SOURCE_DATE_EPOCH"))
    wanted = _outputs(outputs, annotations, push=push, names=names, platforms=targets, epoch=epoch)
    said = read_attests(attests, wanted)
    sources, kept = _caches(cache_from, cache_to)
    if offline and not cache_check:
        _refuse_pushes(wanted, kept)
    request = BuildRequest(
        dockerfile=given.dockerfile,
        frontend=FrontendOptions(
            filename=given.filename,
            build_args=args,
            target=target,
            platform=targets[0],
            build_platform=host,
            ignore=given.ignore,
            labels=_assignments(labels, "--label"),
            network=network,
            entitlements=frozenset(offered.allowed),
            context=given.context,
            named=given.named,
        ),
        directories=given.directories,
        archive=given.archive,
        platforms=targets,
        names=names,
        outputs=wanted,
        jobs=jobs or os.cpu_count() or 1,
        no_cache=no_cache,
        cache_from=sources,
        cache_to=kept,
        epoch=epoch,
        options={
            "args": {name: value for name, value in args.items() if name not in proxies},
            "target": target, "platforms": list(targets),
            "secrets": list(offered.secrets), "ssh": list(offered.agents), "allow": list(offered.allowed),
            "context": given.described, "directory": given.directories.get("context", ""),
            "contexts": dict(given.described_named),
            "outputs": [item.written for item in wanted],
            "cache_from": [source.written for source in sources], "cache_to": [target.written for target in kept],
            "no_cache": no_cache, "network": network, "epoch": epoch, "jobs": jobs or os.cpu_count() or 1,
            **({"offline": True} if offline else {}), **({"cache_check": True} if cache_check else {}),
            **({"attest": [one.written for one in said]} if said else {}),
        },
        name=given.name,
        version=__version__,
        host=roots.host_facts(),
        offered=offered,
        offline=offline,
        check=cache_check,
        attest=said,
    )  # fmt: skip
    return request, proxies


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
    given: Sequence[str], annotations: Sequence[str], *, push: bool, names: Sequence[Reference],
    platforms: Sequence[str], epoch: int | None,
) -> tuple[Output, ...]:  # fmt: skip
    if not given and not push and not annotations:
        return ()
    from tools.cli.outputs import read_outputs

    return read_outputs(given, annotations, push=push, names=names, platforms=platforms, epoch=epoch)
