"""Sizes, times and ids as people read them."""

from __future__ import annotations

from datetime import datetime


def human_bytes(count: float) -> str:
    """Decimal units as docker prints them: 999B, 1.2kB, 30.1MB, 361MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5:
            return f"{value:.0f}B" if unit == "B" else f"{value:.1f}{unit}" if value < 99.95 else f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.1f}PB"


def human_duration(nanoseconds: int) -> str:
    """0.3s, 12.3s, 1m05s, 2h03m; never negative, though clocks may step back."""
    seconds = max(nanoseconds, 0) / 1e9
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}h{minutes:02d}m"


def local_time(ns: int) -> str:
    """UTC nanoseconds as date and time of day here."""
    return datetime.fromtimestamp(ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def count(number: int, what: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def short_id(text: str) -> str:
    """Twelve characters of an id, without a digest's algorithm."""
    return text.rpartition(":")[2][:12]
