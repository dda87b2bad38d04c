"""`--help` of every command, as it is read in a narrow window."""

from __future__ import annotations

from collections.abc import Iterator

import click

from tools.cli.main import cli

COLUMNS = 60


def contexts(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[click.Context]:
    """Of a command and of all below it."""
    context = click.Context(command, parent, info_name=name, terminal_width=COLUMNS)
    yield context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            yield from contexts(found, below, context)


def test_help_fits_60_columns_and_cuts_no_summary_short() -> None:
    for context in contexts(cli, "refledger"):
        lines = context.get_help().splitlines()
        assert [line for line in lines if len(line) > COLUMNS] == [], context.command_path
        cut = [line for line in lines if line.endswith("...") and not line.startswith("Usage:")]
        assert cut == [], context.command_path
