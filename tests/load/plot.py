"""Memory over time as an SVG drawing that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tests.load.crew import Sample

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 34, 30
_LINES = (("all commands together", "#4269d0", "memory"), ("the largest one", "#e15759", "largest"))


def _round(most: float) -> float:
    """The next 1, 2 or 5 with zeros."""
    unit = 1.0
    while True:
        for factor in (1, 2, 5):
            if unit * factor >= most:
                return unit * factor
        unit *= 10


def plot(title: str, samples: Sequence[Sample]) -> str:
    """The drawing: megabytes of resident memory over seconds."""
    span = max((sample.at for sample in samples), default=0) or 1
    most = _round(max((sample.memory for sample in samples), default=0) / 1e6 or 1)
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(sample: Sample, value: int) -> str:
        return f"{LEFT + sample.at / span * across:.1f},{TOP + down - value / 1e6 / most * down:.1f}"

    parts = [
        (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
         f' font-size="11" role="img" aria-label="{escape(title)}">'),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="14" font-size="12" font-weight="bold">{escape(title)}</text>',
    ]
    for number in range(5):
        y = TOP + down * (4 - number) / 4
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{most * number / 4:g} MB</text>')
        x = LEFT + across * number / 4
        anchor = "end" if number == 4 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="{anchor}">{span * number / 4:.0f} s</text>')
    for number, (name, colour, field) in enumerate(_LINES):
        points = " ".join(place(sample, getattr(sample, field)) for sample in samples)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{LEFT + 150 * number}" y="28" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])
