"""`refledger audit verify`: is a root, a bundle or a proof what was signed?"""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import click

from storage.errors import DiskError, InputError, VerificationError
from tools import roots
from tools.auditing.keys import read_verifier
from tools.cli.writing import as_json_option, columns, print_json, print_line
from tools.format import count
from tools.text import cells, clean

if TYPE_CHECKING:
    from projections.wellformed import Fault
    from storage.signing.notes import Checkpoint, Verifier
    from tools.auditing.verdict import Verdict

_INDENT = 11
"""Columns of the word that a line begins with."""
SHOWN = 20
"""Faults that are told to people one by one."""


@click.command(short_help="Check a root, a bundle or a proof.")
@click.argument("what", metavar="[ROOT|BUNDLE|FILE]", required=False, type=click.Path(path_type=Path))
@click.option("--key", "keys", multiple=True, metavar="KEY",
              help="Whose signatures count: a verifier key, or a file with one. May be given again.")  # fmt: skip
@click.option("--against", multiple=True, metavar="FILE|REF", help="Checkpoints that were published there must agree.")
@click.option("--quick", is_flag=True, help="Do not read the contents of blobs, layers and snapshots.")
@click.option("--proof", type=click.Path(path_type=Path), metavar="FILE", help="Check what audit prove wrote.")
@as_json_option
def verify(
    what: Path | None, keys: tuple[str, ...], against: tuple[str, ...], quick: bool, proof: Path | None, as_json: bool
) -> None:
    """Check a root (by default this one), a bundle, or a proof: nothing of it is trusted but what KEY signed.

    Nothing is written and, but for a registry named with --against, nobody is asked.
    """
    if proof and what:
        raise InputError("--proof checks a proof alone", hint="leave out what else is named")
    verifiers = [read_verifier(key) for key in keys]
    target = proof or what or roots.root_directory()
    if (against or quick) and not target.is_dir():
        raise InputError("--against and --quick are about a root", where=str(target), hint="name a root, or nothing")
    try:
        if not target.is_file() and (proof or not target.is_dir()):
            raise InputError("there is nothing to check", where=str(target), hint="name a root, a bundle, or a proof")
        if proof:
            _proof(proof, verifiers, as_json=as_json)
        elif target.is_dir():
            _root(target, verifiers, against, quick=quick, as_json=as_json)
        else:
            _file(target, verifiers, as_json=as_json)
    except OSError as error:
        raise DiskError.of(error, "checking") from error


def _file(path: Path, keys: list[Verifier], *, as_json: bool) -> None:
    from tools.auditing.proofs import is_proof

    with path.open("rb") as file:
        proof = is_proof(file.read(1000))
    if proof:
        _proof(path, keys, as_json=as_json)
    else:
        _bundle(path, keys, as_json=as_json)


def _bundle(path: Path, keys: list[Verifier], *, as_json: bool) -> None:
    from tools.auditing.bundles import verify_bundle

    verdict = verify_bundle(path, keys)
    if as_json:
        print_json(verdict.to_json())
    else:
        held = f"{count(verdict.events, 'event')}, {count(verdict.blobs, 'blob')}"
        print_line(f"build      {verdict.build}: {held}, all as named")
        if not verdict.proof:
            print_line("signed     no proofs are in it: whoever sent it could have written it")
        elif verdict.proven:
            by = "checked" if verdict.signed else "not checked: say with --key whose count"
            log = f"in the log {verdict.origin} of {verdict.size:,}"
            print_line(clean(f"signed     {verdict.proven:,} of {verdict.events:,} events are {log}; signature {by}"))
        _print(_wrong(verdict.faults))
    _judge(verdict.faults, str(path))


def _root(root: Path, keys: list[Verifier], against: tuple[str, ...], *, quick: bool, as_json: bool) -> None:
    from tools.auditing.verdict import Outside
    from tools.auditing.verify import verify_root

    if not (root / "log.db").exists():
        raise InputError("nothing was built here yet", where=str(root), hint="name a root, or set REFLEDGER_ROOT")
    identity = _identity(root) if against else ""
    outside = [Outside(one, "fork", checkpoint) for one in against for checkpoint in _published(one, keys, identity)]
    verdict = verify_root(root, keys=keys, outside=outside, quick=quick)
    if as_json:
        print_json(verdict.to_json())
    else:
        _print(_lines(verdict))
    _judge(verdict.faults, "log.db")


