"""One build's view: folded from the log alone, whoever pulled, however it ended."""

from __future__ import annotations

import json

import pytest

from engine import events as e
from projections import progress
from projections.output import output_lines
from projections.progress import ProgressView
from projections.steps import LONGEST_LINE, Step
from storage.errors import LogError
from tests.projections import story
from tests.projections.support import SECOND, ListLog, digest


def fold(log: ListLog, build: str, *, until: int | None = None) -> ProgressView:
    """What `progress.fold` gives; on the way there, whatever step an event changes is told of."""
    view = ProgressView(build)
    for event in log.read(until=until, types=ProgressView.TYPES):
        before = {id(one): repr(one) for one in view.steps}
        told = {id(one) for one in view.apply(event)}
        for one in view.steps:
            if before.get(id(one)) not in (None, repr(one)):
                assert id(one) in told, f"{event.type} changes {one.name}"
        if view.finished:
            break
    assert progress.fold(log, build, until=until).to_json() == view.to_json()
    return view


def step(view: ProgressView, vertex: str) -> Step:
    return next(step for step in view.steps if step.vertex == vertex)


def test_a_whole_build() -> None:
    log = ListLog()
    story.whole(log)
    view = fold(log, "b1")
    assert (view.status, view.name, view.exit_code, view.error) == ("completed", "app", 0, "")
    assert view.finished
    assert not fold(log, "b1", until=log.last_seq() - 1).finished
    assert [(s.name, s.state, s.lines) for s in view.steps[:3]] == [
        ("FROM debian:12", "done", [1, 1]), ("RUN make", "done", [2, 3]), ("COPY . /src", "cached", [4, 4]),
    ]  # fmt: skip
    assert step(view, "v3").origin_build == "b0"
    assert [line.text for line in step(view, "v2").output] == ["cc -c main.c", "cc -o main main.o"]
    export = view.steps[-1]
    assert (export.kind, export.name) == ("export", "exporting to image 127.0.0.1:5000/app:latest")
    assert [t.transport for t in export.transfers.values()] == ["mounted", "mounted", "uploaded"]
    assert export.result == digest("img")
    assert [(s.reference, s.digest) for s in view.sources] == [("debian:12", digest("idx"))]


def test_the_view_is_plain_json() -> None:
    log = ListLog()
    story.whole(log)
    data = fold(log, "b1").to_json()
    assert json.loads(json.dumps(data)) == data
    assert data["steps"][1]["transfers"][0]["rate"] > 0


def test_bars_move_under_the_step_that_waits() -> None:
    log = ListLog(step=SECOND)
    story.begin(log)
    waiting = step(fold(log, "b1"), "v2").transfers
    assert [t.state for t in waiting.values()] == ["waiting", "waiting"]
    story.pull(log)
    middle = step(fold(log, "b1", until=log.last_seq() - 9), "v2").transfers[story.BLOBS[0]]
    assert (middle.state, middle.done, middle.total, middle.rate) == ("pulling", 6_000_000, 10_000_000, 2_000_000.0)
    after = step(fold(log, "b1"), "v2").transfers
    assert [(t.state, t.done) for t in after.values()] == [("done", 10_000_000), ("done", 20_000_000)]


def test_I4_a_pull_of_another_build_is_drawn_under_every_step_that_waits() -> None:
    log = ListLog()
    story.begin(log, "b1")
    story.begin(log, "b2")
    log.add(e.VertexStarted(name="RUN other", inputs=()), "b2", "v9")
    log.add(e.MaterializationRequested(ref="other", reason="run", layers=story.BLOBS[:1], bytes=1,
                                       snapshotter="directory"), "b2", "v9")  # fmt: skip
    log.add(e.PullStarted(digest=story.BLOBS[0], total=10, provider=story.PROVIDER), "b1", "v2")
    log.add(e.PullProgressed(digest=story.BLOBS[0], bytes=4, total=10), "b1", "v2")
    view = fold(log, "b2")
    for vertex in ("v2", "v9"):
        transfer = step(view, vertex).transfers[story.BLOBS[0]]
        assert (transfer.state, transfer.done, transfer.total) == ("pulling", 4, 10)
        assert transfer.provider == "127.0.0.1:5000/base"
    assert step(view, "v2").transfers[story.BLOBS[1]].state == "waiting"
    log.add(e.LayerPulled(digest=story.BLOBS[0], bytes=10, provider=story.PROVIDER, seconds=1, verified=()), "b1", "v2")
    transfer = step(fold(log, "b2"), "v9").transfers[story.BLOBS[0]]
    assert (transfer.state, transfer.puller, transfer.done) == ("waited", "b1", 10)
    assert step(fold(log, "b2"), "v2").transfers[story.BLOBS[0]].state == "waited"  # its own v2 pulled nothing
    assert step(fold(log, "b1"), "v2").transfers[story.BLOBS[0]].state == "done"


