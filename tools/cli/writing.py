"""How the reading commands write: lines, lines cut to the window, JSON."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from storage.durable import replace_file
from storage.errors import DiskError
from tools.cli.stream import speaks_unicode
from tools.text import cells, clean, fit

as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")


def print_line(text: str) -> None:
    """Write `text` as one line, cleaned: whatever of it came from a log, nothing of that moves the cursor."""
    sys.stdout.write(clean(text) + "\n")


def print_aside(text: str) -> None:
    """The same on standard error."""
    sys.stderr.write(clean(text) + "\n")


def print_json(value: object) -> None:
    """Write `value` as one line of JSON."""
    sys.stdout.write(json.dumps(value, separators=(",", ":"), default=str) + "\n")


def print_cut(line: str, limit: int) -> None:
    """Write `line`, cut to `limit` columns."""
    print_line(fit(line, limit, "…" if speaks_unicode(sys.stdout) else "..."))


def write_file(dest: str | None, data: bytes, doing: str) -> None:
    """`data` as the file `dest`, whole or not at all; None or -: on standard output. Raises DiskError."""
    if dest in {None, "-"}:
        sys.stdout.buffer.write(data)
        return
    try:
        replace_file(Path(str(dest)), data, named=True)
    except OSError as error:
        # reason: the file that error names is the unfinished one beside it
        raise DiskError.of(error, doing, dest=str(dest)) from error


def columns(otherwise: int) -> int:
    """The terminal's width; `otherwise` where the output goes elsewhere."""
    return shutil.get_terminal_size((200, 24)).columns if sys.stdout.isatty() else otherwise


def table(rows: Sequence[Sequence[str]], optional: Sequence[str], limit: int) -> None:
    """Columns as wide as their widest cell. In a window of `limit` columns the `optional` ones go, in this order, until
    most of the last column can be seen; that one is cut."""
    widths = {title: max(cells(row[i]) for row in rows) for i, title in enumerate(rows[0])}
    last = rows[0][-1]
    for title in optional:
        if sum(widths.values()) + 2 * (len(widths) - 1) - max(widths[last] - 24, 0) <= limit:
            break
        del widths[title]
    for row in rows:
        shown = [(cell, widths[title]) for cell, title in zip(row, rows[0], strict=True) if title in widths]
        print_cut("  ".join(cell + " " * (width - cells(cell)) for cell, width in shown).rstrip(), limit)
