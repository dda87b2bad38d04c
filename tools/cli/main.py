"""The `refledger` command. Subcommands are imported when they run, so that starting up is quick."""

from __future__ import annotations

import errno
import gc
import importlib
import os
import signal
import sys
import traceback

import click

from storage.errors import InputError, RefledgerError
from tools import __version__
from tools.cli import interrupt, stream
from tools.text import clean

_COMMANDS = {
    "append": "tools.cli.append",
    "audit": "tools.cli.audit",
    "browse": "tools.cli.browse.command",
    "build": "tools.cli.build",
    "bundle": "tools.cli.bundle",
    "copy": "tools.cli.copy",
    "diff": "tools.cli.why",
    "du": "tools.cli.usage",
    "events": "tools.cli.reading",
    "history": "tools.cli.history",
    "index": "tools.cli.index",
    "inspect": "tools.cli.inspect",
    "login": "tools.cli.login",
    "logout": "tools.cli.login",
    "output": "tools.cli.output",
    "prune": "tools.cli.usage",
    "rebase": "tools.cli.rebase",
    "rebuild": "tools.cli.reading",
    "replay": "tools.cli.replay",
    "refs": "tools.cli.reading",
    "report": "tools.cli.report.command",
    "show": "tools.cli.show",
    "why": "tools.cli.why",
}
INTERNAL = 3


class _Lazy(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(_COMMANDS[name]), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--root", metavar="DIR", help="Where everything is kept.  [default: $REFLEDGER_ROOT]")
@click.version_option(__version__, prog_name="refledger")
def cli(root: str | None) -> None:
    """Build container images lazily, with every transition of every result in an append-only log."""
    if root:
        os.environ["REFLEDGER_ROOT"] = root


def main() -> None:
    """Run the command; every error ends in one clear line and the exit code of its kind."""
    if sys.getfilesystemencoding() != "utf-8":
        # reason: names in a Dockerfile are UTF-8 whatever the locale, and would be other files in another encoding
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606
    os.umask(os.umask(0o077) | 0o002)  # reason: with that of some CI systems, 0, all users could write to what is made
    gc.set_threshold(50_000)  # the collector would run dozens of times over modules that are being imported
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # reason: nohup has SIGHUP ignored
            signal.signal(number, signal.default_int_handler)  # whatever ends it, what it holds is let go of
    stream.stand()
    interrupt(quietly=False)
    code = _run()
    try:
        stream.finish()
    except BrokenPipeError:
        pass
    except RefledgerError as error:
        if not code:
            _complain(error)
            code = error.exit_code
    interrupt(quietly=True)  # all is done
    sys.exit(code)


def _run() -> int:  # noqa: PLR0911 - as many as there are ways to end
    try:
        code = cli.main(prog_name="refledger", standalone_mode=False)
    except RefledgerError as error:
        _complain(error)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        usage = f"{context.get_usage()}\n" if context else ""
        sys.stderr.write(f"{usage}ERROR: {clean(error.format_message())}\n")
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except stream.ReaderLeft:
        return 0
    except RecursionError:
        # reason: JSON of logs, bundles and manifests may be nested as deeply as whoever wrote it likes
        sys.stderr.write("ERROR: something that was read is nested too deeply (it was made by hand, or damaged)\n")
        return 4
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            return _defend(error)
        # reason: any question about a path raises it, and only a path that somebody gave is as long
        too_long = InputError(f"no path can be as long: {error.filename}"[:200], hint="name a shorter one")
        _complain(too_long)
        return too_long.exit_code
    except Exception as error:  # noqa: BLE001
        return _defend(error)
    return code if isinstance(code, int) else 0


def _defend(error: Exception) -> int:
    """The last line of defence: a traceback helps nobody at a terminal."""
    if os.environ.get("REFLEDGER_DEBUG"):
        traceback.print_exc()
    what = clean(f"{type(error).__name__}: {error}"[:500])
    sys.stderr.write(f"ERROR: internal error: {what} (this is a bug in Refledger; REFLEDGER_DEBUG=1 shows where)\n")
    return INTERNAL


def _complain(error: RefledgerError) -> None:
    sys.stderr.write(f"ERROR: {clean(str(error))}\n")


if __name__ == "__main__":
    main()
