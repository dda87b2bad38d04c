"""A root of a stranger, looked at: no file of it is waited for, none is followed out of it, nothing in it is run."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from projections.runner import Views
from projections.standard import STANDARD
from storage.blobs import DirectoryBlobs
from storage.digest import Digest, sha256
from storage.errors import DiskError, InputError, LogDamaged, LogError, RefledgerError, VerificationError
from storage.interfaces.images import Provider
from storage.interfaces.log import NewEvent
from storage.layers.examine import examine_blob, examine_layer, examine_snapshot
from storage.layers.implied import read_implied
from storage.layers.seal import broken
from storage.layers.snapshots import OverlaySnapshots
from storage.layout.source import layout_entries, read_small
from storage.locks import FileLocks
from storage.log.detached import REDACTION
from storage.log.eventlog import SqliteEventLog
from storage.log.payloads import payload_problems
from storage.logtree.tiles import Tree
from storage.reference import LAYOUT_REGISTRY
from storage.registries import find, load
from storage.regular import open_regular, read_regular
from tests.builder import Builder, Done
from tools.auditing.keys import find_signer, generate
from tools.layer_files import RootFiles
from tools.sensitive import sensitive_args

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")
DATA = b"a document"
FOREVER = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT "


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a build of two steps."""
    builder = Builder(tmp_path_factory.mktemp("honest"))
    builder.write({"a": "1"})
    builder.must_build("FROM scratch\nCOPY a /a\nWORKDIR /w\n")
    builder.run("audit", "keygen")
    builder.run("audit", "checkpoint")
    return builder.root


@pytest.fixture
def stranger(made: Path, tmp_path: Path) -> Builder:
    """A copy of it, to be spoilt."""
    builder = Builder(tmp_path)
    shutil.copytree(made, builder.root, symlinks=True)
    return builder


