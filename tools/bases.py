"""What the log knows of images that builds of this root made: the image that each was built on."""

from __future__ import annotations

from dataclasses import dataclass

from engine.graph import Graph, ImageSource
from engine.stored import graph_from_json
from projections.fields import BAD_EVENT
from projections.history import History
from projections.mentions import Mentions, events_at
from projections.runner import Views
from storage.digest import Digest, parse_json
from storage.errors import VerificationError
from storage.interfaces.blobs import BlobStore
from storage.interfaces.log import EventLog

_UNREADABLE = (*BAD_EVENT, FileNotFoundError, VerificationError)


@dataclass(frozen=True, slots=True)
class LogBases:
    """Implements engine.images.resolver.Bases."""

    log: EventLog
    views: Views
    blobs: BlobStore

    def base_of(self, manifest: Digest) -> tuple[str, Digest] | None:
        """See Bases.base_of. What is damaged, or not here any more, is not known."""
        self.views.catch_up(self.log)
        made = Mentions(self.views).seqs({manifest}, {"BuildCompleted"}, last=1)
        for event in events_at(self.log, made):
            try:
                results = [item for item in event.data["results"] if item.get("digest") == manifest]
                graph = self._graph(event.build or "", event.seq)
                if results and graph is not None:
                    return _base(graph, results[0]["platform"])
            except _UNREADABLE:
                continue
        return None

    def _graph(self, build: str, until: int) -> Graph | None:
        first = History(self.views).get(build).first_seq
        for event in self.log.read(after=first - 1, until=until, types=frozenset({"GraphDefined"})):
            if event.build == build:
                return graph_from_json(parse_json(self.blobs.get(Digest(event.data["graph"]))))
        return None


def _base(graph: Graph, platform: str) -> tuple[str, Digest] | None:
    """The image at the bottom of the result for `platform`."""
    result = [item for item in graph.results if item.platform == platform][0]  # noqa: RUF015 - IndexError is expected
    step = graph.by_digest[result.vertex]
    while step.inputs:
        step = graph.by_digest[step.inputs[0]]
    return (step.op.reference, step.op.manifest) if isinstance(step.op, ImageSource) else None
