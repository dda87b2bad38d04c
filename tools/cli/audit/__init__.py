"""`refledger audit`: what a third party can check. Subcommands are imported when they run."""

from __future__ import annotations

import importlib

import click

_COMMANDS = {
    "checkpoint": "tools.cli.audit.checkpoint",
    "keygen": "tools.cli.audit.keygen",
    "provenance": "tools.cli.audit.provenance",
    "prove": "tools.cli.audit.prove",
    "redact": "tools.cli.audit.redact",
    "report": "tools.cli.audit.report",
    "verify": "tools.cli.audit.verify",
    "verify-image": "tools.cli.audit.verify_image",
}


class _Lazy(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(_COMMANDS[name]), name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Lazy, short_help="Sign the log, prove it, and check it.")
def audit() -> None:
    """Sign what the log says, prove it, and check it."""
