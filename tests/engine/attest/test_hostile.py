"""Databases and layers of somebody who wants an SBOM to fail, to take for ever, or to be another one each time."""

from __future__ import annotations

import tracemalloc
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.attest import scan as scanning
from engine.attest.databases import Package, packages
from engine.attest.sbom import cyclonedx
from engine.attest.scan import Contents, combine
from engine.attest.verify import LIMIT
from storage.digest import canonical_json, sha256
from storage.parts.lookup import Own
from tests.engine.attest.test_scan import DPKG, GONE, Layer, deb

IMAGE = sha256(b"image")


def bom(*found: Package, distro: dict[str, str] | None = None) -> dict[str, Any]:
    contents = Contents(tuple((one, "db") for one in found), distro or {}, ())
    return cyclonedx(IMAGE, "", contents, "1")


_WORD = st.text(st.sampled_from("aZ0@/%#?&=.:+~ é"), min_size=1, max_size=8)


@given(st.sampled_from(["deb", "apk", "pypi", "npm"]), st.lists(st.tuples(_WORD, _WORD, _WORD), max_size=4), _WORD)
def test_whatever_a_package_is_called_it_is_listed_once_and_the_same_each_time(
    kind: str, named: list[tuple[str, str, str]], distro: str
) -> None:
    found = [Package(kind, *fields) for fields in named]
    made = bom(*found, distro={"ID": distro, "VERSION_ID": distro})
    references = [one["bom-ref"] for one in made["components"]]
    assert len(set(references)) == len(references)
    names = {one["name"] for one in made["components"] if one["type"] == "library"}
    assert names <= {one.name for one in found}
    assert bool(names) == bool(found)
    again = bom(*found, distro={"ID": distro, "VERSION_ID": distro})
    assert canonical_json(again) == canonical_json(made)


@pytest.mark.parametrize("name", ["@scope/", "/", "//", "@/"])
def test_a_name_that_no_package_url_can_have_is_listed_without_one(name: str) -> None:
    for kind in ("npm", "deb"):
        (component,) = bom(Package(kind, name, "1"))["components"]
        assert component["name"] == name


def test_a_package_that_is_told_of_twice_is_one() -> None:
    found, _ = packages("apk", b"P:a\nV:1\nL:MIT\n\nP:a\nV:1\nL:GPL\n")
    assert len(found) == 2
    assert len(bom(*found)["components"]) == 1


def test_five_thousand_packages_take_no_square_of_time() -> None:
    """It took more than a minute."""
    found = [Package("deb", f"p{number}", "1") for number in range(5000)]
    assert len(bom(*found)["components"]) == 5000


@pytest.mark.parametrize("data", [b"ab\n" * 500_000, b"".join(b"%06x:\n" % number for number in range(200_000))])
def test_a_database_of_lines_that_say_nothing_takes_little_memory(data: bytes) -> None:
    tracemalloc.start()
    assert packages("apk", data) == ([], 0)
    assert tracemalloc.get_traced_memory()[1] < len(data)
    tracemalloc.stop()


def test_many_names_of_one_large_file_are_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "_BYTES", 1000)
    data = deb("a") + b"\n" * 500
    layer = Layer(dict.fromkeys((f"var/lib/dpkg/status.d/{number}" for number in range(100)), data))
    read = []

    def opened(path: bytes) -> BinaryIO | None:
        read.append(path)
        return layer.open(path)

    scan = scanning.scan_layer(layer, opened)
    assert len(read) == 2
    assert scan.problems == (("", "a layer has more than 1000 bytes of package databases"),)


def test_a_layer_of_more_files_than_are_looked_at_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "_ENTRIES", 3)
    scan = Layer(dict.fromkeys("abcd", b"")).scan()
    assert scan.problems == (("", "a layer has more than 3 files"),)


def test_more_packages_than_are_named_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "PACKAGES", 2)
    one, other = Layer({DPKG: deb("a", "b")}).scan(), Layer({"lib/apk/db/installed": b"P:c\nV:1\n"}).scan()
    contents = combine([one, other])
    assert [package.name for package, _ in contents.packages] == ["c", "a"]
    assert contents.problems == ("the image tells of 3 packages, and the first 2 are named",)
    many = Layer({DPKG: deb("a", "b", "c")}).scan()
    assert (many.databases, many.problems) == ((), (("", "a layer tells of more than 2 packages"),))


