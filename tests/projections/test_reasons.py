"""Every reason of a miss, every way to a hit, and what steps were lent: from logs of builds that lose things."""

from __future__ import annotations

from typing import Any

import pytest

from engine import events as e
from projections.changes import FileChange
from projections.records import read_records
from projections.verdict import REASONS
from storage.digest import canonical_json
from storage.errors import LogError
from tests.projections.asking import Json, Story, vertex

HUB = {"registry": "hub.test", "repository": "app", "scope": "repository:app:pull"}
BLOB: dict[str, Any] = {"digest": "sha256:" + "b" * 64, "diff_id": "sha256:" + "d" * 64, "size": 9, "mediaType": "m",
        "providers": [HUB]}  # fmt: skip


@pytest.fixture
def story() -> Story:
    return Story()


def one_result(story: Story, *layers: dict[str, object]) -> str:
    """Build b1 made step `a`; returns its key."""
    key = story.key(("argv", "a"))
    story.begin("b1", vertex("a"))
    story.made("b1", "a", key, *layers)
    story.end("b1")
    return key


def asked_again(story: Story, key: str, reason: str, *facts: e.Fact) -> None:
    """Build b2 asks for the same step, after `facts`."""
    story.begin("b2", vertex("a"))
    for fact in facts:
        story.log.add(fact, "b2", "a")
    story.ask("b2", "a", key, reason)
    story.ran("b2", "a")
    story.end("b2")


def test_an_evicted_result_names_when_and_by_whom_it_was_let_go(story: Story) -> None:
    key = one_result(story)
    stone = story.log.add(e.Pruned(kind="snapshot", name="b1-a", policy="prune", by="ada", bytes=1_200_000))
    asked_again(story, key, "evicted")
    verdict = story.verdict("b2", "a")
    assert verdict.reason == "evicted"
    assert verdict.gone is not None
    assert (verdict.gone.name, verdict.gone.policy, verdict.gone.by) == ("b1-a", "prune", "ada")
    assert verdict.gone.time == stone.time
    text = story.text("b2")
    assert "evicted: its result was let go on purpose\n    layer b1-a (1.2MB)\n" in text
    assert " by prune, ada" in text


def test_an_evicted_blob_of_a_snapshot_and_a_tombstone_from_before_the_record_are_told_apart(story: Story) -> None:
    story.log.add(e.Pruned(kind="snapshot", name="b1-a", policy="too early", bytes=1))
    key = one_result(story)
    story.log.add(e.BlobCreated(ref="ref-a", snapshot="b1-a", diff_id="d", digest="sha256:packed", media_type="m",
                                bytes=1, compressor="c"), "b1")  # fmt: skip
    story.log.add(e.Pruned(kind="blob", name="sha256:packed", policy="keep 10GB", bytes=1))
    asked_again(story, key, "evicted")
    gone = story.verdict("b2", "a").gone
    assert gone is not None
    assert (gone.name, gone.policy) == ("sha256:packed", "keep 10GB")


def test_a_demoted_result_whose_provider_has_it_no_more_names_both(story: Story) -> None:
    key = one_result(story, BLOB)
    story.log.add(e.Demoted(kind="layer", name=BLOB["diff_id"], digest=BLOB["digest"], providers=(HUB,), policy="prune",
                            bytes=9))  # fmt: skip
    asked_again(story, key, "evicted")
    assert "    hub.test/app had it then, and has it no more" in story.text("b2")


@pytest.mark.parametrize(
    ("reason", "kind", "says"),
    [
        ("bytes-lost", "missing", "its bytes are gone\n    layer bbbbbbbbbbbb is gone from hub.test/app"),
        ("bytes-lost", "auth",
         "its bytes are gone\n    layer bbbbbbbbbbbb is not given any more by hub.test/app\n    it said no"),
        ("bytes-lost", "corrupt",
         "its bytes are gone\n    layer bbbbbbbbbbbb is not what its digest says at hub.test/app\n    it said no"),
        ("provider-unreachable", "transport",
         ("nobody could be asked for its bytes\n    layer bbbbbbbbbbbb could not be asked for at hub.test/app\n"
          "    it said no")),
    ],
)  # fmt: skip
def test_bytes_that_a_provider_does_not_give_name_blob_and_provider(
    story: Story, reason: str, kind: str, says: str
) -> None:
    key = one_result(story, BLOB)
    lost = e.ProviderLost(ref="ref-a", digest=BLOB["digest"], provider=HUB, kind=kind, error="it said no")
    asked_again(story, key, reason, lost)
    verdict = story.verdict("b2", "a")
    assert verdict.reason == reason
    assert verdict.gone is not None
    assert (verdict.gone.name, verdict.gone.provider) == (BLOB["digest"], "hub.test/app")
    assert f"  its result is recorded, but {says}\n\n" in story.text("b2")


