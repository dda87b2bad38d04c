"""`refledger rebase`."""

from __future__ import annotations

from typing import Any

import click

from tools.cli.edit import Wanted, edit, edit_options
from tools.cli.options import read_platforms


@click.command(short_help="Put an image on another base.")
@click.argument("image")
@click.option("--from", "old", default="", metavar="OLD_BASE", help="What it was built on.  [default: what it says]")
@click.option("--to", "new", default="", metavar="NEW_BASE", help="What it is to stand on.  [default: the same name]")
@click.option("--platform", "wanted", multiple=True, metavar="OS/ARCH,…", help="Platforms.  [default: all it has]")
@click.option("--keep-config", is_flag=True, help="Keep its whole config, also what it inherited from OLD_BASE.")
@edit_options
def rebase(image: str, old: str, new: str, wanted: tuple[str, ...], keep_config: bool, **others: Any) -> None:
    """Put IMAGE on another base, without a byte of a layer: the layers of NEW_BASE, and IMAGE's own on top.

    What the config of IMAGE has as OLD_BASE had it becomes what NEW_BASE has; what differs is IMAGE's own and stays.
    Without --from and --to the annotations org.opencontainers.image.base.name and .digest of IMAGE say what it was
    built on, or the log where this root built it, and the result is on what that name is now. --push without -t moves
    the tag of IMAGE. Whether the result runs is not tried: its own layers must fit the new base.

    Exit codes: 0 done, 2 wrong input or IMAGE is not based on OLD_BASE, 3 network, disk or permission, 4 verification
    failed, 130 interrupted.
    """
    from engine.images.rebase import Rebase

    asked = read_platforms(wanted)
    definition = Rebase(image, old, new, asked, keep_config)
    edit(definition, f"rebase {image}", asked, Wanted(**others), replaces=image)
