"""Measuring a root and letting go of what is in it: takes the inventory, asks providers, and carries out a plan.

How a build that runs is safe, also from another process:
- It holds the lock `build-<id>` for as long as it lives; what it needs is in the log (its claims), and is in no plan.
- It takes the lock `collect` shared while it relies on something that the log does not say yet: from the answer of the
  cache to the durable event that names it. Each removal holds `collect` alone, and looks at the log once more: what
  was used since the plan was made stays.
- The event is durable before the bytes go (I6 the other way round); they go by a rename, whole. A collection that is
  killed leaves them below `tmp`, for the next build to remove.
"""

from __future__ import annotations

import getpass
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from engine.events import Demoted, Fact, ProviderLost, Pruned, to_data
from engine.together import COLLECT
from projections.collect import Action, Answer, Plan, Policy, candidates, make_plan
from projections.inventory import UNSPOKEN, Inventory, Item, take_inventory
from projections.runner import Views
from projections.usage import Usage
from storage.digest import Digest
from storage.errors import DiskError, FailureKind
from storage.interfaces.images import Provider
from storage.interfaces.locks import Locks
from storage.interfaces.log import NewEvent
from storage.locks import FileLocks
from storage.partial import lock_name
from storage.usage import DiskItems, measure, mentioned
from tools.roots import Root, owning

POLL, PATIENCE = 0.01, 60.0
"""Seconds between two looks at the lock COLLECT, and until a removal is given up."""
_OWNER = "prune"
"""What the ids of collections begin with; those of builds are hexadecimal."""
_CONNECT_SECONDS, _TRIES = 5.0, 2


