"""The loss drill: one random loss, then a build through the command line, many times.

An image is built and pushed once. Each run takes a copy of that root, as it was left ("warm") or with everything gone
that the registry has ("lean": all steps are remote hits), damages something, and builds: the same again into an
archive, the same with another last step (which needs the bytes of all before), or a push to another repository. The
digest must be the one of an undamaged build (SOURCE_DATE_EPOCH makes it the same), and all blobs of an archive what
they are called.

An error is right only where bytes are gone that a build cannot make: those of the base image, or all of the registry.
It is one line, names registry and digest (or the image, when its manifest is what the registry cannot give), and the
exit code is 3 or 4.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.errors import RefledgerError
from storage.overlay import mounts_below
from tools.drills.damage import LOCAL, Damage, in_registry, registry_away
from tools.drills.place import AGAIN, OTHER, PUSH, Action, Done, Place
from tools.lab.loopback_registry import LoopbackRegistry
from tools.lab.peers import workplace

RIGHT, ERROR, WRONG = "right", "clear error", "WRONG"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one run ended."""

    kind: str
    outcome: str
    story: str


def run_once(place: Place, number: int, dice: random.Random) -> Verdict:
    """One run. Raises HostError when the registry does not come back."""
    damage = dice.choice([*LOCAL, in_registry, in_registry, registry_away, registry_away])
    variant = "warm" if damage in LOCAL and dice.random() < 0.8 else dice.choice(["warm", "lean", "lean"])
    action = dice.choice([AGAIN, OTHER, OTHER, PUSH])
    with place.root(variant) as root:
        done = damage(place, root, dice)
        try:
            built = place.build(root, action, f"drill/to{number}", done.meanwhile)
        finally:
            done.undo()
        problem = judge(place, action, done, built) or leftovers(root)
    outcome = WRONG if problem else RIGHT if built.code == 0 else ERROR
    story = f"run {number}: {variant}, {action.name}, {done.kind}: {done.what}: {problem or outcome}"
    if outcome != RIGHT:
        said = built.said.splitlines()[-40:]
        shown = said if problem else [line for line in said if line.startswith("ERROR")]
        story = "\n    ".join([story, *shown])
    return Verdict(done.kind, outcome, story)


def judge(place: Place, action: Action, damage: Damage, built: Done) -> str:
    """What is wrong with how the build ended, "" when nothing is."""
    if "Traceback" in built.said:
        return "a traceback"
    if built.code == 0:
        expected = place.expected[action.last]
        return "" if built.digest == expected else f"the image is {built.digest or 'broken'}, not {expected}"
    errors = [line for line in built.said.splitlines() if line.startswith("ERROR")]
    if len(errors) != 1:
        return f"{len(errors)} error lines"
    if not damage.digest and not damage.away:
        return f"exit code {built.code}, though everything could be made again"
    if built.code not in {3, 4}:
        return f"exit code {built.code}"
    if place.registry.host not in errors[0]:
        return "the error does not name the registry"
    named = damage.digest.partition(":")[2][:12] in errors[0]
    if damage.digest and not named and not (damage.digest == place.base_manifest and place.base in errors[0]):
        return "the error does not name the digest"
    return ""


def leftovers(root: Path) -> str:
    """What the build left that it should not have."""
    left = list(map(str, mounts_below(root)))
    left += [str(path.relative_to(root)) for where in ("tmp/*", "run/*/*") for path in root.glob(where)]
    return f"leftovers: {', '.join(left)[:200]}" if left else ""


def drill(runs: int, first: int, parent: Path | None, snapshotter: str, *, verbose: bool) -> int:
    """All runs; returns the number of those that went wrong."""
    verdicts: list[Verdict] = []
    with workplace(parent) as directory, LoopbackRegistry(directory / "registry") as registry:
        place = Place(directory, registry, snapshotter)
        place.prepare()
        for number in range(first, first + runs):
            verdict = run_once(place, number, random.Random(number))  # noqa: S311 - a drill, not a secret
            verdicts.append(verdict)
            if verbose or verdict.outcome == WRONG:
                print(verdict.story, flush=True)
    table(verdicts)
    return sum(verdict.outcome == WRONG for verdict in verdicts)


def table(verdicts: Sequence[Verdict]) -> None:
    """Markdown."""
    counts = Counter((verdict.kind, verdict.outcome) for verdict in verdicts)
    print(f"| damage | runs | {RIGHT} | {ERROR} | {WRONG} |\n|---|---|---|---|---|")
    for kind in (*sorted({verdict.kind for verdict in verdicts}), ""):
        found = [sum(n for (k, o), n in counts.items() if o == outcome and (not kind or k == kind))
                 for outcome in (RIGHT, ERROR, WRONG)]  # fmt: skip
        print(f"| {kind or 'all'} | {sum(found)} | {' | '.join(map(str, found))} |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 when a run went wrong, 3 when the host refuses, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="tools/drills/loss", description="Builds on roots and registries that lose bytes."
    )
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of the first run; each next one has the next number")
    parser.add_argument("--directory", type=Path, help="where to work; default: the temporary directory")
    parser.add_argument("--snapshotter", choices=["auto", "erofs", "directory"], default="auto")
    parser.add_argument("--verbose", action="store_true", help="a line for every run")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        wrong = drill(max(1, given.runs), given.seed, given.directory, given.snapshotter, verbose=given.verbose)
    except RefledgerError as error:
        print(f"loss: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
