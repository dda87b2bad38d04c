"""`refledger du` and `prune` with real builds: what they say is so, and what goes comes again or is made again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from projections.collect import Policy
from storage.errors import DiskError
from storage.usage import measure
from tests.builder import Builder, Done, base_image, layer_digests
from tests.registry_fixture import RegistryProcess
from tests.storage.test_usage import du
from tests.tools.test_reading import in_window
from tests.waiting import PATIENCE, wait_until
from tests.web_fixture import Page, WebServer
from tools.collecting import carry_out, plan_collection, running_builds
from tools.roots import open_root, read_root
from tools.text import cells

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

DOCKERFILE = """\
FROM {base}
COPY a.txt /a
RUN --mount=type=cache,target=/c,id=mine echo kept > /c/x; echo made > /made
COPY b.txt /b
"""


class Shop:
    """A root in which an image was built and pushed."""

    def __init__(self, directory: Path, registry: RegistryProcess, repository: str) -> None:
        self.builder, self.registry, self.repository = Builder(directory), registry, repository
        self.base = base_image(registry, f"{repository}/base")
        self.builder.write({"a.txt": "a" * 3000, "b.txt": "b" * 9000})
        self.dockerfile = DOCKERFILE.format(base=self.base["reference"])
        self.name = f"{registry.host}/{repository}/app:1"

    def push(self, more: str = "", name: str = "") -> Done:
        return self.builder.must_build(self.dockerfile + more, "--push", "-t", name or self.name)

    def run(self, *args: str, code: int = 0) -> str:
        done = self.builder.run(*args)
        assert done.code == code, done.err
        return done.err if code else done.out

    def rows(self, *args: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(*args, "--json").splitlines()]

    def check_sizes(self) -> dict[str, Any]:
        """The last row of `du`, which has to be what the disk says."""
        totals = self.rows("du")[-1]
        assert du(self.builder.root) in {totals["total"], totals["files"]}
        return totals

    def ended(self, kind: str) -> list[str]:
        """Names of the steps that ended so in the last build, without their places."""
        build = self.builder.builds()[0]["id"]
        names = [event["data"]["name"] for event in self.builder.events(kind, build=build)]
        return [name.partition("] ")[2] for name in names if "] RUN" in name or "] COPY" in name]


def step(row: dict[str, Any]) -> str:
    """What made a thing, without the step's place."""
    return str(row["label"]).rpartition("] ")[2]


@pytest.fixture
def shop(tmp_path: Path, registry: RegistryProcess, repository: str) -> Shop:
    return Shop(tmp_path, registry, repository)


STEPS = ["COPY a.txt /a", "RUN --mount=type=cache,target=/c,id=mine echo kept > /c/x; echo made > /made",
         "COPY b.txt /b"]  # fmt: skip


def test_du_tells_every_byte_and_whom_each_thing_is_for(shop: Shop) -> None:
    shop.push()
    shop.builder.must_build(f"FROM {shop.base['reference']}\nRUN echo other > /o\n")
    totals = shop.check_sizes()
    rows = {f"{step(row)}/{row['kind']}": row for row in shop.rows("du")[:-1]}
    made = rows[f"{STEPS[1]}/snapshot"]
    assert made["images"] == [shop.name]
    assert made["providers"] == [f"{shop.registry.host}/{shop.repository}/app"]
    assert not made["shared"]
    other = rows["RUN echo other > /o/snapshot"]
    assert (other["images"], other["providers"], len(other["builds"])) == ([], [], 1)
    layers = [row for row in rows.values() if row["kind"] == "layer"]
    assert all(row["shared"] and len(row["builds"]) == 2 for row in layers)
    assert {row["kind"] for row in rows.values()} == {"layer", "snapshot", "blob", "cachemount"}
    assert totals["remote_only"] == 0
    assert totals["unique"] + totals["shared"] == totals["reclaimable"]
    assert totals["reclaimable"] - totals["demotable"] == other["bytes"] + rows["mine/cachemount"]["bytes"]


def test_du_is_readable_in_a_narrow_window_and_says_what_image_stands_on_a_thing(shop: Shop) -> None:
    shop.push()
    lines = in_window(shop.builder, 60, "du")
    assert all(cells(line) <= 60 for line in lines)
    assert lines[0].split()[:3] == ["ID", "KIND", "SIZE"]
    assert lines[0].endswith("FOR")
    assert sum("127.0.0.1" in line for line in lines) >= 6
    assert "Made by:" in shop.run("du", "--verbose", "--filter", "kind=snapshot")


