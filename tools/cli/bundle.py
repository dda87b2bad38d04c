"""`refledger bundle`: one build in one file, and a look into it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from projections.history import History
from projections.progress import ProgressView, fold
from projections.runner import Views
from projections.standard import STANDARD
from storage.bundle.form import Index
from storage.bundle.reading import Bundle, read_bundle
from storage.digest import Digest
from storage.errors import InputError
from tools import roots
from tools.cli.destinations import writable
from tools.cli.failure import excerpt, last_output
from tools.cli.render import draw
from tools.cli.stream import speaks_color, speaks_unicode
from tools.cli.writing import as_json_option, print_json, print_line
from tools.format import human_bytes, local_time
from tools.text import clean

if TYPE_CHECKING:
    from projections.history import BuildRecord


class _Group(click.Group):
    """`bundle BUILD` makes one; `bundle inspect FILE` looks into one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {"inspect", "-h", "--help"}:
            args = ["create", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_Group, subcommand_metavar="BUILD -o FILE | inspect FILE",
    short_help="Put a build in one file, or look into one.",
)  # fmt: skip
def bundle() -> None:
    """Put a build in one file that another machine can look into and replay: BUILD -o FILE; or look into one."""


@bundle.command("create", short_help="Put a build in one file.")
@click.argument("build_id", metavar="BUILD")
@click.option(
    "-o", "--output", "dest", required=True, callback=writable, metavar="FILE", help="Where to write it; - is stdout."
)
@click.option("--full", is_flag=True, help="Take the bytes of all layers along: nothing has to be fetched then.")
@click.option("--no-context", is_flag=True, help="Leave out every file of the contexts.")
@click.option("--redact", multiple=True, metavar="GLOB", help="Leave out such files, of contexts and layers alike.")
@as_json_option
def create(build_id: str, dest: str, full: bool, no_context: bool, redact: tuple[str, ...], as_json: bool) -> None:
    """Put BUILD (an id or the beginning of one), however it ended, into FILE.

    What registries hold stays a pointer. Secrets are in no log, so they are in no bundle.
    """
    from tools.replaying.bundling import bundle_build
    from tools.replaying.gather import Wish

    wish = Wish(full=full, context=not no_context, redact=redact)
    root = roots.root_directory()
    with roots.read_root(root) as (log, views):
        record = History(views).get(build_id)
        made = bundle_build(root, log, views, record.id, dest, wish)
    if dest == "-":
        return
    if as_json:
        print_json({"build": record.id, "file": dest, "bytes": made.size, "events": made.events, **_sums(made.index)})
        return
    print_line(f"{clean(dest)}: build {record.id}, {human_bytes(made.size)}")
    for line in _contents(made.index, made.events):
        print_line(line)
    if record.status == "running":
        print_line("has no end: the build died, and the next one here says so; only a bundle made after that is whole")


@bundle.command(short_help="Check a bundle, and tell its build.")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@as_json_option
def inspect(file: Path, as_json: bool) -> None:
    """Check FILE to its last byte, and tell the build that is in it. Needs no root and no network."""
    found = read_bundle(file)
    views = Views(None, STANDARD)
    try:
        views.catch_up(found.log)
        records = [record for record in History(views).list() if record.id == found.index.build]
    finally:
        views.close()
    record = records[0] if records else None
    after = record.first_seq - 1 if record else 0
    view = fold(found.log, found.index.build, after=after, until=record.last_seq if record else None)
    if as_json:
        damage = found.damage.what if found.damage else None
        print_json(
            {
                "file": str(file), "bytes": found.size, "digest": found.digest, "damage": damage,
                "build": record.to_json() if record else None, "events": len(found.events), **_sums(found.index),
                "withheld": list(found.index.withheld), "layers": dict(found.index.layers), "view": view.to_json(),
            }
        )  # fmt: skip
    else:
        _tell(found, record, view)
    if found.damage is not None:
        raise found.damage


