"""Checkpoints that were sent away: what is there afterwards, and what they say of a later log."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from storage.errors import DiskError, InputError, VerificationError
from storage.signing.notes import new_signer
from tests.builder import Builder
from tests.registry_fixture import WEB, RegistryProcess, push_image
from tests.tools.auditing.test_checkpoints import grow, tampered
from tools import roots
from tools.auditing import published
from tools.auditing.checkpoints import log_id, sign_checkpoint
from tools.auditing.keys import read_verifier
from tools.auditing.verdict import Outside
from tools.auditing.verify import verify_root

SIGNER = new_signer("ci.example/refledger", bytes(range(32)))
DOCKERFILE = "FROM scratch\nCOPY file /\n"


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    made = Builder(tmp_path / "a root")
    made.write({"file": "content\n"})
    made.run("audit", "keygen", "--name", "ci.example/x", "-o", str(tmp_path / "audit key"))
    made.env["REFLEDGER_AUDIT_KEY_FILE"] = str(tmp_path / "audit key")
    return made


def faults(root: Path, source: str) -> set[str]:
    """What `audit verify` says of the log of `root` by all that was published. Its events are of no build."""
    with roots.read_root(root) as (log, _):
        found = published.published(source, [SIGNER.verifier], log_id(log))
    outside = [Outside(source, "fork", one) for one in found]
    return {one.kind for one in verify_root(root, keys=[], outside=outside).faults} - {"build"}


def test_a_file_gets_each_checkpoint_once_and_is_never_rewritten(tmp_path: Path) -> None:
    target = published.Target.parse(f"file:{tmp_path}/a file")
    with roots.open_root(tmp_path / "root", folded=False) as root:
        made = []
        for _ in range(3):
            grow(root, 5)
            made.append(sign_checkpoint(root, SIGNER))
            published.publish(made[-1], target)
            published.publish(made[-1], target)
    text = (tmp_path / "a file").read_text()
    assert text == "\n".join(one.note for one in made)
    for source in (f"file:{tmp_path}/a file", f"{tmp_path}/a file"):
        assert published.published(source, [SIGNER.verifier]) == [one.checkpoint for one in made]
    assert faults(tmp_path / "root", f"{tmp_path}/a file") == set()


def test_forks_and_rollbacks_are_found_by_what_was_published(tmp_path: Path) -> None:
    source = f"file:{tmp_path}/published"
    path = tmp_path / "root"
    with roots.open_root(path, folded=False) as root:
        for _ in range(3):
            grow(root, 300)
            published.publish(sign_checkpoint(root, SIGNER), published.Target.parse(source))
    assert faults(path, source) == set()
    for name in ("checkpoint", "tree.db"):  # somebody who can write in the root removes what is known there
        (path / name).unlink()
    tampered(path, "DELETE FROM events WHERE rowid > 400", "UPDATE sqlite_sequence SET seq = 400")
    assert "rollback" in faults(path, source)
    with roots.open_root(path, folded=False) as root:
        grow(root, 900, "other")
        sign_checkpoint(root, SIGNER)
    assert faults(path, source) == {"fork"}
    shutil.rmtree(path)
    with roots.open_root(path, folded=False):
        pass
    assert faults(path, source) == {"rollback"}


def test_notes_of_others_are_passed_over_only_when_they_are_of_other_logs(tmp_path: Path) -> None:
    file, thief = tmp_path / "file", new_signer("ci.example/refledger", bytes(32))
    for name, signer in (("one", SIGNER), ("two", thief)):
        with roots.open_root(tmp_path / name, folded=False) as root:
            grow(root, 5, name)
            published.publish(sign_checkpoint(root, signer), published.Target(path=file))
    with roots.read_root(tmp_path / "one") as (log, _):
        [mine] = published.published(str(file), [SIGNER.verifier], log_id(log))
    assert len(published.published(str(file))) == 2
    with pytest.raises(VerificationError, match=r"file:7: .* by none of the keys"):
        published.published(str(file), [SIGNER.verifier])
    text = file.read_text()
    for wrong in (text.replace("\n5\n", "\n6\n", 1), text[:-5], text + "nonsense\n", text.replace("— ", "- ", 1)):
        file.write_text(wrong)
        with pytest.raises(VerificationError, match=r"file:\d+: "):
            published.published(str(file), [SIGNER.verifier, thief.verifier])
    assert mine.size == 5
    with pytest.raises(InputError, match="cannot be read"):
        published.published(f"file:{tmp_path}/none")


def test_a_registry_holds_artifacts_that_no_fork_overwrites(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    where = f"{registry.host}/{repository}"
    builder.must_build(DOCKERFILE)
    shutil.copytree(builder.root, builder.root.with_name("fork"))
    for _ in range(2):
        done = builder.run("audit", "checkpoint", "--publish", where)
        assert done.code == 0, done.err
        builder.must_build(DOCKERFILE)
    builder.env["REFLEDGER_ROOT"] = str(builder.root.with_name("fork"))
    builder.must_build(DOCKERFILE, "--no-cache")
    assert builder.run("audit", "checkpoint", "--publish", where).code == 0
    tags = WEB.get(f"http://{registry.host}/v2/{repository}/tags/list").json()["tags"]
    assert len(tags) == 3 and all(tag.startswith("checkpoint-") for tag in tags)
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{where}:{tags[0]}"]
    manifest = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert manifest["artifactType"] == manifest["layers"][0]["mediaType"] == published.CHECKPOINT
    layers = {
        WEB.get(f"http://{registry.host}/v2/{repository}/manifests/{tag}", headers={"Accept": manifest["mediaType"]})
        .json()["layers"][0]["digest"]
        for tag in tags
    }  # fmt: skip
    mark = registry.mark()
    found = published.published(where, (), "of another log")
    assert len(found) == 3 and len({one.origin for one in found}) == 1
    assert len(registry.layer_gets(layers, since=mark)) == 3
    [event] = builder.events("CheckpointPublished")
    assert event["data"]["target"] == where
    assert event["data"]["root"] in {one.root.hex() for one in found}


def test_a_referrer_of_the_image_it_was_pushed_with(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    where = f"{registry.host}/{repository}"
    builder.must_build(DOCKERFILE, "-t", f"{where}:1", "--push")
    done = builder.run("audit", "checkpoint", "--publish", where, "--subject", f"{where}:1")
    assert done.code == 0, done.err
    [checkpoint] = published.published(f"{where}:1")
    assert checkpoint.size == builder.events("CheckpointSigned")[-1]["data"]["size"]
    assert published.published(where) == []
    listed = builder.run("inspect", f"{where}:1", "--referrers", "--json").out
    assert published.CHECKPOINT in listed
    elsewhere = builder.run("audit", "checkpoint", "--publish", f"{where}/other", "--subject", f"{where}:1")
    assert elsewhere.code == 2 and "in the repository of its subject" in elsewhere.err


def test_builds_publish_where_the_environment_says_and_a_failure_is_told_only(
    builder: Builder, tmp_path: Path
) -> None:
    builder.must_build(DOCKERFILE, env={"REFLEDGER_AUDIT_PUBLISH": f"file:{tmp_path}/away"})
    [first] = published.published(f"{tmp_path}/away")
    [told] = builder.events("CheckpointPublished")
    assert (told["data"]["size"], told["data"]["target"]) == (first.size, f"file:{tmp_path}/away")
    done = builder.must_build(DOCKERFILE, env={"REFLEDGER_AUDIT_PUBLISH": f"file:{tmp_path}/no/such/directory"})
    assert "WARNING: the checkpoint was not published" in done.err
    [failure] = builder.events("CheckpointPublishFailed")
    assert "No such file" in failure["data"]["error"]
    done = builder.run("audit", "checkpoint", "--publish", f"file:{tmp_path}/no/such/directory")
    assert (done.code, len(done.err.splitlines())) == (3, 1)
    done = builder.build(DOCKERFILE, env={"REFLEDGER_AUDIT_PUBLISH": "No Name"})
    assert done.code == 2


def test_what_is_no_checkpoint_under_its_tag_is_said_so(registry: RegistryProcess, repository: str) -> None:
    push_image(registry.host, repository, [{"file": b"x"}], tag="checkpoint-0123456789abcdef-5-00000000")
    with pytest.raises(VerificationError, match="the artifact is no checkpoint"):
        published.published(f"{registry.host}/{repository}")


def test_a_key_file_and_a_key_are_both_taken(builder: Builder, tmp_path: Path) -> None:
    verifier = SIGNER.verifier
    (tmp_path / "v").write_text(f"{verifier}\n")
    assert read_verifier(str(verifier)) == read_verifier(str(tmp_path / "v")) == verifier
    (tmp_path / "v").write_text("nonsense")
    with pytest.raises(InputError, match="v: this is no Ed25519 key"):
        read_verifier(str(tmp_path / "v"))


def test_logs_of_several_keys_are_published_to_one_place_and_each_is_verified_by_its_own(tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    keys = []
    for name in ("one", "two"):
        made = Builder(tmp_path / name)
        made.write({"file": name})
        made.env["REFLEDGER_AUDIT_KEY_FILE"] = str(tmp_path / f"{name}.key")
        keys.append(made.run("audit", "keygen", "--name", name, "-o", str(tmp_path / f"{name}.key")).out.strip())
        made.must_build(DOCKERFILE)
        assert made.run("audit", "checkpoint", "--publish", f"file:{place}").code == 0
    for name, key in zip(("one", "two"), keys, strict=True):
        root = str(tmp_path / name / "root")
        done = made.run("audit", "verify", root, "--key", key, "--against", str(place))
        assert (done.code, "compared with 1 checkpoint from elsewhere" in done.out) == (0, True), done.err
    done = made.run("audit", "verify", str(tmp_path / "one/root"), "--key", keys[1], "--against", str(place))
    assert done.code == 4


def test_a_file_that_a_hung_peer_has_locked_is_an_error_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "PATIENCE", 0.1)
    path = tmp_path / "a file"
    with roots.open_root(tmp_path / "root", folded=False) as root:
        grow(root, 5)
        signed = sign_checkpoint(root, SIGNER)
    with path.open("w") as peer:
        fcntl.flock(peer, fcntl.LOCK_EX)
        with pytest.raises(DiskError, match="kept it locked for minutes"):
            published.publish(signed, published.Target.parse(f"file:{path}"))
    published.publish(signed, published.Target.parse(f"file:{path}"))
    assert path.read_text() == signed.note
