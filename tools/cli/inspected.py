"""What `refledger inspect` found, as lines for people: cleaned, and cut to the window."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from engine.images.inspect import Entry, ImageView, Inspected, LayerView, RefView, names, pairs, text, texts
from storage.interfaces.images import Referrer
from storage.media_types import DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST
from tools.cli.writing import columns, print_cut, print_line, table
from tools.format import human_bytes
from tools.text import cells, clean

_KINDS = {
    MANIFEST: "OCI manifest", INDEX: "OCI index", DOCKER_MANIFEST: "docker manifest",
    DOCKER_LIST: "docker manifest list",
}
_SHORT = 19
"""Characters of a digest that tell it from others: `sha256:` and twelve digits."""


def print_found(found: Inspected | RefView) -> None:
    """Print an image, an index, or what the log has of a ref."""
    if isinstance(found, RefView):
        _print_ref(found)
        return
    top = found.top
    _line(found.reference)
    _fields([
        ("digest", [str(top.digest)]),
        ("kind", [_kind(top.media_type, text(top.fields.get("artifactType"))) + f", {human_bytes(len(top.data))}"]),
        ("annotations", _pairs(pairs(top.fields.get("annotations")))),
    ])  # fmt: skip
    if found.entries:
        _print_entries(found.entries)
    if found.image is not None:
        _print_image(found.image, alone=not found.entries)
    if found.referrers is not None:
        _print_referrers(found.referrers)


def _print_entries(entries: Sequence[Entry]) -> None:
    """Images, each followed by what is attested of it; annotations of descriptors below."""
    platforms = {str(entry.blob.digest): entry.name for entry in entries if not entry.attests}
    print_line("")
    rows = [("PLATFORM", "SIZE", "DIGEST")]
    for entry in entries:
        name = f"attestation of {platforms.get(entry.attests, entry.attests[:_SHORT])}" if entry.attests else entry.name
        rows.append((clean(name), human_bytes(entry.blob.size), str(entry.blob.digest)))
    _table(rows, ("SIZE",))
    for entry in entries:
        said = {key: value for key, value in entry.blob.annotations.items() if not entry.attests}
        for line in _pairs(said):
            _line(f"{clean(entry.name)} annotated {line}")


def _print_image(image: ImageView, *, alone: bool) -> None:
    runs, manifest, config = image.runs, image.manifest, image.config_blob
    if not alone:
        print_line("")
        _line(f"{image.platform or 'image'}  {manifest.digest}")
    _fields([
        ("platform", [image.platform] if alone and image.platform else []),
        ("kind", [] if alone else [_kind(manifest.media_type, text(manifest.fields.get("artifactType")))]),
        ("annotations", [] if alone else _pairs(pairs(manifest.fields.get("annotations")))),
        ("created", _some(image.config.get("created"))),
        ("author", _some(image.config.get("author"))),
        ("config", [f"{config.digest} {human_bytes(config.size)}"] if config else []),
        ("entrypoint", _command(runs.get("Entrypoint"))),
        ("cmd", _command(runs.get("Cmd"))),
        ("user", _some(runs.get("User"))),
        ("workdir", _some(runs.get("WorkingDir"))),
        ("env", texts(runs.get("Env"))),
        ("ports", [", ".join(found)] if (found := names(runs.get("ExposedPorts"))) else []),
        ("volumes", names(runs.get("Volumes"))),
        ("stop signal", _some(runs.get("StopSignal"))),
        ("labels", _pairs(pairs(runs.get("Labels")))),
    ])  # fmt: skip
    _print_layers(image.layers, image.size, image.to_pull, runs=bool(image.config))
    empty = [step for step in image.history if step.layer is None and step.made_by]
    if empty:
        print_line("")
        _line("made without a layer")
        for step in empty:
            _line(f"  {_on_one_line(step.made_by)}")


def _print_ref(found: RefView) -> None:
    how = {"remote": "an image's layers", "local": "the result of a step"}.get(found.kind, found.kind)
    _line(found.ref)
    _fields([("kind", [how]), ("build", [found.build] if found.build else [])])
    _print_layers(found.layers, found.size, found.to_pull, runs=True)


def _print_layers(layers: Sequence[LayerView], size: int, to_pull: int, *, runs: bool) -> None:
    print_line("")
    count = f"{len(layers)} layer{'s' * (len(layers) != 1)}"
    told = [f"{count}, {human_bytes(size)}"]
    if runs:
        lacking = sum(layer.to_come for layer in layers)
        told.append(f"a RUN here pulls {f'{lacking} of them, {human_bytes(to_pull)}' if to_pull else 'nothing'}")
    _line("; ".join(told))
    if not layers:
        return
    rows = [("LAYER", "SIZE", "HERE", "AT", "MADE BY")]
    for layer in layers:
        blob = layer.layer.blob
        name = str(blob.digest)[:_SHORT] if blob else layer.layer.name
        kind = "" if blob is None or ".tar" in blob.media_type else f"{blob.media_type} "
        known = [clean(str(provider)) for provider in layer.where.providers]
        at = known[0] + (f" +{len(known) - 1}" if len(known) > 1 else "") if known else "-"
        size_told = human_bytes(layer.size) if blob else "-"
        rows.append((clean(name), size_told, _here(layer), at, clean(kind) + _on_one_line(layer.made_by)))
    _table(rows, ("AT", "SIZE"))


def _here(layer: LayerView) -> str:
    """Two of the three facts; a blob that lies here spares the network, not the unpacking."""
    found = [word for word, is_so in (("mountable", layer.where.mountable), ("blob", layer.where.stored)) if is_so]
    return " and ".join(found) or "no"


def _print_referrers(referrers: Mapping[str, Sequence[Referrer]]) -> None:
    print_line("")
    if not any(referrers.values()):
        _line("nothing refers to it")
        return
    rows = [("REFERRER", "SIZE", "TO", "DIGEST")]
    for subject, found in referrers.items():
        rows += [
            (
                clean(one.artifact_type or one.manifest.media_type), human_bytes(one.manifest.size), subject[:_SHORT],
                str(one.manifest.digest),
            )
            for one in found
        ]  # fmt: skip
    _table(rows, ("TO", "SIZE"))


# ---------------------------------------------------------------- lines


def _line(line: str) -> None:
    print_cut(clean(line), columns(100_000))


def _table(rows: Sequence[Sequence[str]], optional: Sequence[str]) -> None:
    table(rows, optional, columns(100_000))


def _fields(fields: Sequence[tuple[str, Iterable[str]]]) -> None:
    """`name  value`, further values below the first; what has no value is left out."""
    width = max((cells(name) for name, _ in fields), default=0)
    for name, values in fields:
        for number, value in enumerate(values):
            _line(f"  {'' if number else name:<{width}}  {clean(value)}")


def _kind(media_type: str, artifact_type: str) -> str:
    kind = _KINDS.get(media_type, media_type)
    return f"{kind} of {artifact_type}" if artifact_type else kind


def _pairs(values: Mapping[str, str]) -> Iterator[str]:
    return (f"{key}={value}" for key, value in sorted(values.items()))


def _some(value: object) -> list[str]:
    return [found] if (found := text(value)) else []


def _command(value: object) -> list[str]:
    words = texts(value)
    return [json.dumps(words, ensure_ascii=False)] if words else []


def _on_one_line(command: str) -> str:
    """A command as history has it, blanks in a row as one."""
    return clean(" ".join(command.split()))
