"""`refledger audit keygen`."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

import click

from tools import roots
from tools.auditing import keys
from tools.cli.writing import print_aside


@click.command(short_help="Make a key that signs checkpoints.")
@click.option("--name", metavar="NAME", help="Name of the key, as in ci.example/refledger.  [default: made up]")
@click.option("-o", "--output", metavar="FILE", help=f"Where the private key goes.  [default: {keys.FILE} in the root]")
def keygen(name: str | None, output: str | None) -> None:
    """Make an Ed25519 key that signs checkpoints, and print its verifier key, which is for everybody.

    A key in the root is used from then on; another one by $REFLEDGER_AUDIT_KEY_FILE, or $REFLEDGER_AUDIT_KEY, which
    holds the key itself.
    """
    path = Path(output) if output else roots.root_directory() / keys.FILE
    verifier = keys.generate(path, name or f"refledger/{secrets.token_hex(4)}")
    print_aside(f"private key in {path}: whoever has it signs in the name of {verifier.name}")
    sys.stdout.write(f"{verifier}\n")
