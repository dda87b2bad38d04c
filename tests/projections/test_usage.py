"""Who uses what, what running builds claim, and what was let go: from the log alone."""

from __future__ import annotations

import pytest

from engine import events as e
from projections.cache_index import CacheIndex
from projections.inventory import Inventory, take_inventory
from projections.refs import Refs, life
from projections.runner import Views
from projections.standard import STANDARD
from projections.usage import Usage
from tests.projections import story
from tests.projections.support import ListLog, digest

DIFFS = [layer["diff_id"] for layer in story.LAYERS]
TAG = "127.0.0.1:5000/app:latest"
HERE = {f"layer/{DIFFS[0]}": 100, f"layer/{DIFFS[1]}": 200, "snapshot/b1-run": 30, f"blob/{digest('blobr')}": 9,
        f"blob/{digest('def')}": 4, f"blob/{digest('nobody')}": 5, "log/": 1000}  # fmt: skip


def look(views: Views, *running: str, here: dict[str, int] = HERE) -> Inventory:
    return take_inventory(views, here, 0, running)


def test_each_thing_is_known_by_what_made_it_who_used_it_and_which_image_stands_on_it(views: Views) -> None:
    found = look(views).by_key
    snapshot = found["snapshot/b1-run"]
    assert (snapshot.kind, snapshot.label, snapshot.builds) == ("snapshot", "RUN make", ("b1",))
    assert snapshot.images == (TAG,)
    assert [str(provider) for provider in snapshot.elsewhere] == ["127.0.0.1:5000/app"]
    assert snapshot.copies[0].digest == digest("blobr")
    layer = found[f"layer/{DIFFS[1]}"]
    assert (layer.label, layer.depth, len(layer.elsewhere)) == ("FROM debian:12", 1, 2)
    assert {key.partition("/")[0]: one.kind for key, one in found.items()} == {
        "layer": "layer", "snapshot": "snapshot", "blob": "unnamed", "log": "log",
    }  # fmt: skip
    assert found[f"blob/{digest('blobr')}"].kind == "blob"
    assert found[f"blob/{digest('def')}"].kind == "record"


def test_a_use_of_a_result_is_one_of_all_that_it_stands_on(log: ListLog, views: Views) -> None:
    before = look(views).by_key
    used = log.add(e.VertexCached(name="RUN make", outputs=(digest("chain"),)), "b2", "v")
    views.catch_up(log)
    after = look(views).by_key
    for diff_id in DIFFS:
        assert after[f"layer/{diff_id}"].seq == used.seq == Usage(views).last_use(f"layer/{diff_id}")
        assert after[f"layer/{diff_id}"].builds == ("b1", "b2")
    assert after["snapshot/b1-run"] == before["snapshot/b1-run"]


def test_images_belong_to_the_latest_build_of_their_name(log: ListLog, views: Views) -> None:
    log.add(story.started("b2"), "b2")
    log.add(e.LocalCreated(ref="b2-run", parent=None, bytes=1, layers=({"snapshot": "b2-run"},)), "b2", "v")
    views.catch_up(log)
    here = {**HERE, "snapshot/b2-run": 1}
    assert look(views, here=here).by_key["snapshot/b1-run"].images == (TAG,)
    log.add(e.BuildCompleted(results=({"ref": "b2-run"},)), "b2")
    views.catch_up(log)
    found = look(views, here=here).by_key
    assert (found["snapshot/b1-run"].images, found["snapshot/b2-run"].images) == ((), (TAG,))


def test_what_a_failed_build_was_to_be_called_owns_nothing(log: ListLog, views: Views) -> None:
    log.add(story.started("b2"), "b2")
    log.add(e.LocalCreated(ref="b2-run", parent=None, bytes=1, layers=({"snapshot": "b2-run"},)), "b2", "v")
    log.add(e.BuildFailed(vertex=None, error="no"), "b2")
    views.catch_up(log)
    assert look(views, here={"snapshot/b2-run": 1}).by_key["snapshot/b2-run"].images == ()
    assert look(views).by_key["snapshot/b1-run"].images == (TAG,)


def test_a_running_build_claims_what_it_named_and_what_that_stands_on_and_is_packed_into(views: Views) -> None:
    claims = Usage(views).claims(["b1"])
    assert {f"layer/{diff}" for diff in DIFFS} | {"snapshot/b1-run", f"blob/{digest('blobr')}"} <= claims
    assert Usage(views).claims(["b9"]) == frozenset()
    busy = look(views, "b1").by_key
    assert all(busy[key].in_use for key in HERE if key.startswith(("layer", "snapshot"))), "while b1 is alive"
    assert not any(one.in_use for one in look(views, "b9").items if one.kind != "unnamed")
    assert not any(one.in_use for one in look(views).items)


def test_an_answer_of_the_cache_is_claimed_before_the_build_says_that_it_uses_it(log: ListLog, views: Views) -> None:
    log.add(e.CacheQueried(key="k", components="c", outcome="hit", ref="b1-run"), "b2", "v")
    views.catch_up(log)
    assert {"snapshot/b1-run", f"blob/{digest('blobr')}"} <= Usage(views).claims(["b2"])


