"""Builds that ask the cache, as events: for stories that no quick build tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import events as e
from engine.frontend.dockerignore import IgnoreMatcher
from projections.asked import Component
from projections.history import History
from projections.runner import Views
from projections.standard import STANDARD
from projections.verdict import Verdict, Why
from projections.why import explain
from storage.digest import Digest, canonical_json, sha256
from tests.projections.story import started
from tests.projections.support import ListLog
from tools.cli.explained import all_steps, one_step

Json = dict[str, Any]


class MemoryBlobs:
    """Blobs in a dict."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        digest = sha256(data)
        self.held[digest] = data
        return digest

    def get(self, digest: Digest) -> bytes:
        try:
            return self.held[digest]
        except KeyError:
            raise FileNotFoundError(digest) from None


def hides(patterns: Sequence[str], path: str) -> bool:
    """As `refledger why` asks."""
    return IgnoreMatcher(patterns).excluded(path)


def why(log: ListLog, blobs: MemoryBlobs, build: str, against: str | None = None) -> Why:
    """What `refledger why BUILD` is told."""
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        history = History(views)
        return explain(log, blobs, history, history.get(build), against, hides)


def vertex(name: str, *inputs: str, stage: str = "s", **op: Any) -> Json:
    """A vertex of a stored graph, called as its step is; `op`: its fields, RUN by default."""
    return {"digest": name, "op": {"op": "run", **op}, "name": f"[{stage}] {name}", "inputs": list(inputs),
            "stage": stage, "lines": [1, 1]}  # fmt: skip


@dataclass
class Story:
    """A log and its blobs."""

    log: ListLog = field(default_factory=ListLog)
    blobs: MemoryBlobs = field(default_factory=MemoryBlobs)

    def begin(self, build: str, *vertices: Json, name: str = "app", **options: Any) -> None:
        """A build of `vertices`, the last of which is its target."""
        fact = e.to_data(started(build, name))
        self.log.add_raw("BuildStarted", {**fact, "options": options}, build)
        graph = {"vertices": list(vertices), "results": [{"vertex": vertices[-1]["digest"]}]}
        stored = self.blobs.put(canonical_json(graph))
        self.log.add(e.GraphDefined(graph=stored, vertices=len(vertices)), build)

    def key(self, *components: Component) -> str:
        """The stored plaintext of a key, which is named by its digest."""
        return self.blobs.put(canonical_json([list(item) for item in components]))

    def ask(self, build: str, step: str, key: str, outcome: str, **more: Any) -> None:
        """`outcome`: hit, or the reason of a miss."""
        found = {"outcome": "hit", "ref": f"ref-{step}"} if outcome == "hit" else {"outcome": "miss", "reason": outcome}
        self.log.add(e.CacheQueried(**{"key": key, "components": key, **found, **more}), build, step)

    def ran(self, build: str, step: str, attempt: int = 1) -> None:
        """It was executed."""
        self.log.add(e.VertexStarted(name=step, inputs=(), attempt=attempt), build, step)
        self.log.add(e.VertexCompleted(name=step, outputs=(f"ref-{step}",), attempt=attempt), build, step)

    def recorded(self, build: str, step: str, key: str, *layers: Json, **more: Any) -> None:
        """Its result is in the cache; without `layers`: a snapshot named after it."""
        made = layers or ({"snapshot": f"{build}-{step}"},)
        self.log.add(e.CacheRecorded(key=key, components=key, ref=f"ref-{step}", layers=made, **more), build, step)

    def cached(self, build: str, step: str) -> None:
        """Its result was taken from the cache."""
        self.log.add(e.VertexCached(name=step, outputs=(f"ref-{step}",)), build, step)

    def end(self, build: str) -> None:
        """It completed."""
        self.log.add(e.BuildCompleted(results=()), build)

    def made(self, build: str, step: str, key: str, *layers: Json, **more: Any) -> None:
        """Asked for, missed, executed and recorded."""
        self.ask(build, step, key, "never-built")
        self.ran(build, step)
        self.recorded(build, step, key, *layers, **more)

    def why(self, build: str) -> Why:
        """Its explanation."""
        return why(self.log, self.blobs, build)

    def verdict(self, build: str, step: str) -> Verdict:
        """That of one step."""
        return next(item for item in self.why(build).verdicts if item.step.vertex == step)

    def text(self, build: str, step: str = "") -> str:
        """What a person reads, of the whole build or of one step."""
        found = self.why(build)
        if not step:
            with Views(None, STANDARD) as views:
                views.catch_up(self.log)
                return "\n".join(all_steps(found, {item.id: item for item in History(views).list()}, 500))
        return "\n".join(one_step(found, found.build.steps[step], self.verdict(build, step), 500))
