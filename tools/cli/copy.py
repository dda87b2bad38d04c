"""`refledger copy`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from storage.errors import InputError
from storage.interfaces.images import Reference
from storage.platform import host_platform, parse_platform
from storage.reference import LAYOUT_REGISTRY
from tools import roots
from tools.cli.names import image_name
from tools.cli.policy_option import policy_option
from tools.cli.result_options import progress_option, quiet_option
from tools.cli.running import interruptible, running
from tools.cli.writing import as_json_option, print_json
from tools.format import human_bytes, human_duration
from tools.text import clean

if TYPE_CHECKING:
    from engine.images.copy import Copied, CopyRequest


@click.command(short_help="Copy an image, or all tags of a repository.")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("--all", "every", is_flag=True, help="All platforms of an index, attestations too: the digest stays.")
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH,…", help="Platforms.  [default: this one]")
@click.option("--referrers", is_flag=True, help="Also what refers to the image (signatures, SBOMs), and to that.")
@click.option("--tags", default="", metavar="GLOB", help="All tags of the repository SRC that fit: 'v1.*'. As --all.")
@policy_option
@click.option("--dry-run", is_flag=True, help="Copy nothing: tell what would move.")
@progress_option
@quiet_option
@as_json_option
def copy(
    source: str, destination: str, every: bool, platforms: tuple[str, ...], referrers: bool, tags: str, dry_run: bool,
    policies: tuple[str, ...], progress: str, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Copy an image from SRC to DST: names in registries, or oci-layout://PATH[:TAG].

    Of an index, the image for this machine is copied, unless --all or --platform say otherwise. Within a registry no
    layer moves; between two, layers pass through without lying down here.
    """
    request = _request(image_name(source), image_name(destination), every, platforms, referrers, tags)
    progress = "quiet" if quiet else progress
    begun = time.monotonic_ns()
    if dry_run:
        made = asyncio.run(_foresee(request))
    else:
        with running(progress, silent=progress in ("json", "quiet"), mounts=False) as run, run.told(progress):
            made = asyncio.run(_copy(run.root, run.build, request, policies))
    took = human_duration(time.monotonic_ns() - begun)
    if as_json:
        for one in made:
            print_json(one.to_json())
    elif progress == "quiet":
        for one in made:
            sys.stdout.write(f"{one.digest}\n")
    elif progress != "json":
        sys.stderr.write(_summary(request, made, "" if dry_run else f" in {took}", dry_run=dry_run))


def _request(
    source: Reference, destination: Reference, every: bool, platforms: Sequence[str], referrers: bool, tags: str
) -> CopyRequest:
    from engine.images.copy import CopyRequest

    chosen = tuple(parse_platform(one) for given in platforms for one in given.split(","))
    if every and chosen:
        raise InputError("--all and --platform contradict each other", hint="give one of them")
    if tags:
        for name in (source, destination):
            if name.digest or _has_tag(name):
                hint = "leave the tag out"
                raise InputError("with --tags, SRC and DST are repositories", where=name.written, hint=hint)
    if destination.registry == LAYOUT_REGISTRY and not destination.tag and destination.digest is None:
        destination = replace(destination, tag="latest")
    return CopyRequest(source, destination, chosen, every or (bool(tags) and not chosen), referrers, tags)


def _has_tag(name: Reference) -> bool:
    return bool(name.tag) and name.written.endswith(f":{name.tag}")


async def _foresee(request: CopyRequest) -> list[Copied]:
    from engine.images.copy import Copier
    from tools.imaging import passing_imaging

    async with passing_imaging() as made:
        copier = Copier(made.placer, made.listing, made.facts, host_platform())
        return await interruptible(copier.foresee(request))


async def _copy(root: roots.Root, build: str, request: CopyRequest, policies: Sequence[str]) -> list[Copied]:
    from engine.events import BuildStarted
    from engine.images.copy import Copier
    from engine.ledger import fitting
    from engine.operation import operate
    from tools import __version__
    from tools.imaging import imaging

    copied: list[Copied] = []
    async with imaging(root, build, policies) as (ledger, made):
        copier = Copier(made.placer, made.listing, ledger, host_platform(), made.gate)

        async def work() -> tuple[dict[str, object], ...]:
            copied.extend(await copier.copy(request))
            return fitting([{"ref": "", "digest": str(one.digest), "name": one.destination} for one in copied])

        started = BuildStarted(
            frontend="copy.v0",
            definition="",
            options={**request.options, **({"policies": made.gate.described} if made.gate else {})},
            context=None,
            engine_version=__version__,
            host=roots.host_facts(),
            name=f"copy {request.source.written} to {request.destination.written}",
            filename="",
        )
        await interruptible(operate(ledger, started, work()))
    return copied


def _summary(request: CopyRequest, made: Sequence[Copied], took: str, *, dry_run: bool) -> str:
    """One line: what is where now, and what that cost."""
    if request.tags:
        source, destination = request.source, request.destination
        what = f"{len(made)} tags of {source.provider} to {destination.provider}:"
    else:
        what = f"{made[0].source} to {made[0].destination}: {made[0].digest},"
    ways = Counter(str(layer["transport"]) for one in made for layer in one.layers)
    ways_told = ", ".join(f"{count} {way}" for way, count in ways.most_common()) or "no layers"
    if len(ways) == 1:
        [(way, count)] = ways.items()
        ways_told = f"{count} layer{'s' * (count != 1)} {way}"
    elif ways:
        ways_told = f"{ways.total()} layers: {ways_told}"
    referrers = sum(one.referrers for one in made)
    also = f", {referrers} that refer to it" if referrers else ""
    moved = sum(one.moved for one in made)
    cost = f"{human_bytes(moved)} moved" if moved else "nothing moved"
    return clean(f"{'would copy' if dry_run else 'copied'} {what} {ways_told}{also}, {cost}{took}") + "\n"
