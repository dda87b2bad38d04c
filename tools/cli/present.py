"""`refledger du --at`: what lay in the root at a moment, as far as the log tells (I13)."""

from __future__ import annotations

import time

from projections.moments import event_at
from projections.presence import present
from projections.refs import Refs
from storage.interfaces.log import EventLog
from tools import roots
from tools.cli.moment import log_moment
from tools.cli.writing import columns, print_json, print_line, table
from tools.format import human_bytes, local_time, short_id


def print_present(log: EventLog, moment: str, *, as_json: bool) -> None:
    """Print it. Raises InputError, LogError."""
    at = log_moment(log, moment, time.time_ns())
    with roots.past(roots.root_directory()).views(log, at) as views:
        items = present(Refs(views))
    total = sum(item.bytes for item in items)
    if as_json:
        for item in items:
            print_json(item.to_json())
        print_json({"kind": "total", "bytes": total, "at": at})
        return
    print_line(f"as of event {at}, {local_time(event_at(log, at).time)}, by the log: blobs of layers, diffs of steps")
    rows = [("ID", "KIND", "SIZE", "REFS", "BUILD")]
    rows += [
        (
            item.name[:25] if item.kind == "snapshot" else short_id(item.name),
            item.kind, human_bytes(item.bytes), str(item.refs), item.build or "-",
        )
        for item in items
    ]  # fmt: skip
    if items:
        table(rows, ("REFS", "KIND"), columns(10_000))
    print_line(f"{human_bytes(total)} in {len(items)} layers and snapshots")