def replace(path: Path, kind: str) -> None:
    """Something else in the place of `path`."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 42)
    else:
        path.mkdir()


def one_line(done: Done) -> None:
    assert "internal error" not in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("ERROR")]) <= 1
    if done.code:
        assert done.code in {2, 3, 4}
        assert "ERROR" in done.err


@needs_root
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file_is_neither_waited_for_nor_read_into_memory(stranger: Builder, kind: str) -> None:
    build = stranger.builds()[0]["id"]
    for name in ("views.db", "tree.db", "checkpoint", "policy.toml"):
        replace(stranger.root / name, kind)
    for blob in (stranger.root / "blobs/sha256").iterdir():
        replace(blob, kind)
    for command in (["why", build], ["audit", "verify", str(stranger.root)], ["prune", "--dry-run"]):
        one_line(stranger.run(*command))
    replace(stranger.root / "log.db", kind)
    done = stranger.run("history")
    one_line(done)
    assert done.code == 3


@pytest.mark.parametrize("kind", ["fifo", "device", "sparse", "directory"])
def test_a_blob_that_is_no_file_is_damage(tmp_path: Path, kind: str) -> None:
    store = DirectoryBlobs(tmp_path, owner="a1")
    digest = store.put(DATA)
    assert store.get(digest) == DATA
    replace(store.path(digest), kind)
    with pytest.raises(VerificationError, match="is not sha256"):
        store.get(digest)
    if kind != "sparse":
        with pytest.raises(DiskError):
            store.open(digest)
        assert not DirectoryBlobs(tmp_path, owner="a1").sound(digest)
    replace(tmp_path / "index.json", kind)
    with pytest.raises(RefledgerError, match="layout"):
        layout_entries(tmp_path, "there")
    with pytest.raises(RefledgerError, match="layout"):
        read_small(Path(Provider.of(LAYOUT_REGISTRY, str(tmp_path)).repository), digest)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", len(DATA)) == DATA
    with pytest.raises(OSError, match="more than 3 bytes"):
        read_regular(tmp_path / "file", 3)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="no regular file"):
        open_regular(tmp_path / "fifo")
    os.mkfifo(tmp_path / "lock")
    assert FileLocks(tmp_path).held("lock") is False
    (tmp_path / "other").symlink_to(tmp_path / "outside")
    with pytest.raises(DiskError):
        FileLocks(tmp_path).try_acquire("other")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("kind", ["fifo", "sparse"])
def test_what_stands_beside_a_tree_is_not_read_into_memory(tmp_path: Path, kind: str) -> None:
    tree = tmp_path / "snapshots" / "s1" / "fs"
    tree.mkdir(parents=True)
    (tree.parent / "seal").write_text("1 00")
    replace(tree.parent / "implied", kind)
    assert broken(tree.parent)
    with pytest.raises(OSError, match=r"no regular file|more than"):
        read_implied(tree)


def header(**said: object) -> bytes:
    known = {"refledger": 1, "diff_id": str(sha256(b"")), "tar": [4096, 0], "implied": [4096, 0], "name": "s1"}
    return json.dumps({**known, **said}).encode().ljust(1024, b"\0")


@pytest.mark.parametrize(
    "said",
    [
        {"tar": [1 << 63, 5]}, {"tar": [-5, 5]}, {"tar": [1e300, 1]}, {"tar": [4096, 1 << 60]}, {"tar": [0]},
        {"implied": [4096, 1 << 40]}, {"implied": "ab"}, {"implied": 1}, {"tar": [True, False]},
    ],
)  # fmt: skip
def test_an_image_whose_header_points_anywhere_is_damaged(tmp_path: Path, said: dict[str, object]) -> None:
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots/s1.erofs").write_bytes(header(rest="0", **said))
    assert "not a layer image" in (examine_snapshot(tmp_path, "s1") or "")


def test_a_link_in_the_place_of_a_tree_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "home"
    outside.mkdir()
    (outside / "secret").write_text("of this machine")
    for where in (tmp_path / "snapshots" / "s1", tmp_path / "layers" / sha256(b"").hex):
        where.mkdir(parents=True)
        (where / "fs").symlink_to(outside)
        assert broken(where) == "its tree is gone"
    (outside / "fs").mkdir()
    (tmp_path / "snapshots" / "s2").symlink_to(outside)
    assert broken(tmp_path / "snapshots" / "s2") == "a file stands in the place of its directory"
    snapshots = OverlaySnapshots(tmp_path / "snapshots", tmp_path / "tmp", "a1")
    for name in ("s1", "s2"):
        with pytest.raises(VerificationError, match="a link stands in the place"):
            snapshots.pack(name, lambda _: None)
    files = RootFiles(tmp_path)
    assert files.where({"snapshot": "s1"}) == files.where({"diff_id": str(sha256(b""))}) == ""


# ---------------------------------------------------------------- SQLite


def logged(path: Path) -> Path:
    log = SqliteEventLog(path)
    log.append(NewEvent("cache", "T", {}))
    log.close()
    return path


SCHEMAS = {
    "a view": ("ALTER TABLE events RENAME TO old",
               (f"CREATE VIEW events AS {FOREVER} x AS rowid, 'a' AS originator_id, 1 AS originator_version, "
               "'T' AS topic, '{}' AS state FROM c")),
    "a trigger": (f"CREATE TRIGGER t AFTER INSERT ON events BEGIN {FOREVER} count(*) FROM c; END",),
    "an index": ("CREATE INDEX i ON events (hex(zeroblob(1000000)))",),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("read_only", [True, False])
def test_a_log_with_a_schema_of_its_own_is_refused(tmp_path: Path, name: str, read_only: bool) -> None:
    path = logged(tmp_path / "log.db")
    with closing(sqlite3.connect(path)) as db:
        for statement in SCHEMAS[name]:
            db.execute(statement)
    with pytest.raises(LogError, match=r"that no Refledger made.*changed by hand"):
        SqliteEventLog(path, read_only=read_only)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("topic", b"T"), ("originator_id", b"cache"), ("state", b"[]"), ("state", b'{"t":-1,"d":{}}'),
        ("state", b'{"t":"1","d":{}}'), ("state", b'{"t":1,"d":[]}'), ("state", b'{"t":1,"b":5,"d":{}}'),
        ("state", b'{"t":1,"v":[],"d":{}}'), ("state", b'{"t":1,"c":"1","d":{}}'), ("state", b'{"t":1e400,"d":{}}'),
    ],
)  # fmt: skip
def test_an_event_of_other_types_is_damage(tmp_path: Path, column: str, value: object) -> None:
    path = logged(tmp_path / "log.db")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TRIGGER events_no_update")
        db.execute(f"UPDATE events SET {column} = ?", (value,))
    with closing(SqliteEventLog(path, read_only=True)) as log, pytest.raises(LogError, match="event 1 is damaged"):
        list(log.read())


@pytest.mark.parametrize("column", ["topic", "originator_id"])
def test_a_name_that_is_no_text_is_damage_and_not_quoted(tmp_path: Path, column: str) -> None:
    path = logged(tmp_path / "log.db")
    with closing(SqliteEventLog(path)) as log:
        log.append(NewEvent("cache", "T", {}))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TRIGGER events_no_update")
        db.execute(f"UPDATE events SET {column} = CAST(? AS TEXT) WHERE rowid = 2", (b"\xffodd",))
    with closing(SqliteEventLog(path, read_only=True)) as log:
        read = log.read()
        assert next(read).seq == 1
        with pytest.raises(LogDamaged, match="after event 1") as raised:
            next(read)
        assert "odd" not in str(raised.value)


@pytest.mark.parametrize("data", [{}, {"digests": 5}, {"digests": [[]]}])
def test_a_redaction_that_names_nothing_excuses_nothing(tmp_path: Path, data: dict[str, object]) -> None:
    with closing(SqliteEventLog(tmp_path / "log.db")) as log:
        log.append(NewEvent("cache", "T", {"text": "x"}, detached=("/text",)), NewEvent("cache", REDACTION, data))
        assert not list(payload_problems(log, log))
    with closing(sqlite3.connect(tmp_path / "log.db")) as db, db:
        db.execute("UPDATE payloads SET salt = ?, data = ?", ((2).to_bytes(32, "big"), bytes(3)))
    with closing(SqliteEventLog(tmp_path / "log.db", read_only=True)) as log:
        assert [seq for seq, _ in payload_problems(log, log)] == [1]
        with pytest.raises(LogError, match="no event says that it was redacted"):
            list(log.read())


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("name", ["log.db-wal", "log.db-shm", "log.db-journal"])
def test_what_is_no_file_beside_a_log_is_not_waited_for(tmp_path: Path, name: str, read_only: bool) -> None:
    with closing(SqliteEventLog(tmp_path / "root" / "log.db")) as log:
        log.append(NewEvent("cache", "T", {}))
        shutil.copytree(tmp_path / "root", tmp_path / "copy")  # with its -wal and -shm
    replace(tmp_path / "copy" / name, "fifo")
    with pytest.raises(LogError, match=f"{name}: this is no file"):
        SqliteEventLog(tmp_path / "copy" / "log.db", read_only=read_only)


def test_a_tree_with_a_pipe_for_a_journal_is_made_anew(tmp_path: Path) -> None:
    with closing(SqliteEventLog(logged(tmp_path / "log.db"))) as log:
        os.mkfifo(tmp_path / "tree.db-journal")
        with Tree(tmp_path / "tree.db") as tree:
            tree.extend(log, 1)
            tree.keep()
            assert tree.size == 1


def test_a_value_larger_than_events_are_is_damage_and_not_read(tmp_path: Path) -> None:
    path = logged(tmp_path / "log.db")
    with closing(sqlite3.connect(path)) as db, db:
        text = "x" * (1 << 20)
        db.execute("INSERT INTO events VALUES (2, 'cache', 2, 'T', ?)", (f'{{"t":1,"d":{{"a":"{text}"}}}}'.encode(),))
    with closing(SqliteEventLog(path, read_only=True)) as log:
        read = log.read()
        assert next(read).seq == 1
        with pytest.raises(LogError, match="after event 1 cannot be read"):
            next(read)
    with closing(SqliteEventLog(path)) as log, pytest.raises(LogError, match="more in it than an event may have"):
        list(log.read())


@pytest.mark.parametrize("name", ["views.db-shm", "views.db-journal"])
def test_what_is_no_file_beside_views_is_not_waited_for(tmp_path: Path, name: str) -> None:
    with closing(SqliteEventLog(logged(tmp_path / "log.db"))) as log:
        with closing(Views(tmp_path / "views.db", STANDARD)) as views:
            views.catch_up(log)
        (tmp_path / "views.db-wal").write_bytes(b"x" * 100)  # without a filled one nothing beside the file is opened
        (tmp_path / "views.db-shm").touch()
        replace(tmp_path / name, "fifo")
        with closing(Views.read_only(tmp_path / "views.db", log, STANDARD)) as views:
            assert views.position == 1


@pytest.mark.parametrize("kind", ["fifo", "device"])
@pytest.mark.parametrize("name", ["views.db", "views.db-wal", "views.db-shm", "views.db-journal"])
def test_what_is_no_file_in_the_place_of_views_gives_way_to_new_ones(tmp_path: Path, name: str, kind: str) -> None:
    with closing(SqliteEventLog(logged(tmp_path / "log.db"))) as log:
        with closing(Views(tmp_path / "views.db", STANDARD)) as views:
            views.catch_up(log)
        replace(tmp_path / name, kind)
        with closing(Views(tmp_path / "views.db", STANDARD)) as views:
            views.catch_up(log)
            assert views.position == 1


@pytest.mark.parametrize("kind", ["fifo", "device", "sparse"])
def test_settings_and_keys_that_are_no_files_are_refused(tmp_path: Path, kind: str) -> None:
    """Where a root has them. What a user names, by a variable or a flag, may be a pipe."""
    for name in ("registries.toml", "audit.toml", "audit.key"):
        replace(tmp_path / name, kind)
    for read in (lambda: load(find({}, tmp_path)), lambda: sensitive_args(tmp_path), lambda: find_signer(tmp_path)):
        with pytest.raises(RefledgerError) as caught:
            read()
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="not overwritten"):
        generate(tmp_path / "audit.key", "new")


@pytest.mark.parametrize("there", [True, False])
def test_no_database_is_made_or_changed_where_a_link_leads(tmp_path: Path, there: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("log.db", "tree.db", "views.db", "views.db.lock"):
        if there:
            (outside / name).touch()
        (tmp_path / name).symlink_to(outside / name)
    if not there:
        with pytest.raises(LogError, match="this is no file"):
            SqliteEventLog(tmp_path / "log.db")
    with pytest.raises(DiskError, match="opening the views"):
        Views(tmp_path / "views.db", STANDARD)
    (tmp_path / "views.db.lock").unlink()
    Views(tmp_path / "views.db", STANDARD).close()
    with Tree(tmp_path / "tree.db") as tree:
        tree.add([bytes(32)])
        tree.keep()
    assert [path.stat().st_size for path in outside.iterdir()] == [0, 0, 0, 0] * there
    assert not (tmp_path / "tree.db").is_symlink()


@pytest.mark.parametrize("kind", ["view", "trigger"])
def test_views_and_trees_with_a_schema_of_their_own_are_made_anew(tmp_path: Path, kind: str) -> None:
    log = SqliteEventLog(logged(tmp_path / "log.db"))
    with closing(log):
        Views(tmp_path / "views.db", STANDARD).close()
        with Tree(tmp_path / "tree.db") as tree:
            tree.keep()
        for file, table, columns in (
            ("views.db", "positions", "'x' AS name, 1 AS version, 9 AS position, 9 AS anchor, '' AS tables"),
            ("tree.db", "tiles", "0 AS level, 7 AS number, zeroblob(8192) AS hashes"),
        ):
            with closing(sqlite3.connect(tmp_path / file)) as db, db:
                if kind == "view":
                    db.execute(f"DROP TABLE {table}")
                    db.execute(f"CREATE VIEW {table} AS SELECT {columns}")
                else:
                    db.execute(f"CREATE TRIGGER t AFTER INSERT ON {table} BEGIN DELETE FROM {table}; END")
        with closing(Views.read_only(tmp_path / "views.db", log, STANDARD)) as views:
            assert views.position == 1
        with closing(Views(tmp_path / "views.db", STANDARD)) as views:
            assert views.catch_up(log) == 0
            assert views.position == 1
        with Tree(tmp_path / "tree.db", read_only=True) as tree:
            assert tree.size == 0
        with Tree(tmp_path / "tree.db") as tree:
            tree.extend(log, 1)
            tree.keep()
        with Tree(tmp_path / "tree.db", read_only=True) as tree:
            assert tree.size == 1


def test_digest_names_are_no_paths() -> None:
    for name in ("sha256:../../x", "sha256:" + "A" * 64, "md5:" + "a" * 32, "sha256:" + "a" * 63 + "/", "../x"):
        with pytest.raises(RefledgerError, match="not a digest"):
            Digest(name)


def test_a_write_ahead_log_of_terabytes_is_not_copied(tmp_path: Path) -> None:
    path = logged(tmp_path / "log.db")
    with (tmp_path / "log.db-wal").open("wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(DiskError, match="no room to copy"):
        SqliteEventLog(path, read_only=True)


def test_names_that_are_none_are_said_and_looked_for_nowhere(tmp_path: Path) -> None:
    for name in ("../x", "sha256:x", 5):
        assert examine_blob(tmp_path, name) == examine_layer(tmp_path, name) == "it is no digest"  # type: ignore[arg-type]
        assert examine_snapshot(tmp_path, name if name != "sha256:x" else "a/b") == "it is no id of a snapshot"  # type: ignore[arg-type]
