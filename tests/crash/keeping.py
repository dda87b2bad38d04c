"""Scenes: what is done with a root and its log."""

from __future__ import annotations

from collections.abc import Sequence

from tests.crash.outcomes import SECRET, bundled, kept, names, nothing, outputs, traces
from tests.crash.place import Place
from tests.crash.scene import WAITS, Scene, build, first_build, recorded
from tools.auditing.keys import FILE, read_signer

KEY = "crash/test"


def _two_builds(place: Place) -> None:
    first_build(place)
    place.must(*build(place, "FROM {base}\nCOPY dir /dir\nRUN echo other > /other\n"))


def _with_key(place: Place) -> None:
    first_build(place)
    place.must("audit", "keygen", "--name", KEY)


def _signed_once(place: Place) -> None:
    _with_key(place)
    place.must("audit", "checkpoint")


def _talkative(place: Place) -> None:
    place.must(*build(place, f"FROM {{base}}\nRUN echo {SECRET[:4]}''{SECRET[4:]}\n"))


def _redacting(place: Place) -> Sequence[str]:
    return ["audit", "redact", recorded(place), "--reason", "a step printed it", "--yes"]


def _signed(place: Place) -> object:
    told = (place.root / "checkpoint").read_text().splitlines()
    return told[0].partition("/")[0], int(told[1]) > 0


def _published(place: Place) -> object:
    lines = (place.out / "published").read_text().splitlines() if (place.out / "published").is_file() else []
    return names(place), lines[:1]


def _has_key(place: Place) -> object:
    key = place.root / FILE
    return read_signer(key).verifier.name, oct(key.stat().st_mode)


def _bundling(place: Place) -> Sequence[str]:
    return ["bundle", recorded(place), "-o", f"{place.out}/build.bundle", "--full"]


def _reporting(place: Place) -> Sequence[str]:
    return ["report", recorded(place), "-o", f"{place.out}/report.html"]


def _proving(place: Place) -> Sequence[str]:
    return ["audit", "prove", "3", "-o", f"{place.out}/proof"]


def _provenance(place: Place) -> Sequence[str]:
    return ["audit", "provenance", recorded(place), "--sign", "-o", f"{place.out}/provenance.json"]


def _waiting(place: Place) -> Sequence[str]:
    """Stands on what a collection would let go."""
    return build(place, f"FROM {{base}}\nCOPY dir /dir\nRUN sleep {WAITS}; echo beside > /beside\n",
                 "-t", f"{place.host}/{place.repository}/beside:1", "--push")  # fmt: skip


SCENES = (
    Scene("prune", lambda _: ["prune", "--all"], kept, _two_builds),
    Scene("prune beside a build", lambda _: ["prune", "--all"], nothing, _two_builds, beside=_waiting, waits=True),
    Scene("rebuild", lambda _: ["rebuild"], nothing, first_build),
    Scene("keygen", lambda _: ["audit", "keygen", "--name", KEY], _has_key, first_build, codes=(0, 2)),
    Scene("checkpoint", lambda _: ["audit", "checkpoint"], _signed, _with_key),
    Scene("checkpoint --publish", lambda place: ["audit", "checkpoint", "--publish", f"file:{place.out}/published"],
          _published, _with_key),
    Scene("prove", _proving, names, _signed_once),
    Scene("provenance", _provenance, outputs, _with_key),
    Scene("redact", _redacting, traces, _talkative, codes=(0, 2)),
    Scene("bundle", _bundling, bundled, first_build),
    Scene("verify", lambda _: ["audit", "verify"], names, first_build),
    Scene("audit report", lambda place: ["audit", "report", recorded(place)], names, _with_key),
    Scene("report", _reporting, names, first_build),
)  # fmt: skip