def test_a_provider_that_nobody_could_ask_is_known_from_the_push(story: Story) -> None:
    key = one_result(story)
    story.log.add(e.BlobCreated(ref="ref-a", snapshot="b1-a", diff_id="d", digest=BLOB["digest"], media_type="m",
                                bytes=1, compressor="c"), "b1")  # fmt: skip
    story.log.add(e.Exported(kind="image", target="t", digest="m", layers=({"digest": BLOB["digest"]},), provider=HUB))
    asked_again(story, key, "provider-unreachable")
    assert "    layer bbbbbbbbbbbb could not be asked for at hub.test/app\n" in story.text("b2")


def test_the_layer_that_vanished_is_the_lowest_that_no_hit_has(story: Story) -> None:
    below, top = story.key(("argv", "a")), story.key(("argv", "b"))
    for build in ("b1", "b2"):
        story.begin(build, vertex("a"), vertex("b", "a"))
        if build == "b1":
            story.made(build, "a", below)
            story.made(build, "b", top, {"snapshot": "b1-a"}, {"snapshot": "b1-b"})
        else:
            story.ask(build, "a", below, "hit", origin_build="b1")
            story.ask(build, "b", top, "bytes-lost")
            story.cached(build, "a")
            story.ran(build, "b")
        story.end(build)
    assert "    layer b1-b is gone from this disk\n" in story.text("b2")


def test_a_snapshot_that_vanished_is_gone_from_this_disk(story: Story) -> None:
    key = one_result(story)
    asked_again(story, key, "bytes-lost", e.LocalLost(kind="snapshot", name="b1-a", problem="vanished"))
    assert "    layer b1-a is gone from this disk" in story.text("b2")


def test_a_cache_that_could_not_be_read_is_the_reason_only_where_nothing_else_is(story: Story) -> None:
    key = one_result(story)
    failed = e.CacheImportFailed(source="type=registry,ref=hub.test/cache", kind="auth", error="401 unauthorized")
    other = story.key(("argv", "b"))
    story.begin("b2", vertex("a"), vertex("other", "a", stage="t"))
    story.log.add(failed, "b2")
    story.made("b2", "a", other)
    story.made("b2", "other", story.key(("argv", "c"), ("input", other)))
    story.end("b2")
    assert story.verdict("b2", "a").reason == "component-changed"
    assert "cache type=registry,ref=hub.test/cache could not be read: 401 unauthorized" in story.text("b2")
    fresh = Story()
    fresh.begin("b1", vertex("a"))
    fresh.log.add(failed, "b1")
    fresh.made("b1", "a", key)
    fresh.end("b1")
    assert fresh.verdict("b1", "a").reason == "importer-failed"
    expected = "never built here; cache type=registry,ref=hub.test/cache could not be read: 401 unauthorized"
    assert fresh.verdict("b1", "a").detail == expected
    assert expected in fresh.text("b1", "a")


def test_a_cache_that_was_read_and_has_it_not_is_named(story: Story) -> None:
    story.begin("b1", vertex("a"))
    story.log.add(e.CacheImported(source="type=local,src=c", digest="d", records=3, bytes=1), "b1")
    story.made("b1", "a", story.key(("argv", "a")))
    story.end("b1")
    verdict = story.verdict("b1", "a")
    assert (verdict.reason, verdict.detail) == (
        "never-built", "no earlier build of this definition; not in cache type=local,src=c either",
    )  # fmt: skip


