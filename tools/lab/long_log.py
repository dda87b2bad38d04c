"""A root with the log of many builds that nobody ran, for measuring what reads it: the facts, in the order and the mix
in which the engine records them, and the stored documents that `refledger why` looks into. No layer has bytes.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from engine import events as e
from storage.digest import canonical_json
from storage.interfaces.log import Event, NewEvent
from storage.log.eventlog import SqliteEventLog

Json = dict[str, Any]
Told = tuple[e.Fact, str | None]
"""A fact and the vertex it is about."""

PROJECTS = 40
STEPS = 12
LAYERS = 6
_PROVIDER = {"registry": "registry.example.com", "repository": "base", "scope": "repository:base:pull"}
_BEGIN, _TICK = 1_760_000_000 * 10**9, 10**9 // 2  # UTC ns of the first events, and between two submissions
_BATCH = 50  # events of a submission, which have one time
_FLYING = 200  # submissions that are not yet durable
_LINE = "cc -O2 -Wall -c source.c -o object.o\n"


@dataclass(slots=True)
class _Project:
    """One Dockerfile that is built again and again. `changed`: how often each step was edited; `known`: what the cache
    has, ref and build by key."""

    number: int
    changed: list[int] = field(default_factory=lambda: [0] * STEPS)
    known: dict[str, tuple[str, str]] = field(default_factory=dict)
    pulled: bool = False


def make(root: Path, events: int, builds: int, seed: int = 7, *, whole: bool = False) -> None:
    """Fill the new directory `root` with a log of exactly `events` events and `builds` builds, its stored documents and
    no projections; `whole`: also with small things in the place of all that the log says is here. Raises LogError,
    DiskError."""
    blobs = root / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (root / "format").write_text("1\n")
    maker = _Maker(blobs, Random(seed), whole)  # noqa: S311  reason: the same log every time
    flying: deque[Future[list[Event]]] = deque()
    ticks = count(_BEGIN, _TICK)
    log = SqliteEventLog(root / "log.db", clock=lambda: next(ticks))
    try:
        left = events
        for number in range(builds):
            told = maker.build(number, left // (builds - number), last=number == builds - 1)
            left -= len(told)
            for start in range(0, len(told), _BATCH):
                flying.append(log.submit(told[start : start + _BATCH]))
                if len(flying) > _FLYING:
                    flying.popleft().result()
        for future in flying:
            future.result()
    finally:
        log.close()


@dataclass(slots=True)
class _Maker:
    blobs: Path
    random: Random
    whole: bool
    projects: list[_Project] = field(default_factory=lambda: [_Project(n) for n in range(PROJECTS)])

    def build(self, number: int, events: int, *, last: bool) -> list[NewEvent]:
        """Build `number` in `events` events; `last`: it is to end well."""
        project = self.projects[number % PROJECTS]
        build = hashlib.sha256(f"build{number}".encode()).hexdigest()[:12]
        for step in range(1, STEPS):
            project.changed[step] += self.random.random() < 0.08
        how = "completed" if last else self.random.choices(("completed", "failed", "interrupted"), (90, 8, 2))[0]
        told = list(self._story(project, build, how))
        spare = max(events - len(told), 0)
        ran = [at for at, (fact, _) in enumerate(told) if isinstance(fact, e.VertexStarted)]
        out: list[NewEvent] = []
        for at, (fact, vertex) in enumerate(told):
            out.append(_event(build, fact, vertex))
            if at in ran and vertex is not None:
                share = spare // (len(ran) - ran.index(at))
                spare -= share
                out += (_event(build, e.VertexOutput(fd=1, offset=n * 148, text=_LINE * 4), vertex)
                        for n in range(share))  # fmt: skip
        return out

    def _story(self, project: _Project, build: str, how: str) -> Iterator[Told]:
        layers = _layers(project.number)
        vertices = [_digest(f"vertex {project.number} {n} {sum(project.changed[: n + 1])}") for n in range(STEPS)]
        yield e.BuildStarted(
            frontend="dockerfile", definition=self._store(_dockerfile(project).encode()),
            options={"target": "", "platforms": [], "directory": f"/src/project-{project.number}", "context": "."},
            context=None, engine_version="0.1.0", host={"hostname": "ci", "kernel": "6.1", "pid": 1},
            name=f"project-{project.number}", tags=(f"registry.example.com/project-{project.number}:latest",),
        ), None  # fmt: skip
        base, manifest = _digest(f"chain {project.number}"), _digest(f"manifest {project.number}")
        reference = f"registry.example.com/base-{project.number}:12"
        yield e.SourceResolved(reference=reference, digest=manifest, platform="linux/amd64", provider=_PROVIDER,
                               manifest=manifest, config=_digest("config")), None  # fmt: skip
        yield self._graph(project, vertices, layers), None
        yield e.VertexStarted(name=f"[1/{STEPS}] FROM {reference}", inputs=()), vertices[0]
        yield e.RemoteCreated(ref=base, layers=tuple(layers), providers=(_PROVIDER,)), vertices[0]
        yield e.VertexCompleted(name=f"[1/{STEPS}] FROM {reference}", outputs=(base,)), vertices[0]
        failing = self.random.randrange(1, STEPS) if how == "failed" else STEPS
        ref, key = base, _digest(f"base {project.number}")
        for step in range(1, STEPS):
            name = f"[{step + 1}/{STEPS}] RUN make part-{step}"
            plain = canonical_json([["schema", "1"], ["op", "run"], ["argv", _command(project, step)], ["input", key]])
            key = self._store(plain)
            known = project.known.get(key)
            if known:
                ref = known[0]
                yield e.CacheQueried(key=key, outcome="hit", ref=ref, origin_build=known[1], components=key), \
                    vertices[step]  # fmt: skip
                yield e.VertexCached(name=name, outputs=(ref,), origin_build=known[1]), vertices[step]
                continue
            yield e.CacheQueried(key=key, outcome="miss", reason="never-built", components=key), vertices[step]
            yield e.VertexStarted(name=name, inputs=(ref,)), vertices[step]
            if not project.pulled:
                yield from self._pull(base, layers, vertices[step])
                project.pulled = True
            if how == "interrupted" and step == STEPS - 1:
                break
            if step >= failing:
                yield e.VertexFailed(name=name, error="exit code 2", exit_code=2), vertices[step]
                yield e.BuildFailed(error=f"{name}: exit code 2", vertex=vertices[step], exit_code=1), None
                return
            parent, ref = ref, f"{build}-{step}"
            top = ({"snapshot": ref},)
            if self.whole:
                (self.blobs.parents[1] / "snapshots" / ref / "fs").mkdir(parents=True)
            yield e.LocalCreated(ref=ref, parent=parent, bytes=4096 * step, layers=(*layers, *top)), vertices[step]
            yield e.VertexCompleted(name=name, outputs=(ref,), exit_code=0), vertices[step]
            yield e.CacheRecorded(key=key, components=key, ref=ref, layers=(*layers, *top)), vertices[step]
            project.known[key] = (ref, build)
        if how == "interrupted":
            yield e.BuildInterrupted(error="its process ended without a word", found_by="", removed=()), None
            return
        image = _digest(f"image {build}")
        yield from self._export(f"registry.example.com/project-{project.number}:latest", image, ref, layers)
        yield e.BuildCompleted(results=({"ref": ref, "digest": image},)), None

    def _pull(self, base: str, layers: list[Json], vertex: str) -> Iterator[Told]:
        blobs = tuple(str(layer["digest"]) for layer in layers)
        yield e.MaterializationRequested(ref=base, reason="run", layers=blobs, bytes=10_000_000 * LAYERS,
                                         snapshotter="erofs"), vertex  # fmt: skip
        for blob in blobs:
            yield e.PullStarted(digest=blob, total=10_000_000, provider=_PROVIDER), vertex
            for part in range(8):
                yield e.PullProgressed(digest=blob, bytes=part * 1_250_000, total=10_000_000), vertex
            yield e.LayerPulled(digest=blob, bytes=10_000_000, provider=_PROVIDER, seconds=2.0,
                                verified=("digest", "diff_id")), vertex  # fmt: skip
        yield e.Materialized(ref=base, bytes=10_000_000 * LAYERS, seconds=2.0), vertex

    def _export(self, target: str, image: str, ref: str, layers: list[Json]) -> Iterator[Told]:
        blob = self._store(f"packed {ref}".encode()) if self.whole else _digest(f"packed {ref}")
        yield e.ExportStarted(kind="image", target=target, digest=image), None
        yield e.BlobCreated(ref=ref, snapshot=ref, diff_id=_digest(f"diff {ref}"), digest=blob, bytes=900,
                            media_type=str(layers[0]["mediaType"]), compressor="isal 1.7"), None  # fmt: skip
        moved = [{"digest": layer["digest"], "transport": "mounted", "bytes": 0, "source": "base"} for layer in layers]
        moved.append({"digest": blob, "transport": "uploaded", "bytes": 900, "source": None})
        yield e.Exported(kind="image", target=target, digest=image, layers=tuple(moved), provider=_PROVIDER), None

    def _graph(self, project: _Project, vertices: list[str], layers: list[Json]) -> e.GraphDefined:
        names = [f"[1/{STEPS}] FROM base", *(f"[{n + 1}/{STEPS}] RUN make part-{n}" for n in range(1, STEPS))]
        plan, stored = [], []
        for number, (vertex, name) in enumerate(zip(vertices, names, strict=True)):
            argv = ["/bin/sh", "-c", _command(project, number)]
            op: Json = {"op": "run", "argv": argv} if number else {"op": "image", "layers": layers}
            lines, inputs = [number + 1, number + 1], vertices[number - 1 : number] if number else []
            plan.append({"vertex": vertex, "name": name, "lines": lines})
            stored.append({"digest": vertex, "op": op, "inputs": inputs, "name": name, "stage": "", "lines": lines})
        graph = self._store(canonical_json({"vertices": stored, "results": []}))
        return e.GraphDefined(graph=graph, vertices=STEPS, plan=tuple(plan), target=vertices[-1])

    def _store(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        path = self.blobs / name
        if not path.exists():
            path.write_bytes(data)  # reason: not synchronised, as nobody needs it after a power loss
        return f"sha256:{name}"


def _event(build: str, fact: e.Fact, vertex: str | None) -> NewEvent:
    data = e.to_data(fact)
    stream = {"build": f"build/{build}", "cache": "cache"}.get(fact.STREAM) or f"ref/{data['ref']}"
    return NewEvent(stream, type(fact).__name__, data, build, vertex)


def _layers(project: int) -> list[Json]:
    return [
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "size": 10_000_000,
            "digest": _digest(f"blob {project} {n}"), "diff_id": _digest(f"diff {project} {n}"),
        }
        for n in range(LAYERS)
    ]  # fmt: skip


def _command(project: _Project, step: int) -> str:
    return f"make part-{step} V={project.changed[step]} # project {project.number}"


def _dockerfile(project: _Project) -> str:
    steps = "".join(f"RUN {_command(project, n)}\n" for n in range(1, STEPS))
    return f"FROM registry.example.com/base-{project.number}:12\n{steps}"


def _digest(name: str) -> str:
    return "sha256:" + hashlib.sha256(name.encode()).hexdigest()
