"""`--attest`, `--provenance` and `--sbom`, as `docker buildx build` has them (Docker docs, "Build attestations").

Without one of them nothing is attested, where buildx attests a provenance: an image is the same then, whatever made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import click

from storage.errors import InputError
from tools.cli.fields import split, truth

if TYPE_CHECKING:
    from engine.attest.spec import Attest
    from engine.output import Output

_FLAG = "--attest"
_KEYS = {"provenance": ("mode", "disabled"), "sbom": ("disabled",)}
attest_option = click.option(
    "--attest", "attests", multiple=True, metavar="type=…",
    help="Attach to the image: provenance[,mode=min|max] or sbom.  [default: nothing]",
)  # fmt: skip
provenance_option = click.option("--provenance", metavar="true|mode=…", help="--attest type=provenance.")
sbom_option = click.option("--sbom", metavar="true|false", help="--attest type=sbom.")


def shorthands(provenance: str | None, sbom: str | None) -> list[str]:
    """What `--provenance` and `--sbom` stand for."""
    found = []
    for kind, text in (("provenance", provenance), ("sbom", sbom)):
        if text is not None and "=" in text:
            found.append(f"type={kind},{text}")
        elif text is not None:
            on = truth(f"--{kind}", {kind: text}, kind, default=True)
            found.append(f"type={kind},disabled={str(not on).lower()}")
    return found


def read_attests(given: Sequence[str], outputs: Sequence[Output]) -> tuple[Attest, ...]:
    """All that is to be attested of the images in `outputs`; of each type the last one counts. Raises InputError."""
    if not given:
        return ()
    wanted: dict[str, Attest] = {}
    for text in given:
        kind, one = _attest(text)
        wanted.pop(kind, None)
        if one is not None:
            wanted[kind] = one
    if wanted:
        _check(outputs)
    return tuple(wanted.values())


def _attest(text: str) -> tuple[str, Attest | None]:
    from engine.attest.spec import Attest

    fields: dict[str, str] = {}
    for part in split(_FLAG, text):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{_FLAG} {text[:200]!r} has a part that is no key=value: {part[:100]!r}")
        fields[key.strip().lower()] = value
    kind = fields.pop("type", "")
    if kind not in _KEYS:
        raise InputError(f"{_FLAG}: no type {kind[:40]!r}", hint="the types are provenance and sbom")
    for key in fields:
        if key not in _KEYS[kind]:
            raise InputError(f"{_FLAG} type={kind} has no key {key[:60]!r}", hint=f"it takes {', '.join(_KEYS[kind])}")
    if truth(_FLAG, fields, "disabled", default=False):
        return kind, None
    known: Literal["provenance", "sbom"] = "provenance" if kind == "provenance" else "sbom"
    return kind, Attest(known, _mode(fields))


def _mode(fields: Mapping[str, str]) -> Literal["min", "max"]:
    mode = fields.get("mode", "max")
    if mode not in ("min", "max"):
        raise InputError(f"{_FLAG}: no mode {mode[:40]!r}", hint="it is min or max")
    return "min" if mode == "min" else "max"


def _check(outputs: Sequence[Output]) -> None:
    images = [output for output in outputs if not output.of_files]
    if not images:
        hint = "add --push or --output type=oci,dest=FILE"
        raise InputError("there is no image to attest anything of", hint=hint)
    for output in images:
        if output.kind == "docker":
            raise InputError("type=docker has no place for attestations", hint="use type=oci")
        if not output.form.oci:
            hint = "leave oci-mediatypes=false out"
            raise InputError("attestations are OCI's, docker's manifests have none", hint=hint)

