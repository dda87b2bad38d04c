"""What to let go: a pure plan, made of an inventory, a policy, and what providers said.

Least recently used first, and what stands on others before them. What a provider still has is demoted: it costs
nothing but a pull later. What nobody else has is pruned, and with it what is of no use without it: a ref is a chain,
of which no link may be missing. What a running build needs is never in a plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from projections.filters import Filter, passes
from projections.inventory import Inventory, Item
from storage.interfaces.images import Provider


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be let go. `keep_storage`: stop when no more than so many bytes are left (None: take everything);
    `keep_duration`: nothing used in the last so many ns; `filters`: see `passes`;
    `everything`: also what named images stand on, contexts of builds, and what no provider can be asked about.
    `name`: what asks (for the log), `by` whom."""

    name: str = "prune"
    by: str = ""
    keep_storage: int | None = None
    keep_duration: int = 0
    filters: tuple[Filter, ...] = ()
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Action:
    """Let `item` go. `demoted_to`: who has it, empty for what nobody else has; `digest` of the blob they have;
    `reason` one line for people; `because_of`: the item that it is of no use without, "" when it was chosen itself."""

    item: Item
    reason: str
    demoted_to: tuple[Provider, ...] = ()
    digest: str = ""
    because_of: str = ""

    @property
    def kind(self) -> Literal["demote", "prune"]:
        """What happens to it."""
        return "demote" if self.demoted_to else "prune"


@dataclass(frozen=True, slots=True)
class Plan:
    """`actions` in the order in which they are done, what is of no use without an item right before it; `kept`: what
    would be taken but for the reason beside it; `position`: the event up to which the plan knows the log."""

    actions: tuple[Action, ...]
    kept: tuple[tuple[Item, str], ...]
    position: int = 0

    @property
    def bytes(self) -> int:
        """What is freed."""
        return sum(action.item.bytes for action in self.actions)

    @property
    def groups(self) -> Iterator[tuple[Action, ...]]:
        """Actions that are done together or not at all."""
        group: list[Action] = []
        for action in self.actions:
            group.append(action)
            if not action.because_of:
                yield tuple(group)
                group = []


Answer = tuple[Provider, str] | str
"""Who has the blob of that digest; or why nobody does: `bytes-lost`, `provider-unreachable`."""


def candidates(inventory: Inventory, policy: Policy, now: int) -> list[Item]:
    """What `policy` lets go at `now` (UTC ns), in the order in which it would; empty when there is room enough."""
    if policy.keep_storage is not None and inventory.cached_bytes <= policy.keep_storage:
        return []
    return sorted((item for item in inventory.items if _eligible(item, policy, now)), key=_order)


def make_plan(inventory: Inventory, policy: Policy, now: int, answers: Mapping[str, Answer]) -> Plan:
    """`answers`: by key, of the candidates that somebody else is known to have."""
    planning = _Planning(inventory, policy, answers)
    chosen = candidates(inventory, policy, now)
    for item in chosen:
        if planning.enough():
            break
        planning.choose(item)
    named = [
        (item, why)
        for item in inventory.items
        if not planning.enough() and (why := _protected(item, policy, now))
    ]
    return Plan(tuple(planning.actions.values()), (*planning.kept, *named), inventory.position)


def would_free(inventory: Inventory, item: Item) -> int:
    """Bytes that letting `item` go frees, with what is of no use without it."""
    planning = _Planning(inventory, Policy(everything=True), _as_known(item))
    planning.choose(item)
    return sum(action.item.bytes for action in planning.actions.values())


def _as_known(item: Item) -> dict[str, Answer]:
    copy = next((copy for copy in item.copies if copy.providers), None)
    return {item.key: (copy.providers[0], copy.digest)} if copy else {}


def _order(item: Item) -> tuple[int, int, str]:
    return item.time, -item.depth, item.key


def _eligible(item: Item, policy: Policy, now: int) -> bool:
    return _wanted(item, policy, now) and not _protected(item, policy, now)


def _wanted(item: Item, policy: Policy, now: int) -> bool:
    if not item.collectable or (policy.keep_duration and item.time > now - policy.keep_duration):
        return False
    return passes(policy.filters, item, now)