def test_what_a_running_build_has_just_made_or_nobody_named_is_in_use_while_one_runs(views: Views) -> None:
    here = {"snapshot/b7-vertex-1": 1, "snapshot/b8-vertex-1": 1, f"layer/{digest('new')}": 1, "snapshot/source-x": 1}
    assert {one.key for one in look(views, "b7", here=here).items if one.in_use} == set(here)
    assert not any(one.in_use for one in look(views, here=here).items)


def test_an_interrupted_pull_was_used_when_it_began_and_is_in_use_while_its_lock_is_held(views: Views) -> None:
    key = f"partial/{story.BLOBS[0]}"
    (partial,) = look(views, here={key: 7}).items
    assert (partial.kind, partial.build, partial.in_use) == ("partial", "b1", False)
    assert partial.time > 0
    (busy,) = take_inventory(views, {key: 7}, 0, (), busy={key}).items
    assert busy.in_use


def test_refs_that_nothing_stands_on_tell_what_is_shared(log: ListLog, views: Views) -> None:
    base = [{**layer} for layer in story.LAYERS]
    for name in ("x", "y"):
        layers = (*base, {"snapshot": name})
        log.add(e.LocalCreated(ref=name, parent=digest("chain"), bytes=1, layers=layers), "b2", "v")
    views.catch_up(log)
    found = look(views, here={**HERE, "snapshot/x": 1}).by_key
    assert (found["snapshot/x"].results, found[f"layer/{DIFFS[0]}"].results >= 2) == (1, True)


def test_bytes_that_are_only_elsewhere_are_counted_once(views: Views) -> None:
    assert look(views, here={"log/": 1}).remote_only == 30_000_000 + 900
    assert look(views, here={f"layer/{DIFFS[0]}": 1}).remote_only == 20_000_000 + 900
    assert look(views).remote_only == 0


