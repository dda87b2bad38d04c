"""`refledger append`."""

from __future__ import annotations

from typing import Any

import click

from storage.errors import InputError
from tools.cli.edit import Wanted, edit, edit_options
from tools.cli.options import read_platforms


@click.command(short_help="Put layers that are files on an image.")
@click.argument("image")
@click.argument("layers", nargs=-1, required=True, metavar="LAYER.tar…")
@click.option(
    "-c", "--change", "changes", multiple=True, metavar="INSTRUCTION",
    help="Apply ENV, LABEL, CMD, ENTRYPOINT, USER, WORKDIR, … to the config.",
)  # fmt: skip
@click.option("--platform", "wanted", multiple=True, metavar="OS/ARCH,…", help="Platforms.  [default: all it has]")
@edit_options
def append(
    image: str, layers: tuple[str, ...], changes: tuple[str, ...], wanted: tuple[str, ...], **others: Any
) -> None:  # fmt: skip
    """Put layers that are files on IMAGE, the first one lowest. Each is a tar as it is, or in gzip or zstd, and goes
    into the image as it came; - is standard input. IMAGE scratch stands for nothing.

    No layer of IMAGE is read. Every LAYER is read once, and refused when it could not be laid out.

    Exit codes: 0 done, 2 wrong input or a file that is no layer, 3 network, disk or permission, 4 verification failed,
    130 interrupted.
    """
    from engine.images.append import SCRATCH, Append
    from storage.platform import host_platform

    if layers.count("-") > 1:
        raise InputError("standard input can be one layer only")
    asked = read_platforms(wanted) or ((str(host_platform()),) if image == SCRATCH else ())
    edit(Append(image, layers, asked, changes), f"append to {image}", asked, Wanted(**others))
