"""A program that says what it finds when it is run, and ends in several ways (see test_processes.py)."""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import locale
import os
import resource
import signal
import stat
import sys
import threading
import time
from pathlib import Path

_KEPT = ("Umask", "SigPnd", "SigBlk", "SigIgn", "SigCgt", "ShdPnd", "Cap", "Seccomp", "NoNewPrivs", "Cpus_allowed")


def found() -> dict[str, object]:
    """All that may differ between processes, but what has to: ids, times, the seed of `hash`."""
    status = Path("/proc/self/status").read_text().splitlines()
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    return {
        "arguments": sys.argv,
        "path": sys.path,
        "flags": str(sys.flags),
        "main": [__name__, sys.modules["__main__"].__dict__.get("__file__")],
        "environment": [dict(os.environ), str(libc.getenv(b"HOME"))],
        "directory": str(Path.cwd()),
        "status": [line for line in status if line.startswith(_KEPT)],
        "handlers": {number: str(signal.getsignal(number)) for number in signal.valid_signals()},
        "leads": os.getsid(0) == os.getpid() == os.getpgid(0),
        "descriptors": {number: _kind(number) for number in range(100) if _kind(number)},
        "limits": {name: resource.getrlimit(which) for name, which in vars(resource).items() if "RLIMIT_" in name},
        "nice": os.nice(0),
        "threads": threading.active_count(),
        "standard": [
            [type(stream).__name__, stream.encoding, stream.errors, stream.line_buffering, stream.isatty()]
            for stream in (sys.stdin, sys.stdout, sys.stderr)
        ],
        "zone": [time.tzname, time.timezone],
        "locale": [locale.setlocale(locale.LC_CTYPE), locale.getencoding(), sys.getfilesystemencoding()],
        "collector": [gc.isenabled(), gc.get_threshold()],
    }


class _Cycle:
    """Goes when the collector finds it, at the end at the latest."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        print("collected")


def _kind(number: int) -> int:
    try:
        return stat.S_IFMT(os.fstat(number).st_mode)
    except OSError:
        return 0


def _late() -> None:
    time.sleep(0.05)
    print("the thread ended")


def main(how: str) -> None:
    """End as `how` says."""
    if how == "found":
        print(json.dumps(found()))
    elif how == "copy":
        sys.stdout.buffer.write(sys.stdin.buffer.read())
    elif how == "raise":
        raise ValueError("as asked")
    elif how == "code":
        atexit.register(print, "at exit")
        _Cycle()
        threading.Thread(target=_late).start()
        sys.exit(7)
    elif how == "nowhere":
        print("this cannot be written")
        os.close(1)
    elif how == "words":
        sys.exit("words")
    elif how == "at once":
        print("lost")
        os._exit(9)
    elif how == "killed":
        print("kept", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "meet":
        place, number = Path(sys.argv[2]), int(sys.argv[3])
        (place / str(os.getpid())).touch()
        while len(list(place.iterdir())) < number:
            time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1])
