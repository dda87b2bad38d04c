"""Time is passed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """`now`: UTC nanoseconds; `monotonic`: seconds."""

    now: Callable[[], int]
    monotonic: Callable[[], float]
