"""RPM's databases: what rpm installed is read as rpm tells it, and what a stranger wrote within bounds."""

from __future__ import annotations

import os
import sqlite3
import struct
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.attest import rpm
from engine.attest.attester import _open
from engine.attest.databases import Package, packages, take
from engine.attest.rpm import rpm_packages
from engine.attest.sbom import cyclonedx
from engine.attest.scan import Contents, Scan, combine, scan_layer
from storage.digest import sha256
from storage.parts.lookup import Own
from tests.engine.attest.test_scan import DPKG, GONE, Layer, deb

PLACES = ("var/lib/rpm", "usr/lib/sysimage/rpm", "usr/share/rpm")
SPEC = """
Name: {name}
Version: {version}
Release: {release}
{epoch}
Summary: A package
License: {license}
BuildArch: noarch
%description
What it is.
%description -l de
Was es ist.
%files
"""
TABLE = "CREATE TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT,blob BLOB NOT NULL)"


def read(path: Path) -> list[tuple[str, ...]]:
    with path.open("rb") as file:
        return list(rpm_packages(file))


def header(*entries: tuple[int, bytes | int]) -> bytes:
    """A header of these tags."""
    index, store = b"", b""
    for tag, value in entries:
        data = value.to_bytes(4, "big") if isinstance(value, int) else value + b"\0"
        index += struct.pack(">4I", tag, 4 if isinstance(value, int) else 6, len(store), 1)
        store += data
    return struct.pack(">2I", len(entries), len(store)) + index + store


def named(name: bytes, version: bytes = b"1", release: bytes = b"2") -> bytes:
    return header((1000, name), (1001, version), (1002, release))


def database(path: Path, headers: Sequence[object], *, table: str = TABLE, more: str = "", page: int = 4096) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for sql in (f"PRAGMA page_size = {page}", "PRAGMA synchronous = OFF", "BEGIN", table):
            db.execute(sql)
        if headers:
            db.executemany("INSERT INTO Packages (blob) VALUES (?)", [(one,) for one in headers])
        db.execute("COMMIT")
        db.executescript(more)
    return path


class OnDisk(Layer):
    """A layer whose files lie in a directory, which are opened as an attester opens them."""

    def __init__(self, root: Path) -> None:
        super().__init__({str(path.relative_to(root)): b"" for path in root.rglob("*") if path.is_file()})
        self.root = root

    def scan(self) -> Scan:
        return scan_layer(self, lambda path: _open(self.root, path))


# ---------------------------------------------------------------- what rpm itself makes


@pytest.mark.root
def test_what_rpm_installed_is_listed_as_rpm_tells_it(tmp_path: Path) -> None:
    root, built = tmp_path / "a root", tmp_path / "a build"
    built.mkdir()
    for name, version, release, epoch, license_ in (
        ("hello", "1.2~rc1", "3.fc40", "Epoch: 2", "MIT and (GPLv2+)"), ("c++", "1.0^git", "1", "Epoch: 0", "Zlib"),
        ("plain", "7", "1", "", "BSD"),
    ):  # fmt: skip
        spec = built / f"{name}.spec"
        spec.write_text(SPEC.format(name=name, version=version, release=release, epoch=epoch, license=license_))
        # reason: rpm 4.18 makes no place with a blank in it
        run("rpmbuild", "--quiet", "-bb", "--define", "_topdir .", "--define", "_rpmdir .", spec.name, at=built)
    on = ("rpm", f"--root={root}", "--dbpath=/var/lib/rpm")
    root.mkdir()
    run(*on, "-i", "--nodeps", *map(str, built.rglob("*.rpm")), at=built)
    form = "%{NAME} %|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE} %{ARCH} %{LICENSE}\\n"
    told = run(*on, "-qa", "--qf", form, at=built).splitlines()
    place = root / "var/lib/rpm/rpmdb.sqlite"
    assert len(told) == 3
    assert sorted(" ".join(one) for one in read(place)) == sorted(told)
    (root / "etc").mkdir()
    (root / "etc/os-release").write_text("ID=fedora\nVERSION_ID=40\n")
    contents = combine([OnDisk(root).scan()])
    made = cyclonedx(sha256(b"image"), "", contents, "1")
    assert [one.get("purl") for one in made["components"]] == [
        None, "pkg:rpm/fedora/c%2B%2B@1.0%5Egit-1?arch=noarch&distro=fedora-40&epoch=0",
        "pkg:rpm/fedora/hello@1.2~rc1-3.fc40?arch=noarch&distro=fedora-40&epoch=2",
        "pkg:rpm/fedora/plain@7-1?arch=noarch&distro=fedora-40",
    ]  # fmt: skip
    assert (contents.problems, "compositions" in made) == ((), False)


