"""`python -m tests.variation.shuffled MODULE ARGS`: runs MODULE where directories tell their entries in another order.

The order is that of $SHUFFLED, a seed. Only Python's own listings are shuffled, which are the product's.
"""

from __future__ import annotations

import os
import random
import runpy
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self


class _Scan:
    """What os.scandir returns, with the entries of `scan` in another order."""

    def __init__(self, scan: Any, entries: list[Any]) -> None:
        self._scan = scan
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[Any]:
        return self._entries

    def __next__(self) -> Any:
        return next(self._entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._scan.close()


def shuffle(seed: str) -> None:
    """From now on every directory is listed in an order that `seed` draws."""
    chance = random.Random(seed)
    listdir, scandir = os.listdir, os.scandir

    def drawn(entries: list[Any]) -> list[Any]:
        chance.shuffle(entries)
        return entries

    def shuffled_scan(*where: Any) -> _Scan:
        scan = scandir(*where)
        try:
            return _Scan(scan, drawn(list(scan)))
        except BaseException:
            scan.close()
            raise

    os.listdir = lambda *where: drawn(listdir(*where))
    os.scandir = shuffled_scan  # type: ignore[assignment]


if __name__ == "__main__":
    shuffle(os.environ["SHUFFLED"])
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
