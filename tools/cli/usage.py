"""`refledger du` says what lies in the root and for whom; `refledger prune` lets go of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from projections.collect import Action, Plan, Policy, would_free
from projections.filters import duration, parse_filter, passes, storage_size
from projections.inventory import Inventory, Item
from storage.errors import InputError
from tools import roots
from tools.cli.writing import as_json_option, columns, print_aside, print_json, print_line, table
from tools.format import human_bytes, human_duration, local_time
from tools.text import clean

Json = dict[str, Any]

_FILTER_HELP = (
    "KEY=VALUE or KEY!=VALUE; may be given again. Keys: id, kind (layer, snapshot, source, blob, context, unnamed,"
    " cachemount, partial), type (BuildKit's: regular, exec.cachemount, source.local), build, image, until (24h: not"
    " used since), inuse, shared, remote, description."
)
_SHORT = 12


@click.command(short_help="Say what lies in the root, and for whom.")
@click.option("--verbose", is_flag=True, help="All that is known of each thing.")
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help=_FILTER_HELP)
@click.option("--at", "moment", metavar="SEQ|TIME", help="What lay here after event SEQ, or at TIME, by the log alone.")
@as_json_option
def du(verbose: bool, filters: tuple[str, ...], moment: str | None, as_json: bool) -> None:
    """Say what lies in the root: how large it is, what letting it go would free, who else has it, when it was used
    last, and which image stands on it.

    FREES counts what is of no use without a thing. Sizes are of the files (du --apparent-size). Nothing is asked of any
    registry, and nothing is written.
    """
    chosen = tuple(parse_filter(one) for one in filters)
    path = roots.root_directory()
    if moment is not None and (verbose or filters):
        raise InputError("--at tells what the log knows, and goes with neither --verbose nor --filter")
    with roots.read_root(path) as (log, views):
        if moment is not None:
            from tools.cli.present import print_present

            print_present(log, moment, as_json=as_json)
            return
        from tools.collecting import survey

        inventory = survey(path, views)
    now = time.time_ns()
    items = [item for item in inventory.items if item.collectable and passes(chosen, item, now)]
    items.sort(key=lambda item: (-item.bytes, item.key))
    frees = {item.key: would_free(inventory, item) for item in items}
    if as_json:
        for item in items:
            print_json(_item_json(item, frees[item.key]))
        print_json({"kind": "total", **_totals(inventory, items)})
        return
    if verbose:
        for item in items:
            _print_item(item, frees[item.key])
    elif items:
        table(_rows(items, frees, now), ("BUILDS", "SHARED", "FREES", "USED", "REMOTE"), columns(10_000))
    if items and not verbose:
        print_line("")
    for line in _summary(inventory, items):
        print_line(line)


def _short(item: Item) -> str:
    name = item.name.partition(":")[2] or item.name
    return name[:_SHORT] if item.kind in {"layer", "blob", "context", "partial", "cachemount"} else name[:25]


def _ago(item: Item, now: int) -> str:
    return f"{human_duration(now - item.time)} ago" if item.time else "never"


def _rows(items: Sequence[Item], frees: Mapping[str, int], now: int) -> list[tuple[str, ...]]:
    titles = ("ID", "KIND", "SIZE", "FREES", "SHARED", "REMOTE", "USED", "BUILDS", "FOR")
    return [titles, *(_row(item, frees[item.key], now) for item in items)]


def _row(item: Item, frees: int, now: int) -> tuple[str, ...]:
    return (
        _short(item),
        item.kind,
        human_bytes(item.bytes),
        human_bytes(frees),
        "yes" if item.results > 1 else "no",
        "yes" if item.elsewhere else "no",
        "now" if item.in_use else _ago(item, now),
        str(len(item.builds)),
        clean(", ".join(item.images) or item.label),
    )


def _item_json(item: Item, frees: int) -> Json:
    return {
        "kind": item.kind, "name": item.name, "bytes": item.bytes, "would_free": frees,
        "shared": item.results > 1, "results": item.results, "in_use": item.in_use,
        "providers": [str(provider) for provider in item.elsewhere], "last_used": item.time or None,
        "last_build": item.build or None, "builds": list(item.builds), "images": list(item.images),
        "label": item.label,
    }  # fmt: skip


def _totals(inventory: Inventory, items: Sequence[Item]) -> Json:
    """Bytes. Of `items` but for the last ones, which are of the whole root."""
    free = [item for item in items if not item.in_use]
    files = sum(item.bytes for item in inventory.items)
    kinds: dict[str, int] = {}
    for item in inventory.items:
        kinds[item.kind] = kinds.get(item.kind, 0) + item.bytes
    return {
        "unique": sum(item.bytes for item in items if item.results <= 1),
        "shared": sum(item.bytes for item in items if item.results > 1),
        "reclaimable": sum(item.bytes for item in free),
        "demotable": sum(item.bytes for item in free if item.elsewhere),
        "remote_only": inventory.remote_only,
        "kinds": kinds,
        "files": files,
        "directories": inventory.directories,
        "total": files + inventory.directories,
    }


def _summary(inventory: Inventory, items: Sequence[Item]) -> list[str]:
    totals = _totals(inventory, items)
    rest = {kind: count for kind, count in totals["kinds"].items() if kind not in {item.kind for item in items}}
    lines = [
        f"Unique:         {human_bytes(totals['unique'])}",
        f"Shared:         {human_bytes(totals['shared'])}",
        f"Reclaimable:    {human_bytes(totals['reclaimable'])}, {human_bytes(totals['demotable'])} of it elsewhere too",
        f"Remote only:    {human_bytes(totals['remote_only'])}",
        f"Total:          {human_bytes(totals['total'])}",
    ]
    ordered = sorted((*rest.items(), ("directories", totals["directories"])), key=lambda pair: -pair[1])
    return lines + [f"  {kind + ':':<14}{human_bytes(count)}" for kind, count in ordered if count]


def _print_item(item: Item, frees: int) -> None:
    facts = [
        ("ID", item.name),
        ("Kind", item.kind),
        ("Size", f"{human_bytes(item.bytes)} ({item.bytes} bytes)"),
        ("Frees", human_bytes(frees)),
        ("Made by", clean(item.label)),
        ("Last used", f"{local_time(item.time)} by build {item.build}" if item.time else "never that the log knows"),
        ("In use", "by a build that runs" if item.in_use else ""),
        ("Builds", ", ".join(item.builds)),
        ("Images", ", ".join(item.images)),
        ("Shared", f"by {item.results} results" if item.results > 1 else ""),
        ("Elsewhere", ", ".join(map(str, item.elsewhere)) or "nowhere known"),
    ]
    for name, value in facts:
        if value:
            print_line(f"{name + ':':<12}{value}")
    print_line("")


# ---------------------------------------------------------------- prune


@click.command(short_help="Let go of what no running build needs.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also what named images stand on, and contexts.")
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help=_FILTER_HELP)
@click.option("--keep-storage", metavar="SIZE", help="Stop when no more than this is left: 10GB, 512MiB.")
@click.option("--keep-duration", metavar="DUR", help="Keep what was used within this time: 72h, 7d.")
@click.option("--dry-run", is_flag=True, help="Only print the plan.")
@click.option("-f", "--force", is_flag=True, help="As docker has it; nothing is asked anyway.")
@as_json_option
def prune(
    everything: bool,
    filters: tuple[str, ...],
    keep_storage: str | None,
    keep_duration: str | None,
    dry_run: bool,
    force: bool,  # noqa: ARG001  # hands and scripts know it
    as_json: bool,
) -> None:
    """Let go of what no running build needs, the least recently used first.

    What a registry still has is demoted: it stays cached, and is pulled again when a step needs its bytes. What nobody
    else has is pruned: its step runs again. Without --all what the latest build of each image name stands on stays, and
    so do the contexts that builds are replayed from, and what only a registry has that cannot be reached now. The
    plan is printed, then carried out; the log tells of each removal before it happens.
    """
    from tools.collecting import carry_out, collector, plan_collection, who

    policy = Policy(
        by=who(),
        keep_storage=None if keep_storage is None else storage_size(keep_storage),
        keep_duration=duration(keep_duration) if keep_duration else 0,
        filters=tuple(parse_filter(one) for one in filters),
        everything=everything,
    )
    given = [("--all", everything), ("--keep-storage", keep_storage), ("--keep-duration", keep_duration)]
    words = [name if value is True else f"{name} {value}" for name, value in given if value]
    policy = replace(policy, name=" ".join(["prune", *words, *(f"--filter {one}" for one in filters)]))
    path = roots.root_directory()
    with roots.read_root(path):
        pass  # reason: says that nothing was built here, instead of making a root to remove nothing from
    with roots.open_root(path) as root:
        if not dry_run:
            with collector(root) as owner:
                interrupted = roots.recover(root, owner)
            for dead in interrupted:
                print_aside(f"build {dead} had been interrupted; what it left was cleaned up")
        plan = asyncio.run(plan_collection(root, policy, dry_run=dry_run))
        if not as_json:
            _print_plan(plan)
        if dry_run:
            if as_json:
                _print_json_plan(plan, done=False)
            else:
                print_line(f"Would free: {human_bytes(plan.bytes)}; nothing was changed")
            return
        done = carry_out(root, plan, policy)
    if as_json:
        _print_json_plan(replace(plan, actions=tuple(done.done)), done=True)
        return
    for action, reason in done.skipped:
        print_line(f"left alone: {_title(action.item)}: {reason}")
    print_line(f"Freed: {human_bytes(done.bytes)}")


def _title(item: Item) -> str:
    known = clean(item.label or ", ".join(item.images))
    return f"{item.kind} {_short(item)}" + (f" ({known})" if known else "")


def _print_plan(plan: Plan) -> None:
    if plan.actions:
        rows = [("PLAN", "ID", "KIND", "SIZE", "REASON")]
        rows += [(a.kind, _short(a.item), a.item.kind, human_bytes(a.item.bytes), _reason(a)) for a in plan.actions]
        table(rows, ("KIND",), columns(10_000))
    else:
        print_line("nothing to let go of")
    folded: dict[str, list[Item]] = {}
    for item, reason in plan.kept:
        folded.setdefault(reason, []).append(item)
    for reason, items in folded.items():
        what = _title(items[0]) if len(items) == 1 else f"{len(items)} things"
        print_line(f"keep {what}, {human_bytes(sum(item.bytes for item in items))}: {clean(reason)}")


def _reason(action: Action) -> str:
    label = clean(action.item.label)
    return f"{label}: {clean(action.reason)}" if label else clean(action.reason)


def _print_json_plan(plan: Plan, *, done: bool) -> None:
    for action in plan.actions:
        item = action.item
        print_json({
            "action": action.kind, "done": done, "kind": item.kind, "name": item.name, "bytes": item.bytes,
            "reason": action.reason, "providers": [str(provider) for provider in action.demoted_to],
            "digest": action.digest or None, "because_of": action.because_of or None, "label": item.label,
        })  # fmt: skip
    for item, reason in plan.kept:
        print_json({"action": "keep", "kind": item.kind, "name": item.name, "bytes": item.bytes, "reason": reason})
    print_json({"action": "total", "bytes": plan.bytes})
