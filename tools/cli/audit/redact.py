"""`refledger audit redact`."""

from __future__ import annotations

import getpass
import socket
from contextlib import suppress

import click

from projections.history import History
from storage.errors import InputError
from tools import roots
from tools.auditing.redaction import Found, erase, erase_blobs, find, holding
from tools.cli.fields import pattern as regex
from tools.cli.moment import find_step, whole_view
from tools.cli.writing import print_aside, print_line
from tools.format import count
from tools.text import clean

_LONGEST = 500  # characters of a reason


@click.command(short_help="Erase what steps printed, or arguments.")
@click.argument("build_id", metavar="BUILD")
@click.argument("step", required=False)
@click.option("--args", "names", multiple=True, metavar="NAME", help="The value of this build arg; may be given again.")
@click.option(
    "--blobs", is_flag=True,
    help="With --args: also the blobs of the build's graph, definition and cache keys that have the value in them. It"
    " can then not be replayed, nor explained in full.",
)  # fmt: skip
@click.option("--match", "pattern", metavar="REGEX", help="Only values, or pieces of output, in which this is found.")
@click.option("--reason", required=True, metavar="TEXT", help="Why: it stays in the log.")
@click.option("--by", metavar="NAME", help="Who: it stays in the log.  [default: user@host]")
@click.option("--yes", is_flag=True, help="Do not ask.")
def redact(
    build_id: str, step: str | None, names: tuple[str, ...], blobs: bool, pattern: str | None, reason: str,
    by: str | None, yes: bool,
) -> None:  # fmt: skip
    """Erase, for good, what BUILD's steps printed (or only STEP's), or with --args the values of build args.

    The log says that it was erased, by whom, when and why; checkpoints and proofs stay valid. Only the root is changed:
    bundles, backups and copies of it keep what they have, and so do images and the results of steps.
    """
    if not reason.strip() or len(reason) > _LONGEST:
        raise InputError(f"--reason is to be a text of at most {_LONGEST} characters", hint="say why")
    if names and step:
        raise InputError("--args are the build's, and not of a step", hint="name a step, or args")
    if blobs and not names:
        raise InputError("--blobs goes with --args", hint="blobs have no output of steps")
    wanted, who = regex("--match", pattern) if pattern is not None else None, clean(by or _user())
    path = roots.root_directory()
    with roots.read_root(path) as (log, views):
        record = History(views).get(build_id)
        vertex = None if step is None else find_step(whole_view(log, record).steps, record.id, step).vertex
        running = [item.id for item in History(views).list(status="running") if roots.is_running(path, item.id)]
    if record.id in running or (blobs and running):
        raise InputError(f"build {running[0]} has not ended", hint="redact when it has")
    with roots.open_log(path) as stored:
        found = find(stored, stored, record, vertex, names, wanted, output=not names)
        if not found.payloads:
            raise InputError(f"build {record.id} has nothing to erase{_rest(found)}")
        what = count(len(found.args), "build arg") if names else count(len(found.output), "piece") + " of output"
        store = roots.read_blobs(path)
        holders = holding(stored, record, store, found.args) if blobs else []
        what += f" and {count(len(holders), 'blob')}" if blobs else ""
        told = f"{what} of build {record.id}{_rest(found)}"
        if not yes:
            click.confirm(f"erase {told}, for good?", abort=True, err=True)
        erase_blobs(stored, store, holders, who)  # first: an interrupted command still has the value to look for
        seqs = erase(stored, record, vertex, found.payloads, who, clean(reason.strip()))
    events = f"event {seqs[0]}" if len(seqs) == 1 else f"events {seqs[0]} to {seqs[-1]}"
    print_line(f"erased {told}: {events}")
    print_aside("bundles, backups and copies that were made earlier keep what they have")
    if names:
        kept = "" if blobs else "the blobs of graphs and cache keys, "
        print_aside(f"not erased: what {kept}images, results and names of steps have of a value")


def _rest(found: Found) -> str:
    said = [f"{found.gone} were erased before"] if found.gone else []
    said += [f"{found.fixed} lie in the events themselves and stay"] if found.fixed else []
    return f" ({', '.join(said)})" if said else ""


def _user() -> str:
    name = "unknown"
    with suppress(KeyError, OSError):
        name = getpass.getuser()
    return f"{name}@{socket.gethostname()}"
