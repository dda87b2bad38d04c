"""`refledger audit verify` as a person meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage.bundle.form import Index
from storage.bundle.reading import Bundle
from storage.digest import Digest
from storage.interfaces.log import Event
from storage.signing.notes import Verifier
from tests.builder import PROJECT, Builder
from tests.registry_fixture import RegistryProcess
from tests.tools.auditing.attack_bundles import rebundle, without_proof
from tests.tools.auditing.attacks import Scene, clear, copy_root, make_scene, open_copy, verify
from tools.auditing.bundles import verify_bundle
from tools.auditing.verify import verify_root

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, registry: RegistryProcess) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("verified root")
    yield make_scene(directory, registry, "t/verify")
    clear(directory)


def test_without_a_key_it_says_that_signatures_were_not_checked(scene: Scene) -> None:
    done = scene.builder.run("audit", "verify")
    assert done.code == 0, done.err
    assert "signatures were not checked" in done.out
    assert "nothing vouches for the last 2 yet" in done.out
    assert "signatures were not checked" not in scene.builder.run("audit", "verify", "--key", scene.key).out


def test_I13_it_changes_nothing_and_works_on_a_read_only_copy_without_network(scene: Scene, tmp_path: Path) -> None:
    copy_root(scene.root, tmp_path / "a copy")
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in (tmp_path / "a copy").rglob("*"))
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    command = ["unshare", "--net", "--mount", "sh", "-c", script, str(tmp_path / "a copy")]
    command += [sys.executable, "-m", "tools.cli.main", "audit", "verify", str(tmp_path / "a copy"), "--key", scene.key]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in (tmp_path / "a copy").rglob("*")) == before


def test_several_faults_are_counted_and_the_first_is_told(scene: Scene, tmp_path: Path) -> None:
    copy = open_copy(scene, tmp_path / "root")
    first, second = copy.find("VertexStarted", "first"), copy.find("VertexCached", "cached")
    for seq in (second, first):
        copy.edit(seq, lambda state: state.update(c=10_000))
    found = verify(copy.path, "--key", scene.key)
    assert found.code == 4
    assert found.error.startswith(f"ERROR: event {first}: ")
    assert found.error.endswith(f"; {len(found.found['faults']) - 1} more faults")
    assert {fault["seq"] for fault in found.found["faults"]} >= {first, second}


def test_quick_does_not_read_contents_and_says_so(scene: Scene, tmp_path: Path) -> None:
    copy = open_copy(scene, tmp_path / "root")
    digest = json.loads(copy.row(1)[3])["d"]["definition"].partition(":")[2]
    (copy.path / "blobs" / "sha256" / digest).write_text("FROM scratch\n")
    assert verify(copy.path, "--key", scene.key).code == 4
    found = verify(copy.path, "--key", scene.key, "--quick")
    assert (found.code, found.found["contents_read"]) == (0, False)


def test_what_is_no_root_no_bundle_and_no_proof_is_refused(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello\n")
    for path, code in ((tmp_path, 2), (tmp_path / "nothing", 2)):
        assert verify(path).code == code
    assert verify(tmp_path / "file").code in {2, 4}
    assert verify(scene.root, "--key", "no key").code == 2
    for asked in (("--against", "file:notes"), ("--quick",)):  # of a file they would be done as if they were not there
        found = verify(tmp_path / "file", *asked)
        assert (found.code, "are about a root" in found.error) == (2, True)
    assert verify(scene.root, "--proof", str(tmp_path / "file")).code == 2


def test_a_key_that_signed_nothing_of_it_convicts(scene: Scene, tmp_path: Path) -> None:
    made = scene.builder.run("audit", "keygen", "--name", "other", "-o", str(tmp_path / "key"))
    other = next(word for word in made.out.split() if word.startswith("other+"))
    found = verify(scene.root, "--key", other)
    assert (found.code, found.found["first"]["kind"]) == (4, "signature")
    assert verify(scene.root, "--key", other, "--key", scene.key).code == 0


def test_a_bundle_carries_a_proof_that_is_checked(scene: Scene, tmp_path: Path) -> None:
    copy = open_copy(scene, tmp_path / "root")
    for build in scene.builds:
        found = verify(copy.make_bundle(build), "--key", scene.key)
        assert (found.code, found.error) == (0, "")
        assert found.found["proven"] == found.found["events"] > 20
        assert found.found["signatures_checked"]


def test_a_bundle_without_proof_is_read_and_the_proof_costs_less_than_a_fifth(scene: Scene, tmp_path: Path) -> None:
    path = open_copy(scene, tmp_path / "root").make_bundle("last")
    rebundle(path, lambda found, _events, _blobs: found.index)
    with_proof = path.stat().st_size
    rebundle(path, without_proof)
    assert path.stat().st_size < with_proof < 1.2 * path.stat().st_size
    verdict = verify_bundle(path, [])
    assert (verdict.faults, verdict.proof) == ([], False)


@pytest.mark.parametrize("how", ["changed", "erased without a word", "taken out"])
def test_what_a_step_printed_is_covered_though_it_lies_apart(scene: Scene, tmp_path: Path, how: str) -> None:
    copy = open_copy(scene, tmp_path / "root")
    seq = copy.find("VertexOutput")
    with copy.log() as db:
        [(number, data)] = db.execute("SELECT id, data FROM payloads WHERE id / 1024 = ?", (seq,)).fetchall()[:1]
        if how == "changed":
            db.execute("UPDATE payloads SET data = ? WHERE id = ?", (data.replace(b"e", b"a", 1), number))
        elif how == "taken out":
            db.execute("DELETE FROM payloads WHERE id = ?", (number,))
        else:
            db.execute("UPDATE payloads SET salt = zeroblob(32), data = zeroblob(9) WHERE id = ?", (number,))
    found = verify(copy.path, "--key", scene.key)
    assert (found.code, found.found["first"]["kind"], found.found["first"]["seq"]) == (4, "payload", seq)


def test_a_bundle_proves_what_steps_printed(scene: Scene, tmp_path: Path) -> None:
    copy = open_copy(scene, tmp_path / "root")
    seq = copy.find("VertexOutput")
    said = next(event["build"] for event in copy.events if event["seq"] == seq)
    path = copy.make_bundle(next(name for name, build in scene.builds.items() if build == said))

    def change(found: Bundle, events: list[Event], _: dict[Digest, bytes]) -> Index:
        at = next(at for at, event in enumerate(events) if event.seq == seq)
        events[at] = replace(events[at], data={**events[at].data, "text": "all is well\n"})
        return found.index

    rebundle(path, change)
    found = verify(path, "--key", scene.key)
    assert (found.code, found.found["first"]["kind"], found.found["first"]["seq"]) == (4, "proof", seq)


def test_a_bundle_has_all_that_its_events_name_also_those_of_the_build_that_was_first(tmp_path: Path) -> None:
    """What a COPY --from gave is recorded under two keys, of which a build that hits asks for one."""
    builder = Builder(tmp_path)
    key = builder.run("audit", "keygen").out.strip()
    builder.write({"file": "content"})
    for _ in range(2):
        builder.must_build("FROM scratch AS made\nCOPY file /\nFROM scratch\nCOPY --from=made /file /copy\n")
    hit = builder.builds()[0]
    assert hit["cached"] == 2
    path = tmp_path / "a bundle"
    assert builder.run("bundle", hit["id"], "-o", str(path)).code == 0
    found = verify(path, "--key", key)
    assert (found.code, found.error) == (0, "")


@pytest.mark.parametrize("name", ["CheckpointSigned", "CheckpointPublished"])
def test_a_checkpoint_whose_size_is_anything_is_a_fault_like_others(scene: Scene, tmp_path: Path, name: str) -> None:
    copy = open_copy(scene, tmp_path / "root")
    seq = copy.edit(copy.find(name), lambda state: state["d"].update(size=[{}]))
    faults = verify_root(copy.path, keys=[Verifier.parse(scene.key)], quick=True).faults
    assert (seq, "checkpoint") in {(fault.seq, fault.kind) for fault in faults}