def running_builds(locks: Path) -> list[str]:
    """Ids of the builds that are alive now. Writes nothing. Raises DiskError."""
    held = FileLocks(locks)
    try:
        names = sorted(path.name for path in locks.iterdir() if path.name.startswith("build-"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DiskError.of(error, "looking for builds that run") from error
    ids = [name.removeprefix("build-") for name in names if held.held(name)]
    return [one for one in ids if not one.startswith(_OWNER)]


def survey(path: Path, views: Views) -> Inventory:
    """What is in the root at `path`. Writes nothing, uses no network. Raises DiskError, LogError."""
    measured = measure(path)
    running = running_builds(path / "locks")
    documents = _mentioned(path, views, measured.items)
    return take_inventory(
        views, measured.items, measured.directories, running, documents, _busy(path / "locks", measured.items)
    )


def _busy(locks: Path, items: Iterable[str]) -> set[str]:
    """Cache mounts and interrupted pulls that somebody works on now: no log says for how long."""
    held = FileLocks(locks)
    told = [key for key in items if key.startswith(("cachemount/", "partial/"))]
    return {key for key in told if any(map(held.held, _locks_of(key)))}


def _mentioned(path: Path, views: Views, items: Mapping[str, int]) -> dict[str, str]:
    """What blobs are that no event names, but a document that one names: the listings below a content key, archives."""
    documents = Usage(views).documents()
    stored = {key.removeprefix("blob/") for key in items if key.startswith("blob/")}
    unnamed = stored - documents.keys()
    if not unnamed:
        return {}

    def of_role(role: str) -> list[str]:
        return [digest for digest, known in documents.items() if known == role and digest in stored]

    archives = dict.fromkeys(mentioned(path, of_role("graph"), unnamed), "source")
    return {**archives, **dict.fromkeys(mentioned(path, of_role("record"), unnamed), "record")}


def who() -> str:
    """The person who runs this, also behind sudo."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # no such user here
        return str(os.getuid())


# ---------------------------------------------------------------- planning


async def plan_collection(root: Root, policy: Policy, *, dry_run: bool) -> Plan:
    """What `policy` lets go now. Asks providers who is known to have it, and nobody when there is room enough. Raises
    DiskError, LogError."""
    root.views.catch_up(root.log)
    inventory = survey(root.path, root.views)
    now = time.time_ns()
    chosen = candidates(inventory, policy, now)
    answers = await _ask(root, chosen, dry_run=dry_run)
    return make_plan(inventory, policy, now, answers)


async def _ask(root: Root, items: Sequence[Item], *, dry_run: bool) -> dict[str, Answer]:
    wanted: dict[Digest, list[Provider]] = {}
    for item in items:
        for copy in item.copies:
            if copy.providers:
                wanted.setdefault(Digest(copy.digest), []).extend(copy.providers)
    if not wanted:
        return {}
    from engine.refs.holders import Holders
    from storage.layout.source import WithLayouts
    from storage.registry.limits import Limits
    from tools.connecting import registry_client

    async def lost(digest: Digest, provider: Provider, kind: FailureKind, error: str) -> None:
        if not dry_run:
            fact = ProviderLost(ref=digest, digest=digest, provider=provider.to_json(), kind=kind, error=error)
            root.log.append(_event(f"ref/{digest}", fact))

    limits = Limits(connect_seconds=_CONNECT_SECONDS, tries=_TRIES)
    client = registry_client(limits)
    try:
        # reason for no mirrors of registries.toml: they may let go of what they keep, and then nobody would have it
        found = await Holders(WithLayouts(client), lost).find(
            {digest: tuple(dict.fromkeys(providers)) for digest, providers in wanted.items()}
        )
    finally:
        await client.aclose()
    return {item.key: answer for item in items if (answer := _answer(item, found)) is not None}


def _answer(item: Item, found: Mapping[Digest, Provider | str]) -> Answer | None:
    """Any copy will do; if there is none, one that nobody could be asked about says so."""
    told = [(copy.digest, found[Digest(copy.digest)]) for copy in item.copies if copy.providers]
    for digest, answer in told:
        if isinstance(answer, Provider):
            return answer, digest
    reasons = {answer for _, answer in told if isinstance(answer, str)}
    return max(reasons, default=None)  # "provider-unreachable" comes after "bytes-lost"


def _event(stream: str, fact: Fact) -> NewEvent:
    return NewEvent(stream, type(fact).__name__, to_data(fact))


# ---------------------------------------------------------------- carrying out


@dataclass(slots=True)
class Collected:
    """What came of a plan: `done` in order, `skipped` with the reason; `bytes` freed."""

    done: list[Action] = field(default_factory=list)
    skipped: list[tuple[Action, str]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Freed."""
        return sum(action.item.bytes for action in self.done)


@contextmanager
def collector(root: Root) -> Iterator[str]:
    """An id whose leftovers others can tell, held while it is needed: as a build has one (roots.owning)."""
    owner = f"{_OWNER}{secrets.token_hex(6)}"
    with owning(root, owner):
        yield owner


def carry_out(root: Root, plan: Plan, policy: Policy) -> Collected:
    """Do what `plan` says, as far as it still holds. Raises DiskError, LogError; what was done until then is done."""
    collected = Collected()
    with collector(root) as owner:
        disk = DiskItems(root.path, owner)
        for group in plan.groups:
            reason = _let_go(root, disk, group, plan.position, policy)
            if reason:
                collected.skipped += [(action, reason) for action in group]
            else:
                collected.done += group
    return collected


def _let_go(root: Root, disk: DiskItems, group: Sequence[Action], position: int, policy: Policy) -> str:
    """Why the items of `group` stay; "" when they went."""
    with ExitStack() as held:
        if not _acquire(root.locks, held):
            return "builds begin all the time"
        for name in (name for action in group for name in _locks_of(action.item.key)):
            lock = root.locks.try_acquire(name)
            if lock is None:
                return "somebody uses it now"
            held.enter_context(lock)
        root.views.catch_up(root.log)
        if _used_since(root, [action.item for action in group], position):
            return "it was used since"
        present = [action for action in group if disk.here(action.item.key)]
        if not present:
            return "it went before"
        root.log.append(*(_tombstone(action, policy) for action in present))
        taken = [path for action in present for path in disk.take(action.item.key)]
    disk.discard(taken)
    return ""


def _acquire(locks: Locks, held: ExitStack) -> bool:
    """Wait until no build stands between an answer and its event."""
    deadline = time.monotonic() + PATIENCE
    while (lock := locks.try_acquire(COLLECT)) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    held.enter_context(lock)
    return True


def _used_since(root: Root, items: Sequence[Item], position: int) -> bool:
    usage = Usage(root.views)
    if any(usage.last_use(item.key) > position for item in items):
        return True
    running = running_builds(root.path / "locks")
    if not running:
        return False
    claims = usage.claims(running)
    return any(item.kind in UNSPOKEN or item.key in claims for item in items)


def _locks_of(key: str) -> tuple[str, ...]:
    """What somebody who makes or writes the item holds meanwhile."""
    kind, _, name = key.partition("/")
    return {
        "partial": (lock_name(name),),
        "cachemount": (f"cache-{name.replace('/', '-')}",),
        "snapshot": (f"layer-{name}", f"pack-{name}"),
        "layer": (f"layer-{name}",),
    }.get(kind, ())


def _tombstone(action: Action, policy: Policy) -> NewEvent:
    item = action.item
    kind = item.key.partition("/")[0]
    fact: Fact
    if action.demoted_to:
        providers = tuple(provider.to_json() for provider in action.demoted_to)
        fact = Demoted(
            kind=kind, name=item.name, digest=action.digest, providers=providers, policy=policy.name,
            bytes=item.bytes, by=policy.by,
        )  # fmt: skip
    else:
        fact = Pruned(kind=kind, name=item.name, policy=policy.name, bytes=item.bytes, by=policy.by)
    return _event("cache", fact)
