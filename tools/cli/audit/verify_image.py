"""`refledger audit verify-image`: what is attested of an image in a registry, without its layers and without a root."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from storage.platform import parse_platform
from storage.signing.notes import Verifier
from tools.cli.names import image_name
from tools.cli.running import interruptible
from tools.cli.writing import as_json_option, print_json, print_line
from tools.text import clean

if TYPE_CHECKING:
    from engine.attest.verify import Verified
    from storage.interfaces.images import Reference

_TYPES = {"provenance": "https://slsa.dev/provenance/v1", "sbom": "https://cyclonedx.org/bom"}


@click.command("verify-image", short_help="Check what was signed of an image.")
@click.argument("ref")
@click.option("--key", required=True, metavar="KEY", help="The verifier key, or a file that holds it.")
@click.option("--platform", metavar="OS/ARCH", help="Of an index only this image.  [default: all]")
@click.option(
    "--require", "required", multiple=True, type=click.Choice(sorted(_TYPES)), help="Each image must have this one."
)
@as_json_option
def verify_image(ref: str, key: str, platform: str | None, required: tuple[str, ...], as_json: bool) -> None:
    """Check what KEY signed of the image REF (a name, or oci-layout://PATH[:TAG]) and tell what that says.

    Only manifests and attestations are asked for. Exit code 4: nothing is attested, another key signed it, it is about
    another image, or there is a statement beside it that KEY did not sign.
    """
    from tools.auditing.keys import read_verifier

    wanted = str(parse_platform(platform)) if platform else ""
    types = [_TYPES[one] for one in required]
    found = asyncio.run(interruptible(_verify(image_name(ref), read_verifier(key), wanted, types)))
    for one in found:
        if as_json:
            print_json({"reference": ref, **one.to_json()})
        else:
            for line in _lines(one):
                print_line(clean(line))


async def _verify(reference: Reference, key: Verifier, platform: str, types: Sequence[str]) -> tuple[Verified, ...]:
    from engine.attest.verify import ImageVerifier
    from tools.imaging import passing_imaging

    async with passing_imaging() as imaging:
        verifier = ImageVerifier(imaging.images, imaging.listing, key)
        return await verifier.verify(reference, platform=platform, required=types)


def _lines(one: Verified) -> Iterator[str]:
    yield f"{one.image}  {one.platform}".rstrip()
    for claim in one.claims:
        told = claim.to_json()
        beside = ", also in the index" if claim.in_index else ""
        yield f"  signed: {claim.predicate_type}{beside}"
        if "components" in told:
            more = ", and more that it does not name" if told["incomplete"] else ""
            yield f"    {told['components']} components{more}"
        if "builder" in told:
            yield f"    built by {told['builder']}, build {told['invocation']}, {told['started']}"
            for source in told["sources"]:
                yield f"    from {source['name']}  {source['digest']}"
            yield from _completeness(told["completeness"])


def _completeness(told: object) -> Iterator[str]:
    if not isinstance(told, dict):
        yield "    it does not say how complete it is"
        return
    reasons = told.get("reasons")
    for one in reasons if isinstance(reasons, list) else []:
        if isinstance(one, dict):
            step = f"{one['step']}: " if one.get("step") else ""
            yield f"    not complete: {step}{one.get('reason', '')}"
