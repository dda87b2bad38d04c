"""What a build made, as --metadata-file and the terminal tell it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.exporters.exporters import Written
    from engine.exporters.image import Bundle
    from engine.request import BuildResult
    from storage.interfaces.images import Reference

Json = dict[str, Any]


def metadata(result: BuildResult, build: str, names: Sequence[Reference]) -> Json:
    """The fields of buildx (`containerimage.…`, `image.name`) for the first output that holds images; with several
    platforms `containerimage.digest/PLATFORM` and `containerimage.config.digest/PLATFORM` besides. Ours:
    `refledger.build.id`, `refledger.ref`, and `refledger.outputs`, each output with its own digests."""
    facts: Json = {"refledger.build.id": build, "refledger.ref": result.ref}
    first = next((one for one in result.written if one.made is not None), None)
    if first is not None and first.made is not None:
        made = first.made
        facts |= {"containerimage.digest": str(made.digest), "containerimage.descriptor": made.descriptor.to_json()}
        if len(made.images) == 1:
            facts["containerimage.config.digest"] = str(made.config)
        else:
            for image in made.images:
                facts[f"containerimage.digest/{image.platform}"] = str(image.digest)
                facts[f"containerimage.config.digest/{image.platform}"] = str(image.config_blob.digest)
        names = first.output.names
    if names:
        facts["image.name"] = ",".join(map(str, names))
    if result.written:
        facts["refledger.outputs"] = [_output(one) for one in result.written]
    return facts


def differing(result: BuildResult) -> list[str]:
    """A line for each output when they hold different images, which one digest cannot tell."""
    digests = [(one, one.made.digest) for one in result.written if one.made is not None]
    if len({digest for _, digest in digests}) < 2:
        return []
    return [f"{one.output.written}: {digest} ({one.output.form.compression.written})" for one, digest in digests]


def _output(one: Written) -> Json:
    output = one.output
    out: Json = {"type": output.kind}
    if output.dest:
        out["dest"] = output.dest
    if one.digest is not None:
        out["digest"] = str(one.digest)
    if one.made is not None:
        out |= {"compression": output.form.compression.written, "descriptor": one.made.descriptor.to_json()}
        out["names"] = list(map(str, output.names))
        out["images"] = _images(one.made)
    if output.kind == "image":
        out["pushed"] = output.push
    return out


def _images(made: Bundle) -> list[Json]:
    return [
        {"platform": image.platform, "digest": str(image.digest), "config": str(image.config_blob.digest)}
        for image in made.images
    ]