def test_a_dry_run_says_exactly_what_is_done_and_changes_nothing(shop: Shop) -> None:
    shop.push()
    before, seq = shop.rows("du"), len(shop.builder.events())
    planned = shop.rows("prune", "--all", "--dry-run")
    assert shop.rows("du") == before
    assert len(shop.builder.events()) == seq
    done = shop.rows("prune", "--all")
    assert [{**row, "done": True} for row in planned if row["action"] in {"demote", "prune"}] == [
        row for row in done if row["action"] in {"demote", "prune"}
    ]  # fmt: skip
    told = shop.builder.events("Demoted", "Pruned")
    assert [event["data"]["name"] for event in told] == [row["name"] for row in done[:-1]]
    assert all(event["data"]["by"] and event["data"]["policy"] == "prune --all" for event in told)
    after = shop.check_sizes()
    assert sum(row["bytes"] for row in before[:-1]) == done[-1]["bytes"]
    assert after["reclaimable"] == 0
    assert after["remote_only"] > 0
    assert shop.builder.leftovers() == []


def test_what_was_demoted_is_still_cached_pushed_by_mounts_and_pulled_again_only_when_a_step_needs_it(
    shop: Shop,
) -> None:
    shop.push()
    first = shop.builder.events("Exported")[-1]["data"]["digest"]
    shop.run("prune", "--all")
    mark = shop.registry.mark()
    shop.push(name=f"{shop.registry.host}/{shop.repository}/other:1")
    assert (shop.ended("VertexCached"), shop.ended("VertexCompleted")) == (STEPS, [])
    exported = shop.builder.events("Exported")[-1]["data"]
    assert exported["digest"] == first
    assert {layer["transport"] for layer in exported["layers"]} == {"mounted"}
    blobs = [layer["digest"] for layer in exported["layers"]]
    assert shop.registry.layer_gets(blobs, since=mark) == []
    shop.push("RUN cat /made /a /b > /all\n")
    assert (shop.ended("VertexCached"), shop.ended("VertexCompleted")) == (STEPS, ["RUN cat /made /a /b > /all"])
    assert sorted(line.blob for line in shop.registry.layer_gets(blobs, since=mark)) == sorted(blobs)
    build = shop.builder.builds()[0]["id"]
    wanted = shop.builder.events("MaterializationRequested", build=build)
    assert sorted(name for event in wanted for name in event["data"]["layers"]) == sorted(blobs), "the log explains it"
    shop.check_sizes()


def test_what_nobody_else_has_runs_again_and_the_log_knows_who_let_it_go(shop: Shop) -> None:
    shop.builder.must_build(shop.dockerfile)
    shop.run("prune")
    assert {event["data"]["kind"] for event in shop.builder.events("Pruned")} == {"snapshot", "cachemount"}
    shop.builder.must_build(shop.dockerfile)
    assert (shop.ended("VertexCached"), shop.ended("VertexCompleted")) == ([], STEPS)
    build = shop.builder.builds()[0]["id"]
    missed = shop.builder.events("CacheQueried", build=build)
    assert {event["data"]["reason"] for event in missed} == {"evicted"}


def test_without_all_what_the_latest_image_of_a_name_stands_on_stays(shop: Shop) -> None:
    shop.push()
    shop.builder.write({"b.txt": "changed"})
    shop.push()
    done = shop.rows("prune")
    gone = {(row["kind"], step(row)) for row in done if row["action"] in {"demote", "prune"}}
    assert gone == {("snapshot", STEPS[2]), ("blob", STEPS[2]), ("cachemount", "mine")}
    shop.push("RUN true\n")
    assert shop.ended("VertexCached") == STEPS
    assert shop.builder.builds()[0]["bytes_pulled"] == 0


def test_what_only_an_unreachable_registry_has_stays_until_all_is_asked_for(
    shop: Shop, tmp_path: Path
) -> None:
    with RegistryProcess(tmp_path / "own") as own:
        image = base_image(own, "base")
        shop.builder.must_build(f"FROM {image['reference']}\nRUN echo x > /x\n")
    kept = shop.rows("prune", "--filter", "kind=layer")
    assert [row["action"] for row in kept] == ["keep"] * len(layer_digests(image)) + ["total"]
    assert all("reached" in row["reason"] for row in kept[:-1])
    done = shop.rows("prune", "--all", "--filter", "kind=layer")
    assert {row["action"] for row in done[:-1]} == {"prune"}
    assert {row["kind"] for row in done[:-1]} == {"layer", "snapshot"}, "the step's result is of no use without them"
    shop.check_sizes()