IN_WORDS = {
    "bytes-lost": "  its result is recorded, but its bytes are gone",
    "evicted": "  evicted: its result was let go on purpose",
    "never-built": "  never built",
    "no-cache": "  --no-cache",
    "provider-unreachable": "  its result is recorded, but nobody could be asked for its bytes",
}  # fmt: skip


@pytest.mark.parametrize("reason", IN_WORDS)
def test_every_reason_that_an_engine_gives_is_told_in_words(story: Story, reason: str) -> None:
    key = one_result(story)
    asked_again(story, key, reason)
    assert story.verdict("b2", "a").reason == reason
    assert IN_WORDS[reason] in story.text("b2").splitlines()


def test_the_other_reasons_of_the_closed_list_are_found_by_comparing() -> None:
    """Each of them has its test, here or in test_why; a new one needs its own."""
    assert REASONS - set(IN_WORDS) == {"component-changed", "key-schema-changed", "importer-failed"}


# ---------------------------------------------------------------- hits that were none, and hits by content


def test_I8_a_revoked_hit_says_what_is_gone_from_where_and_what_stood_on_it_followed(story: Story) -> None:
    base, top = story.key(("argv", "a")), story.key(("argv", "b"))
    story.begin("b1", vertex("a"), vertex("b", "a"))
    story.made("b1", "a", base, BLOB)
    story.made("b1", "b", top)
    story.end("b1")
    story.begin("b2", vertex("a"), vertex("b", "a"), vertex("c", "b"))
    story.ask("b2", "a", base, "hit", origin_build="b1")
    story.ask("b2", "b", top, "hit", origin_build="b1")
    story.ask("b2", "c", story.key(("argv", "c")), "never-built")
    story.cached("b2", "b")
    story.log.add(e.VertexStarted(name="c", inputs=()), "b2", "c")
    story.log.add(e.ProviderLost(ref="ref-a", digest=BLOB["digest"], provider=HUB, kind="missing"), "b2", "c")
    story.log.add(
        e.HitRevoked(ref="ref-b", digest=BLOB["digest"], provider=HUB, reexecuted=("a", "b"), error="404"), "b2", "b"
    )
    story.log.add(e.VertexCancelled(name="c", reason="bytes that it stands on were lost"), "b2", "c")
    for step, attempt in (("a", 1), ("b", 1), ("c", 2)):
        story.ran("b2", step, attempt)
    story.end("b2")
    found = story.why("b2")
    told = {item.step.vertex: (item.outcome, item.reason, item.state, item.follows) for item in found.verdicts}
    assert told == {
        "a": ("miss", "bytes-lost", "done", False),
        "b": ("miss", "bytes-lost", "done", True),
        "c": ("miss", "never-built", "done", False),  # a step that b1 did not have
    }
    says = "its result was cached, but layer bbbbbbbbbbbb is gone from hub.test/app: made again"
    assert says in story.text("b2")
    assert says in story.text("b2", "b")
    assert "it followed step 1" in story.text("b2", "b")


def listing(story: Story, *lines: str) -> str:
    return story.blobs.put("".join(f"{line}\n" for line in lines).encode())


def two_stages(story: Story, content: str, *, resolved: bool = True) -> tuple[str, str]:
    """Build b1: `copy` takes a file of `make`, and `last` stands on it. Returns the keys of copy."""
    make = story.key(("argv", "make"))
    copy = story.key(("source", "/out"), ("input", "base"), ("input", make))
    by_content = story.key(("source", "/out"), ("input", "base"), ("content", content))
    last, last_by_content = (story.key(("argv", "last"), ("input", key)) for key in (copy, by_content))
    begin(story, "b1")
    story.made("b1", "make", make)
    story.made("b1", "copy", copy, resolved=by_content if resolved else "")
    story.made("b1", "last", last, resolved=last_by_content if resolved else "")
    story.end("b1")
    return copy, by_content


def begin(story: Story, build: str) -> None:
    base = vertex("base", stage="final", op="image")
    copy = vertex("copy", "base", "make", stage="final", op="copy")
    story.begin(build, vertex("make", stage="build"), base, copy, vertex("last", "copy", stage="final"))


