"""What the log says lay in a root: layers and snapshots of the refs that were mountable, with their sizes as it knows
them. The disk is not asked, so this holds for any moment."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from projections.refs import Refs


@dataclass(frozen=True, slots=True)
class Present:
    """`kind` layer (of an image, `bytes` of its blob) or snapshot (of a step, `bytes` of its diff); `refs` that stand
    on it, `build` that brought the first of them."""

    kind: str
    name: str
    bytes: int
    refs: int
    build: str

    def to_json(self) -> dict[str, Any]:
        """The fields, by name."""
        return asdict(self)


def present(refs: Refs) -> list[Present]:
    """Everything that was here, the largest first."""
    found: dict[str, Present] = {}
    for record in reversed([record for record in refs.list() if record.materialized]):
        for layer in record.layers:
            snapshot = layer.get("snapshot")
            name = str(snapshot or layer.get("diff_id") or layer.get("digest") or "")
            size = layer.get("size")
            known = found.get(name)
            count = size if isinstance(size, int) and not snapshot else 0
            if snapshot == record.ref or (snapshot and layer is record.layers[-1]):
                count = record.bytes  # the top of a step's result is its own diff
            bytes_ = max(count, known.bytes if known else 0)
            kind, build = "snapshot" if snapshot else "layer", known.build if known else record.build or ""
            found[name] = Present(kind, name, bytes_, known.refs + 1 if known else 1, build)
    return sorted(found.values(), key=lambda item: (-item.bytes, item.name))