def converted(name: str, diff: str, **more: object) -> e.BlobCreated:
    return e.BlobCreated(
        ref=digest("chain"), diff_id=diff, digest=name, media_type="m+zstd", bytes=70, compressor="zstd",
        compression="zstd", source=story.BLOBS[0], **more,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_converted_blob_is_known_by_the_layer_that_it_was_made_of(log: ListLog, views: Views) -> None:
    log.add(converted(digest("zstd"), DIFFS[0]), "b1")
    log.add(converted(digest("stargz"), digest("another diff"), epoch=5), "b1")
    views.catch_up(log)
    here = {**HERE, f"blob/{digest('zstd')}": 70, f"blob/{digest('stargz')}": 71}
    inventory = look(views, here=here)
    for name in ("zstd", "stargz"):
        item = inventory.by_key[f"blob/{digest(name)}"]
        assert (item.kind, item.label, item.elsewhere) == ("blob", "FROM debian:12", ())
    # the layer's own blob says where the layer can be had, and what it needs to be here
    layer = inventory.by_key[f"layer/{DIFFS[0]}"]
    assert [copy.digest for copy in layer.copies] == [story.BLOBS[0]]
    assert inventory.forms[f"layer/{DIFFS[0]}"] == (f"layer/{DIFFS[0]}",)
    assert set(inventory.blobs[f"layer/{DIFFS[0]}"]) == {f"blob/{digest('stargz')}", f"blob/{digest('zstd')}"}
    assert "blob/" + digest("zstd") in Usage(views).claims(["b1"])

    log.add(e.Exported(kind="image", target=TAG, digest="m", layers=({"digest": digest("zstd")},),
                       provider=story.TARGET), "b1")  # fmt: skip
    views.catch_up(log)
    pushed = look(views, here=here).by_key[f"blob/{digest('zstd')}"]
    assert [str(provider) for provider in pushed.elsewhere] == ["127.0.0.1:5000/app"]


def test_a_layer_that_needed_no_conversion_makes_no_blob(log: ListLog, views: Views) -> None:
    before = views.query("SELECT * FROM copies"), views.query("SELECT * FROM stored")
    log.add(converted(story.BLOBS[0], DIFFS[0], epoch=9), "b1")
    views.catch_up(log)
    assert (views.query("SELECT * FROM copies"), views.query("SELECT * FROM stored")) == before
    told = [event.summary for event in life(log, Refs(views).get(digest("chain"))) if event.type == "BlobCreated"]
    assert told == [f"{story.BLOBS[0].removeprefix('sha256:')[:12]} has no later times: it stays what it is"]


def test_a_tombstone_tells_when_why_and_by_whom_until_it_comes_back(log: ListLog, views: Views) -> None:
    usage = Usage(views)
    assert usage.tombstone(DIFFS[0]) is None
    gone = log.add(e.Demoted(kind="layer", name=DIFFS[0], digest=story.BLOBS[0], providers=(story.PROVIDER,),
                             policy="prune --all", bytes=7, by="kim"))  # fmt: skip
    log.add(e.Pruned(kind="snapshot", name="b1-run", policy="policy.toml rule 1", bytes=30, by="policy.toml rule 1"))
    views.catch_up(log)
    stone = usage.tombstone(DIFFS[0])
    assert stone is not None
    assert (stone.seq, stone.time, stone.policy, stone.by, stone.bytes, stone.demoted) == (
        gone.seq, gone.time, "prune --all", "kim", 7, True,
    )  # fmt: skip
    other = usage.tombstone("b1-run")
    assert other is not None
    assert not other.demoted
    story.pull(log, "b2")
    views.catch_up(log)
    assert usage.tombstone(DIFFS[0]) is None
    assert usage.tombstone("b1-run") == other


@pytest.mark.parametrize("again", ["packed", "converted", "stored"])
def test_a_blob_that_is_made_again_was_not_let_go(log: ListLog, views: Views, again: str) -> None:
    blob = digest("blobr" if again == "packed" else "anew")
    log.add(e.Pruned(kind="blob", name=blob, policy="prune", bytes=9))
    views.catch_up(log)
    assert Usage(views).tombstone(blob) is not None
    log.add(
        {
            "packed": e.BlobCreated(ref="b1-run", diff_id=digest("diffr"), digest=blob, media_type="m", bytes=9,
                                    compressor="gzip"),
            "converted": converted(blob, DIFFS[0]),
            "stored": e.LayerStored(ref="r", name="a.tar", layer={**story.LAYERS[0], "digest": blob}),
        }[again],
        "b2",
    )  # fmt: skip
    views.catch_up(log)
    assert Usage(views).tombstone(blob) is None


def test_documents_that_say_something_of_layers_and_images_are_the_record_of_a_build(
    log: ListLog, views: Views
) -> None:
    log.add(e.LayerScanned(diff_id=DIFFS[0], scan=digest("scan"), databases=1, packages=2), "b1")
    log.add(e.Attested(image=digest("img"), platform="p", predicate_type="t", statement=digest("statement"),
                       envelope=digest("envelope"), referrer=digest("referrer")), "b1")  # fmt: skip
    policies = [{"file": "rules.toml", "digest": digest("policy")}]
    log.add(story.started("b2", options={"policies": policies}), "b2")
    views.catch_up(log)
    names = [digest(name) for name in ("scan", "statement", "envelope", "referrer", "policy")]
    found = look(views, here={f"blob/{name}": 1 for name in names})
    assert [item.kind for item in found.items] == ["record"] * 5


def test_what_nobody_used_was_used_by_no_event(views: Views) -> None:
    assert Usage(views).last_use("snapshot/nobody") == 0


def test_a_ref_of_which_a_layer_was_let_go_is_not_here_and_its_life_says_why(log: ListLog, views: Views) -> None:
    assert Refs(views).get(digest("chain")).materialized
    log.add(e.Demoted(kind="layer", name=DIFFS[0], digest=story.BLOBS[0], providers=(story.PROVIDER,), policy="prune",
                      bytes=7, by="kim"))  # fmt: skip
    views.catch_up(log)
    record = Refs(views).get(digest("chain"))
    assert not record.materialized
    assert life(log, record)[-1].summary == "layer let go, 7 bytes, as 127.0.0.1:5000/base has it (kim, prune)"
    story.pull(log, "b2")
    views.catch_up(log)
    assert Refs(views).get(digest("chain")).materialized


def test_contents_of_a_context_that_went_with_a_snapshot_or_a_pack_are_kept_anew(log: ListLog, views: Views) -> None:
    for listing, layer, pack in (("l1", "s1", "p1"), ("l2", "s2", "p2"), ("l3", "s3", "p3")):
        log.add(e.ContextKept(ref="b1-run", listing=listing, layer=layer, packs=(pack,)), "b1", "v")
    log.add(e.Pruned(kind="snapshot", name="s1", policy="prune", bytes=1))
    log.add(e.Pruned(kind="blob", name="p2", policy="prune", bytes=1))
    log.add(e.Demoted(kind="snapshot", name="s3", digest="d", providers=(), policy="prune", bytes=1))
    views.catch_up(log)
    index = CacheIndex(views)
    assert [index.kept_of(listing) is not None for listing in ("l1", "l2", "l3")] == [False, False, True]
    assert index.packs() == ["p3", "p1"]


def test_I1_what_was_let_go_folds_the_same_in_any_pieces(log: ListLog) -> None:
    log.add(e.Pruned(kind="snapshot", name="b1-run", policy="prune", bytes=1, by="kim"))
    log.add(e.CacheMountUsed(id="go", target="/c", sharing="shared", cache=digest("c"), instance=1), "b1", "v")
    story.whole(log, "b2")
    with Views(None, STANDARD) as whole, Views(None, STANDARD) as piecewise:
        whole.catch_up(log)
        events = log.events
        for end in range(1, len(events) + 1):
            piecewise.catch_up(ListLog(events[:end]))
        assert piecewise.dump() == whole.dump()
