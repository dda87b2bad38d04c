"""Scans of layers, and what their combination says of the file system that an overlay of them is."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.attest.databases import Package, distribution, kind_of, limit_of, packages
from engine.attest.sbom import cyclonedx
from engine.attest.scan import Scan, combine, scan_layer
from storage.digest import sha256
from storage.parts.lookup import Own, Tree

GONE = "gone"
DPKG = "var/lib/dpkg/status"


class Layer(Tree):
    """A layer in memory: contents by path, GONE for a whiteout; `opaque` directories."""

    def __init__(self, files: Mapping[str, bytes | str], opaque: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.files = {path.encode(): data for path, data in files.items()}
        self.opaque = {path.encode() for path in opaque}
        self.directories = {b""} | self.opaque
        for path in (*self.files, *self.opaque):
            parts = path.split(b"/")
            self.directories |= {b"/".join(parts[:count]) for count in range(1, len(parts))}

    def names(self, path: bytes) -> set[bytes]:
        inside = path + b"/" if path else b""
        known = {*self.files, *self.directories} - {b""}
        return {one[len(inside) :].partition(b"/")[0] for one in known if one.startswith(inside)} - {b""}

    def _own(self, path: bytes) -> Own:
        if path in self.directories:
            return Own("directory", opaque=path in self.opaque)
        if path not in self.files:
            return Own("missing")
        return Own("whiteout") if self.files[path] == GONE else Own("other")

    def open(self, path: bytes) -> BinaryIO | None:
        data = self.files[path]
        return io.BytesIO(data) if isinstance(data, bytes) else None

    def scan(self) -> Scan:
        return scan_layer(self, self.open)


def deb(*names: str) -> bytes:
    return "\n".join(f"Package: {name}\nVersion: 1\nStatus: install ok installed\n" for name in names).encode()


def pip(name: str) -> dict[str, bytes]:
    return {f"usr/lib/site-packages/{name}-1.dist-info/METADATA": f"Name: {name}\nVersion: 1\n\n".encode()}


def names(*layers: Layer) -> list[str]:
    return [package.name for package, _ in combine([layer.scan() for layer in layers]).packages]


@pytest.mark.parametrize(("layers", "seen"), [
    ([Layer({DPKG: deb("a", "b")})], ["a", "b"]),
    ([Layer({DPKG: deb("a")}), Layer({DPKG: deb("b")})], ["b"]),
    ([Layer({DPKG: deb("a")}), Layer({DPKG: GONE})], []),
    ([Layer({DPKG: deb("a")}), Layer({"var/lib": GONE})], []),
    ([Layer({DPKG: deb("a")}), Layer({}, frozenset({"var/lib"}))], []),
    ([Layer({DPKG: deb("a")}), Layer({"var/lib": b"a file"})], []),
    ([Layer({DPKG: deb("a")}), Layer({"var/lib": GONE}), Layer({DPKG: deb("c")})], ["c"]),
    ([Layer({DPKG: deb("a")}), Layer({DPKG: deb("b")}, frozenset({"var"}))], ["b"]),
    ([Layer({**pip("a"), **pip("b")}), Layer({"usr/lib/site-packages/a-1.dist-info": GONE})], ["b"]),
    ([Layer(pip("a")), Layer({"usr/lib/site-packages": b"a file"})], []),
    ([Layer(pip("a")), Layer({"usr/lib/site": GONE})], ["a"]),
])  # fmt: skip
def test_the_combination_is_what_an_overlay_shows(layers: list[Layer], seen: list[str]) -> None:
    assert names(*layers) == seen


_PATHS = st.sampled_from([
    DPKG, "var/lib/dpkg", "var/lib", "var", *pip("a"), "usr/lib/site-packages/a-1.dist-info", "usr/lib/site-packages",
])  # fmt: skip


@given(st.lists(st.dictionaries(_PATHS, st.sampled_from([GONE, "file"]), max_size=3), min_size=1, max_size=4))
def test_the_combination_equals_a_fold_of_all_files(layers: list[dict[str, str]]) -> None:
    """A plain model: paths that exist, one layer after the other."""
    made = []
    model: dict[str, int] = {}
    for number, given_ in enumerate(layers):
        files: dict[str, bytes | str] = {}
        for path, what in given_.items():
            if not any(path.startswith(other + "/") or other.startswith(path + "/") for other in files):
                data = deb(f"p{number}") if path == DPKG else f"Name: q{number}\nVersion: 1\n\n".encode()
                files[path] = GONE if what == GONE else data
        for path, content in files.items():
            parents = {path.rsplit("/", count)[0] for count in range(path.count("/") + 1)}
            model = {one: old for one, old in model.items() if one not in parents and not one.startswith(path + "/")}
            if isinstance(content, bytes):
                model[path] = number
        made.append(Layer(files))
    expected = sorted(
        f"{'p' if path == DPKG else 'q'}{number}" for path, number in model.items() if kind_of(path.encode())
    )
    assert sorted(names(*made)) == expected


def test_a_scan_is_stored_and_read_again() -> None:
    scan = Layer({DPKG: deb("a"), "etc/os-release": b"ID=debian\n", "x": GONE, **pip("b")}, frozenset({"o"})).scan()
    assert Scan.decode(scan.encode()) == scan
    assert Scan.decode(scan.encode().replace(b'"version":3', b'"version":2')) is None
    assert Scan.decode(b"[]") is None


# ---------------------------------------------------------------- databases


def test_what_tells_of_packages_is_known_by_its_path() -> None:
    kinds = {path: kind_of(path.encode()) for path in (
        DPKG, "var/lib/dpkg/status.d/base", "var/lib/dpkg/status.d/base.md5sums", "lib/apk/db/installed",
        "a/node_modules/b/package.json", "a/node_modules/@b/c/package.json", "a/node_modules/b/lib/package.json",
        "package.json", "x/b-1.dist-info/METADATA", "x/METADATA", "etc/os-release",
    )}  # fmt: skip
    assert list(kinds.values()) == ["deb", "deb", "", "apk", "npm", "npm", "", "", "pypi", "", "os"]


WRITTEN = {"deb": "Package: %s\nVersion: %s\n", "apk": "P:%s\nV:%s\n", "pypi": "Name: %s\nVersion: %s\n",
           "npm": '{"name": "%s", "version": "%s"}'}  # fmt: skip
_ODD = st.text("ab1. :\\\"\n\0\t\x1b\x7f\x9b\ud800é", max_size=4)


@given(st.sampled_from(list(WRITTEN)), _ODD, _ODD, st.binary(max_size=100))
@example("deb", "a", "1", b"\n" * 100)
@example("npm", "a", "1", b"")
def test_hostile_databases_give_packages_or_nothing(kind: str, name: str, version: str, more: bytes) -> None:
    written = (WRITTEN[kind] % (name, version)).encode(errors="surrogatepass")
    for data in (written + more, more + b"\n\n" + written, more):
        for one in packages(kind, data)[0]:
            assert one.name.isprintable() and one.version.isprintable()
            assert not {"", " "} & {*one.name, *one.version, one.name, one.version}
    if name == "a" and version == "1" and not more.strip():
        assert packages(kind, written + more) == ([Package(kind, "a", "1")], 0)


def test_names_that_are_none_are_counted_and_left_out() -> None:
    status = b"Package: a b\nVersion: 1\n\nPackage: \x1b[31m\nVersion: 1\n\nPackage: ok\nVersion: 1\n"
    found, bad = packages("deb", status)
    assert ([one.name for one in found], bad) == (["ok"], 2)
    assert packages("npm", b"[" * 100_000) == ([], 1)
    scan = Layer({DPKG: b"Package: x\n"}).scan()
    assert combine([scan]).problems == (f"{DPKG}: 1 entries cannot be read",)


def test_a_database_that_is_too_large_is_told_of() -> None:
    path = next(iter(pip("a")))
    scan = Layer({path: b"x" * (limit_of("pypi") + 1)}).scan()
    assert scan.databases == ()
    assert scan.problems == ((path, f"{path} is larger than {limit_of('pypi')} bytes"),)
    other = Layer({DPKG: "no regular file"}).scan()
    assert other.problems == ((DPKG, f"{DPKG} is no file"),)


def test_a_bom_is_the_same_each_time_and_says_where_it_is_incomplete(tmp_path: Path) -> None:
    contents = combine([Layer({DPKG: deb("a") + b"\n\nPackage: bad\n"}).scan()])
    image = sha256(b"image")
    made = cyclonedx(image, "2024-01-01T00:00:00Z", contents, "1")
    assert made == cyclonedx(image, "2024-01-01T00:00:00Z", contents, "1")
    assert made["components"][0]["purl"] == "pkg:deb/debian/a@1"
    assert made["metadata"]["properties"][0]["name"] == "refledger:incomplete"
    assert distribution(b'ID="x y"\nVERSION_ID=3\n') == {"VERSION_ID": "3"}
    assert Package("deb", "a", "1") == contents.packages[0][0]


@pytest.mark.parametrize(
    "stanza", ["package: a\nVERSION: 1\n", "Package : a\nVersion\t: 1\n", "Package: a\r\nVersion: 1\r\n"]
)
def test_a_key_is_read_in_all_ways_in_which_its_owner_reads_it(stanza: str) -> None:
    """dpkg's own parser takes these for the keys that they are: a package could hide behind one."""
    assert packages("deb", stanza.encode()) == ([Package("deb", "a", "1")], 0)
    assert packages("pypi", stanza.lower().replace("package", "name").encode()) == ([Package("pypi", "a", "1")], 0)
    assert packages("apk", b"P:a\nV:1\np:so:b=2\nv:3\n\nP:c\nV:4\n")[0][0] == Package("apk", "a", "1")


