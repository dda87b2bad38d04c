"""Signing: who may, when, what of, and what is never signed."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InputError, VerificationError
from storage.interfaces.log import NewEvent
from storage.logtree import merkle
from storage.logtree.leaves import leaf_hashes
from storage.signing.notes import Checkpoint, Note, Signer, Verifier, new_signer
from tests.builder import Builder, base_image
from tests.registry_fixture import RegistryProcess
from tests.waiting import PATIENCE
from tools import roots
from tools.auditing import keys
from tools.auditing.checkpoints import FILE, TREE, Signed, log_id, sign_checkpoint

SIGNER = new_signer("ci.example/refledger", bytes(range(32)))
DOCKERFILE = "FROM scratch\nCOPY file /\n"


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    made = Builder(tmp_path / "a root")
    made.write({"file": "content\n"})
    return made


@pytest.fixture
def root(tmp_path: Path) -> Iterator[roots.Root]:
    with roots.open_root(tmp_path / "a root", folded=False) as opened:
        yield opened


def grow(root: roots.Root, count: int, text: str = "x") -> None:
    """Events of a build."""
    root.log.append(*(NewEvent("build/1", "Told", {"text": f"{text}{number}"}, "1") for number in range(count)))


def tampered(path: Path, *statements: str) -> None:
    """Change the log as somebody with a root shell does."""
    db = sqlite3.connect(path / "log.db")
    for trigger in ("events_no_update", "events_no_delete"):
        db.execute(f"DROP TRIGGER IF EXISTS {trigger}")
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


def holds(root: roots.Root, signed: Signed) -> bool:
    """Is the checkpoint signed, and of the log as it is?"""
    tree = merkle.Frontier()
    tree.extend(leaf_hashes(root.log.rows(0, signed.checkpoint.size)))
    by = Note.parse(signed.note).verified_by([SIGNER.verifier])
    return by == (SIGNER.verifier,) and tree.root() == signed.checkpoint.root


# ---------------------------------------------------------------- what is signed


def test_I12_a_checkpoint_whose_signer_was_killed_before_it_was_kept_is_kept_by_the_next(root: roots.Root) -> None:
    grow(root, 10)
    signed = sign_checkpoint(root, SIGNER)
    (root.path / FILE).unlink()  # the event is durable first
    again = sign_checkpoint(root, SIGNER)
    assert (again.new, again.note) == (False, signed.note)
    assert (root.path / FILE).read_text() == signed.note


def test_each_checkpoint_covers_what_is_there_and_is_the_event_behind_it(root: roots.Root) -> None:
    for count in (1, 299, 700):
        grow(root, count)
        head = root.log.last_seq()
        signed = sign_checkpoint(root, SIGNER)
        assert (signed.new, signed.checkpoint.size) == (True, head)
        assert holds(root, signed)
        [event] = root.log.read(after=head)
        assert (event.stream, event.type) == ("log", "CheckpointSigned")
        assert event.data == {
            "origin": f"ci.example/refledger/{log_id(root.log)}", "size": head,
            "root": signed.checkpoint.root.hex(), "note": signed.note,
        }  # fmt: skip
        assert (root.path / FILE).read_text() == signed.note


def test_what_is_covered_is_not_signed_again_but_by_another_key(root: roots.Root) -> None:
    grow(root, 3)
    first = sign_checkpoint(root, SIGNER)
    again = sign_checkpoint(root, SIGNER)
    assert (again.new, again.note, root.log.last_seq()) == (False, first.note, 4)
    other = sign_checkpoint(root, new_signer("other", bytes(32)))
    assert (other.new, other.checkpoint.size) == (True, 4)
    assert other.checkpoint.origin == f"other/{log_id(root.log)}"


def test_two_logs_have_two_origins_and_an_empty_one_is_not_signed(root: roots.Root, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the log is empty"):
        sign_checkpoint(root, SIGNER)
    grow(root, 1)
    with roots.open_root(tmp_path / "another", folded=False) as other:
        grow(other, 1, "y")
        assert sign_checkpoint(other, SIGNER).checkpoint.origin != sign_checkpoint(root, SIGNER).checkpoint.origin


@given(st.sampled_from([(), (TREE,), (FILE,), (TREE, FILE)]), st.integers(1, 300))
@settings(max_examples=12)
def test_I1_the_tree_and_the_last_checkpoint_may_be_deleted(
    tmp_path_factory: pytest.TempPathFactory, gone: tuple[str, ...], count: int
) -> None:
    with roots.open_root(tmp_path_factory.mktemp("root"), folded=False) as root:
        for _ in range(2):
            grow(root, count)
            before = sign_checkpoint(root, SIGNER)
            for name in gone:
                (root.path / name).unlink()
        grow(root, 1)
        signed = sign_checkpoint(root, SIGNER)
        assert signed.checkpoint.size > before.checkpoint.size
        assert holds(root, signed)


def test_a_tree_that_is_ahead_or_damaged_is_made_anew_from_the_log(root: roots.Root) -> None:
    grow(root, 300)
    sign_checkpoint(root, SIGNER)
    old = (root.path / FILE).read_text()
    grow(root, 300)
    sign_checkpoint(root, SIGNER)
    (root.path / FILE).write_text(old)  # killed between the tree and the file
    grow(root, 1)
    assert holds(root, sign_checkpoint(root, SIGNER))
    with sqlite3.connect(root.path / TREE) as db:
        db.execute("UPDATE tiles SET hashes = zeroblob(length(hashes))")
    db.close()
    grow(root, 1)
    assert holds(root, sign_checkpoint(root, SIGNER))


# ---------------------------------------------------------------- what is not


def test_a_log_that_was_rolled_back_is_not_signed_even_when_it_grew_again(tmp_path: Path) -> None:
    path = tmp_path / "root"
    with roots.open_root(path, folded=False) as root:
        grow(root, 20)
    shutil.copy(path / "log.db", tmp_path / "old.db")
    with roots.open_root(path, folded=False) as root:
        grow(root, 20)
        sign_checkpoint(root, SIGNER)
    shutil.copy(tmp_path / "old.db", path / "log.db")
    with roots.open_root(path, folded=False) as root:
        with pytest.raises(VerificationError, match=r"ends at event 20, and event 40 was signed: it was rolled back"):
            sign_checkpoint(root, SIGNER)
        grow(root, 30, "other")
        with pytest.raises(VerificationError, match="event 21 is not what it was when it was signed"):
            sign_checkpoint(root, SIGNER)
        assert list(root.log.read(types=frozenset({"CheckpointSigned"}))) == []


def test_the_log_of_another_root_is_not_signed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with roots.open_root(tmp_path / name, folded=False) as root:
            grow(root, 10, name)
            sign_checkpoint(root, SIGNER)
    shutil.copy(tmp_path / "one" / "log.db", tmp_path / "two" / "log.db")
    with (
        roots.open_root(tmp_path / "two", folded=False) as root,
        pytest.raises(VerificationError, match="this is another log"),
    ):
        sign_checkpoint(root, SIGNER)


def test_a_changed_event_is_found_once_the_tree_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "root"
    with roots.open_root(path, folded=False) as root:
        grow(root, 600)
        sign_checkpoint(root, SIGNER)
    tampered(path, "UPDATE events SET state = replace(state, 'x299', 'y299') WHERE rowid = 300")
    (path / TREE).unlink()
    with roots.open_root(path, folded=False) as root:
        grow(root, 1)
        with pytest.raises(VerificationError, match="an event up to 600 is not what it was"):
            sign_checkpoint(root, SIGNER)


def test_what_is_no_checkpoint_beside_the_log_is_said_so(root: roots.Root) -> None:
    grow(root, 3)
    sign_checkpoint(root, SIGNER)
    for text in ("", "nonsense", "a\n1\nAAAA\n\n— a AAAAAAAA\n"):
        (root.path / FILE).write_text(text)
        with pytest.raises(VerificationError, match="malformed"):
            sign_checkpoint(root, SIGNER)


# ---------------------------------------------------------------- builds and commands


def test_builds_sign_at_their_end_whatever_it_is_and_not_without_a_key(builder: Builder) -> None:
    builder.must_build(DOCKERFILE)
    assert builder.events("CheckpointSigned") == []
    verifier = Verifier.parse(builder.run("audit", "keygen", "--name", "ci.example/x").out.strip())
    builder.must_build(DOCKERFILE)
    failed = builder.build("FROM scratch\nCOPY missing /\n")
    assert failed.code == 2
    assert builder.run("replay", str(builder.builds()[0]["id"])).code == 2
    assert builder.run("copy", "--quiet", "oci-layout:///nowhere:1", "oci-layout:///neither:1").code != 0
    events = builder.events()
    signed = [event for event in events if event["type"] == "CheckpointSigned"]
    assert len(signed) == 4
    for event in signed:
        before = events[event["seq"] - 2]
        assert event["data"]["size"] == before["seq"] == event["seq"] - 1
        assert before["type"] in {"BuildCompleted", "BuildFailed"}
        assert Note.parse(event["data"]["note"]).verified_by([verifier]) == (verifier,)
    tree = merkle.Frontier()
    with roots.read_root(builder.root) as (log, _):
        tree.extend(leaf_hashes(log.rows(0, signed[-1]["data"]["size"])))
    assert tree.root().hex() == signed[-1]["data"]["root"]


def test_keys_from_the_environment_and_wrong_ones(builder: Builder, tmp_path: Path) -> None:
    secret = SIGNER.encode()
    builder.must_build(DOCKERFILE, env={"REFLEDGER_AUDIT_KEY": secret})
    file = tmp_path / "a key"
    file.write_text(new_signer("from.file", bytes(32)).encode())
    builder.must_build(DOCKERFILE, env={"REFLEDGER_AUDIT_KEY_FILE": str(file)})
    origins = [event["data"]["origin"].rpartition("/")[0] for event in builder.events("CheckpointSigned")]
    assert origins == ["ci.example/refledger", "from.file"]
    before = len(builder.builds())
    damaged = secret[:-3] + "AA="
    for env in ({"REFLEDGER_AUDIT_KEY": damaged}, {"REFLEDGER_AUDIT_KEY_FILE": str(tmp_path / "none")}):
        done = builder.build(DOCKERFILE, env=env)
        assert (done.code, len(done.err.splitlines())) == (2, 1)
        assert damaged[30:] not in done.err
    assert len(builder.builds()) == before
    for path in builder.root.rglob("*"):  # I9
        if path.is_file():
            assert secret[-40:].encode() not in path.read_bytes()


def test_keygen_writes_a_private_file_once(builder: Builder, tmp_path: Path) -> None:
    done = builder.run("audit", "keygen", "-o", str(tmp_path / "k"))
    verifier = Verifier.parse(done.out.strip())
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    assert Signer.parse((tmp_path / "k").read_text()).verifier == verifier
    assert (tmp_path / "k").read_text().strip() not in done.out + done.err
    before = (tmp_path / "k").read_bytes()
    again = builder.run("audit", "keygen", "-o", str(tmp_path / "k"))
    assert (again.code, again.out, (tmp_path / "k").read_bytes()) == (2, "", before)
    assert "not overwritten" in again.err
    assert builder.run("audit", "keygen", "--name", "a b", "-o", str(tmp_path / "l")).code == 2
    assert not (tmp_path / "l").exists()


def test_a_log_that_contradicts_what_was_signed_ends_a_build_with_4(builder: Builder) -> None:
    builder.run("audit", "keygen")
    builder.must_build(DOCKERFILE)
    shutil.copy(builder.root / "log.db", builder.root / "old.db")
    builder.must_build(DOCKERFILE, "--no-cache")
    shutil.copy(builder.root / "old.db", builder.root / "log.db")
    (builder.root / "old.db").unlink()
    done = builder.build(DOCKERFILE)
    assert done.code == 4, done.err
    assert "rolled back" in done.err.splitlines()[-1]
    done = builder.run("audit", "checkpoint")
    assert (done.code, done.out) == (4, "")
    failing = builder.build("FROM scratch\nCOPY missing /\n")
    assert failing.code == 2 and "WARNING: the log was not signed" in failing.err


def test_builds_that_end_at_once_sign_one_after_the_other(builder: Builder) -> None:
    builder.run("audit", "keygen")
    builder.write({"Dockerfile": DOCKERFILE})
    running = [builder.start("build", str(builder.context), "--no-cache", "-q") for _ in range(3)]
    for process in running:
        assert process.communicate()[1] == "" and process.returncode == 0
    signed = [event["data"]["size"] for event in builder.events("CheckpointSigned")]
    assert signed == sorted(set(signed))
    ends = [event["seq"] for event in builder.events("BuildCompleted")]
    assert signed[-1] >= ends[-1]


def test_checkpoint_prints_the_note_and_needs_a_key_and_a_log(builder: Builder, tmp_path: Path) -> None:
    done = builder.run("audit", "checkpoint")
    assert (done.code, "nothing was built here yet" in done.err) == (2, True)
    builder.must_build(DOCKERFILE)
    done = builder.run("audit", "checkpoint")
    assert (done.code, "there is no key" in done.err) == (2, True)
    builder.run("audit", "keygen", "--name", "k")
    done = builder.run("audit", "checkpoint", "-o", str(tmp_path / "cp"))
    assert (done.code, done.out) == (0, "")
    note = (tmp_path / "cp").read_text()
    assert builder.run("audit", "checkpoint").out == note
    assert Checkpoint.parse(Note.parse(note).text).size == len(builder.events()) - 1


def test_without_a_key_a_build_does_not_import_what_signs(builder: Builder) -> None:
    builder.must_build(DOCKERFILE)
    process = builder.start("build", str(builder.context), env={"PYTHONPROFILEIMPORTTIME": "1"})
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "tools.auditing.keys" in told
    assert "cryptography" not in told and "tools.auditing.checkpoints" not in told


def test_a_build_that_is_interrupted_is_signed_with_its_end(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    base = base_image(registry, repository, layers=1)["reference"]
    builder.run("audit", "keygen")
    builder.write({"Dockerfile": f"FROM {base}\nRUN echo begun; sleep 60\n"})
    process = builder.start("build", str(builder.context), "--progress", "plain")
    assert process.stderr is not None
    for line in process.stderr:
        if line.rstrip().endswith(" begun"):
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    events = builder.events("BuildCancelled", "CheckpointSigned")
    assert [event["type"] for event in events] == ["BuildCancelled", "CheckpointSigned"]
    assert events[1]["data"]["size"] >= events[0]["seq"]


def test_I12_who_died_before_printing_the_verifier_key_is_told_it_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "a vault" / "audit.key"
    made = keys.generate(path, "ci.example")
    for name in ("ci.example", "another"):
        with pytest.raises(InputError, match="not overwritten") as caught:
            keys.generate(path, name)
        assert str(made) in caught.value.what
    path.write_text("no key\n")
    with pytest.raises(InputError, match="not overwritten") as caught:
        keys.generate(path, "ci.example")
    assert "verifier key" not in caught.value.what
