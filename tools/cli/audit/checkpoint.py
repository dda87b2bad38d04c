"""`refledger audit checkpoint`."""

from __future__ import annotations

import click

from storage.errors import InputError
from tools import roots
from tools.auditing import keys
from tools.auditing.checkpoints import sign_checkpoint, told
from tools.auditing.signing import publish
from tools.cli.destinations import writable
from tools.cli.writing import print_aside, write_file


@click.command(short_help="Sign all that is in the log.")
@click.option(
    "-o", "--output", callback=writable, metavar="FILE", help="Write the note here.  [default: standard output]"
)
@click.option("--publish", "targets", multiple=True, metavar="TARGET", help="Send it to file:PATH or a repository.")
@click.option("--subject", default="", metavar="REF", help="In a registry: as a referrer of this image.")
def checkpoint(output: str | None, targets: tuple[str, ...], subject: str) -> None:
    """Sign all that is in the log, and print the checkpoint: a C2SP signed note.

    Builds do the same at their end when there is a key (see refledger audit keygen), and send it to
    $REFLEDGER_AUDIT_PUBLISH. What was signed before stays true: a log that contradicts it is not signed, exit code 4.
    """
    path = roots.root_directory()
    if not (path / "log.db").exists():
        raise InputError("nothing was built here yet", where=str(path), hint="run refledger build, or give --root")
    if subject and not targets:
        raise InputError("--subject is for --publish", hint="name a repository with --publish")
    signer = keys.find_signer(path)
    if signer is None:
        hint = "refledger audit keygen makes one; or set $REFLEDGER_AUDIT_KEY_FILE"
        raise InputError("there is no key to sign with", where=str(path), hint=hint)
    with roots.open_root(path, folded=False) as root:
        signed = sign_checkpoint(root, signer)
        for target in targets:
            where = publish(root, signed, target, subject, must=True)
            print_aside(f"published at {where}")
    print_aside(f"{'signed' if signed.new else 'nothing new to sign'}: {told(signed.checkpoint)}")
    write_file(output, signed.note.encode(), "writing the checkpoint")
