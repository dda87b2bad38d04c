"""What a plan lets go, in which order, and what it never does."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.collect import Answer, Plan, Policy, candidates, make_plan, would_free
from projections.filters import duration, parse_filter, passes, storage_size
from projections.inventory import Copy, Inventory, Item
from storage.errors import InputError
from storage.interfaces.images import Provider

HOUR = 3_600_000_000_000
NOW = 1000 * HOUR
REGISTRY = Provider.of("r", "x")


def item(key: str, size: int = 10, *, hours: int = 10, copy: str = "", **more: object) -> Item:
    """Used `hours` ago; with a `copy` somebody else is known to have it."""
    kind = str(more.pop("kind", key.partition("/")[0]))
    copies = (Copy(copy, "", 5, (REGISTRY,)),) if copy else ()
    return Item(key, kind, key.partition("/")[2], size, time=NOW - hours * HOUR, copies=copies, **more)  # type: ignore[arg-type]


def inventory(
    items: list[Item], refs: Mapping[str, tuple[str, ...]], blobs: Mapping[str, str] | None = None
) -> Inventory:
    """`refs`: id → layers; `blobs`: layer → its blob's item."""
    here = {one.key for one in items}
    layers = {layer for chain in refs.values() for layer in chain}
    kept = {layer: tuple(blob for blob in [(blobs or {}).get(layer, "")] if blob in here) for layer in layers}
    forms = {layer: tuple(key for key in [layer, *kept[layer]] if key in here) for layer in layers}
    return Inventory(tuple(items), refs, forms, kept, 0)


def chain() -> Inventory:
    """An image layer L that a registry has, S on it, T on S and U on S; S has a packed blob B."""
    items = [
        item("layer/L", 100, copy="b0", depth=0, hours=1), item("snapshot/S", 50, depth=1, hours=2),
        item("snapshot/T", 20, depth=2, hours=30), item("snapshot/U", 5, depth=2, hours=2),
        item("blob/B", 7, depth=1, hours=2),
    ]  # fmt: skip
    refs = {"l": ("layer/L",), "s": ("layer/L", "snapshot/S"), "t": ("layer/L", "snapshot/S", "snapshot/T"),
            "u": ("layer/L", "snapshot/S", "snapshot/U")}  # fmt: skip
    return inventory(items, refs, {"snapshot/S": "blob/B"})


def done(plan: Plan) -> list[tuple[str, str]]:
    return [(action.kind, action.item.key) for action in plan.actions]


HAS: dict[str, Answer] = {"layer/L": (REGISTRY, "b0")}


def test_the_oldest_goes_first_and_children_before_what_they_stand_on() -> None:
    assert done(make_plan(chain(), Policy(), NOW, HAS)) == [
        ("prune", "snapshot/T"), ("prune", "snapshot/U"), ("prune", "blob/B"), ("prune", "snapshot/S"),
        ("demote", "layer/L"),
    ]  # fmt: skip


def test_no_more_goes_than_has_to() -> None:
    there = chain()
    assert there.cached_bytes == 182
    assert done(make_plan(there, Policy(keep_storage=162), NOW, HAS)) == [("prune", "snapshot/T")]
    assert done(make_plan(there, Policy(keep_storage=182), NOW, HAS)) == []
    assert candidates(there, Policy(keep_storage=182), NOW) == []  # so nobody is asked either
    assert len(make_plan(there, Policy(keep_storage=161), NOW, HAS).actions) == 2


def test_what_was_used_lately_stays() -> None:
    assert done(make_plan(chain(), Policy(keep_duration=24 * HOUR), NOW, HAS)) == [("prune", "snapshot/T")]


def test_a_link_that_nobody_else_has_takes_what_is_of_no_use_without_it() -> None:
    there = chain()
    both = Policy(filters=(parse_filter("id=S"), parse_filter("id=B")))
    plan = make_plan(there, both, NOW, HAS)
    assert done(plan) == [
        ("prune", "blob/B"), ("prune", "snapshot/T"), ("prune", "snapshot/U"), ("prune", "snapshot/S"),
    ]  # fmt: skip
    assert [action.because_of for action in plan.actions] == ["", "snapshot/S", "snapshot/S", ""]
    assert [len(group) for group in plan.groups] == [1, 3]


def test_a_link_of_which_the_blob_stays_here_takes_nothing_with_it() -> None:
    there = chain()
    for name in ("S", "B"):
        plan = make_plan(there, Policy(filters=(parse_filter(f"id={name}"),)), NOW, HAS)
        assert [action.item.name for action in plan.actions] == [name]
        assert "another form" in plan.actions[0].reason
    assert would_free(there, there.by_key["snapshot/S"]) == 50


def test_a_link_that_somebody_has_takes_nothing_with_it() -> None:
    there = chain()
    plan = make_plan(there, Policy(filters=(parse_filter("id=L"),)), NOW, HAS)
    assert done(plan) == [("demote", "layer/L")]
    assert (plan.actions[0].demoted_to, plan.actions[0].digest) == ((REGISTRY,), "b0")
    assert would_free(there, there.by_key["layer/L"]) == 100


def test_a_provider_that_lost_it_is_nobody_who_has_it() -> None:
    plan = make_plan(chain(), Policy(filters=(parse_filter("id=L"),)), NOW, {"layer/L": "bytes-lost"})
    assert {key for _, key in done(plan)} == {one.key for one in chain().items}
    assert {kind for kind, _ in done(plan)} == {"prune"}


def test_what_cannot_be_asked_about_stays_unless_all_may_go() -> None:
    silent: dict[str, Answer] = {"layer/L": "provider-unreachable"}
    plan = make_plan(chain(), Policy(), NOW, silent)
    assert "layer/L" not in {key for _, key in done(plan)}
    assert [(one.key, "reached" in why) for one, why in plan.kept] == [("layer/L", True)]
    assert ("prune", "layer/L") in done(make_plan(chain(), Policy(everything=True), NOW, silent))


