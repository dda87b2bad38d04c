"""What the user lends to one build: secrets, ssh agents, and permission to lift the sandbox.

The values stay in the process that runs the steps; everybody else, the log included, knows names only (`Offered`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.errors import NotGranted
from engine.graph import Mount, Run
from engine.record import Record

INSECURE = "security.insecure"
"""The name that `--allow` knows the permission for `RUN --security=insecure` by."""


class Offered(Record):
    """The ids of what was lent. Plain data."""

    secrets: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()


NOTHING = Offered()


@dataclass(frozen=True, slots=True)
class Grants:
    """`secrets`: values by id, read once; `agents`: sockets of running ssh agents by id; `allowed`: permissions."""

    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    agents: Mapping[str, str] = field(default_factory=dict)
    allowed: tuple[str, ...] = ()

    @property
    def offered(self) -> Offered:
        """The names of all that."""
        return Offered(tuple(sorted(self.secrets)), tuple(sorted(self.agents)), self.allowed)


def refusal(op: Run, offered: Offered) -> NotGranted | None:
    """Why `op` cannot run with what was lent; None when it can."""
    if op.security == "insecure" and INSECURE not in offered.allowed:
        return NotGranted("this step asks for --security=insecure", hint=f"allow it with --allow {INSECURE}")
    return next((_missing(mount) for mount in op.mounts if mount.required and not _has(mount, offered)), None)


def _has(mount: Mount, offered: Offered) -> bool:
    return mount.id in {"secret": offered.secrets, "ssh": offered.agents}.get(mount.kind, (mount.id,))


def _missing(mount: Mount) -> NotGranted:
    if mount.kind == "ssh":
        what = f"this step needs the ssh agent {mount.id!r}, which was not given"
        return NotGranted(what, hint=f"add --ssh {mount.id}, or {mount.id}=SOCKET or {mount.id}=KEYFILE")
    return NotGranted(
        f"this step needs the secret {mount.id!r}, which was not given",
        hint=f"add --secret id={mount.id},src=FILE, or id={mount.id},env=NAME with NAME set",
    )
