"""The option of all commands that keep to build policies."""

from __future__ import annotations

import click

policy_option = click.option(
    "--policy", "policies", multiple=True, metavar="FILE",
    help="Rules that it must keep to, beside those in the file $REFLEDGER_POLICY.",
)  # fmt: skip
