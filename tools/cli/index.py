"""`refledger index`: manifest lists of images that are in registries already."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from storage.errors import InputError
from storage.interfaces.images import Reference
from storage.platform import parse_platform
from tools import __version__, roots
from tools.cli.names import image_name
from tools.cli.policy_option import policy_option
from tools.cli.result_options import metadata_option, progress_option, quiet_option
from tools.cli.running import interruptible, running
from tools.cli.writing import write_file
from tools.format import human_bytes, human_duration
from tools.text import clean

if TYPE_CHECKING:
    from engine.images.combine import Annotation
    from engine.images.index import Created, IndexRequest
    from engine.images.read import Manifest

_ANNOTATION = re.compile(
    r"(?:(?P<levels>[a-z,-]+)(?:\[(?P<platform>[^\]]*)\])?:)?(?P<key>[^=:\s\[\]][^=\s]*)=(?P<value>.*)", re.DOTALL
)
_LEVELS = ("index", "manifest-descriptor")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@click.group()
def index() -> None:
    """Put images together under one name."""


@index.command(short_help="Make an index of images.")
@click.argument("names_and_refs", metavar="NAME REF...", nargs=-1, required=True)
@click.option("-t", "--tag", "tags", multiple=True, metavar="NAME", help="Name it so; all arguments are REFs then.")
@click.option("--append", is_flag=True, help="Add to what (the first) NAME is now.")
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH,…", help="Only these.  [default: all]")
@click.option(
    "--annotation", "annotations", multiple=True, metavar="LEVEL:KEY=VALUE",
    help="Annotate the index (index:…) or what it lists (manifest-descriptor:… or manifest-descriptor[OS/ARCH]:…).",
)
@policy_option
@click.option("--dry-run", is_flag=True, help="Print the JSON that would be put, and put nothing.")
@metadata_option
@progress_option
@quiet_option
def create(
    names_and_refs: tuple[str, ...], tags: tuple[str, ...], append: bool, platforms: tuple[str, ...],
    annotations: tuple[str, ...], policies: tuple[str, ...], dry_run: bool, metadata_file: str | None, progress: str,
    quiet: bool,
) -> None:  # fmt: skip
    """Make NAME an index of all REFs: images, indexes (what they list is taken over), artifacts; in registries, or in
    layouts (oci-layout://PATH). Prints its digest.

    Of two REFs for one platform the later one is taken. Attestations stay with the image they are of. Within a registry
    no layer moves; from another one, layers pass through. One REF that is an index already keeps its digest.
    """
    request = _request(names_and_refs, tags, append, platforms, annotations)
    if dry_run:
        made = asyncio.run(_assemble(request))
        sys.stdout.buffer.write(made.data + (b"" if made.data.endswith(b"\n") else b"\n"))
        return
    progress = "quiet" if quiet else progress
    begun = time.monotonic_ns()
    with running(progress, silent=progress in ("json", "quiet"), mounts=False) as run:
        with run.told(progress):
            created = asyncio.run(_create(run.root, run.build, request, policies))
        if progress not in ("json", "quiet"):
            sys.stderr.write(_summary(run.build, request, created, human_duration(time.monotonic_ns() - begun)))
        if progress != "json":
            sys.stdout.write(f"{created.index.digest}\n")
        if metadata_file:
            _write_metadata(metadata_file, run.build, request, created.index)


# ---------------------------------------------------------------- what was asked for


def _request(
    arguments: Sequence[str], tags: Sequence[str], append: bool, platforms: Sequence[str], annotations: Sequence[str]
) -> IndexRequest:
    from engine.images.index import IndexRequest

    written, refs = (tags, arguments) if tags else (arguments[:1], arguments[1:])
    names = tuple(map(_name, dict.fromkeys(written)))
    if not refs:
        raise InputError("there is no REF to make an index of", hint="write refledger index create NAME REF…")
    return IndexRequest(
        names=names,
        refs=tuple(_ref(ref, names[0]) for ref in refs),
        append=append,
        annotations=tuple(found for text in annotations for found in _annotation(text)),
        platforms=tuple(dict.fromkeys(parse_platform(part) for text in platforms for part in text.split(",") if part)),
    )


def _name(text: str) -> Reference:
    name = image_name(text)
    if name.digest is not None:
        raise InputError("an index gets a name, not a digest", where=text, hint="write NAME[:TAG]")
    return name if name.tag else replace(name, tag="latest")


def _ref(text: str, name: Reference) -> Reference:
    """An image; of a digest alone, the one in NAME's repository."""
    if not _DIGEST.fullmatch(text):
        return image_name(text)
    beside = name.written.removesuffix(f":{name.tag}")
    return image_name(f"{beside}@{text}")


def _annotation(text: str) -> list[Annotation]:
    """`index:KEY=VALUE`, `manifest-descriptor[PLATFORM]:KEY=VALUE`, also several levels with commas, as buildx."""
    from engine.images.combine import Annotation

    hint = f"write {' or '.join(f'{level}:KEY=VALUE' for level in _LEVELS)}"
    found = _ANNOTATION.fullmatch(text)
    if found is None:
        raise InputError(f"not an annotation: {text[:200]!r}", hint=hint)
    levels = found["levels"].split(",") if found["levels"] else [""]
    if any(level not in _LEVELS for level in levels):
        what = "the images in an index stay as they are: only the index, and what it says of them, can be annotated"
        raise InputError(what, where=text[:200], hint=hint)
    platform = parse_platform(found["platform"]) if found["platform"] is not None else None
    if platform is not None and "index" in levels:
        raise InputError("an index is for all platforms", where=text[:200], hint="write index:KEY=VALUE")
    return [
        Annotation("index" if level == "index" else "manifest-descriptor", found["key"], found["value"], platform)
        for level in levels
    ]


# ---------------------------------------------------------------- doing it


async def _assemble(request: IndexRequest) -> Manifest:
    from engine.images.index import Assembler
    from tools.imaging import passing_imaging

    async with passing_imaging() as made:
        return (await interruptible(Assembler(made.images).assemble(request))).index


async def _create(root: roots.Root, build: str, request: IndexRequest, policies: Sequence[str]) -> Created:
    from engine.events import BuildStarted
    from engine.images.index import Indexer
    from engine.operation import operate
    from storage.digest import canonical_json
    from tools.imaging import imaging

    done: list[Created] = []
    async with imaging(root, build, policies) as (ledger, made):
        indexer = Indexer(made.placer, ledger, made.gate)

        async def work() -> list[dict[str, object]]:
            done.append(await indexer.create(request))
            digest = str(done[0].index.digest)
            return [{"ref": "", "digest": digest, "name": str(name)} for name in request.names]

        started = BuildStarted(
            frontend="index.v0",
            definition=str(made.images.blobs.put(canonical_json(request.options))),
            options={**request.options, **({"policies": made.gate.described} if made.gate else {})},
            context=None,
            engine_version=__version__,
            host=roots.host_facts(),
            name=f"index {', '.join(name.written for name in request.names)}",
            filename="",
            tags=tuple(str(name) for name in request.names),
        )
        await interruptible(operate(ledger, started, work()))
    return done[0]


def _summary(build: str, request: IndexRequest, created: Created, took: str) -> str:
    """One line: what is where now, and what that cost."""
    count = len(created.index.fields["manifests"])
    ways = Counter(str(layer["transport"]) for layer in created.layers)
    layers = ", ".join(f"{number} layer{'s' * (number != 1)} {way}" for way, number in ways.most_common())
    moved = sum(int(layer["bytes"]) for layer in created.layers)
    cost = f"{human_bytes(moved)} of layers moved" if moved else "no layer moved"
    what = f"build {build} made {', '.join(str(name) for name in request.names)} an index of {count}"
    return clean(f"{what} in {took}: {', '.join(filter(None, (layers, cost)))}") + "\n"


def _write_metadata(path: str, build: str, request: IndexRequest, made: Manifest) -> None:
    facts = {
        "refledger.build.id": build, "containerimage.digest": str(made.digest),
        "containerimage.descriptor": made.descriptor.to_json(),
        "image.name": ",".join(str(name) for name in request.names),
    }  # fmt: skip
    doing = "the index is made, but its digest could not be written"
    write_file(path, json.dumps(facts, indent=2).encode() + b"\n", doing)