def test_I4_a_step_that_begins_to_wait_in_mid_pull_shows_the_bytes_so_far() -> None:
    log = ListLog()
    log.add(story.started("b2"), "b2")
    log.add(e.PullStarted(digest=story.BLOBS[0], total=100, provider=story.PROVIDER), "b1", "v2")
    log.add(e.PullProgressed(digest=story.BLOBS[0], bytes=40, total=100), "b1", "v2")
    log.add(e.MaterializationRequested(ref="r", reason="run", layers=story.BLOBS[:1], bytes=100, snapshotter="d"),
            "b2", "w")  # fmt: skip
    transfer = step(fold(log, "b2"), "w").transfers[story.BLOBS[0]]
    assert (transfer.state, transfer.done, transfer.total) == ("pulling", 40, 100)


def test_a_pull_of_somebody_else_leaves_finished_steps_alone() -> None:
    log = ListLog()
    story.begin(log)
    log.add(e.VertexCancelled(name="RUN make"), "b1", "v2")
    before = step(fold(log, "b1"), "v2").to_json()
    story.pull(log, "b2")
    assert step(fold(log, "b1"), "v2").to_json() == before


def test_a_failed_provider_shows_and_the_next_one_goes_on() -> None:
    log = ListLog()
    story.begin(log)
    log.add(e.PullStarted(digest=story.BLOBS[0], total=10, provider=story.PROVIDER), "b1", "v2")
    log.add(e.PullFailed(digest=story.BLOBS[0], provider=story.PROVIDER, kind="transport", error="reset"), "b1", "v2")
    transfer = step(fold(log, "b1"), "v2").transfers[story.BLOBS[0]]
    assert (transfer.state, transfer.error) == ("failed", "reset")
    log.add(e.PullStarted(digest=story.BLOBS[0], total=10, provider=story.TARGET), "b1", "v2")
    transfer = step(fold(log, "b1"), "v2").transfers[story.BLOBS[0]]
    assert (transfer.state, transfer.error, transfer.provider) == ("pulling", "", "127.0.0.1:5000/app")


def test_materialized_ends_bars_whose_end_was_not_seen() -> None:
    log = ListLog()
    story.begin(log)
    log.add(e.Materialized(ref=digest("chain"), bytes=0, seconds=1, waited=story.BLOBS), "b1", "v2")
    assert [t.state for t in step(fold(log, "b1"), "v2").transfers.values()] == ["waited", "waited"]


@pytest.mark.parametrize(
    ("end", "status", "state"),
    [
        (None, "running", "running"),
        (e.BuildInterrupted(error="gone"), "interrupted", "interrupted"),
        (e.BuildCancelled(), "cancelled", "cancelled"),
        (e.BuildFailed(vertex="v2", error="no space"), "failed", "failed"),
        (e.BuildFailed(vertex="v1", error="no space"), "failed", "cancelled"),
    ],
)
def test_builds_that_were_killed_or_failed(end: e.Fact | None, status: str, state: str) -> None:
    log = ListLog()
    story.begin(log)
    if end is not None:
        log.add(end, "b1")
    view = fold(log, "b1")
    assert (view.status, step(view, "v2").state, step(view, "v3").state) == (status, state, "pending")


def test_an_export_that_was_under_way_when_the_build_failed_has_failed() -> None:
    log = ListLog()
    story.begin(log)
    log.add(e.ExportStarted(kind="image", target="t", digest="d"), "b1")
    log.add(e.ExportProgressed(target="t", digest=story.BLOBS[0], bytes=3, total=9, transport="uploaded"), "b1")
    view = fold(log, "b1")
    assert [(t.done, t.total, t.transport) for t in view.steps[-1].transfers.values()] == [(3, 9, "uploaded")]
    log.add(e.BuildFailed(vertex=None, error="registry said 500", exit_code=3), "b1")
    export = fold(log, "b1").steps[-1]
    assert (export.kind, export.state, export.error) == ("export", "failed", "registry said 500")


