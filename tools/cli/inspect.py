"""`refledger inspect`: an image without its layers (I13: nothing is written, layers are never asked for)."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING

import click

from storage.errors import InputError
from storage.platform import parse_platform
from storage.reference import LAYOUT
from tools.cli.names import image_name
from tools.cli.running import interruptible
from tools.cli.writing import as_json_option, print_json

if TYPE_CHECKING:
    from engine.images.inspect import Inspected, RefView
    from storage.interfaces.images import Platform

_BUILD = re.compile(r"[0-9a-f]{12}")
_REF = re.compile(r"sha256:[0-9a-f]{4,64}|[0-9a-f]{12}-[0-9a-f]+(?:-[0-9]+)?")
"""What `refledger refs` prints: chain IDs, and executions of steps."""


@click.command(short_help="Tell what an image is, and what of it is here.")
@click.argument("ref")
@click.option("--platform", metavar="OS/ARCH", help="Of an index, this image.  [default: this machine's]")
@click.option("--all", "every", is_flag=True, help="List all that an index has, and look at no image closer.")
@click.option("--raw", is_flag=True, help="Print the manifest (or index) byte for byte as it is stored.")
@click.option("--config", is_flag=True, help="With --raw: the config of the image.")
@click.option("--referrers", is_flag=True, help="Also what refers to it: signatures, SBOMs and other artifacts.")
@click.option("--offline", is_flag=True, help="Ask nobody: tell what is known and stored here.")
@as_json_option
def inspect(
    ref: str, platform: str | None, every: bool, raw: bool, config: bool, referrers: bool, offline: bool, as_json: bool
) -> None:
    """Tell what REF is, what of it is here, and what a RUN on it would have to fetch.

    REF: an image's name, with or without @DIGEST; oci-layout://PATH[:TAG]; the id of a build, for what it pushed; the
    id of a ref, for what the log knows of it. Registries are asked for manifests and configs only.
    """
    if config and not raw:
        raise InputError("--config is for --raw", hint="without --raw all of the config is told anyway")
    if every and (platform or config):
        raise InputError("--all lists every platform", hint="leave out --platform and --config")
    wanted = parse_platform(platform) if platform else None
    found = asyncio.run(
        _inspect(ref, wanted, every=every, raw=raw, config=config, referrers=referrers, offline=offline)
    )
    if isinstance(found, bytes):
        sys.stdout.buffer.write(found)
    elif as_json:
        print_json(found.to_json())
    else:
        from tools.cli.inspected import print_found

        print_found(found)


async def _inspect(
    ref: str, platform: Platform | None, *, every: bool, raw: bool, config: bool, referrers: bool, offline: bool
) -> Inspected | RefView | bytes:
    from tools.looking import looking

    async with looking(offline=offline) as look:
        reference = None
        if not ref.startswith(LAYOUT):
            if _BUILD.fullmatch(ref):
                reference = look.of_build(ref)
            if reference is None and _REF.fullmatch(ref) and (known := look.of_ref(ref)) is not None:
                if raw or referrers or platform:
                    raise InputError("of a ref the log knows only its layers", where=ref, hint="name an image")
                return known
            if reference is None and ref.startswith("sha256:"):
                raise InputError(f"no ref {ref[:80]!r}", hint="refledger refs lists them; an image reads NAME@sha256:…")
        reference = reference or image_name(ref)
        if raw:
            return await interruptible(look.raw(reference, platform, config=config))
        return await interruptible(look.inspect(reference, platform, every=every, referrers=referrers))
