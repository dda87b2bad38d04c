"""`policy.toml` of a root: what is collected after each build, without anybody asking.

    [[collect]]                     # rules are carried out in this order, as BuildKit's gcpolicy
    keep-duration = "72h"           # take nothing used since
    keep-storage = "10GB"           # stop when no more than this is left
    filter = ["kind=cachemount"]    # as of `refledger prune --filter`
    all = false                     # true: also what named images stand on, as `refledger prune --all`
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import Cancelled
from storage.errors import DiskError, InputError, RefledgerError
from storage.regular import read_regular

if TYPE_CHECKING:
    from projections.collect import Policy
    from tools.roots import Root  # reason: what only roots with a policy need is not loaded for all

FILE = "policy.toml"
_ONE = "collecting"
"""The lock of an automatic collection: builds that end at the same time need only one."""


def read_rules(root: Path) -> tuple[Policy, ...]:
    """The rules of the policy file in `root`, none when there is no file. Raises InputError, DiskError."""
    path = root / FILE
    try:
        text = read_regular(path, 1 << 20)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DiskError.of(error, "reading the policy file") from error
    import tomllib

    try:
        data = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"not TOML: {error}", where=str(path)) from error
    unknown = sorted(data.keys() - {"collect"})
    rules = data.get("collect", [])
    if unknown or not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        hint = "rules are tables headed [[collect]]"
        what = f"unknown: {unknown[0]}" if unknown else "collect is no list of tables"
        raise InputError(what, where=str(path), hint=hint)
    return tuple(_rule(number, rule, path) for number, rule in enumerate(rules, 1))


def _rule(number: int, rule: Mapping[str, Any], path: Path) -> Policy:
    from projections.collect import Policy
    from projections.filters import duration, parse_filter, storage_size

    where = f"{path}, rule {number}"
    kinds = {"keep-storage": (str, int), "keep-duration": (str,), "filter": (list,), "all": (bool,)}
    for key, value in rule.items():
        if key not in kinds:
            raise InputError(f"unknown key {key!r}", where=where, hint=f"it takes {', '.join(kinds)}")
        if type(value) not in kinds[key] or (key == "filter" and not all(isinstance(item, str) for item in value)):
            raise InputError(f"{key} is not of the right type", where=where, hint="see refledger prune --help")
    if not rule.keys() & {"keep-storage", "keep-duration", "filter"}:
        hint = "give keep-storage, keep-duration or filter"
        raise InputError("it would let go of everything after each build", where=where, hint=hint)
    name = f"{FILE} rule {number}"
    try:
        return Policy(
            name=name,
            by=name,
            keep_storage=storage_size(str(rule["keep-storage"])) if "keep-storage" in rule else None,
            keep_duration=duration(rule.get("keep-duration", "0")),
            filters=tuple(parse_filter(item) for item in rule.get("filter", ())),
            everything=rule.get("all", False),
        )
    except InputError as error:
        raise InputError(error.what, where=where, hint=error.hint) from error


@contextmanager
def collecting_after(root: Root, *, quiet: bool) -> Iterator[None]:
    """Carry out the policy of `root` after what is done within, unless that was interrupted. Raises InputError and
    DiskError before; afterwards nothing but what was raised within: a collection that fails is told of, no more."""
    rules = read_rules(root.path)
    try:
        yield
    except Cancelled:
        rules = ()
        raise
    finally:
        told = _collect(root, rules) if rules else ""
        if told and not quiet:
            from tools.text import clean

            sys.stderr.write(f"{FILE}: {clean(told)}\n")


def _collect(root: Root, rules: Sequence[Policy]) -> str:
    """One line for people, "" when there was nothing to do."""
    import asyncio

    from tools.collecting import carry_out, plan_collection
    from tools.format import human_bytes

    lock = root.locks.try_acquire(_ONE)
    if lock is None:
        return ""
    done = []
    try:
        with lock:
            for rule in rules:
                plan = asyncio.run(plan_collection(root, rule, dry_run=False))
                done += carry_out(root, plan, rule).done
    except RefledgerError as error:
        return f"nothing more was collected: {error}"
    if not done:
        return ""
    demoted = sum(1 for action in done if action.demoted_to)
    freed = human_bytes(sum(action.item.bytes for action in done))
    return f"freed {freed} ({demoted} demoted, {len(done) - demoted} pruned)"
