"""`python -m tests.crash`: crash each command at each moment, print what was wrong, and a table."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.crash.crash import HOWS, Crash, registries, staged
from tests.crash.scenes import SCENES


def main() -> int:
    """Exit code 0, or 1 when something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--scene", action="append", choices=list(SCENES), help="only this; may be given again")
    parser.add_argument("--how", action="append", choices=HOWS, help="only this; may be given again")
    parser.add_argument("--moment", action="append", help="as it is printed, or as in before:Exported")
    parser.add_argument("--at-most", type=int, default=10**9, metavar="N", help="of each kind of crash of a scene")
    parser.add_argument("--seed", type=int, default=1, help="which ones these are")
    parser.add_argument("--directory", type=Path, help="where to work; default: the temporary directory")
    parser.add_argument("--verbose", action="store_true", help="a line for each")
    given = parser.parse_args()
    found: list[Crash] = []
    with tempfile.TemporaryDirectory(prefix="crash-", dir=given.directory) as name:
        directory = Path(name).resolve()
        with registries(directory) as (hub, second):
            for scene in given.scene or SCENES:
                for on_disk in (False, True):
                    if hows := [how for how in given.how or HOWS if (how == "power") is on_disk]:
                        found += crashes(scene, directory, hub.host, second.host, hows, given, on_disk=on_disk)
    print("\n".join(table(found)))
    return 1 if any(crash.wrong for crash in found) else 0


def crashes(
    scene: str, directory: Path, host: str, second: str, hows: Sequence[str], given: argparse.Namespace, *,
    on_disk: bool,
) -> list[Crash]:  # fmt: skip
    """All that `given` asks for."""
    dice, found = random.Random(given.seed), []
    with staged(SCENES[scene], directory / "stage", host, second, on_disk=on_disk) as stage:
        count = sum(map(len, stage.undisturbed.groups))
        print(f"{scene}: {count} events, {len(stage.undisturbed.ops)} changes of files", flush=True)
        chosen = list(given.moment or ())
        for how in () if given.moment else hows:
            moments = list(stage.moments([how]))
            chosen += sorted(dice.sample(moments, min(given.at_most, len(moments))), key=moments.index)
        for moment in chosen:
            began = time.monotonic()
            crash = stage.crash(moment)
            found.append(crash)
            if crash.wrong or given.verbose:
                print(f"{crash} [{time.monotonic() - began:.1f} s]", flush=True)
    return found


def table(found: list[Crash]) -> list[str]:
    """Markdown: crashes by command and by what was met."""
    lines = []
    for title, key in (("command", lambda one: one.scene), ("met", lambda one: one.met)):
        counts = Counter((key(one), kind_of(one.moment)) for one in found)
        kinds = sorted({kind for _, kind in counts})
        lines += ["", f"| {title} | {' | '.join(kinds)} | wrong |", "|---" * (len(kinds) + 2) + "|"]
        for row in sorted({row for row, _ in counts}):
            wrong = sum(bool(one.wrong) for one in found if key(one) == row)
            lines.append(f"| {row} | {' | '.join(str(counts[row, kind]) for kind in kinds)} | {wrong} |")
    outlived = sum(bool(one.outlived) for one in found)
    return [*lines, "", (f"{len(found)} crashes, {sum(bool(one.wrong) for one in found)} with something wrong; "
            f"after {outlived} a process of the victim was alive until the next start")]


def kind_of(moment: str) -> str:
    """One of HOWS."""
    world, plus, rest = moment.rpartition("+")
    return world if plus else "signal" if rest.count(":") == 2 else rest.partition(":")[0]


if __name__ == "__main__":
    sys.exit(main())
