"""What the cache index, the history and the refs say of a story."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from engine import events as e
from projections.cache_index import CacheIndex
from projections.history import History
from projections.refs import Refs, life
from projections.runner import Views
from projections.standard import STANDARD
from storage.errors import HostError, InputError, LogError
from storage.interfaces.log import NewEvent
from tests.projections import story
from tests.projections.support import ListLog, digest


def test_the_latest_record_of_a_key_wins(log: ListLog, views: Views) -> None:
    index = CacheIndex(views)
    entry = index.lookup(digest("k2"))
    assert entry is not None
    assert (entry.ref, entry.origin_build, entry.components) == ("b1-run", "b1", digest("comp"))
    assert entry.layers == ({"snapshot": "b1-run"},)
    newer = log.add(e.CacheRecorded(key=digest("k2"), components="c", ref="again", layers=()), "b9", "v2")
    views.catch_up(log)
    entry = index.lookup(digest("k2"))
    assert entry is not None
    assert (entry.ref, entry.origin_build, entry.seq) == ("again", "b9", newer.seq)
    assert index.lookup("nothing") is None


def test_packed_layers_are_found_by_snapshot_and_epoch(log: ListLog, views: Views) -> None:
    index = CacheIndex(views)
    packed = index.packed("b1-run", None, "gzip")
    assert packed is not None
    assert (packed.digest, packed.diff_id, packed.bytes) == (digest("blobr"), digest("diffr"), 900)
    assert index.packed("b1-run", 0, "gzip") is None
    for name, epoch in (("z", 0), ("zz", 0), ("plain", None)):
        log.add(e.BlobCreated(ref="b1-run", snapshot="b1-run", diff_id=digest("d"), digest=digest(name),
                              media_type="m", bytes=1, compressor="x", epoch=epoch), "b1")  # fmt: skip
    views.catch_up(log)
    found = [index.packed("b1-run", epoch, "gzip") for epoch in (0, None)]
    assert [packed and packed.digest for packed in found] == [digest("zz"), digest("plain")]


def test_I7_a_layer_packed_in_two_ways_is_two_blobs(log: ListLog, views: Views) -> None:
    index = CacheIndex(views)

    def packed(name: str, compression: str, **more: Any) -> None:
        fact = e.BlobCreated(
            ref="b1-run", diff_id=digest(f"diff {name}"), digest=digest(name), media_type="m", bytes=1, compressor="x",
            compression=compression, **more,
        )  # fmt: skip
        log.add(fact, "b1")

    def found(name: str, epoch: int | None, compression: str) -> str | None:
        blob = index.packed(name, epoch, compression)
        return blob.digest if blob else None

    notes = {"containerd.io/snapshot/stargz/toc.digest": digest("toc")}
    packed("zstd", "zstd", snapshot="b1-run")
    packed("zstd 19", "zstd:19", snapshot="b1-run")
    packed("clamped", "zstd", snapshot="b1-run", epoch=7)
    packed("stargz", "estargz", snapshot="b1-run", annotations=notes)
    packed("of base", "zstd", source=story.BLOBS[0])
    packed("of base, clamped", "gzip", source=story.BLOBS[0], epoch=7)
    views.catch_up(log)
    assert found("b1-run", None, "gzip") == digest("blobr")
    assert found("b1-run", None, "zstd") == digest("zstd")
    assert found("b1-run", None, "zstd:19") == digest("zstd 19")
    assert found("b1-run", 7, "zstd") == digest("clamped")
    assert found(story.BLOBS[0], None, "zstd") == digest("of base")
    assert found(story.BLOBS[0], 7, "gzip") == digest("of base, clamped")
    assert found(story.BLOBS[0], None, "gzip") is None
    stargz = index.packed("b1-run", None, "estargz")
    assert stargz is not None
    assert stargz.annotations == notes
    # what a cache hit is given: the latest that is the step's layer and nothing more, however old the event's schema
    best = index.blob_of("b1-run")
    assert best is not None
    assert best.digest == digest("zstd 19")


def test_I10_a_log_from_before_there_were_compressions_has_gzip(log: ListLog, views: Views) -> None:
    log.append(NewEvent("ref/r", "BlobCreated", {
        "ref": "old", "snapshot": "old", "diff_id": "d", "digest": digest("old"), "media_type": "m", "bytes": 1,
        "compressor": "isal 1.7 level 2",
    }, "b1"))  # fmt: skip
    views.catch_up(log)
    packed = CacheIndex(views).packed("old", None, "gzip")
    assert packed is not None
    assert (packed.digest, packed.annotations) == (digest("old"), {})


def test_providers_of_a_blob_newest_first_and_the_one_that_lost_it_last(log: ListLog, views: Views) -> None:
    index = CacheIndex(views)
    assert [str(provider) for provider in index.providers_of(story.BLOBS[0])] == [
        "127.0.0.1:5000/app", "127.0.0.1:5000/base",
    ]  # fmt: skip
    assert [provider.scope for provider in index.providers_of(digest("blobr"))] == ["repository:app:pull"]
    log.add(e.PullFailed(digest=story.BLOBS[0], provider=story.TARGET, kind="missing", error="404"), "b2", "v")
    log.add(e.PullFailed(digest=story.BLOBS[1], provider=story.TARGET, kind="transport", error="reset"), "b2", "v")
    views.catch_up(log)
    assert [p.repository for p in index.providers_of(story.BLOBS[0])] == ["base", "app"]
    assert [p.repository for p in index.providers_of(story.BLOBS[1])] == ["app", "base"]


def test_a_cache_in_a_registry_provides_its_layers(log: ListLog, views: Views) -> None:
    index = CacheIndex(views)
    layers = ({"digest": story.BLOBS[0], "transport": "mounted", "bytes": 0, "source": ""},)
    cache = {"registry": "127.0.0.1:5000", "repository": "cache"}
    log.add(e.CacheExported(target="type=registry,ref=c", mode="max", digest=digest("m"), records=1, bytes=9,
                            layers=layers, provider=cache), "b1")  # fmt: skip
    log.add(e.CacheExported(target="type=local,dest=/c", mode="max", digest=digest("m"), records=1, bytes=9,
                            layers=layers), "b1")  # fmt: skip
    views.catch_up(log)
    assert [p.repository for p in index.providers_of(story.BLOBS[0])] == ["cache", "app", "base"]


def test_history_tells_how_a_build_went(log: ListLog, views: Views) -> None:
    build = History(views).get("b1")
    assert (build.status, build.exit_code, build.error, build.name) == ("completed", 0, None, "app")
    assert (build.vertices, build.cached, build.executed, build.bytes_pulled) == (3, 1, 2, 30_000_000)
    assert (build.first_seq, build.last_seq) == (1, log.last_seq())
    assert build.results == ({"ref": "b1-run", "digest": digest("img")},)
    assert build.tags == ("127.0.0.1:5000/app:latest",)
    assert build.to_json()["ended"] == log.events[-1].time


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (e.BuildFailed(vertex="v2", error="boom", exit_code=1), "failed", 1),
        (e.BuildCancelled(), "cancelled", 130),
        (e.BuildInterrupted(error="process 7 is gone"), "interrupted", None),
        (None, "running", None),
    ],
)
def test_history_of_builds_that_did_not_end_well(end: e.Fact | None, status: str, code: int | None) -> None:
    log = ListLog()
    story.begin(log)
    log.add(e.PullFailed(digest="d", provider=story.PROVIDER, kind="transport", error="reset", bytes=7), "b1", "v2")
    if end is not None:
        log.add(end, "b1")
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        build = History(views).get("b1")
    assert (build.status, build.exit_code, build.bytes_pulled) == (status, code, 7)
    assert (build.ended is None) == (build.last_seq is None) == (end is None)


def test_builds_are_found_by_unique_prefix() -> None:
    log = ListLog()
    for build in ("abc1", "abc2", "abc", "x%_"):
        log.add(story.started(build), build)
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        history = History(views)
        assert [build.id for build in history.list()] == ["x%_", "abc", "abc2", "abc1"]
        assert [build.id for build in history.list(2)] == ["x%_", "abc"]
        assert history.list(status="failed") == []
        assert history.get("abc").id == "abc"
        assert history.get("abc2").id == "abc2"
        assert history.get("x%").id == "x%_"
        for wrong, said in (("ab", "several builds"), ("%", "no build"), ("zz", "no build"), ("", "no build")):
            with pytest.raises(InputError, match=said):
                history.get(wrong)


def test_refs_know_where_they_come_from_and_whether_they_are_here(log: ListLog, views: Views) -> None:
    refs = Refs(views)
    base = refs.get(digest("chain")[7:20])
    assert (base.ref, base.kind, base.materialized, base.bytes) == (digest("chain"), "remote", True, 30_000_000)
    assert (base.build, base.providers) == ("b1", (story.PROVIDER,))
    step = refs.get("b1-run")
    assert (step.kind, step.parent, step.bytes, step.materialized) == ("local", digest("chain"), 1234, True)
    assert [ref.ref for ref in refs.list()] == ["b1-run", digest("chain")]
    log.add(e.RemoteCreated(ref=digest("chain"), layers=tuple(story.LAYERS), providers=(story.TARGET,)), "b2", "v1")
    log.add(e.RemoteCreated(ref="lazy", layers=tuple(story.LAYERS), providers=(story.TARGET,)), "b2", "v1")
    views.catch_up(log)
    base = refs.get(digest("chain"))
    assert (base.build, base.providers) == ("b1", (story.PROVIDER, story.TARGET))
    assert not refs.get("lazy").materialized
    with pytest.raises(InputError, match="no ref"):
        refs.get("nope")


@pytest.mark.parametrize(("size", "told"), [(7, 7), ("7", 0), (None, 0)])
def test_a_blob_is_found_by_its_digest_whatever_its_layer_says_of_the_size(size: object, told: int) -> None:
    log = ListLog()
    layer = {"digest": digest("blob"), "size": size}
    log.add(e.LocalCreated(ref="r", parent=None, bytes=0, layers=(layer, {**layer, "digest": digest("other")})), "b1")
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        found = Refs(views).get(digest("blob")[7:17])
    assert (found.kind, found.ref, found.bytes) == ("blob", digest("blob"), told)


def test_the_life_of_a_ref_in_order(log: ListLog, views: Views) -> None:
    refs = Refs(views)
    told = life(log, refs.get(digest("chain")))
    assert [event.type for event in told] == [
        "RemoteCreated", "VertexCompleted", "VertexStarted", "MaterializationRequested", "PullStarted", "LayerPulled",
        "PullStarted", "LayerPulled", "Materialized", "Exported",
    ]  # fmt: skip
    assert told[0].summary == "pointer to 2 layers at 127.0.0.1:5000/base"
    assert "verified digest and diff_id" in told[5].summary
    assert [event.type for event in life(log, refs.get("b1-run"))] == [
        "LocalCreated", "VertexCompleted", "CacheRecorded", "BlobCreated", "Exported",
    ]  # fmt: skip


def test_what_a_build_avoided_counts_a_layer_once_and_not_when_it_came_after_all(log: ListLog, views: Views) -> None:
    ref, blobs = digest("chain"), story.BLOBS

    def copied(*unfetched: tuple[str, int]) -> None:
        told = tuple({"digest": name, "bytes": count} for name, count in unfetched)
        count = sum(each["bytes"] for each in told if isinstance(each["bytes"], int))
        log.add(e.Materialized(ref=ref, bytes=1, seconds=1, whole=False, avoided=count, unfetched=told), "b2", "v")
        views.catch_up(log)

    log.add(story.started("b2"), "b2")
    copied((blobs[0], 100), (blobs[1], 1000))
    copied((blobs[0], 90), (blobs[1], 1000))
    assert History(views).get("b2").bytes_avoided == 1090
    log.add(e.LayerTocRead(digest=blobs[0], bytes=7, provider=story.PROVIDER, entries=1), "b2", "v")
    log.add(e.FilesFetched(digest=blobs[0], files=1, bytes=3, avoided=90, provider=story.PROVIDER), "b2", "v")
    log.add(e.LayerPulled(digest=blobs[1], bytes=1000, provider=story.PROVIDER, seconds=1, verified=()), "b2", "v")
    views.catch_up(log)
    record = History(views).get("b2")
    assert (record.bytes_avoided, record.bytes_pulled) == (90, 1010)
    assert History(views).get("b1").bytes_avoided == 0


def test_a_ref_of_which_some_files_are_here_is_not_materialized(log: ListLog, views: Views) -> None:
    ref = "sha256:part"
    log.add(e.RemoteCreated(ref=ref, layers=tuple(story.LAYERS), providers=(story.PROVIDER,)), "b2", "v")
    log.add(e.Materialized(ref=ref, bytes=1, seconds=1, whole=False, avoided=5), "b2", "v")
    views.catch_up(log)
    record = Refs(views).get(ref)
    assert not record.materialized
    assert "what was asked for is here, 1 bytes fetched, 5 avoided" in [one.summary for one in life(log, record)]
    log.add(e.Materialized(ref=ref, bytes=1, seconds=1), "b2", "v")
    views.catch_up(log)
    assert Refs(views).get(ref).materialized


def test_no_two_projections_keep_a_table_of_one_name() -> None:
    tables = [table for projection in STANDARD for table in projection.tables]
    assert len(tables) == len(set(tables))


def test_a_layer_that_names_its_own_providers_is_not_looked_for_at_those_of_others() -> None:
    log = ListLog()
    own, other = ({"registry": "r", "repository": name, "scope": f"repository:{name}:pull"} for name in ("own", "b"))
    layers = ({"digest": digest("l1"), "providers": [own]}, {"digest": digest("l2")})
    log.add(e.RemoteCreated(ref="r", layers=layers, providers=(own, other)), "b1")
    views = Views(None, STANDARD)
    views.catch_up(log)
    found = [[item.repository for item in CacheIndex(views).providers_of(digest(name))] for name in ("l1", "l2")]
    assert found == [["own"], ["b", "own"]]


def test_beginnings_that_several_refs_or_blobs_have_are_refused() -> None:
    log = ListLog()
    for ref, blob in (("abc1", "sha256:dd1"), ("abc2", "sha256:dd2")):
        log.add(e.LocalCreated(ref=ref, parent=None, bytes=0, layers=({"digest": blob},)), "b1")
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        for written, what in (("abc", "several refs begin with 'abc'"), ("dd", "several blobs begin with 'dd'")):
            with pytest.raises(InputError, match=what):
                Refs(views).get(written)
        assert Refs(views).get("abc1").ref == "abc1"


def test_what_no_version_wrote_of_a_ref_is_an_error_that_names_its_event() -> None:
    log = ListLog()
    log.add(e.LocalCreated(ref="r", parent=None, bytes=0), "b1")
    event = log.add_raw("VertexCached", {"name": 5, "outputs": ["r"]}, "b1")
    with Views(None, STANDARD) as views:
        views.catch_up(ListLog(log.events[:1]))
        with pytest.raises(LogError, match=rf"event {event.seq} \(VertexCached\) is malformed"):
            life(log, Refs(views).get("r"))


def test_a_view_whose_json_rotted_is_to_be_made_anew(log: ListLog, tmp_path: Path) -> None:
    with Views(tmp_path / "views.db", STANDARD) as views:
        views.catch_up(log)
        with closing(sqlite3.connect(tmp_path / "views.db", isolation_level=None)) as db:
            db.execute("UPDATE refs SET layers = '[\x01', providers = '['")
            db.execute("UPDATE cache SET layers = '['")
        for read in (lambda: Refs(views).list(), lambda: CacheIndex(views).lookup(digest("k2"))):
            with pytest.raises(HostError, match="the views are damaged") as caught:
                read()
            assert "refledger rebuild" in caught.value.hint
