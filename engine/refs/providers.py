"""Who may have the blob of a layer, and what to tell a person when nobody has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.errors import FailureKind, MaterializationError, RefledgerError
from engine.refs.kept import Known
from engine.refs.ref import Layer
from storage.interfaces.images import Provider

_ADVICE: dict[FailureKind, str] = {
    "missing": "push the image again, or name a mirror that has it; some registries also say this for want of a login",
    "auth": "log in to {registry}, or name a mirror",
    "transport": "run again when {registry} can be reached, or name a mirror",
    "corrupt": "the copy at {registry} is damaged: push the image again, or name a mirror",
}


def unavailable(
    what: str, layer: Layer, kind: FailureKind, last: RefledgerError | None, providers: Sequence[Provider]
) -> MaterializationError:
    """The error for a layer that none of `providers` gave, the last one for the reason `last`: what a person can do."""
    digest = layer.blob.digest if layer.blob else layer.name
    asked = providers[-1] if providers else None
    where = (last.where if last else "") or (f"{asked}@{digest}" if asked else str(digest))
    if str(digest) not in where:
        what = f"{what} ({digest})"
    if asked is None:
        hint = "the step that made it must run again: use --no-cache"
    else:
        said = last.hint if last and kind != "missing" else ""
        hint = said or _ADVICE.get(kind, "").format(registry=asked.registry)
    if len(providers) > 1:
        what += f"; asked: {', '.join(map(str, providers))}"
    return MaterializationError(what, kind=kind, where=where, hint=hint, layer=layer.name)


def providers_of(layer: Layer, known: Known) -> Iterator[Provider]:
    """The providers of `layer` itself, then others that the log knows of."""
    yield from layer.providers
    if layer.blob is not None:
        asked = {provider.coordinates for provider in layer.providers}
        others = known.providers(layer.blob.digest)
        yield from (other for other in others if other.coordinates not in asked)