def test_problems_are_told_of_up_to_a_hundred() -> None:
    scan = Layer({f"var/lib/dpkg/status.d/{number:03}": b"Package: x\n" for number in range(300)}).scan()
    assert len(scan.problems) == 101
    assert scan.problems[-1] == ("", "and more of this kind")


def test_a_database_behind_a_link_is_missed_and_said_to_be() -> None:
    class Linked(Layer):
        def _own(self, path: bytes) -> Own:
            own = super()._own(path)
            return own if own.kind != "other" else Own("symlink", target=b"elsewhere")

    assert Linked({DPKG: b""}).scan().problems == ((DPKG, f"{DPKG} is a link, which is not followed"),)
    assert Linked({"etc/os-release": b""}).scan().problems == ()


@pytest.mark.parametrize(
    ("state", "there"),
    [
        ("install ok installed", True), ("install ok triggers-pending", True), ("install ok unpacked", True),
        ("install reinstreq half-installed", True), ("deinstall ok config-files", False),
        ("unknown ok not-installed", False),
    ],
)  # fmt: skip
def test_a_package_whose_files_are_there_is_listed_whatever_state_dpkg_left_it_in(state: str, there: bool) -> None:
    found, bad = packages("deb", f"Package: a\nStatus: {state}\nVersion: 1\n".encode())
    assert (bool(found), bad) == (there, 0)


def test_a_name_that_turns_the_line_round_is_none() -> None:
    assert packages("deb", "Package: \u202eevil\nVersion: 1\n".encode()) == ([], 1)


def test_what_stands_below_the_head_of_a_description_is_no_package() -> None:
    data = b"Name: a\nVersion: 1\nLicense: MIT\n  \n  more\nX: y\n\nName: other\nVersion: 2\n"
    assert packages("pypi", data) == ([Package("pypi", "a", "1")], 0)


def test_json_that_names_no_package_is_none() -> None:
    assert packages("npm", b'{"private": true}') == ([], 0)
    assert packages("npm", b"[]") == ([], 0)
    assert packages("npm", b'{"name": ["a"], "version": "1"}') == ([], 1)


@pytest.mark.parametrize("text", ["a", "\u00e9", "\U0001f600", '"', "%"])
def test_an_sbom_has_no_more_bytes_than_are_verified(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """100,000 packages with paths of 4,000 bytes made gigabytes, and 70,000 an SBOM that verify-image refused."""
    assert scanning._WEIGHT * 4 / 3 < LIMIT
    monkeypatch.setattr(scanning, "_WEIGHT", 300_000)
    name = text * 200
    databases = tuple(
        scanning.Database(f"{text * 900}/{number}", "rpm", (Package("rpm", name, f"1-{number}", "x", name),))
        for number in range(300)
    )
    os = scanning.Database("etc/os-release", "os", (), {"ID": name, "VERSION_ID": name})
    contents = combine([scanning.Scan((os, *databases))])
    made = canonical_json(cyclonedx(IMAGE, "", contents, "1"))
    (problem,) = contents.problems
    assert problem == f"the image tells of 300 packages, and the first {len(contents.packages)} are named"
    assert len(contents.packages) >= 3
    assert len(made) < 310_000


def test_names_without_end_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five million files called METADATA were a scan of a gigabyte."""
    monkeypatch.setattr(scanning, "_NAMED", 1000)
    for layer in (Layer(dict.fromkeys((f"{n}/METADATA" for n in range(999)), b"")),
                  Layer(dict.fromkeys(map(str, range(999)), GONE)),
                  Layer({}, frozenset(map(str, range(999))))):  # fmt: skip
        scan = layer.scan()
        assert len(scan.encode()) < 3000
        assert scan.problems == (("", "a layer has more than 1000 bytes of names that matter for package databases"),)


def test_many_problems_of_many_layers_are_told_of_up_to_a_hundred() -> None:
    layers = [
        Layer({f"var/lib/dpkg/status.d/{number}-{'x' * 200}-{count}": b"Package: x\n" for count in range(60)})
        for number in range(3)
    ]
    problems = combine([layer.scan() for layer in layers]).problems
    assert (len(problems), problems[-1]) == (101, "and more of this kind")
    path = "a/" * 1000 + "node_modules/b/package.json"
    (told,) = Layer({path: b"["}).scan().problems
    assert (told[0], len(told[1])) == (path, 300)