def _tell(found: Bundle, record: BuildRecord | None, view: ProgressView) -> None:
    index = found.index
    print_line(f"build {index.build}, bundled by Refledger {clean(index.engine_version)}")
    started = next((event for event in found.events if event.type == "BuildStarted"), None)
    if started is not None:
        said = started.data.get("host")
        host = said if isinstance(said, dict) else {}
        version = started.data.get("engine_version", "?")
        where = f"{host.get('hostname', '?')}, {host.get('machine', '?')}, Linux {host.get('kernel', '?')}"
        print_line(clean(f"made {local_time(started.time)} on {where}, by Refledger {version}"))
    for line in _contents(index, len(found.events)):
        print_line(line)
    if record is None:
        return
    width = shutil.get_terminal_size((100, 24)).columns
    sys.stdout.write(draw(view, width, speaks_color(sys.stdout), unicode=speaks_unicode(sys.stdout), told=True))
    for line in _failure(found, record, view):
        print_line(line)


def _failure(found: Bundle, record: BuildRecord, view: ProgressView) -> list[str]:
    """What the step at fault printed, its lines of the Dockerfile, and the error."""
    failed = next((step for step in view.steps if step.state == "failed"), None)
    error = clean(view.error or (failed.error if failed else "") or "")
    said = [f"error: {error}"] if error else []
    if failed is None:
        return said
    lines = last_output(view, failed.vertex)
    text = _definition(found)
    if text is not None and len(failed.lines) == 2 and failed.lines[0]:
        lines += excerpt(text, record.filename, (failed.lines[0], failed.lines[1]))
    return lines + said


def _definition(found: Bundle) -> str | None:
    names = [
        event.data.get("definition")
        for event in found.events
        if event.build == found.index.build and event.type in {"BuildStarted", "DefinitionRead"}
    ]
    try:
        data = found.small.get(Digest(names[-1])) if names and names[-1] else None
    except InputError:
        return None
    return None if data is None else data.decode("utf-8", "replace")


# ---------------------------------------------------------------- what is in it


def _sums(index: Index) -> dict[str, object]:
    bundled = [layer for layer in index.layers.values() if "bundled" in layer]
    return {
        "blobs": len(index.blobs), "blob_bytes": sum(member.size for member in index.blobs), "full": index.full,
        "layers_bundled": len(bundled), "layers_pointed_at": len(index.layers) - len(bundled),
    }  # fmt: skip


def _contents(index: Index, events: int) -> Sequence[str]:
    """For people: what is in it, what is only pointed at, what is not."""
    roles: dict[str, list[int]] = {}
    for member in index.blobs:
        roles.setdefault(member.role, []).append(member.size)
    parts = [f"{events} events"]
    for role, (one, more) in _ROLES.items():
        sizes = roles.get(role, [])
        if sizes:
            parts.append(f"{len(sizes)} {one if len(sizes) == 1 else more} ({human_bytes(sum(sizes))})")
    lines = [f"holds {', '.join(parts)}"]
    remote = [layer for layer in index.layers.values() if "bundled" not in layer and "digest" in layer]
    if remote:
        hosts = sorted({provider["registry"] for layer in remote for provider in layer.get("providers", ())})
        size = sum(layer["size"] for layer in remote)
        count = "1 layer" if len(remote) == 1 else f"{len(remote)} layers"
        lines.append(clean(f"points at {count} ({human_bytes(size)}) at {', '.join(hosts) or 'nobody'}"))
    lines += [clean(f"left out: {item['kind']} {item['name']}: {item['why']}") for item in index.withheld]
    return lines


_ROLES = {
    "definition": ("definition", "definitions"), "graph": ("graph", "graphs"),
    "components": ("cache key", "cache keys"), "listing": ("list of context files", "lists of context files"),
    "pack": ("pack of context files", "packs"),
    "layer": ("layer", "layers"), "files": ("list of a step's files", "lists of steps' files"),
    "manifest": ("manifest", "manifests"), "config": ("image config", "image configs"),
    "proof": ("proof that the events were signed", "proofs"),
}  # fmt: skip