@pytest.mark.parametrize("path", [
    "usr/lib/python3/dist-packages/a-1.egg-info", "usr/lib/python3/dist-packages/a.egg-info/PKG-INFO",
])  # fmt: skip
def test_python_packages_of_older_forms_are_listed(path: str) -> None:
    layer = Layer({path: b"Metadata-Version: 1.1\nName: a\nVersion: 1\n"})
    assert names(layer) == ["a"]
    assert names(layer, Layer({path: GONE})) == []
    assert names(layer, Layer({path: b""})) == []


@pytest.mark.parametrize(("path", "target", "aside"), [
    ("var/lib/dpkg", "/opt/dpkg", True), ("var/lib", "../srv", True), ("var", "usr/var", True),
    ("var/lib/dpkg/status", "status.mine", True), ("lib", "usr/lib", False), ("lib/apk", "../opt/apk", True),
    ("var/lib/rpm", "../../usr/lib/sysimage/rpm", False), ("var/lib/rpm", "/usr/lib/sysimage/rpm/", False),
    ("var/lib/rpm/rpmdb.sqlite", "other", True), ("var/lib/dpkg", "../lib/./dpkg", False), ("etc", "usr/etc", False),
    ("etc/os-release", "../usr/lib/os-release", False), ("var/log", "/tmp", False), ("bin", "usr/bin", False),
])  # fmt: skip
def test_a_link_that_puts_a_database_elsewhere_is_said(path: str, target: str, *, aside: bool) -> None:
    """`mv /var/lib/dpkg /opt && ln -s /opt/dpkg /var/lib` leaves dpkg as it was, and made the SBOM an empty one."""

    class Linked(Layer):
        def _own(self, at: bytes) -> Own:
            return Own("symlink", target=target.encode()) if at == path.encode() else super()._own(at)

    above = Linked({path: b"", "opt/dpkg/status": deb("b")})
    said = (f"{path} is a link, which is not followed",) if aside else ()
    assert combine([Layer({DPKG: deb("a")}).scan(), above.scan()]).problems == said
