"""Bundles that carry their proof: that their events are those of a log that was signed.

The proof is a blob of role `proof`, a JSON object: `checkpoint`, the signed note; `hashes`, base64 of 32 bytes each,
which lead from the leaves of the bundle's events up to its size to its root (storage/logtree/multiproof.py); `states`:
by `seq`, what the log stores of an event where that is not the JSON of what it says; `salts`: of values that are kept
apart (storage/log/detached.py), by `seq` and pointer, so that the digests that are stored in their places prove them.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from projections.wellformed import Fault, Wellformed, at, ordered
from storage.bundle.reading import Bundle, read_bundle
from storage.digest import canonical_json, parse_json
from storage.errors import VerificationError
from storage.interfaces.log import Event
from storage.log.codec import Row, stored_state
from storage.log.detached import BadPayload, part
from storage.logtree.leaves import leaf_hashes
from storage.logtree.multiproof import multiproof, root_of
from storage.signing.notes import Checkpoint, Note, Verifier
from tools.auditing.checkpoints import AuditedLog, last_signed, settled_tree
from tools.documents import small_blobs

Json = dict[str, Any]
_HASH = 32
_ENDS = frozenset({"BuildCompleted", "BuildFailed", "BuildCancelled", "BuildInterrupted"})


def prove_events(root: Path, log: AuditedLog, events: Sequence[Event]) -> bytes | None:
    """The proof of those of `events` (in order) that are signed; None when none is. Raises VerificationError when the
    log is not what was signed, LogError, DiskError."""
    signed = last_signed(root, log)
    size = signed.checkpoint.size if signed else 0
    covered = [event for event in events if event.seq <= size]
    if signed is None or not covered:
        return None
    states: dict[str, str] = {}
    salts: dict[str, dict[str, str]] = {}
    for event in covered:
        [row] = log.rows(event.seq - 1, event.seq)
        if stored_state(event) != row[4]:
            states[str(event.seq)] = row[4].decode()
            here = [one for one in log.payloads(event.seq - 1, event.seq) if one.data]
            if here:
                salts[str(event.seq)] = {one.pointer: b64encode(one.salt).decode() for one in here}
    with settled_tree(root, log, signed) as tree:
        hashes = multiproof(tree.node, [event.seq - 1 for event in covered], size)
    said = {"checkpoint": signed.note, "hashes": b64encode(b"".join(hashes)).decode(), "states": states}
    said |= {"salts": salts} if salts else {}
    return canonical_json(said)


# ---------------------------------------------------------------- checking


@dataclass(slots=True)
class BundleVerdict:
    """What was found in a bundle. `proven`: events that a checkpoint vouches for; `signed`: by a trusted key."""

    build: str
    events: int
    blobs: int
    proven: int = 0
    signed: bool = False
    origin: str = ""
    size: int = 0
    proof: bool = False
    withheld: int = 0
    faults: list[Fault] = field(default_factory=list)

    def to_json(self) -> Json:
        """The object that `audit verify BUNDLE --json` prints."""
        first = self.faults[0].to_json() if self.faults else None
        return {
            "sound": not self.faults, "first": first, "faults": [fault.to_json() for fault in self.faults],
            "build": self.build, "events": self.events, "blobs": self.blobs, "withheld": self.withheld,
            "proof": self.proof, "proven": self.proven, "signatures_checked": self.signed,
            "origin": self.origin or None, "log_size": self.size or None,
        }  # fmt: skip


def verify_bundle(path: Path, keys: Sequence[Verifier]) -> BundleVerdict:
    """Check the bundle at `path`: its bytes, its events, and that they are those of a signed log. Raises InputError (it
    is none), DiskError, VerificationError when there is not even an index."""
    bundle = read_bundle(path)
    verdict = BundleVerdict(bundle.index.build, len(bundle.events), len(bundle.index.blobs))
    verdict.withheld = len(bundle.index.withheld)
    if bundle.damage is not None:
        verdict.faults = [Fault(0, 0, "file", bundle.damage.what)]
        return verdict
    faults = [*_story(bundle), *_blobs(bundle), *_proof(verdict, bundle, keys)]
    verdict.faults = list(ordered(faults))
    return verdict


def _story(bundle: Bundle) -> list[Fault]:
    """The stream of the build is whole, and what of others is here can be a part of a log."""
    form = Wellformed()
    own = f"build/{bundle.index.build}"
    version, time, ended, faults = 0, 0, False, []
    for event in bundle.events:
        if event.time < time:
            faults.append(at(event.seq, "time", "it is earlier than the event before it"))
        time = max(time, event.time)
        if event.stream == own:
            if event.version != version + 1:
                what = f"it is number {event.version} of its build, where number {version + 1} should stand"
                faults.append(at(event.seq, "version", what))
            version, ended = event.version, ended or event.type in _ENDS
        if problem := form.fits(event.type, event.stream, event.build, event.data):
            faults.append(at(event.seq, *problem))
        if event.cause is not None and not 0 < event.cause < event.seq:
            faults.append(at(event.seq, "cause", f"it says that event {event.cause} led to it"))
    if not ended:
        last = bundle.events[-1].seq if bundle.events else 1
        faults.append(at(last, "end", f"the end of build {bundle.index.build} is not in it"))
    return faults


def _blobs(bundle: Bundle) -> list[Fault]:
    """Documents that its events name are here, or it says why not. (Those that are here were hashed.)"""
    here = {str(member.digest) for member in bundle.index.blobs}
    said = {item["name"] for item in bundle.index.withheld}
    kinds = {item["kind"] for item in bundle.index.withheld}
    missing = {
        digest: role for digest, role in small_blobs(bundle.events).items()
        if digest not in here and digest not in said and not (role == "listing" and "context" in kinds)
    }  # fmt: skip
    faults = []
    for event in bundle.events:
        named = [value for value in event.data.values() if isinstance(value, str) and value in missing]
        faults += [
            at(event.seq, "blob", f"its {missing.pop(value)}, blob {value}, is not in the bundle")
            for value in dict.fromkeys(named)
        ]
    return faults


def _proof(verdict: BundleVerdict, bundle: Bundle, keys: Sequence[Verifier]) -> list[Fault]:
    data = next((bundle.small[member.digest] for member in bundle.index.blobs if member.role == "proof"), None)
    first, last = (bundle.events[0].seq, bundle.events[-1].seq) if bundle.events else (1, 1)
    if data is None:
        return [Fault(first, last, "signature", "the bundle has no proofs in it")] if keys else []
    verdict.proof = True
    try:
        said = parse_json(data)
        note = Note.parse(said["checkpoint"])
        checkpoint = Checkpoint.parse(note.text)
        hashes, states = b64decode(said["hashes"], validate=True), said["states"]
        salts = said.get("salts") or {}
        if len(hashes) % _HASH or not isinstance(states, dict) or not isinstance(salts, dict):
            raise ValueError("the hashes are cut off")
        signers = [key for key in note.verified_by(keys) if checkpoint.origin.rpartition("/")[0] == key.name]
        covered = [event for event in bundle.events if event.seq <= checkpoint.size]
        rows = [_row(event, states, salts) for event in covered]
        proof = [hashes[at : at + _HASH] for at in range(0, len(hashes), _HASH)]
        root = root_of(list(leaf_hashes(rows)), [row[0] - 1 for row in rows], checkpoint.size, proof)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return [Fault(first, last, "proof", f"the proof is not one of these events: {error}")]
    except _Differs as error:
        return [at(error.seq, "proof", "it is not what its log stored")]
    except VerificationError as error:
        return [Fault(first, last, "signature", f"the checkpoint in the bundle is wrong: {error.what}")]
    if root != checkpoint.root:
        return [Fault(first, covered[-1].seq, "proof", f"not all of these are in the log {checkpoint.origin}")]
    verdict.origin, verdict.size, verdict.proven = checkpoint.origin, checkpoint.size, len(covered)
    verdict.signed = bool(signers)
    if keys and not signers:
        what = "the checkpoint in the bundle is not signed by a key that was given"
        return [Fault(first, last, "signature", what)]
    return []


class _Differs(Exception):
    def __init__(self, seq: int) -> None:
        super().__init__(seq)
        self.seq = seq


def _row(event: Event, states: Mapping[str, Any], salts: Mapping[str, Any]) -> Row:
    """The event as its log stored it. Raises _Differs when what is said of that is not of this event."""
    state = stored_state(event)
    said = states.get(str(event.seq))
    if said is not None:
        stored = parse_json(said.encode())
        shown = parse_json(state)
        its = {place: b64decode(salt) for place, salt in (salts.get(str(event.seq)) or {}).items()}
        try:
            part(shown["d"], stored.get("x") or {}, its)
        except BadPayload as error:
            raise _Differs(event.seq) from error
        if {key: value for key, value in stored.items() if key != "x"} != shown:
            raise _Differs(event.seq)
        state = said.encode()
    return event.seq, event.stream, event.version, event.type, state
