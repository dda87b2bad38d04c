"""`python -m tests.faults` plays every row of the table and writes docs/registry-faults.md."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.faults.image import put_image
from tests.faults.page import PAGE, ROWS, line, page
from tests.faults.scene import play
from tests.registry_fixture import RegistryProcess


def main() -> None:
    """Play them all and write the page."""
    with tempfile.TemporaryDirectory() as name, RegistryProcess(Path(name) / "hub") as registry:
        put_image(registry, "faults/image")
        outcomes = []
        for number, row in enumerate(ROWS):
            outcome = play(row, registry, f"faults/{number}" if row.pushes else "faults/image", Path(name))
            outcomes.append((row, outcome))
            print(line(row, outcome), file=sys.stderr)  # progress, for who waits
        PAGE.write_text(page(outcomes))


if __name__ == "__main__":
    main()
