"""`python -m tests.crash`: crash each command at each moment, print what was wrong, and a table."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.crash.crash import HOWS, kind_of
from tests.crash.running import Task, read, run_all, table, tasks
from tests.crash.scenes import SCENES


def main() -> int:
    """Exit code 0, or 1 when something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--scene", action="append", choices=list(SCENES), help="only this; may be given again")
    parser.add_argument("--how", action="append", choices=HOWS, help="only this; may be given again")
    parser.add_argument("--moment", action="append", help="as it is printed, or as in before:Exported")
    parser.add_argument("--at-most", type=int, default=10**9, metavar="N", help="of each kind of crash of a scene")
    parser.add_argument("--seed", type=int, default=1, help="which ones these are")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="crashes at once")
    parser.add_argument("--parts", type=int, default=1, metavar="N", help="stages for each scene")
    parser.add_argument("--directory", type=Path, help="where to work; default: the temporary directory")
    parser.add_argument("--results", type=Path, help="a line of JSON for each; what is there already is not done again")
    parser.add_argument("--table", action="store_true", help="only print what --results have")
    parser.add_argument("--verbose", action="store_true", help="a line for each")
    given = parser.parse_args()
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="crash-", dir=given.directory) as name:
        directory = Path(name).resolve()
        results = given.results or directory / "results"
        if not given.table:
            like = Task("", (), tuple(given.moment or ()), given.at_most, given.seed, verbose=given.verbose)
            scenes, hows = given.scene or list(SCENES), given.how or HOWS
            if given.moment:
                hows = [kind_of(moment) for moment in given.moment]
            failed = run_all(tasks(scenes, hows, given.parts, like, read(results)), directory, results, given.jobs)
        found = read(results)
    print("\n".join([*table(found), *failed]))
    return 1 if failed or any(crash.wrong for crash in found) else 0


if __name__ == "__main__":
    sys.exit(main())
