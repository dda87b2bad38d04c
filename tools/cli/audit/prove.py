"""`refledger audit prove`."""

from __future__ import annotations

import click

from storage.errors import InputError
from tools import roots
from tools.auditing import proofs
from tools.cli.destinations import writable
from tools.cli.writing import write_file


@click.command(short_help="Prove that an event is in the log.")
@click.argument("seq", type=click.IntRange(1), required=False)
@click.option("--from", "older", metavar="CP", help="Prove that a larger checkpoint continues this one.")
@click.option("--to", "newer", metavar="CP", help="The larger one.  [default: latest]")
@click.option("-o", "--output", callback=writable, metavar="FILE", help="Write it here.  [default: standard output]")
def prove(seq: int | None, older: str | None, newer: str | None, output: str | None) -> None:
    """Prove that event SEQ is in the log that was signed, or (--from, --to) that nothing signed before was changed.

    CP is the size of a signed checkpoint, a file that holds one, or latest. The proof is a small JSON file:
    refledger audit verify --proof FILE --key KEY checks it anywhere.
    """
    if (seq is None) == (older is None) or (newer is not None and older is None):
        raise InputError("give SEQ, or --from and --to", hint="see refledger audit prove --help")
    path = roots.root_directory()
    with roots.read_root(path) as (log, _):
        if seq is not None:
            proof = proofs.prove_inclusion(path, log, seq)
        else:
            proof = proofs.prove_consistency(path, log, str(older), newer or "latest")
    write_file(output, proofs.encode(proof), "writing the proof")