def rebuilt(story: Story, content: str, outcome: str) -> None:
    """Build b2: `make` runs again, for a cause of its own; `copy` takes `content`."""
    make = story.key(("argv", "make it"))
    copy = story.key(("source", "/out"), ("input", "base"), ("input", make))
    by_content = story.key(("source", "/out"), ("input", "base"), ("content", content))
    begin(story, "b2")
    for step, key in (("make", make), ("copy", copy), ("last", story.key(("argv", "last"), ("input", copy)))):
        story.ask("b2", step, key, "never-built")
    story.ran("b2", "make")
    last = story.key(("argv", "last"), ("input", by_content))
    for step, key in (("copy", by_content), ("last", last)):
        more = {"origin_build": "b1"} if outcome == "hit" else {}
        story.ask("b2", step, key, outcome, by="content", **more)
        (story.cached if outcome == "hit" else story.ran)("b2", step)
    story.end("b2")


def test_a_hit_by_content_is_a_hit_though_the_stage_before_ran_again(story: Story) -> None:
    content = listing(story, "out\tfile\t0644\tsha256:1")
    two_stages(story, content)
    rebuilt(story, content, "hit")
    found = story.why("b2")
    assert [(item.step.vertex, item.outcome) for item in found.verdicts] == [
        ("make", "miss"), ("copy", "hit"), ("last", "hit"),
    ]  # fmt: skip
    assert found.followed == []
    copy = story.verdict("b2", "copy")
    assert copy.origin is not None
    assert (copy.origin.build, copy.origin.by) == ("b1", "content")
    text = story.text("b2")
    assert "3 steps: 2 cached, 1 not" in text
    assert "2 by content: what they take is unchanged, though steps before ran again" in text
    alone = story.text("b2", "copy")
    assert "what it copies is unchanged, though step 1 ran again\n  cached: made by build b1" in alone


def test_a_miss_by_content_names_the_files_of_the_stage_and_still_follows_its_cause(story: Story) -> None:
    two_stages(story, listing(story, "out\tfile\t0644\tsha256:1", "same\tfile\t0644\tsha256:s"))
    rebuilt(story, listing(story, "out\tfile\t0644\tsha256:2", "same\tfile\t0644\tsha256:s"), "never-built")
    copy = story.verdict("b2", "copy")
    assert copy.reason == "component-changed"
    assert copy.follows
    assert copy.changes[0].files == (FileChange("out", "changed", "sha256:1", "sha256:2"),)
    assert [item.step.vertex for item in story.why("b2").causes] == ["make"]
    assert "files that it copies differ\n    out  changed: was 1, now 2" in story.text("b2", "copy")


def test_lost_bytes_of_a_record_without_a_key_by_content_are_the_reason(story: Story) -> None:
    content = listing(story, "out\tfile\t0644\tsha256:1")
    copy, by_content = two_stages(story, content, resolved=False)
    begin(story, "b2")
    story.ask("b2", "make", story.key(("argv", "make")), "hit", origin_build="b1")
    story.ask("b2", "copy", copy, "bytes-lost")
    story.cached("b2", "make")
    story.ask("b2", "copy", by_content, "never-built", by="content")
    story.ran("b2", "copy")
    story.end("b2")
    verdict = story.verdict("b2", "copy")
    assert (verdict.reason, verdict.gone and verdict.gone.name) == ("bytes-lost", "b1-copy")


def test_a_build_that_asked_by_content_is_compared_by_what_it_asked_then(story: Story) -> None:
    """b1 is of a version that recorded no key by content; b3 is compared with b2, which asked for one."""
    two_stages(story, listing(story, "out\tfile\t0644\tsha256:1"), resolved=False)
    rebuilt(story, listing(story, "out\tfile\t0644\tsha256:2"), "never-built")
    assert [change.component for change in story.verdict("b2", "copy").changes] == ["input"]
    make = story.key(("argv", "make anew"))
    begin(story, "b3")
    story.ask("b3", "make", make, "never-built")
    story.ask("b3", "copy", story.key(("source", "/out"), ("input", "base"), ("input", make)), "never-built")
    story.ran("b3", "make")
    content = listing(story, "out\tfile\t0755\tsha256:2")
    taken = story.key(("source", "/out"), ("input", "base"), ("content", content))
    story.ask("b3", "copy", taken, "never-built", by="content")
    story.ran("b3", "copy")
    story.end("b3")
    assert story.verdict("b3", "copy").changes[0].files == (FileChange("out", "mode", "0644", "0755"),)


