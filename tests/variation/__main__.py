"""`python -m tests.variation [NAME...]`: builds a project in every surroundings there is a name for, and after every
history, has the root of the first build read in all of them, and prints what is not the same. Exit code 1 when anything
is not."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.registry_fixture import RegistryProcess
from tests.variation.histories import HISTORIES
from tests.variation.project import Place, differing, push_base, write_context
from tests.variation.readings import readings
from tests.variation.surroundings import ALL, USUAL


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(prog="python -m tests.variation", description=__doc__)
    names = [*(one.name for one in ALL), *(one.__name__ for one in HISTORIES)]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(names)}")
    parser.add_argument("--directory", type=Path, help="default: the temporary directory")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(names)):
        parser.error(f"no such names: {', '.join(unknown)}")
    with (
        tempfile.TemporaryDirectory(prefix="refledger-variation-", dir=given.directory) as directory,
        RegistryProcess(Path(directory) / "registry") as registry,
    ):
        drill = _Drill(Path(directory), push_base(registry, "t/variation"))
        for name in given.names or names:
            drill.vary(name)
    return 1 if drill.wrong else 0


class _Drill:
    def __init__(self, directory: Path, base: str) -> None:
        self._directory = directory
        self._base = base
        self._number = 0
        self.wrong = 0
        self._first = self._place(USUAL.name)
        self._expected = self._first.build()
        for command in ("keygen", "checkpoint"):  # now, as attestations would be signed, too
            self._first.run("audit", command)
        self._read = self._readings()

    def vary(self, name: str) -> None:
        """Build in surroundings, or after a history, that is called so; compare; remove it."""
        surroundings = next((one for one in ALL if one.name == name), USUAL)
        if not surroundings.can_be:
            print(f"{name}: cannot be here", flush=True)
            return
        place = self._place(name)
        history = next((one for one in HISTORIES if one.__name__ == name), None)
        if history is not None:
            history(place, random.Random(name))
        made = place.build()
        found = differing(self._expected.outputs, made.outputs)
        if history is None:
            found |= differing(self._expected.facts, made.facts)
            both = self._expected.images.keys() & made.images.keys()
            found |= differing(*({name: one.images[name] for name in both} for one in (self._expected, made)))
            self._first.surroundings = surroundings
            found |= differing(self._read, self._readings())
        self._tell(name, len(made.outputs) + len(made.facts), found)
        shutil.rmtree(place.root.parent)

    def _place(self, name: str) -> Place:
        surroundings = next((one for one in ALL if one.name == name), USUAL)
        self._number += 1
        directory = self._directory / f"a place {self._number}"
        if surroundings.below is not None:
            directory = Path(tempfile.mkdtemp(prefix="refledger variation-", dir=surroundings.below))
        place = Place(directory, surroundings)
        write_context(place.context, self._base, random.Random(self._number))
        return place

    def _readings(self) -> dict[str, str]:
        said = {}
        for words in readings([self._expected.build], self._expected.digest):
            said[" ".join(words)] = repr(self._first.run(*words))
        return said

    def _tell(self, name: str, count: int, found: Mapping[str, tuple[str, str]]) -> None:
        self.wrong += len(found)
        print(f"{name}: {count} compared, {len(found)} differ", flush=True)
        for what, values in list(found.items())[:20]:
            print(f"  {what}", *(f"    {value[:300]}" for value in values), sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
