"""A realistic build, as events."""

from __future__ import annotations

from typing import Any

from engine import events as e
from tests.projections.support import ListLog, digest

PROVIDER = {"registry": "127.0.0.1:5000", "repository": "base", "scope": "repository:base:pull"}
TARGET = {"registry": "127.0.0.1:5000", "repository": "app", "scope": "repository:app:pull"}
LAYERS: list[dict[str, Any]] = [
    {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(f"blob{n}"), "size": 10_000_000 * n,
     "diff_id": digest(f"diff{n}")}
    for n in (1, 2)
]  # fmt: skip
BLOBS = tuple(layer["digest"] for layer in LAYERS)
PLAN = (
    {"vertex": "v1", "name": "FROM debian:12", "lines": [1, 1]},
    {"vertex": "v2", "name": "RUN make", "lines": [2, 3]},
    {"vertex": "v3", "name": "COPY . /src", "lines": [4, 4]},
)


def started(build: str = "b1", name: str = "app", options: e.Json | None = None) -> e.BuildStarted:
    return e.BuildStarted(
        frontend="dockerfile", definition=digest("def"), options=options or {}, context=None, engine_version="0.1.0",
        host={"hostname": "h"}, name=name, tags=("127.0.0.1:5000/app:latest",),
    )  # fmt: skip


def begin(log: ListLog, build: str = "b1", name: str = "app") -> None:
    """Up to the point where RUN is under way and waits for two layers."""
    log.add(started(build, name), build)
    log.add(e.SourceResolved(reference="debian:12", digest=digest("idx"), platform="linux/amd64", provider=PROVIDER,
                             manifest=digest("man"), config=digest("cfg")), build)  # fmt: skip
    log.add(e.GraphDefined(graph=digest("graph"), vertices=3, plan=PLAN, target="v3"), build)
    log.add(e.VertexStarted(name="FROM debian:12", inputs=()), build, "v1")
    log.add(e.RemoteCreated(ref=digest("chain"), layers=tuple(LAYERS), providers=(PROVIDER,)), build, "v1")
    log.add(e.VertexCompleted(name="FROM debian:12", outputs=(digest("chain"),)), build, "v1")
    log.add(e.CacheQueried(key=digest("k2"), outcome="miss", reason="never-built"), build, "v2")
    log.add(e.VertexStarted(name="RUN make", inputs=(digest("chain"),)), build, "v2")
    log.add(e.MaterializationRequested(ref=digest("chain"), reason="run", layers=BLOBS, bytes=30_000_000,
                                       snapshotter="directory"), build, "v2")  # fmt: skip


def pull(log: ListLog, build: str = "b1", vertex: str = "v2", steps: int = 4) -> None:
    """Both layers come, by this build."""
    for layer in LAYERS:
        blob, total = layer["digest"], layer["size"]
        log.add(e.PullStarted(digest=blob, total=total, provider=PROVIDER), build, vertex)
        for step in range(1, steps + 1):
            log.add(e.PullProgressed(digest=blob, bytes=total * step // (steps + 1), total=total), build, vertex)
        log.add(e.LayerPulled(digest=blob, bytes=total, provider=PROVIDER, seconds=0.5, verified=("digest", "diff_id"),
                              diff_id=layer["diff_id"]), build, vertex)  # fmt: skip
    log.add(e.Materialized(ref=digest("chain"), bytes=30_000_000, seconds=1.5), build, vertex)


def finish(log: ListLog, build: str = "b1") -> None:
    """RUN prints and ends, COPY is cached, the image is pushed."""
    ref = f"{build}-run"
    log.add(e.VertexOutput(fd=1, offset=0, text="cc -c main.c\ncc -o ma"), build, "v2")
    log.add(e.VertexOutput(fd=1, offset=21, text="in main.o\n"), build, "v2")
    log.add(e.LocalCreated(ref=ref, parent=digest("chain"), bytes=1234, layers=({"snapshot": ref},)), build, "v2")
    log.add(e.VertexCompleted(name="RUN make", outputs=(ref,), exit_code=0), build, "v2")
    log.add(e.CacheRecorded(key=digest("k2"), components=digest("comp"), ref=ref, layers=({"snapshot": ref},)), build,
            "v2")  # fmt: skip
    log.add(e.VertexCached(name="COPY . /src", outputs=("old-ref",), origin_build="b0"), build, "v3")
    log.add(e.ExportStarted(kind="image", target="127.0.0.1:5000/app:latest", digest=digest("img")), build)
    log.add(e.BlobCreated(ref=ref, snapshot=ref, diff_id=digest("diffr"), digest=digest("blobr"),
                          media_type="application/vnd.oci.image.layer.v1.tar+gzip", bytes=900,
                          compressor="isal 1.7"), build)  # fmt: skip
    layers = (
        {"digest": BLOBS[0], "transport": "mounted", "bytes": 0, "source": "127.0.0.1:5000/base"},
        {"digest": BLOBS[1], "transport": "mounted", "bytes": 0, "source": "127.0.0.1:5000/base"},
        {"digest": digest("blobr"), "transport": "uploaded", "bytes": 900, "source": None},
    )
    data = e.to_data(e.Exported(kind="image", target="127.0.0.1:5000/app:latest", digest=digest("img"), layers=layers))
    log.add_raw("Exported", {**data, "provider": TARGET}, build)
    log.add(e.BuildCompleted(results=({"ref": ref, "digest": digest("img")},)), build)


def whole(log: ListLog, build: str = "b1", name: str = "app") -> None:
    """A build from beginning to end."""
    begin(log, build, name)
    pull(log, build)
    finish(log, build)


def full_log() -> ListLog:
    """A whole build, one that runs, and a whole one."""
    log = ListLog()
    whole(log, "b1")
    begin(log, "b2", "other")
    pull(log, "b2")
    whole(log, "b3")
    return log