def test_a_hit_that_an_importer_knew_names_the_cache_and_a_build_of_another_log(story: Story) -> None:
    key = story.key(("argv", "a"))
    story.begin("b1", vertex("a"))
    story.ask("b1", "a", key, "hit", origin_build="elsewhere", importer="type=registry,ref=hub.test/cache")
    story.cached("b1", "a")
    story.recorded("b1", "a", key, BLOB, importer="type=registry,ref=hub.test/cache", origin_build="elsewhere")
    story.end("b1")
    text = story.text("b1", "a")
    assert "cached: made by build elsewhere, which is not in this log" in text
    assert "known from cache type=registry,ref=hub.test/cache" in text
    assert "layer bbbbbbbbbbbb  never fetched whole here\n      from hub.test/app" in text
    assert "1 from build elsewhere, not in this log\n    known from cache type=registry" in story.text("b1")


# ---------------------------------------------------------------- what it is compared with


def test_the_nearest_build_is_of_the_same_directory_and_no_dry_answer(story: Story) -> None:
    def build(name: str, argv: str, reason: str = "never-built", context: str = "local", **options: Any) -> None:
        story.begin(name, vertex("a"), context=context, **options)
        story.ask(name, "a", story.key(("argv", argv)), reason)
        story.ran(name, "a")
        story.end(name)

    build("b1", "mine", directory="/work/mine/app")
    build("b2", "another target", directory="/work/mine/app", target="test")
    build("b3", "theirs", directory="/work/theirs/app")
    build("b4", "dry", directory="/work/mine/app", cache_check=True)
    build("b5", "mine now", directory="/work/mine/app")
    found = story.why("b5")
    assert found.against is not None
    assert found.against.id == "b1"


def test_of_several_builds_the_one_with_most_steps_in_common_is_the_nearest(story: Story) -> None:
    for build, steps in (("b1", "abcd"), ("b2", "axyz"), ("b3", "abcq")):
        vertices = [vertex(name) for name in steps]
        story.begin(build, *vertices, directory="/d")
        for name in steps:
            story.ask(build, name, story.key(("argv", name)), "never-built")
            story.ran(build, name)
        story.end(build)
    found = story.why("b3")
    assert found.against is not None
    assert found.against.id == "b1"


def test_a_dry_answer_tells_what_would_run(story: Story) -> None:
    one_result(story)
    story.begin("b2", vertex("a"), vertex("b", "a"), cache_check=True)
    story.ask("b2", "a", story.key(("argv", "new")), "never-built")
    story.ask("b2", "b", story.key(("argv", "b")), "never-built")
    story.end("b2")
    assert all(item.needed for item in story.why("b2").verdicts)
    assert "2 steps: 0 cached, 2 would run" in story.text("b2")


# ---------------------------------------------------------------- .dockerignore


def test_patterns_are_the_cause_only_of_files_that_they_show_or_hide(story: Story) -> None:
    for build, excludes, files in (
        ("b1", ["*.log", "old"], ["a.c\tfile\t0644\t1", "b.c\tfile\t0644\t1", "gone.c\tfile\t0644\t1"]),
        ("b2", ["*.log", "b.c"], ["a.c\tfile\t0644\t1", "old\tfile\t0644\t1", "new.c\tfile\t0644\t1"]),
    ):
        context = vertex("context" + build, op="context", excludes=excludes)
        story.begin(build, context, vertex("base", op="scratch"), vertex("copy", "base", "context" + build, op="copy"))
        story.made(build, "copy", story.key(("source", "."), ("content", listing(story, *files))))
        story.end(build)
    (change,) = story.verdict("b2", "copy").changes
    assert change.patterns == ("-old", "+b.c")
    assert {file.path: file.ignored for file in change.files} == {
        "b.c": True, "gone.c": False, "new.c": False, "old": True,
    }  # fmt: skip
    text = story.text("b2")
    assert "files that it copies differ, some because of .dockerignore" in text
    assert "line removed  old\n" in text
    assert "line added  b.c\n" in text
    assert "b.c  now ignored 1" in text
    assert "old  no longer ignored 1" in text


