"""What a build is to attest of its images, as `--attest` asks for it. Pure."""

from __future__ import annotations

from typing import Literal

from engine.record import Record


class Attest(Record):
    """`provenance`: how it was built, `mode` max with all arguments and steps, min without; `sbom`: what is in it."""

    kind: Literal["provenance", "sbom"]
    mode: Literal["min", "max"] = "max"

    @property
    def written(self) -> str:
        """As the log has it."""
        return f"type={self.kind}" + (f",mode={self.mode}" if self.kind == "provenance" else "")
