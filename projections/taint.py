"""What a result may hold beside what its cache key says: what a step was lent when it ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from projections.asked import Step
from projections.fields import BAD_EVENT, malformed, text
from projections.mentions import GIVEN
from storage.interfaces.log import Event

Json = dict[str, Any]
_MOUNTS = frozenset({"cache", "secret", "ssh"})


@dataclass(frozen=True, slots=True)
class Taint:
    """`kind`: network, cache, secret, ssh or security; `id` as the definition has it (of the network: host), which is
    part of the key, while what it gave is not. `target`: where the step saw it; `seen`: what the log says of the
    execution: `used`, a cache mount `empty` or `filled` by steps before, `absent`, "" when it does not tell."""

    kind: str
    id: str
    target: str = ""
    seen: str = ""

    def to_json(self) -> Json:
        """The fields, by name."""
        return asdict(self)


def taint_of(step: Step, lent: Sequence[Event] | None) -> tuple[Taint, ...]:
    """The taint of a step's result, in a fixed order. `lent`: the events of the execution that made it, None when they
    are in no log that is here. Raises LogError."""
    if step.kind != "run":
        return ()
    found = []
    if step.op.get("network") != "none":
        found.append(Taint("network", "host", seen="" if lent is None else "used"))
    for mount in step.op.get("mounts") or ():
        kind = str(mount.get("kind"))
        if kind in _MOUNTS:
            name, env = str(mount.get("id") or ""), str(mount.get("env") or "")
            target = str(mount.get("target") or "") or (f"${env}" if env else "")
            found.append(Taint(kind, name, target, _seen(kind, name, target, lent)))
    if step.op.get("security", "sandbox") != "sandbox":
        found.append(Taint("security", str(step.op["security"]), seen="" if lent is None else "used"))
    return tuple(found)


def _seen(kind: str, name: str, target: str, lent: Sequence[Event] | None) -> str:
    if lent is None:
        return ""
    told = [event for event in lent if GIVEN.get(event.type) == kind]
    try:
        here = [event for event in told if text(event.data, "id", "") == name]
        exact = [event for event in here if text(event.data, "target", "") == target] or here
    except BAD_EVENT as error:
        raise malformed(told[0], error) from error
    if not exact:
        return "absent"
    if kind != "cache":
        return "used"
    return "empty" if exact[-1].data.get("created") else "filled"