def test_a_provider_that_lost_a_blob_is_told_of_and_not_relied_on(shop: Shop) -> None:
    shop.push()
    lost = shop.builder.events("Exported")[-1]["data"]["layers"][-1]["digest"]
    shop.registry.blob_path(lost).unlink()
    planned = shop.rows("prune", "--all", "--dry-run")
    assert shop.builder.events("ProviderLost") == []
    done = shop.rows("prune", "--all")
    assert [{**row, "done": True} for row in planned[:-1]] == done[:-1]
    assert {event["data"]["digest"] for event in shop.builder.events("ProviderLost")} == {lost}
    assert lost not in {event["data"]["digest"] for event in shop.builder.events("Demoted")}
    shop.builder.must_build(shop.dockerfile)
    assert (shop.ended("VertexCached"), shop.ended("VertexCompleted")) == (STEPS[:2], STEPS[2:])


def test_no_more_goes_than_keep_storage_asks_for_the_least_recently_used_first(shop: Shop) -> None:
    for number in range(3):
        shop.builder.must_build(f"FROM {shop.base['reference']}\nRUN echo {number}{'x' * 2000} > /n\n")
    total = sum(row["bytes"] for row in shop.rows("du")[:-1])
    done = shop.rows("prune", "--keep-storage", str(total - 2500))
    assert [row["label"].partition("echo ")[2][:1] for row in done if row["action"] == "prune"] == ["0", "1"]
    assert sum(row["bytes"] for row in shop.rows("du")[:-1]) <= total - 2500
    assert [row["action"] for row in shop.rows("prune", "--keep-duration", "1h")] == ["total"]


def test_what_cannot_be_understood_is_one_line_and_changes_nothing(shop: Shop) -> None:
    shop.builder.must_build(f"FROM {shop.base['reference']}\nRUN true\n")
    before = shop.rows("du")
    for args in (["--keep-storage", "lots"], ["--keep-duration", "soon"], ["--filter", "x=y"], ["--filter", "kind"]):
        assert shop.run("prune", *args, code=2).count("\n") == 1
    assert shop.rows("du") == before


def test_a_root_where_nothing_was_built_is_not_made_by_asking(shop: Shop) -> None:
    for command in ("du", "prune"):
        assert "nothing was built here yet" in shop.run(command, code=2)
    assert not shop.builder.root.exists()


def test_sources_are_fetched_again_and_contents_of_contexts_kept_again_when_they_went(shop: Shop) -> None:
    with WebServer() as web:
        web.pages["/tool"] = Page(b"t" * 5000, {"ETag": '"1"'})
        dockerfile = (
            f"FROM {shop.base['reference']}\nADD {web.url}/tool /tool\n"
            "RUN --mount=type=bind,target=/context cat /context/a.txt /tool > /both\n"
        )
        shop.builder.must_build(dockerfile)
        assert {row["kind"] for row in shop.rows("du")[:-1]} == {"layer", "snapshot", "source", "context"}
        done = shop.rows("prune")
        assert {row["kind"] for row in done if row["action"] == "prune"} == {"snapshot", "source"}
        assert [row["kind"] for row in done if row["action"] == "keep"] == ["context"]
        shop.builder.must_build(dockerfile)
        assert [request.status for request in web.requests][-1] == 200
        assert len(shop.builder.events("ContextKept")) == 1, "the contents of the context are here still"
        (kept,) = shop.builder.events("ContextKept")
        pack = f"blob/{kept['data']['packs'][0]}"
        assert pack in measure(shop.builder.root).items
        shop.rows("prune", "--all")
        assert pack not in measure(shop.builder.root).items
        shop.builder.must_build(dockerfile)
        again = shop.builder.events("ContextKept")[1]["data"]["packs"][0]
        assert f"blob/{again}" in measure(shop.builder.root).items
    shop.check_sizes()


# ---------------------------------------------------------------- leases


def waiting(shop: Shop) -> subprocess.Popen[str]:
    """A build whose RUN runs, so that it holds all it needs, and waits until /go is in its cache mount."""
    step = (
        "RUN --mount=type=cache,target=/c,id=mine touch /c/here; while ! test -e /c/go; do sleep 0.05; done;"
        " cat /made /a > /all\n"
    )
    shop.builder.write({"Dockerfile": shop.dockerfile + step})
    process = shop.builder.start("build", str(shop.builder.context), "--progress=plain", "--push", "-t", shop.name)
    wait_until(lambda: list((shop.builder.root / "cache").glob("*/0/fs/here")), process)
    return process