# ---------------------------------------------------------------- taint


LENT = [
    {"kind": "cache", "id": "go", "target": "/cache"},
    {"kind": "secret", "id": "token", "target": "/token"},
    {"kind": "secret", "id": "absent", "target": "/absent"},
    {"kind": "ssh", "id": "default", "target": "/agent"},
    {"kind": "bind", "target": "/src", "input": 0},
]


def test_what_a_step_was_lent_is_told_of_it_and_of_a_hit_of_its_result(story: Story) -> None:
    step = vertex("a", network="host", security="insecure", mounts=LENT)
    quiet = vertex("b", "a", network="none")
    keys = {name: story.key(("argv", name)) for name in "ab"}
    story.begin("b1", step, quiet)
    story.ask("b1", "a", keys["a"], "never-built")
    for fact in (
        e.CacheMountUsed(id="go", target="/cache", sharing="shared", cache="c", created=True),
        e.SecretMounted(id="token", target="/token"),
        e.AgentForwarded(id="default", target="/agent"),
        e.SecurityLifted(),
    ):
        story.log.add(fact, "b1", "a")
    story.ran("b1", "a")
    story.recorded("b1", "a", keys["a"])
    story.made("b1", "b", keys["b"])
    story.end("b1")
    story.begin("b2", step, quiet)
    for name in "ab":
        story.ask("b2", name, keys[name], "hit", origin_build="b1")
        story.cached("b2", name)
    story.end("b2")
    for build in ("b1", "b2"):
        taint = {(item.kind, item.id): item.seen for item in story.verdict(build, "a").taint}
        assert taint == {
            ("network", "host"): "used", ("cache", "go"): "empty", ("secret", "token"): "used",
            ("secret", "absent"): "absent", ("ssh", "default"): "used", ("security", "insecure"): "used",
        }  # fmt: skip
        assert story.verdict(build, "b").taint == ()
        text = story.text(build, "a")
        assert "secret token at /token: its value is no part of the key, another one is no miss" in text
        assert "cache mount go at /cache: it was empty, its content is no part of the key" in text
        assert "secret absent at /absent: it was not given" in text
        summary = story.text(build).splitlines()[-1]
        assert summary == (
            "results may also depend on (by step): network of 1; cache mount go of 1; secret token of 1;"
            " ssh agent default of 1; security insecure of 1"
        )


def test_taint_of_a_result_from_another_log_is_what_the_definition_says(story: Story) -> None:
    key = story.key(("argv", "a"))
    story.begin("b1", vertex("a", network="none", mounts=LENT[:1]))
    story.ask("b1", "a", key, "hit", origin_build="elsewhere", importer="type=inline")
    story.cached("b1", "a")
    story.recorded("b1", "a", key, BLOB, importer="type=inline", origin_build="elsewhere")
    story.end("b1")
    (taint,) = story.verdict("b1", "a").taint
    assert (taint.kind, taint.seen) == ("cache", "")
    assert canonical_json(taint.to_json())


def test_a_step_that_moved_is_compared_with_itself(story: Story) -> None:
    keys = {name: story.key(("argv", name)) for name in "abc"}
    story.begin("b1", vertex("base", op="image"), vertex("a", "base"), vertex("b", "a"))
    story.made("b1", "a", story.key(("argv", "a"), ("input", keys["c"])))
    story.made("b1", "b", story.key(("argv", "b"), ("input", keys["a"])))
    story.end("b1")
    moved = {"digest": "moved", "name": "[s] b"}
    after = {"digest": "after", "name": "[s] a"}
    story.begin("b2", vertex("base", op="image"), vertex("b", "base") | moved, vertex("a", "moved") | after)
    story.made("b2", "moved", story.key(("argv", "b"), ("input", keys["c"])))
    story.made("b2", "after", story.key(("argv", "a"), ("input", keys["b"])))
    story.end("b2")
    found = story.why("b2")
    assert [item.step.title for item in found.causes] == ["b"]
    assert [item.step.title for item in found.followed] == ["a"]
    assert "it stands on another result\n    was  [s] a" in story.text("b2")