def test_an_export_that_fetches_shows_it_under_the_export() -> None:
    log = ListLog()
    log.add(story.started(), "b1")
    log.add(e.ExportStarted(kind="local", target="out", digest=""), "b1")
    log.add(e.MaterializationRequested(ref="r", reason="export", layers=story.BLOBS, bytes=1, snapshotter="d"), "b1")
    (export,) = fold(log, "b1").steps
    assert list(export.transfers) == list(story.BLOBS)


def test_a_request_of_no_step_makes_a_step_of_its_own() -> None:
    log = ListLog()
    log.add(story.started(), "b1")
    log.add(e.MaterializationRequested(ref="r", reason="shell", layers=story.BLOBS, bytes=1, snapshotter="d"), "b1")
    (fetch,) = fold(log, "b1").steps
    assert (fetch.name, fetch.state) == ("fetching layers for shell", "running")
    log.add(e.Materialized(ref="r", bytes=1, seconds=1), "b1")
    assert fold(log, "b1").steps[0].state == "done"


def test_steps_that_no_plan_names_and_a_second_attempt() -> None:
    log = ListLog()
    story.begin(log)
    log.add(e.VertexFailed(name="surprise", error="lost", exit_code=None), "b1", "vX")
    log.add(e.VertexStarted(name="surprise", inputs=(), attempt=2), "b1", "vX")
    view = fold(log, "b1")
    assert [s.vertex for s in view.steps] == ["v1", "v2", "v3", "vX"]
    again = step(view, "vX")
    assert (again.state, again.attempt, again.error, again.ended) == ("running", 2, "", None)


def test_output_keeps_a_tail_and_the_log_has_all_of_it() -> None:
    log = ListLog()
    story.begin(log)
    log.add(e.VertexOutput(fd=1, offset=0, text="".join(f"line {n}\n" for n in range(200))), "b1", "v2")
    log.add(e.VertexOutput(fd=2, offset=0, text="half", dropped=77), "b1", "v2")
    log.add(e.VertexOutput(fd=1, offset=0, text="other\n"), "b2", "v2")
    log.add(e.VertexOutput(fd=1, offset=0, text="elsewhere\n"), "b1", "v3")
    run = step(fold(log, "b1"), "v2")
    assert len(run.output) == 50
    assert run.dropped == 77
    assert [line.text for line in run.rest] == ["half"]
    told = [line.text for _, line in output_lines(log, "b1", "v2")]
    assert told == [*(f"line {n}" for n in range(200)), "[77 bytes of output were dropped: printed too fast]", "half"]
    assert {vertex for vertex, _ in output_lines(log, "b1")} == {"v2", "v3"}


def test_a_line_without_an_end_does_not_grow_for_ever() -> None:
    log = ListLog()
    story.begin(log)
    for _ in range(8):
        log.add(e.VertexOutput(fd=1, offset=0, text="x" * 30_000), "b1", "v2")
    run = step(fold(log, "b1"), "v2")
    assert max(len(line.text) for line in run.output) < 2 * LONGEST_LINE
    assert sum(len(line.text) for line in (*run.output, *run.rest)) == 8 * 30_000
    log.add(e.VertexOutput(fd=1, offset=0, text="y" * 10), "b1", "v2")
    assert [line.text for line in step(fold(log, "b1"), "v2").rest] == ["y" * 10]


@pytest.mark.parametrize(("provider", "where"), [(story.PROVIDER, " from 127.0.0.1:5000/base"), (None, "")])
def test_I8_a_step_that_is_made_again_says_what_is_gone(provider: dict[str, str] | None, where: str) -> None:
    log = ListLog()
    story.whole(log)
    log.events.pop()  # its end
    log.add(e.HitRevoked(ref="r", digest=story.BLOBS[0], provider=provider, reexecuted=("v2",)), "b1", "v2")
    again = step(fold(log, "b1"), "v2")
    told = f"layer {story.BLOBS[0].removeprefix('sha256:')[:12]} is gone{where}: it is made again"
    assert (again.state, again.output[-1].text) == ("pending", told)