def run(*command: str, at: Path) -> str:
    environment = {**os.environ, "HOME": str(at)}
    done = subprocess.run(command, cwd=at, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- where, and for whom


@pytest.mark.parametrize("place", PLACES)
def test_a_database_is_found_in_each_of_its_places_and_replaced_as_any_file(tmp_path: Path, place: str) -> None:
    database(tmp_path / "one" / place / "rpmdb.sqlite", [named(b"a"), named(b"gpg-pubkey")])
    database(tmp_path / "two" / place / "rpmdb.sqlite", [named(b"b")])
    one, two = OnDisk(tmp_path / "one").scan(), OnDisk(tmp_path / "two").scan()
    assert Scan.decode(one.encode()) == one
    told = [(package.kind, package.name, package.version) for package, _ in combine([one, two]).packages]
    assert told == [("rpm", "b", "1-2")]
    assert [package for package, _ in combine([one]).packages] == [Package("rpm", "a", "1-2")]  # a key is none
    assert combine([one, Layer({place: GONE}).scan()]).packages == ()


@pytest.mark.parametrize(("distro", "purl"), [
    ({"ID": "rhel", "VERSION_ID": "9.4"}, "pkg:rpm/redhat/a@1-2?distro=rhel-9.4&epoch=3"),
    ({"ID": "opensuse-leap", "VERSION_ID": "15.6"}, "pkg:rpm/opensuse/a@1-2?distro=opensuse-leap-15.6&epoch=3"),
    ({"ID": "rocky"}, "pkg:rpm/rocky/a@1-2?epoch=3"),
    ({"VERSION_ID": "1"}, "pkg:rpm/a@1-2?epoch=3"),
])  # fmt: skip
def test_the_package_url_names_vendor_and_distribution(distro: dict[str, str], purl: str) -> None:
    contents = Contents(((Package("rpm", "a", "3:1-2"), "db"),), distro, ())
    (package,) = [one for one in cyclonedx(sha256(b"i"), "", contents, "1")["components"] if one["name"] == "a"]
    assert (package["purl"], package["version"]) == (purl, "3:1-2")


# ---------------------------------------------------------------- what is not read is said


@pytest.mark.parametrize("path", [
    *(f"{place}/{name}" for place in PLACES for name in ("Packages", "Packages.db", "rpmdb.sqlite-wal")),
    "var/lib/pacman/local/a-1/desc", "var/db/pkg/app-misc/a-1/PF", "var/db/xbps/pkgdb-0.38.plist",
    "var/lib/pkgtools/packages/a-1", "usr/lib/opkg/info/a.control", "nix/var/nix/db/db.sqlite",
    "var/lib/rpmmanifest/container-manifest-2", "var/lib/dpkg/updates/0001",
])  # fmt: skip
def test_a_database_that_is_not_read_makes_the_sbom_incomplete_until_it_is_removed(path: str) -> None:
    below = Layer({path: b"x", DPKG: deb("a")}).scan()
    contents = combine([below])
    made = cyclonedx(sha256(b"image"), "", contents, "1")
    (problem,) = contents.problems
    assert problem.endswith("is not read")
    assert made["metadata"]["properties"] == [{"name": "refledger:incomplete", "value": problem}]
    image = sha256(b"image")
    assert made["compositions"] == [{"aggregate": "incomplete", "assemblies": [image], "dependencies": [image]}]
    top = "/".join(path.split("/")[:3])
    for gone in ({top: GONE}, {top: b"a file"}, {top.partition("/")[0]: GONE}):
        assert combine([below, Layer(gone).scan()]).problems == ()
    assert combine([below, Layer({}, frozenset({top})).scan()]).problems == ()
    assert combine([below, Layer({"opt/other": b""}).scan()]).problems == (problem,)
    assert combine([Layer({path: b""}).scan()]).problems == ()


def test_what_was_wrong_with_a_database_that_was_replaced_is_no_more_told() -> None:
    bad, good = Layer({DPKG: b"Package: x\n"}).scan(), Layer({DPKG: deb("a")}).scan()
    assert combine([bad, good]).problems == ()
    assert len(combine([good, bad]).problems) == 1


def test_an_rpm_database_behind_a_link_is_missed_and_said_to_be() -> None:
    class Linked(Layer):
        def _own(self, path: bytes) -> Own:
            own = super()._own(path)
            return own if own.kind != "other" else Own("symlink", target=b"elsewhere")

    path = "var/lib/rpm/rpmdb.sqlite"
    assert combine([Linked({path: b""}).scan()]).problems == (f"{path} is a link, which is not followed",)


# ---------------------------------------------------------------- strangers


def told(path: Path) -> str:
    """Why a layer with this database in it may have more packages."""
    (problem,) = combine([OnDisk(path).scan()]).problems
    return problem


@pytest.mark.parametrize("table", [
    "CREATE TABLE Packages (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB AS (hex(zeroblob(9))))",
    "CREATE TABLE Packages (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL DEFAULT (zeroblob(9)))",
    "CREATE VIEW Packages AS WITH RECURSIVE n(b) AS (SELECT 1 UNION ALL SELECT b FROM n) SELECT b AS blob FROM n",
    "CREATE VIRTUAL TABLE Packages USING fts5(blob)",
])  # fmt: skip
def test_a_table_that_runs_what_a_stranger_wrote_is_refused(tmp_path: Path, table: str) -> None:
    database(tmp_path / "var/lib/rpm/rpmdb.sqlite", [], table=table)
    assert "is an SQLite database with other tables than rpm makes" in told(tmp_path)


@pytest.mark.parametrize("more", [
    "CREATE TABLE x (a); CREATE TRIGGER t AFTER INSERT ON x BEGIN SELECT 1; END", "CREATE VIEW v AS SELECT 1",
    "CREATE VIRTUAL TABLE v USING fts5(a)",
])  # fmt: skip
def test_a_database_with_a_view_or_a_trigger_is_refused(tmp_path: Path, more: str) -> None:
    path = database(tmp_path / "db", [named(b"a")], more=more)
    with pytest.raises(ValueError, match="other tables"):
        read(path)


def test_a_schema_that_lies_about_its_names_is_refused(tmp_path: Path) -> None:
    path = database(tmp_path / "db", [named(b"a")])
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = 1")
        db.execute("UPDATE sqlite_master SET sql = 'CREATE VIEW Packages AS SELECT 1 AS blob' WHERE name = 'Packages'")
    with pytest.raises(ValueError, match=r"RPM database|other tables"):
        read(path)


def test_rows_that_share_their_pages_are_read_once_the_size_of_the_file(tmp_path: Path) -> None:
    path = database(tmp_path / "db", [named(b"a" * (1 << 20))], page=65536)
    with closing(sqlite3.connect(path)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'Packages'").fetchone()
    data = bytearray(path.read_bytes())
    at = (root - 1) * 65536
    cell = bytes(data[at + 8 : at + 10])
    count = 10_000  # of a megabyte each
    struct.pack_into(">H", data, at + 3, count)
    data[at + 8 : at + 8 + 2 * count] = cell * count
    path.write_bytes(data)
    with pytest.raises(ValueError, match="more bytes than its file has"):
        read(path)


def test_more_rows_than_anybody_has_end_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = database(tmp_path / "var/lib/rpm/rpmdb.sqlite", [named(b"a")] * 3000)
    assert len(read(path)) == 3000
    monkeypatch.setattr(rpm, "_MANY", 5)
    contents = combine([OnDisk(tmp_path).scan()])
    assert contents.problems == ("var/lib/rpm/rpmdb.sqlite is no RPM database, or a damaged one",)
    assert len(contents.packages) > 500  # and what was read is listed


def test_a_schema_of_more_tables_than_anybody_reads_ends_the_reading(tmp_path: Path) -> None:
    path = database(tmp_path / "db", [named(b"a")])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA writable_schema = 1")
        rows = (("table", f"t{number}", f"t{number}", 2, f"CREATE TABLE t{number} (a)") for number in range(12_000))
        db.executemany("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", rows)
    with pytest.raises(ValueError, match="no RPM database"):
        read(path)


def test_headers_that_are_none_are_counted_and_the_others_listed(tmp_path: Path) -> None:
    good = named(b"good")
    bad: list[object] = [
        b"", b"\0" * 7, good[:-1], good + b"x", struct.pack(">2I", 1 << 28, 0), "text", 7,
        named(b"a b"), named(b"x", b"1:1"), named(b"x", b"1-1"), named(b"x", b"1", b"1-1"), named(b"x", b"", b"1"),
        header((1000, b"x"), (1001, 7)), header((1001, b"1"), (1002, b"1")),
        named(b"x")[:-1] + b"y",  # a text that does not end
    ]  # fmt: skip
    cut = header((1003, 5), (1000, b"cut"), (1001, b"1"), (1002, b"1"))
    cut = cut.replace(struct.pack(">4I", 1003, 4, 0, 1), struct.pack(">4I", 1003, 4, 9, 1))  # its end is not there
    path = database(tmp_path / "db", [*bad, cut, good])
    found: list[Package] = []
    with path.open("rb") as file:
        assert take("rpm", rpm_packages(file), found) == len(bad)
    assert found == [Package("rpm", "cut", "1-1"), Package("rpm", "good", "1-2")]


_TAG = st.sampled_from([1000, 1001, 1002, 1003, 1014, 1022])
_OFFSET = st.integers(0, 50) | st.integers(0, 2**32 - 1)


@given(st.lists(st.tuples(_TAG, st.integers(0, 10), _OFFSET, st.integers(0, 3)), max_size=8), st.binary(max_size=40))
def test_whatever_an_index_points_at_stays_in_the_header(
    index: list[tuple[int, int, int, int]], store: bytes
) -> None:
    data = struct.pack(">2I", len(index), len(store)) + b"".join(struct.pack(">4I", *one) for one in index) + store
    entry = rpm._entry(data)
    assert all(len(text) <= 2100 for text in entry)
    assert entry == ("", "", "", "") or ("-" in entry[1])


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "var/lib/rpm/rpmdb.sqlite"
    path.parent.mkdir(parents=True)
    for data in (b"SQLite format 3\0" + b"\xff" * 4000, b"x" * 5000, b"\0" * 100):
        path.write_bytes(data)
        assert "is no RPM database, or a damaged one" in told(tmp_path)


def test_a_log_of_changes_beside_the_database_is_neither_read_nor_touched(tmp_path: Path) -> None:
    path = tmp_path / "var/lib/rpm/rpmdb.sqlite"
    database(path, [named(b"a")], more="PRAGMA journal_mode = WAL")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("INSERT INTO Packages (blob) VALUES (?)", [named(b"b")])
        kept = {one.name: one.read_bytes() for one in path.parent.iterdir()}
        assert "rpmdb.sqlite-wal: a journal of changes to RPM's database is not read" in told(tmp_path)
        assert [one[0] for one in read(path)] == ["a"]
        assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == kept


def test_text_databases_are_no_rpm() -> None:
    with pytest.raises(KeyError):
        packages("rpm", b"")
