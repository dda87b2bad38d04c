"""What the log tells for attestations: the provenance of a build, and which layers were looked through."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from projections.history import History
from projections.mentions import Mentions, events_at
from projections.provenance import BUILDER, provenance
from storage.digest import Digest
from storage.interfaces.blobs import BlobStore
from tools.roots import Root

Json = dict[str, Any]


def builder_id() -> str:
    """`$REFLEDGER_BUILDER_ID`, a URI: who is to be trusted with what is said (SLSA, `builder.id`)."""
    return os.environ.get("REFLEDGER_BUILDER_ID") or BUILDER


@dataclass(frozen=True, slots=True)
class LogFacts:
    """Implements engine.attest.attester.Known."""

    root: Root
    blobs: BlobStore

    def provenance(self, build: str, *, whole: bool) -> Json:
        """See Known.provenance."""
        views = self.root.views
        views.catch_up(self.root.log)
        history = History(views)
        record = history.get(build)
        return provenance(
            self.root.log, self.blobs, history, Mentions(views), record, whole=whole, builder=builder_id()
        )

    def scan_of(self, diff_id: Digest) -> Digest | None:
        """See Known.scan_of."""
        self.root.views.catch_up(self.root.log)
        found = Mentions(self.root.views).seqs([str(diff_id)], {"LayerScanned"}, last=1)
        for event in events_at(self.root.log, found):
            if event.data.get("diff_id") == diff_id:
                return Digest(str(event.data["scan"]))
        return None