def test_I10_unknown_events_and_builds_change_nothing() -> None:
    log = ListLog()
    story.begin(log)
    before = fold(log, "b1").to_json()
    log.add_raw("FromTheFuture", {"name": 7}, "b1", "v2")
    log.add(e.VertexFailed(name="RUN make", error="not ours"), "b2", "v2")
    assert fold(log, "b1").to_json() == before
    view = ProgressView("b1")
    for event in log.events:
        view.apply(event)
    assert view.to_json() == before
    assert fold(log, "nobody").status == "unknown"


@pytest.mark.parametrize(
    ("type_", "data"),
    [
        ("VertexOutput", {"fd": "one", "text": "x"}),
        ("VertexOutput", {"fd": 1, "text": None}),
        ("GraphDefined", {"plan": [{"vertex": 1}]}),
        ("PullProgressed", {"digest": [], "bytes": 1, "total": 1}),
        ("MaterializationRequested", {"ref": "r", "layers": [1]}),
        ("Exported", {"kind": "image", "target": "t", "layers": [{"digest": "d", "bytes": -4}]}),
        ("VertexFailed", {"error": ["x"]}),
    ],
)
def test_a_malformed_event_is_a_log_error_that_names_it(type_: str, data: e.Json) -> None:
    log = ListLog()
    story.begin(log)
    event = log.add_raw(type_, data, "b1", "v2")
    with pytest.raises(LogError, match=rf"event {event.seq} \({type_}\) is malformed"):
        fold(log, "b1")


def test_a_step_may_have_several_requests_for_one_ref() -> None:
    log = ListLog()
    story.begin(log)
    base, chain = story.BLOBS, digest("chain")
    first = log.add(e.MaterializationRequested(ref=chain, reason="copy", layers=base[1:], bytes=0,
                                               snapshotter="directory"), "b1", "v3")  # fmt: skip
    log.add(e.LayerTocRead(digest=base[1], bytes=70, provider=story.PROVIDER, entries=9), "b1", "v3", cause=first.seq)
    transfer = step(fold(log, "b1"), "v3").transfers[base[1]]
    assert (transfer.state, transfer.transport, transfer.total) == ("done", "contents listed", 70)
    log.add(e.Materialized(ref=chain, bytes=70, seconds=1, whole=False), "b1", "v3", cause=first.seq)
    second = log.add(e.MaterializationRequested(ref=chain, reason="copy", layers=base[1:], bytes=30,
                                                snapshotter="directory"), "b1", "v3")  # fmt: skip
    assert step(fold(log, "b1"), "v3").transfers[base[1]].state == "waiting"
    log.add(e.FilesFetched(digest=base[1], files=2, bytes=30, avoided=900, provider=story.PROVIDER), "b1", "v3",
            cause=second.seq)  # fmt: skip
    last = e.Materialized(ref=chain, bytes=30, seconds=1, whole=False, avoided=1000)
    log.add(last, "b1", "v3", cause=second.seq)
    copy = step(fold(log, "b1"), "v3")
    assert [(one.state, one.transport, one.total) for one in copy.transfers.values()] == [
        ("done", "of it asked for", 30)
    ]
    assert copy.avoided == 1000
    assert copy.to_json()["avoided"] == 1000
    # the other step, which waits for the same ref, waits on
    assert [one.state for one in step(fold(log, "b1"), "v2").transfers.values()] == ["waiting", "waiting"]


def test_caches_are_read_before_and_written_behind_all_steps() -> None:
    log = ListLog()
    story.begin(log)
    log.add(e.CacheImported(source="reg/cache", digest=digest("c"), records=7, bytes=900), "b1")
    log.add(e.CacheImportFailed(source="reg/new", kind="missing", error="404"), "b1")
    log.add(e.CacheImportFailed(source="reg/bad", kind="auth", error="401: no"), "b1")
    log.add(e.ExportStarted(kind="cache", target="type=registry,ref=c", digest=""), "b1")
    log.add(e.ExportProgressed(target="type=registry,ref=c", digest="d", bytes=1, total=9, transport="uploaded"), "b1")
    view = fold(log, "b1")
    assert [(s.name, s.state, s.error) for s in view.steps if s.kind == "cache"] == [
        ("importing cache from reg/cache: 7 records", "done", ""),
        ("importing cache from reg/new: nothing there yet", "done", ""),
        ("importing cache from reg/bad", "failed", "401: no"),
    ]
    assert [s.kind for s in view.steps[:3]] == ["cache"] * 3
    export = view.steps[-1]
    assert (export.name, export.state) == ("exporting cache to type=registry,ref=c", "running")
    assert export.transfers["d"].done == 1
    moved = ({"digest": "d", "transport": "uploaded", "bytes": 9, "source": ""},)
    log.add(e.CacheExported(target="type=registry,ref=c", mode="min", digest=digest("m"), records=3, bytes=99,
                            layers=moved), "b1")  # fmt: skip
    log.add(e.CacheExportFailed(target="type=local,dest=/c", error="/c: no space"), "b1")
    done, failed = fold(log, "b1").steps[-2:]
    assert (done.state, done.result, done.transfers["d"].state) == ("done", digest("m"), "done")
    assert (failed.name, failed.state, failed.error) == (
        "exporting cache to type=local,dest=/c", "failed", "/c: no space"
    )  # fmt: skip


