"""The policies that hold here, and what keeps builds to them.

`$REFLEDGER_POLICY` names a file whose rules hold for every build of this machine; `--policy` adds more, and no flag
takes one away. (`policy.toml` of a root is about something else: what is collected, see tools/collection_rules.py.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.ledger import Facts
from engine.refs.ref import Layer
from storage.errors import DiskError, InputError
from storage.interfaces.log import EventLog

if TYPE_CHECKING:
    # reason: what only builds with a policy need is not loaded for all
    from engine.images.read import ImageReader
    from engine.policy.gate import Gate
    from engine.policy.rules import Policy
    from storage.interfaces.registry import RegistryListing

VARIABLE = "REFLEDGER_POLICY"


def read_policies(given: Sequence[str] = ()) -> tuple[Policy, ...]:
    """The policy of this machine, if it has one, and those in the files `given`. Raises InputError, DiskError."""
    for file in given:
        if not Path(file).exists():
            raise InputError("there is no such policy", where=file, hint="--policy names a file of rules")
    files = [os.environ.get(VARIABLE, ""), *given]
    found = {(policy := read_policy(file)).digest: policy for file in files if file}
    return tuple(found.values())


def read_policy(file: str) -> Policy:
    """The policy in `file`. Raises InputError, DiskError."""
    from engine.policy.parse import LIMIT, parse_policy

    try:
        with Path(file).open("rb") as stream:
            text = stream.read(LIMIT + 1)
    except OSError as error:
        raise DiskError.of(error, "reading the policy") from error
    return parse_policy(text, file)


def make_gate(
    files: Sequence[str], log: EventLog, facts: Facts, images: ImageReader, listing: RegistryListing | None
) -> Gate | None:
    """What keeps a build that is recorded by `facts` in `log` to the rules in `files` and to this machine's; None when
    there are none. `listing`: None where nobody may be asked. Raises InputError, DiskError."""
    policies = read_policies(files)
    if not policies:
        return None
    from engine.attest.signed import Attestations
    from engine.policy.gate import Gate

    for policy in policies:
        images.blobs.put(policy.text)  # before an event names it
    signers = Attestations(images, listing).signers if listing is not None else None
    return Gate(policies, facts, time.time_ns, signers, verified_in(log))


def verified_in(log: EventLog) -> Callable[[Sequence[Layer]], list[bool]]:
    """Does `log` say of each layer that all its bytes were verified here, digest and diff ID, or
    that it was made here?"""
    seen = 0
    known: set[tuple[str, str]] = set()

    def verified(layers: Sequence[Layer]) -> list[bool]:
        nonlocal seen
        for event in log.read(after=seen, types=frozenset({"LayerPulled", "BlobCreated", "LayerStored"})):
            seen, data = event.seq, event.data
            if event.type == "LayerPulled" and not {"digest", "diff_id"} <= set(data["verified"]):
                continue
            one = data["layer"] if event.type == "LayerStored" else data
            known.update({(one["digest"], one.get("diff_id", "")), (one["digest"], "")})
        return [
            bool(layer.snapshot)
            or (layer.blob is not None and (str(layer.blob.digest), str(layer.diff_id or "")) in known)
            for layer in layers
        ]

    return verified