def _identity(root: Path) -> str:
    """What names the log of `root`; "" when its first event cannot be read."""
    from storage.errors import LogError
    from storage.log.eventlog import SqliteEventLog
    from tools.auditing.checkpoints import log_id

    try:
        log = SqliteEventLog(root / "log.db", read_only=True)
        try:
            return log_id(log)
        finally:
            log.close()
    except LogError:
        return ""  # the checks say what is wrong with it


def _published(source: str, keys: list[Verifier], identity: str) -> list[Checkpoint]:
    """See published.published. Raises InputError where nothing was published."""
    from tools.auditing.published import published

    found = published(source, keys, identity)
    if not found:
        raise InputError("no checkpoint was published there", where=source, hint="name what --publish named")
    return found


def _proof(path: Path, keys: list[Verifier], *, as_json: bool) -> None:
    from tools.auditing.proofs import MAX_BYTES, check_proof

    if not keys:
        raise InputError("a proof is one to holders of a key", hint="name the verifier key with --key")
    with path.open("rb") as file:
        lines = check_proof(file.read(MAX_BYTES + 1), keys, str(path))
    if as_json:
        print_json({"sound": True, "proves": lines})
        return
    for line in lines:
        print_line(clean(line))


def _judge(faults: list[Fault], where: str) -> None:
    """Raises VerificationError for the first of `faults`, if there is any."""
    if not faults:
        return
    first, more = faults[0], len(faults) - 1
    others = f"; {count(more, 'more fault')}" if more else ""
    raise VerificationError(f"{first.what}: {first.meaning}{others}", where=first.where or where)


def _print(lines: list[str]) -> None:
    """On a terminal what does not fit goes on behind the word that the line began with; but for digests."""
    limit = columns(10_000)
    for line in map(clean, lines):
        fits = cells(line) <= limit or max(map(cells, line.split())) > limit - _INDENT
        for part in [line] if fits else wrap(line, limit, subsequent_indent=" " * _INDENT):
            print_line(part)


def _lines(verdict: Verdict) -> list[str]:
    lines = [f"log        {count(verdict.events, 'event')} of {count(verdict.builds, 'build')}"]
    if verdict.unknown:
        kinds = ", ".join(f"{name} ({count})" for name, count in sorted(verdict.unknown.items())[:5])
        lines.append(f"           of types that this version does not know: {kinds}")
    lines.append(f"tree       {verdict.root}")
    lines += _signatures(verdict)
    lines += _bytes(verdict)
    lines.append(f"views      {verdict.views}")
    return lines + _wrong(verdict.faults)


def _wrong(faults: list[Fault]) -> list[str]:
    lines = [f"WRONG      {fault.where or 'all of it'}: {fault.what}: {fault.meaning}" for fault in faults[:SHOWN]]
    if len(faults) > SHOWN:
        lines.append(f"           and {len(faults) - SHOWN} more")
    return lines or ["nothing is wrong with it"]


def _signatures(verdict: Verdict) -> list[str]:
    if not verdict.checkpoints:
        lines = ["signed     no checkpoint is in it: whoever can write to it could have written all of it"]
    elif verdict.trusted:
        names = ", ".join("+".join(key.split("+", 2)[:2]) for key in verdict.keys)
        lines = [f"signed     {verdict.covered:,} of {verdict.events:,} events, by {names}; log {verdict.origin}"]
    else:
        many = count(verdict.checkpoints, "checkpoint")
        lines = [f"signed     {verdict.covered:,} of {verdict.events:,} events lie under {many}; log {verdict.origin}",
                 "           signatures were not checked: say with --key whose count"]  # fmt: skip
    left = verdict.events - verdict.covered
    if verdict.checkpoints and left:
        lines.append(f"           nothing vouches for the last {left:,} yet")
    if verdict.published:
        lines.append(f"published  compared with {count(verdict.published, 'checkpoint')} from elsewhere")
    return lines


def _bytes(verdict: Verdict) -> list[str]:
    here = ", ".join(count(number, kind) for kind, number in sorted(verdict.named.items())) or "nothing"
    read = "" if verdict.contents else ", whose contents were not read (--quick)"
    lines = [f"bytes      {here} should be here{read}; {verdict.gone:,} were let go"]
    if verdict.remote:
        blobs = count(verdict.remote, "blob")
        lines.append(f"           {blobs} known by digest only: at registries, which were not asked")
    return lines