def test_bytes_of_an_export_are_shown_under_it_and_not_under_one_whose_target_ends_like_it() -> None:
    log = ListLog()
    log.add(story.started(), "b1")
    for target in ("my out", "out"):
        log.add(e.ExportStarted(kind="oci", target=target, digest=digest("i")), "b1")
    log.add(e.ExportProgressed(target="out", digest="d", bytes=1, total=9, transport="written"), "b1")
    assert [(one.name, list(one.transfers)) for one in fold(log, "b1").steps] == [
        ("exporting to oci my out", []), ("exporting to oci out", ["d"])
    ]  # fmt: skip


def test_an_answer_to_a_step_that_was_called_off_meanwhile_changes_nothing() -> None:
    log = ListLog()
    story.begin(log)
    asked = log.add(
        e.MaterializationRequested(ref="r", reason="run", layers=story.BLOBS, bytes=1, snapshotter="d"), "b1", "v2"
    )
    log.add(e.VertexCancelled(name="v2", reason="bytes that it stands on were lost"), "b1", "v2")
    assert step(fold(log, "b1"), "v2").transfers == {}
    log.add(e.Materialized(ref="r", bytes=1, seconds=0.1), "b1", "v2", cause=asked.seq)
    assert (step(fold(log, "b1"), "v2").state, step(fold(log, "b1"), "v2").transfers) == ("pending", {})


def test_what_nobody_asked_for_or_waits_for_any_more_changes_nothing() -> None:
    log = ListLog()
    log.add(story.started(), "b1")
    log.add(e.HitRevoked(ref="r", digest="d", reexecuted=()), "b1")
    log.add(e.LayerTocRead(digest="d", bytes=1, provider={}, entries=1), "b1", "v")
    log.add(e.Materialized(ref="r", bytes=1, seconds=0.1), "b1", "v")
    log.add(e.MaterializationFailed(ref="r", digest="d", kind="missing", error="", providers=()), "b1", "v")
    log.add(e.ExportProgressed(target="t", digest="d", bytes=1, total=2, transport="uploaded"), "b1")
    assert fold(log, "b1").steps == []


def test_layers_that_cannot_be_fetched_for_no_step_have_failed_under_one_of_their_own() -> None:
    log = ListLog()
    log.add(story.started(), "b1")
    log.add(e.MaterializationRequested(ref="r", reason="shell", layers=("d",), bytes=1, snapshotter="d"), "b1")
    log.add(e.MaterializationFailed(ref="r", digest="d", kind="missing", error="404", providers=()), "b1")
    [fetch] = fold(log, "b1").steps
    assert (fetch.name, fetch.state, fetch.error) == ("fetching layers for shell", "failed", "404")
    assert [(one.state, one.error) for one in fetch.transfers.values()] == [("failed", "404")]


def test_output_that_no_version_wrote_is_an_error_that_names_its_event() -> None:
    log = ListLog()
    log.add_raw("VertexOutput", {"fd": "one", "text": "x"}, "b1", "v")
    with pytest.raises(LogError, match=r"event 1 \(VertexOutput\) is malformed: fd is not an integer"):
        list(output_lines(log, "b1"))


def test_an_export_that_waits_for_somebody_says_for_what() -> None:
    log = ListLog()
    story.begin(log)
    log.add(e.ExportStarted(kind="oci", target="out", digest=digest("i")), "b1")
    log.add(e.ExportDelayed(file="/out/index.json"), "b1")
    assert {step.name: [line.text for line in step.output] for step in fold(log, "b1").steps if step.output} == {
        "exporting to oci out": ["waiting for /out/index.json: another process has it locked"]
    }
