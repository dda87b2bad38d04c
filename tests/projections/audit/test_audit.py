"""The audit of logs that no quick build writes: other versions, other roots, checkpoints, old fixtures."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from engine import events as e
from engine.record import changed
from projections.audit.index import AuditIndex
from projections.audit.report import report
from projections.audit.statements import Report
from projections.history import History
from projections.mentions import Mentions
from projections.provenance import provenance
from projections.runner import Views
from projections.standard import STANDARD
from storage.errors import InputError, LogError
from storage.log.eventlog import SqliteEventLog
from tests.projections.asking import MemoryBlobs, Story, hides, vertex
from tests.projections.audit.proving import unproved
from tests.projections.story import BLOBS, PROVIDER, begin, finish, pull, started, whole
from tests.projections.support import ListLog, digest

LOGS = Path(__file__).parents[2] / "fixtures" / "logs"


def audit(log: ListLog, name: str, *, reverse: bool = False, blobs: MemoryBlobs | None = None) -> Report:
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        told = report(log, blobs or MemoryBlobs(), views, name, hides, reverse=reverse)
    assert unproved(asdict(told), [event.to_json() for event in log.read()]) == []
    return told


def gaps(told: Report) -> dict[str, tuple[int, ...]]:
    assert told.report
    return {gap.what: gap.seqs for gap in told.report.gaps}


def sign(log: ListLog, size: int) -> int:
    data = {"origin": "ci.example.com/log", "size": size, "root": digest(size)[7:], "note": "n"}
    return log.add_raw("CheckpointSigned", data).seq


def test_a_build_is_covered_by_the_first_checkpoint_that_reaches_its_end() -> None:
    log = ListLog()
    whole(log)
    end = log.last_seq()
    assert gaps(audit(log, "b1"))["checkpoint"] == (end,)
    sign(log, end - 1)
    assert gaps(audit(log, "b1"))["checkpoint"] == (end,)
    signed = sign(log, end + 1)
    sign(log, end + 2)
    told = audit(log, "b1")
    assert told.report
    assert told.report.checkpoint
    assert (told.report.checkpoint.size, told.report.checkpoint.seqs) == (end + 1, (signed,))
    assert gaps(told)["publication"] == (signed,)
    sent = log.add_raw("CheckpointPublished", {"size": end + 2, "root": "r", "target": "cp.txt", "digest": ""}).seq
    told = audit(log, "b1")
    assert told.report
    assert told.report.checkpoint
    assert told.report.checkpoint.published == ("cp.txt",)
    assert told.report.checkpoint.seqs == (signed, sent)
    assert not {"checkpoint", "publication"} & set(gaps(told))


def test_what_the_log_does_not_tell_is_told() -> None:
    log = ListLog()
    begin(log)
    dropped = log.add(e.VertexOutput(fd=1, offset=9, text="x", dropped=4096), "b1", "v2").seq
    other = log.add_raw("StepDreamt", {"of": "sheep"}, "b1", "v2").seq
    pull(log)
    assert gaps(audit(log, "b1"))["unfinished"] == (1,)
    died = log.add(e.BuildInterrupted(error="its process ended without a word"), "b1").seq
    told = gaps(audit(log, "b1"))
    assert (told["output"], told["unknown-event"], told["interrupted"]) == ((dropped,), (other,), (died,))
    assert told["graph"] == (3,)  # the story's graph is stored nowhere
    assert "unfinished" not in told


def test_a_name_is_told_as_it_changed_and_for_how_long_it_stayed() -> None:
    log, seqs = ListLog(), []
    for build, what in (("b1", "one"), ("b2", "one"), ("b3", "two"), ("b4", "one")):
        log.add(started(build), build)
        seqs.append(log.add(e.SourceResolved(
            reference="debian:12", digest=digest(what), platform="linux/amd64", provider={}, manifest=digest(what),
            config=digest("c")), build).seq)  # fmt: skip
        log.add(e.BuildCompleted(results=()), build)
    told = audit(log, "b3")
    assert told.report
    assert [(item.digest, item.count, item.seqs) for item in told.report.resolutions] == [
        (digest("one"), 2, tuple(seqs[:2])), (digest("two"), 1, (seqs[2],)), (digest("one"), 1, (seqs[3],)),
    ]  # fmt: skip
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        assert AuditIndex(views).resolutions("image", "debian:12", "linux/arm64") == []


def test_a_result_of_a_build_elsewhere_is_told_to_be_without_its_record() -> None:
    story = Story()
    story.begin("b1", vertex("one"), vertex("two", "one"))
    for step in ("one", "two"):
        story.ask("b1", step, story.key(("argv", step)), "hit", origin_build="far", importer="type=registry,ref=x")
        story.cached("b1", step)
        story.recorded("b1", step, story.key(("argv", step)), importer="type=registry,ref=x", origin_build="far")
    story.end("b1")
    told = audit(story.log, "b1", blobs=story.blobs)
    assert told.report
    assert [(step.outcome, step.origin and (step.origin.build, step.origin.here)) for step in told.report.steps] == [
        ("cached", ("far", False)), ("cached", ("far", False)),
    ]  # fmt: skip
    assert [gap.what for gap in told.report.gaps].count("origin") == 2
    # whether the network was used there is in no log here, and is inherited all the same
    assert [(item.kind, item.seen) for item in told.report.steps[0].taint] == [("network", "")]
    assert told.report.steps[1].inherits == (1,)


def test_privilege_and_ssh_are_taint_and_what_was_not_given_is_told() -> None:
    story = Story()
    mounts = [{"kind": "ssh", "id": "default", "target": "/agent"}, {"kind": "secret", "id": "no", "target": "/no"}]
    story.begin("b1", vertex("one", security="insecure", network="none", mounts=mounts), vertex("two", "one"))
    key = story.key(("argv", "one"))
    story.ask("b1", "one", key, "never-built")
    lifted = story.log.add(e.SecurityLifted(), "b1", "one").seq
    signed = story.log.add(e.AgentForwarded(id="default", target="/agent"), "b1", "one").seq
    story.ran("b1", "one")
    story.recorded("b1", "one", key)
    story.end("b1")
    told = audit(story.log, "b1", blobs=story.blobs)
    assert told.report
    one, two = told.report.steps
    assert {(item.kind, item.seen, item.seqs) for item in one.taint} == {
        ("ssh", "used", (signed,)), ("secret", "absent", (2,)), ("security", "used", (lifted,)),
    }  # fmt: skip
    assert (two.outcome, two.inherits) == ("not needed", (one.number,))


def test_every_attempt_failure_and_cancellation_is_told() -> None:
    log = ListLog()
    begin(log)
    provider = {"registry": "r.example.com", "repository": "base"}
    failed = log.add(e.PullFailed(digest=BLOBS[0], provider=provider, kind="transport", error="reset"), "b1", "v2").seq
    tried = log.add(e.SourceTried(verb="pull", name=BLOBS[0], provider=provider, status=503, outcome="transport",
                                  bytes=0, seconds=0.1, error="busy"), "b1").seq  # fmt: skip
    off = log.add(e.VertexCancelled(name="RUN make", reason="bytes lost"), "b1", "v2").seq
    again = log.add(e.VertexStarted(name="RUN make", inputs=(digest("chain"),), attempt=2), "b1", "v2").seq
    resumed = log.add(e.LayerPulled(digest=BLOBS[0], bytes=5, provider=provider, seconds=0.5, verified=("digest",),
                                    resumed_from=7), "b1", "v2").seq  # fmt: skip
    over = log.add(e.BuildCancelled(vertex="v2"), "b1").seq
    told = audit(log, "b1")
    assert told.report
    assert [(item.what, item.seqs[0]) for item in told.report.attempts] == [
        ("PullFailed", failed), ("SourceTried", tried), ("VertexCancelled", off), ("VertexStarted", again),
        ("LayerPulled", resumed), ("BuildCancelled", over),
    ]  # fmt: skip
    assert "503" in told.report.attempts[1].detail
    assert told.report.steps[1].outcome == "interrupted"


def test_bytes_let_go_while_a_build_ran_are_told_apart_from_those_let_go_later() -> None:
    log = ListLog()
    begin(log)
    pull(log)
    policy: dict[str, Any] = {"policy": "prune", "by": "root@ci", "bytes": 10}
    early = log.add(e.Demoted(kind="layer", name=digest("diff1"), digest=BLOBS[0], providers=({"registry": "r"},),
                              **policy)).seq  # fmt: skip
    finish(log)
    log.add(e.Pruned(kind="layer", name=digest("strange"), **policy))
    late = log.add(e.Pruned(kind="snapshot", name="b1-run", **policy)).seq
    told = audit(log, "b1")
    assert told.report
    assert [(item.name, item.in_use, item.seqs) for item in told.report.let_go] == [
        (digest("diff1"), True, (early,)), ("b1-run", False, (late,)),
    ]  # fmt: skip


def test_a_digest_is_found_by_its_beginning_and_told_by_its_makers() -> None:
    log = ListLog()
    whole(log)
    image = digest("img")
    for name in (image, image[:19], image[7:15]):
        told = audit(log, name)
        assert (told.subject, told.kind) == (image, "digest")
        assert [(item.build, item.how, item.target) for item in told.made] == [
            ("b1", "image", "127.0.0.1:5000/app:latest")
        ]
    assert [item.how for item in audit(log, digest("blobr")).made] == ["layer"]
    assert audit(log, BLOBS[0]).made == ()
    with pytest.raises(InputError, match="no event of this log names"):
        audit(log, digest("nothing"))
    with pytest.raises(InputError, match="no event of this log names 'sha256:'"):
        audit(log, "sha256:")


def test_what_policies_and_attestations_say_and_what_was_erased_is_told() -> None:
    log = ListLog()
    begin(log)
    denied = {"rule": "no-network", "subject": "RUN make", "decision": "denied", "detail": "net", "policy": digest("p")}
    said = {"image": digest("img"), "platform": "linux/amd64", "predicate_type": "https://slsa.dev/provenance/v1",
            "statement": digest("s"), "envelope": "", "referrer": "", "key": "ci"}  # fmt: skip
    seqs = [log.add_raw(name, data, "b1").seq for name, data in (("PolicyDecided", denied), ("Attested", said))]
    finish(log)
    erased = {"digests": [digest("x"), digest("y")], "by": "root@ci", "reason": "a token", "build": "b1", "vertex": ""}
    log.add_raw("PayloadRedacted", {**erased, "build": "b2"})
    seqs.append(log.add_raw("PayloadRedacted", erased).seq)
    told = audit(log, "b1")
    assert told.report
    (decision,), (attested,) = told.report.decisions, told.report.attestations
    assert (decision.rule, decision.decision, decision.seqs) == ("no-network", "denied", (seqs[0],))
    assert (attested.statement, attested.key, attested.seqs) == (digest("s"), "ci", (seqs[1],))
    (gap,) = [gap for gap in told.report.gaps if gap.what == "redacted"]
    assert gap.seqs == (seqs[2],)
    assert gap.detail.startswith("2 values were redacted by root@ci at 2023-11-14")
    assert gap.detail.endswith(": a token")


def test_an_event_that_cannot_be_read_is_an_error_that_says_so() -> None:
    log = ListLog()
    begin(log)
    log.add_raw("SourceTried", {"verb": "pull", "name": "x", "outcome": {"a": 1}}, "b1")
    with pytest.raises(LogError, match="malformed"):
        audit(log, "b1")


@pytest.mark.parametrize("name", ["1-first", "1-language", "1-caches"])
def test_I10_builds_in_logs_of_old_versions_have_a_report(name: str, tmp_path: Path) -> None:
    shutil.copy(LOGS / f"{name}.db", tmp_path / "log.db")
    log = SqliteEventLog(tmp_path / "log.db", read_only=True)
    try:
        events = [event.to_json() for event in log.read()]
        with Views(None, STANDARD) as views:
            views.catch_up(log)
            builds = {event["build"] for event in events if event["type"] == "BuildStarted"}
            for build in builds:
                told = report(log, MemoryBlobs(), views, build, hides, reverse=True)
                assert unproved(asdict(told), events) == []
                assert told.report
                assert told.report.steps
    finally:
        log.close()
    assert builds


def test_an_export_that_no_version_wrote_is_an_error_that_names_its_event() -> None:
    log = ListLog()
    whole(log)
    made = log.add_raw("Exported", {"kind": "oci", "target": 5, "digest": digest("x"), "layers": []}, "b1")
    with pytest.raises(LogError, match=rf"event {made.seq} \(Exported\) is malformed: target is not text"):
        audit(log, digest("x"))


def test_a_build_without_a_frontend_has_no_provenance_but_an_error_that_names_its_event() -> None:
    log = ListLog()
    log.add_raw("BuildStarted", {"frontend": 5}, "b1")
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        history = History(views)
        with pytest.raises(LogError, match=r"event 1 \(BuildStarted\) is malformed: frontend is not text"):
            provenance(log, MemoryBlobs(), history, Mentions(views), history.get("b1"))


def of_sources(log: ListLog, build: str, page: str = "page", **start: Any) -> None:
    """A build of everything but images; what was recalled is what an earlier build found."""
    recalled = build != "b1"
    log.add(changed(started(build), **start), build)
    log.add(e.HttpResolved(url="https://e.test/a.tar", digest=digest(page), bytes=9, mtime=0, recalled=recalled), build)
    log.add(e.GitResolved(remote="https://e.test/r.git", ref="main", commit="c" * 40, name="refs/heads/main",
                          recalled=recalled), build)  # fmt: skip
    log.add(e.CacheImported(source="type=registry,ref=c", digest=digest("cache"), records=3, bytes=9), build)
    log.add(e.LayerStored(ref=digest("diff"), name="l.tar", layer={"digest": digest("blob"), "size": 1,
                          "diff_id": digest("diff")}), build)  # fmt: skip
    log.add(e.VertexCompleted(name="layer l.tar", outputs=(digest("diff"),)), build, "l")
    log.add(e.BuildCompleted(results=({"ref": digest("diff")},)), build)


def test_everything_that_went_in_is_told_and_what_was_not_asked_for_anew() -> None:
    log = ListLog()
    of_sources(log, "b1")
    of_sources(log, "b2", page="other page", context=digest("archive"), options={"directory": "/src"})
    told = audit(log, "b2").report
    assert told
    assert [(item.kind, item.name, item.value) for item in told.inputs] == [
        ("definition", "Dockerfile", digest("def")), ("context", "/src", digest("archive")),
        ("http", "https://e.test/a.tar", digest("other page")), ("git", "https://e.test/r.git#main", "c" * 40),
        ("cache", "type=registry,ref=c", digest("cache")), ("layer", "l.tar", digest("blob")),
    ]  # fmt: skip
    assert [item.detail for item in told.inputs[2:5]] == ["recalled, nobody was asked"] * 2 + ["3 records"]
    assert [(item.kind, item.count) for item in told.resolutions] == [("http", 1), ("http", 1), ("git", 2)]
    assert [gap.detail.partition(":")[0] for gap in told.gaps if gap.what == "recalled"] == ["https", "https"]
    [layer] = told.layers
    assert (layer.state, layer.detail) == ("verified", "came as file l.tar")


def test_the_sources_of_a_build_are_materials_of_its_provenance() -> None:
    log = ListLog()
    of_sources(log, "b1")
    of_sources(log, "b2")
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        history = History(views)
        said = provenance(log, MemoryBlobs(), history, Mentions(views), history.get("b2"))
    found = said["buildDefinition"]["resolvedDependencies"]
    assert [item["uri"] for item in found] == [
        "https://e.test/a.tar", "git+https://e.test/r.git@refs/heads/main"
    ]  # fmt: skip
    assert found[1]["digest"] == {"gitCommit": "c" * 40}
    reasons = [item["reason"] for item in said["runDetails"]["metadata"]["refledger_completeness"]["reasons"]]
    assert "https://e.test/a.tar was not asked for: an earlier build had resolved it" in reasons


def test_a_beginning_that_several_things_have_is_refused() -> None:
    log = ListLog()
    for build in ("abcdef1", "abcdef2"):
        log.add(started(build), build)
        log.add(e.BuildCompleted(results=({"ref": f"step-{build}"},)), build)
    with pytest.raises(InputError, match="several builds begin with 'abcdef'"):
        audit(log, "abcdef")
    with pytest.raises(InputError, match="several digests begin with 'step-abcdef'"):
        audit(log, "step-abcdef")


def test_a_log_that_begins_in_the_midst_of_a_build_tells_of_it_what_it_can() -> None:
    log = ListLog()
    log.add(e.Exported(kind="image", target="r/app:1", digest=digest("img"), layers=()), "old")
    log.add(e.VertexStarted(name="RUN", inputs=(digest("img"),)), "older", "v")
    image = digest("img")
    resolved = e.SourceResolved(
        reference="r/app:1", digest=image, platform="", provider={}, manifest=image, config=""
    )  # fmt: skip
    log.add(resolved, "b1")
    log.add(started("b2"), "b2")
    log.add(resolved, "b2")
    told = audit(log, digest("img"), reverse=True)
    assert [(item.build, item.how, item.target, item.status) for item in told.made] == [("old", "image", "r/app:1", "")]
    assert told.report is None
    assert told.reverse is not None
    assert [(item.build, item.name, item.how) for item in told.reverse] == [
        ("older", "", "input"), ("b1", "", "image"), ("b2", "app", "image")
    ]  # fmt: skip
    report = audit(log, "b2").report
    assert report
    assert [item.made_by for item in report.inputs if item.kind == "image"] == ["old"]


def test_names_that_only_begin_alike_are_told_apart() -> None:
    """The index keeps the beginnings of names only."""
    log = ListLog()
    one, two = ("sha256:" + "a" * 40 + end * 24 for end in "bc")
    log.add(started("b1"), "b1")
    moved = ({"digest": one, "transport": "uploaded", "bytes": 1, "source": ""},)
    log.add(e.Exported(kind="image", target="t", digest=two, layers=moved), "b1")
    log.add(e.LocalCreated(ref=two, parent=None, bytes=1), "b1")
    log.add(e.BlobCreated(ref="r", diff_id="d", digest=two, media_type="m", bytes=1, compressor="gzip"), "b1")
    log.add(e.VertexStarted(name="RUN", inputs=(two,)), "b2", "v")
    assert audit(log, one).made == ()
    assert [item.how for item in audit(log, two).made] == ["image", "step", "layer"]
    assert [item.build for item in audit(log, two, reverse=True).reverse or ()] == ["b2"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("VertexOutput", {"fd": 1, "offset": 0, "text": "x", "dropped": "many"}),
        ("RuntimeChosen", {"runtime": 5, "version": "1", "rejected": {}}),
        ("PolicyDecided", {"subject": ["a"], "decision": "denied", "rule": "r"}),
    ],
)  # fmt: skip
def test_what_no_version_wrote_of_a_build_is_an_error_in_one_line(name: str, data: dict[str, Any]) -> None:
    log = ListLog()
    begin(log)
    log.add_raw(name, data, "b1")
    with pytest.raises(LogError, match="malformed"):
        audit(log, "b1")


def test_a_layer_that_came_by_no_pull_of_its_blob_is_not_called_unverified() -> None:
    def state(log: ListLog, blob: str) -> tuple[str, str]:
        told = audit(log, "b1")
        assert told.report
        return next((layer.state, layer.detail) for layer in told.report.layers if layer.digest == blob)

    log, (one, two) = ListLog(), BLOBS
    begin(log)
    assert state(log, one)[0] == "never verified"
    log.add(e.PullStarted(digest=one, total=9, provider=PROVIDER), "b1", "v2")
    assert state(log, one) == ("begun", "build b1 began to pull it")
    log.add(e.PullFailed(digest=one, provider=PROVIDER, kind="transport", error="reset"), "b1", "v2")
    assert state(log, one)[0] == "never verified"
    log.add(e.PullStarted(digest=one, total=9, provider=PROVIDER), "b1", "v2")
    log.add(e.BuildInterrupted(error="its process ended without a word"), "b1")
    log.add(started("b2"), "b2")
    log.add(e.PullFailed(digest=one, provider=PROVIDER, kind="transport", error="reset"), "b2", "v2")
    assert state(log, one)[0] == "begun"  # another build's failure says nothing of it
    log.add(e.LayerLaidOut(diff_id=digest("diff1"), digest=one, how="found", verified=("seal",)), "b2", "v2")
    log.add(e.LayerPulled(digest=digest("zstd"), bytes=9, provider=PROVIDER, seconds=1,
                          verified=("digest", "diff_id"), diff_id=digest("diff2")), "b2", "v2")  # fmt: skip
    what, detail = state(log, one)
    assert what == "laid out"
    assert "time" in detail
    assert detail.endswith("after this build")
    assert state(log, two) == ("laid out", f"its content came as blob {digest('zstd')}, after this build")
    assert {"begun", "believed"}.isdisjoint(gaps(audit(log, "b1")))
