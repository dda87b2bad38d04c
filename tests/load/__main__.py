"""The load drill: every scenario at its full size, or those that are named. Prints the figures; with --write, the table
and the drawings of docs/load.md too. Exit code 1 when anything is wrong."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tests.builder import PROJECT
from tests.load.plot import plot
from tests.load.scenarios import ALL, SHORT, Result, Scale, told
from tests.registry_fixture import RegistryProcess

MARK = "<!-- what follows is written by tools/drills/load --write -->\n"


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(prog="tools/drills/load", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", choices=[one.__name__ for one in ALL])
    parser.add_argument("--seconds", type=float, default=300, help="How long many builds run at once.")
    parser.add_argument("--short", action="store_true", help="As in the test suite.")
    parser.add_argument("--write", action="store_true", help="Write docs/load.md and its drawings.")
    parser.add_argument("--directory", type=Path, help="default: the temporary directory")
    given = parser.parse_args()
    scale: Scale = SHORT if given.short else replace(Scale(), seconds=given.seconds)
    results = []
    for scenario in ALL:
        if given.only and scenario.__name__ not in given.only:
            continue
        with tempfile.TemporaryDirectory(prefix="refledger-load-", dir=given.directory) as directory:
            place = Path(directory)
            with RegistryProcess(place / "registry") as registry:
                results.append(scenario(place / scenario.__name__, registry, scale))
        print("\n".join(told(results[-1])), flush=True)
    if given.write:
        _write(results)
    return 1 if any(result.wrong for result in results) else 0


def _write(results: list[Result]) -> None:
    docs = PROJECT / "docs"
    page = docs / "load.md"
    parts = [page.read_text().partition(MARK)[0], MARK]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    parts.append(f"\nOn {datetime.now(UTC):%Y-%m-%d}; {os.cpu_count()} cores; load at the end: {load}.\n")
    for result in results:
        parts.append(f"\n## {result.name}\n\n| | |\n|---|---|\n")
        parts += [f"| {what} | {figure} |\n" for what, figure in result.figures.items()]
        parts.append(f"| wrong | {'nothing' if not result.wrong else '; '.join(result.wrong)} |\n")
        if len(result.crew.samples) > 8:
            name = f"load-{result.name.replace(' ', '-')}.svg"
            (docs / name).write_text(plot(f"{result.name}: memory", result.crew.samples))
            parts.append(f"\n![memory over time]({name})\n")
    page.write_text("".join(parts))


if __name__ == "__main__":
    sys.exit(main())