@pytest.mark.parametrize(
    "one",
    [item("snapshot/X", in_use=True), item("snapshot/X", images=("app",)), item("blob/X", kind="context"),
     item("blob/X", kind="record"), item("tmp/x"), item("log/")],
    ids=lambda one: f"{one.kind} {one.in_use} {one.images}",
)  # fmt: skip
def test_what_is_not_let_go_without_being_asked_for(one: Item) -> None:
    plan = make_plan(inventory([one], {}), Policy(), NOW, {})
    assert done(plan) == []
    assert [kept for kept, _ in plan.kept] == ([one] if one.collectable else [])
    everything = make_plan(inventory([one], {}), Policy(everything=True), NOW, {})
    assert [action.item for action in everything.actions] == ([one] if one.collectable and not one.in_use else [])


@given(st.integers(0, 2**32))
def test_a_plan_never_breaks_a_ref_that_it_does_not_give_up_and_leaves_nothing_of_those_it_does(seed: int) -> None:
    rng = random.Random(seed)
    refs: dict[str, tuple[str, ...]] = {"0": ("layer/0",)}
    for number in range(1, rng.randint(2, 12)):
        refs[str(number)] = (*refs[rng.choice(list(refs))], f"snapshot/{number}")
    used = {ref: rng.randint(1, 50) for ref in refs}
    needed = set(rng.sample(list(refs), rng.randint(0, 1)))
    layers = {layer for ref in refs.values() for layer in ref}
    remote = {layer for layer in layers if rng.random() < 0.4}
    items = []
    for layer in sorted(layers):
        if rng.random() < 0.1 and layer in remote:
            continue  # only a pointer
        of = [ref for ref, parts in refs.items() if layer in parts]
        items.append(item(
            layer, rng.randint(1, 9), hours=min(used[ref] for ref in of), depth=refs[of[0]].index(layer),
            copy=layer if layer in remote else "", in_use=any(ref in needed for ref in of),
        ))  # fmt: skip
    there = inventory(items, refs)
    keep = rng.choice([None, rng.randint(0, there.cached_bytes)])
    asked_for = rng.sample(items, rng.randint(0, len(items)))  # none: all may go; else maybe a base first
    policy = Policy(
        keep_storage=keep, keep_duration=rng.choice([0, 20 * HOUR]), everything=True,
        filters=tuple(parse_filter(f"id={one.name}") for one in asked_for),
    )  # fmt: skip
    plan = make_plan(there, policy, NOW, {layer: (REGISTRY, layer) for layer in remote})
    gone = {action.item.key for action in plan.actions}
    here = {one.key for one in items}
    assert not any(action.item.in_use for action in plan.actions)
    assert not gone & {part for ref in needed for part in refs[ref]}
    whole = {ref for ref, parts in refs.items() if all((p in here and p not in gone) or p in remote for p in parts)}
    for layer in here - gone:
        assert any(layer in refs[ref] for ref in whole), "left though no ref can use it"
    pruned = {action.item.key for action in plan.actions if action.kind == "prune"}
    for ref in refs.keys() - whole:
        assert set(refs[ref]) & pruned
    if keep is not None:
        assert plan.bytes == 0 or there.cached_bytes - plan.bytes + sum(
            action.item.bytes for action in list(plan.groups)[-1]
        ) > keep, "it went on when there was room enough"


def test_filters_are_those_of_docker() -> None:
    one = item("snapshot/abc", hours=30, label="RUN make", builds=("b1",), images=("r/app:1",), results=2, copy="d")
    for passing in ("id=ab", "kind=snapshot", "type=regular", "build=b1", "image=r/app:1", "image=r/app", "until=24h",
                    "inuse=false", "shared=true", "private=0", "remote=true", "description=make", "kind!=blob",
                    "image!=r/other"):  # fmt: skip
        assert passes([parse_filter(passing)], one, NOW), passing
        other = passing.replace("!=", "=") if "!=" in passing else passing.replace("=", "!=")
        assert not passes([parse_filter(other)], one, NOW), other
    assert passes([parse_filter("kind=blob"), parse_filter("kind=snapshot")], one, NOW)
    assert not passes([parse_filter("kind=snapshot"), parse_filter("until=48h")], one, NOW)


@pytest.mark.parametrize("written", ["", "kind", "nothing=x", "=x", "until=soon", "inuse=maybe"])
def test_a_filter_that_is_none_is_refused_in_one_line(written: str) -> None:
    with pytest.raises(InputError):
        parse_filter(written)


def test_sizes_and_durations_are_read_as_people_write_them() -> None:
    assert [storage_size(text) for text in ("0", "12", "1kB", "1.5MB", "10GB", "2GiB", "512 mib", "3B")] == [
        0, 12, 1000, 1_500_000, 10**10, 2**31, 2**29, 3,
    ]  # fmt: skip
    assert [duration(text) // HOUR for text in ("0", "72h", "1h30m", "7d", "90m", "1w")] == [0, 72, 1, 168, 1, 168]
    for bad in ("", "10XB", "-1GB", "GB", "1e9"):
        with pytest.raises(InputError):
            storage_size(bad)
    for bad in ("", "72", "h", "-1h", "1h x", "1y"):
        with pytest.raises(InputError):
            duration(bad)


def test_what_stays_is_named_only_when_it_is_missed() -> None:
    there = inventory([item("snapshot/X", 5, in_use=True), item("snapshot/Y", 5)], {})
    assert [len(make_plan(there, Policy(keep_storage=keep), NOW, {}).kept) for keep in (10, 5, 4)] == [0, 0, 1]
