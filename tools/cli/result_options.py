"""Options that all commands have which make an image: what it is called, where it goes, and what is written of it."""

from __future__ import annotations

import click

from tools import roots
from tools.cli.destinations import writable

tag_option = click.option(
    "-t", "--tag", "tags", multiple=True, metavar="NAME", help="Name of the image; may be given again."
)
output_option = click.option(
    "-o", "--output", "outputs", multiple=True, metavar="type=…", help="registry, oci, docker, local, tar…."
)
push_option = click.option("--push", is_flag=True, help="Push to the registries of all names: --output type=registry.")
snapshotter_option = click.option(
    "--snapshotter", type=click.Choice(roots.SNAPSHOTTERS), default="auto", envvar="REFLEDGER_SNAPSHOTTER",
    help="How layers are laid out.  [default: erofs where the kernel can, else directory]",
)  # fmt: skip
iidfile_option = click.option(
    "--iidfile", callback=writable, metavar="FILE", help="Write the digest of the image config here."
)
metadata_option = click.option(
    "--metadata-file", callback=writable, metavar="FILE", help="Write build id and digests here, as JSON."
)
progress_option = click.option(
    "--progress", default="auto", metavar="MODE", help="auto, tty, plain, json or quiet.  [default: auto]"
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print the digest only: --progress quiet.")