def _protected(item: Item, policy: Policy, now: int) -> str:
    """Why something that the policy would take stays; "" for what does not, and for what it would not take."""
    if not _wanted(item, policy, now):
        return ""
    if item.in_use:
        return "in use by a running build"
    if policy.everything:
        return ""
    if item.images:
        return f"part of {item.images[0]} (--all takes that, too)"
    if item.kind == "context" or (item.kind == "unnamed" and item.key.startswith("blob/")):
        return "part of a build's record (--all takes that, too)"
    return ""


@dataclass(slots=True)
class _Planning:
    """What is left while items are taken one after the other."""

    inventory: Inventory
    policy: Policy
    answers: Mapping[str, Answer]
    actions: dict[str, Action] = field(default_factory=dict)
    kept: list[tuple[Item, str]] = field(default_factory=list)
    left: int = 0
    gone: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    dead_of: Counter[str] = field(default_factory=Counter)
    """How many of the refs that each layer is part of are dead."""

    def __post_init__(self) -> None:
        self.left = self.inventory.cached_bytes

    def enough(self) -> bool:
        """Is no more to be taken?"""
        return self.policy.keep_storage is not None and self.left <= self.policy.keep_storage

    def choose(self, item: Item) -> None:
        """Take `item`, and what is of no use without it, unless it has to stay."""
        if item.key in self.actions:
            return
        answer = self.answers.get(item.key)
        if answer == "provider-unreachable" and not self.policy.everything:
            self.kept.append((item, "whoever has it besides cannot be reached (--all takes it)"))
            return
        if isinstance(answer, tuple):
            self._take(Action(item, f"{answer[0]} has it", (answer[0],), answer[1]))
            return
        followers = list(dict.fromkeys(self._lost_with(item)))
        if any(follower.in_use for follower in followers):  # its leases cover what it stands on: cannot be
            return
        for follower in sorted(followers, key=_order):
            self._take(Action(follower, "of no use without what it stands on", because_of=item.key))
        self._take(Action(item, _why_pruned(item, answer, self._spare(item))))

    def _take(self, action: Action) -> None:
        self.actions[action.item.key] = action
        self.left -= action.item.bytes

    def _spare(self, item: Item) -> bool:
        """Is everything that `item` holds here without it?"""
        layers = self.inventory.layers_of.get(item.key, ())
        return bool(layers) and all(
            any(key not in self.actions and key != item.key for key in self.inventory.forms.get(layer, ()))
            for layer in layers
        )

    def _alive(self, layer: str) -> bool:
        return self.dead_of[layer] < len(self.inventory.refs_of.get(layer, ()))

    def _lost_with(self, item: Item) -> Iterator[Item]:
        """Items that no ref can use any more when `item` is gone from here, which nobody else has."""
        losing = [
            layer
            for layer in self.inventory.layers_of.get(item.key, ())
            if layer not in self.gone
            and not any(key != item.key and key not in self.actions for key in self.inventory.forms.get(layer, ()))
        ]
        useless: set[str] = set()
        for layer in losing:
            self.gone.add(layer)
            for ref in self.inventory.refs_of.get(layer, ()):
                if ref in self.dead:
                    continue
                self.dead.add(ref)
                for part in dict.fromkeys(self.inventory.refs[ref]):
                    self.dead_of[part] += 1
                    if not self._alive(part):
                        useless.add(part)
        for layer in useless:
            for key in (*self.inventory.forms.get(layer, ()), *self.inventory.blobs.get(layer, ())):
                users = self.inventory.layers_of.get(key, ())
                if key != item.key and key not in self.actions and not any(map(self._alive, users)):
                    yield self.inventory.by_key[key]


def _why_pruned(item: Item, answer: Answer | None, spare: bool) -> str:
    if item.kind in {"partial", "cachemount", "unnamed", "context"}:
        return {
            "partial": "an interrupted pull", "cachemount": "a cache mount", "unnamed": "no event names it",
            "context": "contents of a context",
        }[item.kind]  # fmt: skip
    if spare:
        return "what it holds stays in another form"
    if item.kind == "source":
        return "can be fetched again"
    if answer == "bytes-lost":
        return "its provider does not have it any more"
    return "only here, its step would run again"
