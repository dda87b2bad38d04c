"""`refledger audit provenance`: how a build made its images, as an in-toto statement (I13)."""

from __future__ import annotations

import click

from storage.errors import InputError
from storage.platform import parse_platform
from tools import roots
from tools.cli.destinations import writable
from tools.cli.writing import write_file


@click.command(short_help="Tell how a build made its images.")
@click.argument("build_id", metavar="BUILD")
@click.option("--platform", metavar="OS/ARCH", help="Of the image for this platform.  [default: of all]")
@click.option("--mode", type=click.Choice(["min", "max"]), default="max", help="min: no arguments and steps.")
@click.option("--sign", is_flag=True, help="In a DSSE envelope, signed with the audit key.")
@click.option("-o", "--output", callback=writable, metavar="FILE", help="Write it here.  [default: standard output]")
def provenance(build_id: str, platform: str | None, mode: str, sign: bool, output: str | None) -> None:
    """Tell how BUILD made its images: SLSA provenance v1, from the log alone.

    What the log cannot tell stands in it as well, under refledger_completeness.
    """
    wanted = str(parse_platform(platform)) if platform else ""
    data = _statement(build_id, wanted, whole=mode == "max", sign=sign)
    write_file(output, data if output not in {None, "-"} else data + b"\n", "writing the provenance")


def _statement(build_id: str, platform: str, *, whole: bool, sign: bool) -> bytes:
    from engine.attest.statement import PROVENANCE, statement
    from projections.history import History
    from projections.mentions import Mentions
    from projections.provenance import provenance as predicate_of
    from storage.digest import Digest
    from storage.signing.dsse import IN_TOTO
    from storage.signing.dsse import sign as sign_envelope
    from tools.auditing.attesting import builder_id
    from tools.auditing.keys import find_signer

    path = roots.root_directory()
    signer = find_signer(path) if sign else None
    if sign and signer is None:
        raise InputError("there is no key to sign with", hint="make one with: refledger audit keygen")
    with roots.read_root(path) as (log, views):
        history = History(views)
        record = history.get(build_id)
        images = {
            Digest(one["digest"]): str(one.get("platform") or "")
            for one in record.results
            if one.get("digest") and platform in ("", one.get("platform"))
        }
        if not images:
            what = f"build {record.id} made no image" + (f" for {platform}" if platform else "")
            raise InputError(what, hint="an image gets its digest when it is exported: --push or --output")
        predicate = predicate_of(
            log, roots.read_blobs(path), history, Mentions(views), record, whole=whole, builder=builder_id()
        )
    payload = statement(images, PROVENANCE, predicate)
    return payload if signer is None else sign_envelope(IN_TOTO, payload, signer)
