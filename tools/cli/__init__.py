"""The command line."""

import os
import signal
import sys

_COMMAND = "tools.cli.main" in sys.orig_argv or os.path.basename(sys.argv[0]) == "refledger"  # noqa: PTH119


def interrupt(*, quietly: bool) -> None:
    """Have ^C end this process `quietly`, or raise KeyboardInterrupt: when it is the command, and heeds ^C at all."""
    this, other = signal.default_int_handler, signal.SIG_DFL
    if _COMMAND and signal.getsignal(signal.SIGINT) == (this if quietly else other):
        signal.signal(signal.SIGINT, other if quietly else this)


# reason: before anything else is imported, as who interrupts that has no use for a traceback of it
interrupt(quietly=True)
