"""docs/registry-faults.md: the table, as a run of it came out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from tests.builder import PROJECT
from tests.faults import pulls, pushes
from tests.faults.scene import CHUNKS, LASTING, LIST, MANIFEST, MOUNT, PULL, PUSH, RANGES, Outcome, Row

PAGE = PROJECT / "docs/registry-faults.md"
_HEAD = """# Registries on a bad day

What the registry client makes of each fault, and what was left when it gave up. A proxy (`tests/faulty.py`) stands
between the client and a real registry and plays the faults; `python -m tests.faults` played them all and made this
page, and `tests/storage/registry/test_fault_table.py` checks every row.

A *fault* is met once, but where it says *always*. *At* is the byte of the body that it comes before. *Result* is
`right`, or the kind and the one line of the error. *Requests* are those that the registry (the proxy) saw. *Time lost*
is the sum of the client's pauses, by a clock that only they move; a *stall* is one stall limit (60 s) more, or the
limit for the answer to a write (300 s). *Left* is what the root (of a pull) or the registry (of a push) had afterwards:
a blob that is there is right, and a tag has all that it names. After each failure the same was done once more without
the fault, and was right: nothing that was left had been taken for a blob.

REGISTRY is the registry, STORE an object store that it redirects to (it never saw a credential), TOKENS its token
server.
"""
_SIDES = {
    PULL: ("Pull of a layer", "A layer of 200 KB through the materializer, unpacked while it comes."),
    RANGES: ("Pull in ranges", "The same in ranges of 64 KiB, as large layers are."),
    MANIFEST: ("Manifests", "A tag is resolved, then its manifest is asked for."),
    LIST: ("Lists of tags", "Three tags are listed."),
    PUSH: ("Push", "A layer, a config, and a manifest under a tag, where none of them is."),
    CHUNKS: ("Push in pieces", ("A proxy before the registry refuses large requests (413), so that the layer goes in "
             "pieces of 64 KiB. The second one meets the fault.")),
    LASTING: ("Push of a large layer", ("As blobs from 8 MiB on are pushed: one PATCH that says no length, and that "
              "another process could go on with.")),
    MOUNT: ("Mount", "Another repository of the registry has the layer."),
}  # fmt: skip

ROWS: tuple[Row, ...] = tuple(sorted((*pulls.ROWS, *pushes.ROWS), key=lambda row: list(_SIDES).index(row.side)))


def page(outcomes: Sequence[tuple[Row, Outcome]]) -> str:
    """The whole page."""
    parts = [_HEAD]
    for side, group in groupby(outcomes, key=lambda pair: pair[0].side):
        title, what = _SIDES[side]
        table = "| fault | at | result | requests | time lost | left |\n|---|---|---|---|---|---|\n"
        parts.append(f"## {title}\n\n{what}\n\n{table}" + "".join(f"{line(*pair)}\n" for pair in group))
    return "\n".join(parts)


def line(row: Row, outcome: Outcome) -> str:
    """A row of the table."""
    lost = f"{outcome.waited:g} s" if outcome.waited or not outcome.stalls else ""
    if outcome.stalls:
        lost = " + ".join(filter(None, (lost, f"{outcome.stalls} stall{'s' if outcome.stalls > 1 else ''}")))
    cells = [row.what, row.at or "–", outcome.result, str(outcome.requests), lost, outcome.kept]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
