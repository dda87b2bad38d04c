"""Another process that uses a log: `python -m tests.storage.log.log_worker LOG COMMAND ARGUMENT…`."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from storage.interfaces.log import NewEvent
from storage.log.eventlog import SqliteEventLog, follow


def append(log: SqliteEventLog, me: str, threads: str, submissions: str) -> None:
    """Waits for a line on stdin, then every thread appends submissions of three events to two streams."""

    def work(thread: int) -> None:
        for number in range(int(submissions)):
            data = {"process": me, "thread": thread, "number": number}
            made = log.append(*(NewEvent(stream, "T", data) for stream in ("cache", f"build/{me}", "cache")))
            assert [event.seq - made[0].seq for event in made] == [0, 1, 2]

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(int(threads))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def acknowledge(log: SqliteEventLog) -> None:
    """Appends for ever, and prints the seq of each event once it is durable."""
    number = 0
    while True:
        number += 1
        for event in log.append(*(NewEvent(f"ref/{number}", "T", {"number": number}) for _ in range(2))):
            print(event.seq, flush=True)


def show(log: SqliteEventLog) -> None:
    """Follows the log and prints every seq and type until the type is Stop."""
    for event in follow(log, 0, lambda: False):
        print(event.seq, event.type, flush=True)
        if event.type == "Stop":
            return


def main() -> None:
    path, command, *arguments = sys.argv[1:]
    if command == "append":
        print("ready", flush=True)
        sys.stdin.readline()
    log = SqliteEventLog(Path(path), read_only=command == "show-read-only")
    if command == "append":
        append(log, *arguments)
    elif command == "acknowledge":
        acknowledge(log)
    else:
        show(log)
    log.close()


if __name__ == "__main__":
    main()