@pytest.mark.parametrize(
    "op",
    [{"mounts": [1]}, {"mounts": {}}, {"mounts": [{"input": "0"}]}, {"excludes": [7]}, {"layers": "all"}],
    ids=str,
)  # fmt: skip
def test_the_graph_of_a_stranger_is_an_error_that_names_its_event(story: Story, op: Json) -> None:
    story.begin("b1", vertex("a", **op))
    with pytest.raises(LogError, match=r"event 2 \(GraphDefined\) is malformed"):
        story.why("b1")


@pytest.mark.parametrize("field", [{"lines": [1]}, {"lines": [1, 2, 3]}, {"inputs": 5}, {"inputs": [{}]}], ids=str)
def test_a_strangers_vertex_is_an_error_that_names_its_event(story: Story, field: Json) -> None:
    story.begin("b1", {**vertex("a"), **field})
    with pytest.raises(LogError, match=r"event 2 \(GraphDefined\) is malformed"):
        story.why("b1")


@pytest.mark.parametrize("component", ["mount content", "mount 7 content", "mount x content"])
def test_a_key_that_tells_of_a_mount_that_the_step_has_not_is_compared_all_the_same(
    story: Story, component: str
) -> None:
    for build, listing in (("b1", b"file\tf\t644\tsha256:1\n"), ("b2", b"other\tf\t644\tsha256:1\n")):
        key = story.key((component, story.blobs.put(listing)))
        story.begin(build, vertex("a"))
        story.made(build, "a", key)
        story.end(build)
    assert [change.component for change in story.verdict("b2", "a").changes] == [component]


@pytest.mark.parametrize(
    ("one", "two", "old", "new"),
    [
        ({"op": "http", "url": "https://e.test/a", "digest": "sha256:1"},
         {"op": "http", "url": "https://e.test/a", "digest": "sha256:2"},
         "https://e.test/a@sha256:1", "https://e.test/a@sha256:2"),
        ({"op": "git", "remote": "https://e.test/r.git", "commit": "c1"},
         {"op": "git", "remote": "https://e.test/r.git", "commit": "c2"},
         "https://e.test/r.git@c1", "https://e.test/r.git@c2"),
        ({"op": "archive", "digest": "sha256:1"}, {"op": "layer", "layer": {"digest": "sha256:2"}},
         "sha256:1", "sha256:2"),
        ({"op": "layer", "layer": None}, {"op": "scratch"}, "layer", "scratch"),
    ],
    ids=lambda value: value.get("op") if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_source_that_became_another_is_named_by_what_it_is(
    story: Story, one: Json, two: Json, old: str, new: str
) -> None:
    for build, source in (("b1", one), ("b2", two)):
        story.begin(build, {**vertex("s"), "op": source}, vertex("a", "s"))
        story.made(build, "a", story.key(("argv", "a"), ("input", build)))
        story.end(build)
    [change] = story.verdict("b2", "a").changes
    assert (change.component, change.old, change.new) == ("source", old, new)


@pytest.mark.parametrize("kind", ["LayerPulled", "BlobCreated", "CacheRecorded"])
def test_what_no_version_wrote_of_a_result_is_an_error_that_names_its_event(story: Story, kind: str) -> None:
    story.begin("b1", vertex("a"))
    story.made("b1", "a", story.key(("argv", "a")))
    story.end("b1")
    event = story.log.add_raw(kind, {"key": "k", "ref": "r", "layers": [{"providers": 7}], "digest": 7, "provider": {}})
    with pytest.raises(LogError, match=rf"event {event.seq} \({kind}\) is malformed"):
        read_records(story.log, None)


def test_a_layer_that_an_export_converted_is_no_blob_of_what_a_step_made(story: Story) -> None:
    story.begin("b1", vertex("a"))
    story.made("b1", "a", story.key(("argv", "a")))
    plain = "sha256:plain"  # named as the diff ID, so that whoever asks for the layer by that finds the event
    story.log.add(e.BlobCreated(ref="ref-a", snapshot="b1-a", diff_id=plain, digest=plain, media_type="m", bytes=1,
                                compressor="none", source="sha256:base"), "b1")  # fmt: skip
    story.end("b1")
    assert read_records(story.log, None).packed == {}