def go(shop: Shop) -> None:
    (mount,) = (shop.builder.root / "cache").glob("*/0/fs")
    (mount / "go").touch()


def test_what_a_running_build_needs_stays_whatever_is_asked_for(shop: Shop) -> None:
    shop.push()
    shop.builder.must_build(f"FROM {shop.base['reference']}\nRUN echo stale > /stale\n")
    process = waiting(shop)
    planned = shop.rows("prune", "--all", "--dry-run")
    done = shop.rows("prune", "--all")
    assert [{**row, "done": True} if "done" in row else row for row in planned] == done
    gone = [row for row in done if row["action"] in {"demote", "prune"}]
    assert [step(row) for row in gone] == ["RUN echo stale > /stale"]
    assert all(row["in_use"] for row in shop.rows("du")[:-1])
    go(shop)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert shop.builder.builds()[0]["bytes_pulled"] == 0
    shop.check_sizes()
    assert {row["action"] for row in shop.rows("prune", "--all")} == {"demote", "prune", "total"}


def test_the_leases_of_a_build_die_with_it(shop: Shop) -> None:
    shop.push()
    process = waiting(shop)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    orphan = shop.builder.root / "snapshots/feedfacefeed-0123456789ab-1/fs/made"  # published, and killed right then
    orphan.parent.mkdir(parents=True)
    orphan.write_text("by a build whose death came before the event")
    done = shop.rows("prune", "--all")
    assert not orphan.exists()
    assert "keep" not in {row["action"] for row in done}
    assert shop.check_sizes()["reclaimable"] == 0
    assert shop.builder.leftovers() == []


def test_what_was_used_since_the_plan_was_made_stays(shop: Shop) -> None:
    shop.push()
    with open_root(shop.builder.root) as root:
        policy = Policy(everything=True)
        plan = asyncio.run(plan_collection(root, policy, dry_run=False))
        shop.push()
        used = {event["data"]["ref"] for event in shop.builder.events("CacheQueried")[-3:]}
        collected = carry_out(root, plan, policy)
    stayed = {action.item.name for action, why in collected.skipped if why == "it was used since"}
    assert len(used) == 3
    assert used <= stayed
    shop.push()
    assert shop.ended("VertexCompleted") == []


def test_collections_at_the_same_time_do_not_disturb_each_other(shop: Shop) -> None:
    shop.push()
    running = [shop.builder.start("prune", "--all", "--json") for _ in range(3)]
    ended = [process.communicate(timeout=PATIENCE) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], ended
    done = [json.loads(line) for out, _ in ended for line in out.splitlines()]
    names = [row["name"] for row in done if row["action"] in {"demote", "prune"}]
    assert len(names) == len(set(names)) == len(shop.builder.events("Demoted", "Pruned"))
    assert shop.check_sizes()["reclaimable"] == 0


def test_I12_a_collection_killed_in_its_midst_leaves_a_root_that_builds_right(shop: Shop) -> None:
    """At any moment: tests/crash."""

    def gone() -> int:
        with read_root(shop.builder.root) as (log, _):
            return sum(1 for _ in log.read(types=frozenset({"Demoted", "Pruned"})))

    shop.push()
    first = shop.builder.events("Exported")[-1]["data"]["digest"]
    for count in (1, 3):
        before = gone()
        process = shop.builder.start("prune", "--all")
        while process.poll() is None and gone() < before + count:
            pass
        process.kill()
        process.communicate(timeout=PATIENCE)
        assert process.returncode in {-signal.SIGKILL, 0}, "on a busy machine it may have been done before it was seen"
        shop.push()
        assert shop.builder.events("Exported")[-1]["data"]["digest"] == first
        assert shop.builder.leftovers() == []
        shop.check_sizes()


def test_what_was_demoted_can_be_exported_with_other_times(shop: Shop) -> None:
    shop.push()
    shop.run("prune", "--all")
    epoch = {"SOURCE_DATE_EPOCH": "1700000000"}
    done = shop.builder.build(shop.dockerfile, "--push", "-t", shop.name, env=epoch)
    assert done.code == 0, done.err


def test_locks_that_cannot_be_listed_are_an_error_of_the_disk(tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    assert running_builds(locks) == []
    locks.touch()
    with pytest.raises(DiskError, match="looking for builds that run"):
        running_builds(locks)
