"""Directories that a layer only implies do not cover what lower layers say of them."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.digest import sha256
from storage.errors import VerificationError
from storage.layers.implied import hidden_looks, read_implied
from storage.layers.snapshots import OverlaySnapshots
from storage.overlay import detach_below
from tests.storage.layers.test_directory import opened
from tests.storage.layers.test_snapshots import Root
from tests.storage.layers.trees import TAR, file, info, make_tar, names, xattrs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

Look = tuple[int, int, int, int]
STICKY: Look = (0o1777, 11, 12, 1_600_000_000_123_456_789)
PLAIN: Look = (0o755, 0, 0, 0)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    yield Root(tmp_path)
    detach_below(tmp_path)


def sticky(name: str = "tmp") -> tarfile.TarInfo:
    mode, uid, gid, _ = STICKY
    return info(name, mode=mode, uid=uid, gid=gid, pax_headers={"mtime": "1600000000.123456789"})


def layer(root: Root, *entries: Any) -> Path:
    return root.layer(make_tar(*entries))


def look(path: Path) -> Look:
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns


def looks_everywhere(root: Root, lowers: list[Path], name: str = "tmp") -> Look:
    """In a view and in a snapshot alike, but for the time of a root that can be written to."""
    with root.snapshots.view(lowers) as view:
        found = look(view / name)
    snapshot = root.snapshots.begin("looking", lowers)
    assert look(snapshot.root / name)[: 3 if name == "." else 4] == found[: 3 if name == "." else 4]
    snapshot.discard()
    assert root.leftovers() == []
    return found


def test_what_a_layer_implies_is_noted_beside_it(root: Root) -> None:
    lower = layer(root, file("a/b/c"), info("a"), info("l", tarfile.SYMTYPE, linkname="real/x"), file("l/y/f"),
                  file("z/.wh.gone"), file("r/é\udcff/f"))  # fmt: skip
    assert read_implied(lower) == {
        b"", b"a/b", b"real", b"real/x", b"real/x/y", b"z", b"r", os.fsencode("r/é\udcff")
    }  # fmt: skip
    assert names(lower.parent) == ["fs", "implied", "seal"]


def test_a_layer_that_names_all_its_directories_has_no_note(root: Root) -> None:
    lower = layer(root, file("d/f"), info("d"), info("l", tarfile.SYMTYPE, linkname="t"), file("l/s/f"), info("t/s"),
                  info("t"), file("gone/f"), file("gone"), info("./"))  # fmt: skip
    assert read_implied(lower) == set()
    assert names(lower.parent) == ["fs", "seal"]


def test_mode_owner_and_time_are_kept_through_an_implied_directory(root: Root) -> None:
    lowers = [layer(root, sticky(), file("tmp/a")), layer(root, file("tmp/x")), layer(root, file("tmp/y"))]
    assert looks_everywhere(root, lowers) == STICKY
    with root.snapshots.view(lowers) as view:
        assert names(view / "tmp") == ["a", "x", "y"]


def test_attributes_are_kept_but_not_those_of_overlay(root: Root) -> None:
    below = layer(root, info("tmp", pax_headers={"SCHILY.xattr.user.note": "n"}), file("tmp/.wh..wh..opq"))
    with root.snapshots.view([layer(root, sticky(), file("tmp/lowest")), below, layer(root, file("tmp/x"))]) as view:
        assert xattrs(view / "tmp") == {"user.note": b"n"}
        assert names(view / "tmp") == ["x"]
    looks = hidden_looks([below, root.base], [read_implied(below), {b""}])
    assert all(b"trusted.overlay.opaque" not in each.xattrs for each in looks.values())


def test_parents_on_the_way_keep_their_own_look(root: Root) -> None:
    lowers = [layer(root, info("var", mode=0o700, uid=5, mtime=9), sticky("var/tmp"), file("var/tmp/a")),
              layer(root, file("var/tmp/x"), info("var", mode=0o711, uid=6, mtime=8))]  # fmt: skip
    assert looks_everywhere(root, lowers, "var") == (0o711, 6, 0, 8 * 10**9)
    assert looks_everywhere(root, lowers, "var/tmp") == STICKY


def test_a_layer_above_that_says_how_it_looks_wins(root: Root) -> None:
    lowers = [layer(root, sticky()), layer(root, file("tmp/x")), layer(root, info("tmp", mode=0o700, mtime=3))]
    assert looks_everywhere(root, lowers) == (0o700, 0, 0, 3 * 10**9)


def test_what_is_implied_only_stays_plain(root: Root) -> None:
    lowers = [layer(root, file("tmp/w")), layer(root, file("tmp/x"))]
    assert looks_everywhere(root, lowers) == PLAIN
    assert hidden_looks(lowers, [read_implied(lower) for lower in lowers]) == {}


@pytest.mark.parametrize("above", [".wh.tmp", "tmp", ".wh.var", "var"])
def test_a_directory_removed_above_is_not_resurrected(root: Root, above: str) -> None:
    name = "var/tmp" if "var" in above else "tmp"
    lowers = [layer(root, info("var"), sticky(name)), layer(root, file(f"{name}/x")), layer(root, file(above))]
    with root.snapshots.view(lowers) as view:
        assert not (view / name).is_dir()
        assert (view / above).is_file() == (not above.startswith(".wh."))
    snapshot = root.snapshots.begin("s", lowers)
    assert not (snapshot.root / name).is_dir()
    snapshot.discard()


@pytest.mark.parametrize("between", [file(".wh.tmp"), file("tmp"), info("tmp", tarfile.SYMTYPE, linkname="etc")])
def test_what_was_removed_between_does_not_count(root: Root, between: Any) -> None:
    lowers = [layer(root, sticky(), info("etc")), layer(root, between), layer(root, file("tmp/x", b"2"))]
    assert looks_everywhere(root, lowers) == PLAIN


@pytest.mark.parametrize("opaque", ["tmp", "var"])
def test_an_opaque_directory_above_ends_the_search(root: Root, opaque: str) -> None:
    name = "tmp" if opaque == "tmp" else "var/tmp"
    lowers = [layer(root, info("var"), sticky(name), file(f"{name}/a")), layer(root, file(f"{name}/x")),
              layer(root, info(opaque, mode=0o711), file(f"{opaque}/.wh..wh..opq"), file(f"{opaque}/new"))]  # fmt: skip
    with root.snapshots.view(lowers) as view:
        assert names(view / opaque) == ["new"]
        assert stat.S_IMODE((view / opaque).stat().st_mode) == 0o711
    above = [*lowers, layer(root, file(f"{name}/later"))]
    with root.snapshots.view(above) as view:
        assert stat.S_IMODE((view / name).stat().st_mode) == (0o711 if opaque == "tmp" else 0o755)
        assert "later" in names(view / name)
        assert "a" not in names(view / name)


def test_chains_that_share_the_layer_each_have_their_own_look(root: Root) -> None:
    shared = layer(root, file("tmp/x"))
    one, other = layer(root, sticky()), layer(root, info("tmp", mode=0o700, mtime=1))
    assert looks_everywhere(root, [one, shared]) == STICKY
    assert looks_everywhere(root, [other, shared]) == (0o700, 0, 0, 10**9)
    assert looks_everywhere(root, [shared]) == PLAIN
    assert look(shared / "tmp") == PLAIN


def test_an_implied_root_does_not_cover_the_root(root: Root) -> None:
    lowers = [root.base, layer(root, file("f"))]
    assert looks_everywhere(root, lowers, ".")[:3] == (0o751, 3, 4)
    root.snapshots.begin("s", lowers).commit()
    assert root.packed("s") == bytes(1024)
    snapshot = root.snapshots.begin("changed", lowers)
    snapshot.root.chmod(0o755)
    os.chown(snapshot.root, 0, 0)
    snapshot.commit()
    assert looks_everywhere(root, [*lowers, root.snapshots.lower("changed")], ".")[:3] == (0o755, 0, 0)


def test_the_root_of_a_step_that_left_it_alone_does_not_cover_the_root(root: Root) -> None:
    """Made on nothing, used on a base, as the layer that it is packed as would be."""
    snapshot = root.snapshots.begin("s", [])
    (snapshot.root / "f").touch()
    snapshot.commit()
    layer_of_it = root.layer(root.packed("s"))
    for top in (root.snapshots.lower("s"), layer_of_it):
        assert looks_everywhere(root, [root.base, top], ".")[:3] == (0o751, 3, 4)


def test_a_step_that_writes_below_is_packed_with_the_right_parents(root: Root) -> None:
    lowers = [layer(root, sticky()), layer(root, file("tmp/x"))]
    snapshot = root.snapshots.begin("s", lowers)
    (snapshot.root / "tmp/made").write_text("m")
    snapshot.commit()
    assert root.leftovers() == []
    assert names(root.snapshots.lower("s").parent) == ["fs", "seal"]
    with tarfile.open(fileobj=io.BytesIO(root.packed("s"))) as tar:
        assert tar.getnames() == ["tmp", "tmp/made"]
        parent = tar.getmember("tmp")
    assert (parent.mode, parent.uid, parent.gid) == STICKY[:3]
    assert looks_everywhere(root, [*lowers, root.snapshots.lower("s")])[:3] == STICKY[:3]


def test_a_directory_made_anew_by_a_step_hides_the_layers_below(root: Root) -> None:
    lowers = [layer(root, sticky(), file("tmp/a")), layer(root, file("tmp/x"))]
    snapshot = root.snapshots.begin("s", lowers)
    shutil.rmtree(snapshot.root / "tmp")
    (snapshot.root / "tmp").mkdir(0o700)
    snapshot.commit()
    with root.snapshots.view([*lowers, root.snapshots.lower("s")]) as view:
        assert (names(view / "tmp"), stat.S_IMODE((view / "tmp").stat().st_mode)) == ([], 0o700)


def test_nothing_is_opened_where_nothing_is_implied(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("looked at the layers")

    monkeypatch.setattr("storage.layers.implied.hidden_looks", refuse)
    lowers = [root.base, layer(root, info("./"), sticky())]
    assert read_implied(root.base) == set()
    assert looks_everywhere(root, lowers)[:3] == STICKY[:3]


def test_deep_implied_directories(root: Root) -> None:
    deep = "/".join(["d"] * 900)
    lowers = [layer(root, sticky(deep)), layer(root, file(f"{deep}/x"))]
    assert looks_everywhere(root, lowers, deep) == STICKY


def test_a_layer_without_note_is_taken_by_its_word(root: Root) -> None:
    """Laid out before such notes were made."""
    lowers = [layer(root, sticky()), layer(root, file("tmp/x"))]
    (lowers[1].parent / "implied").unlink()
    other = OverlaySnapshots(root.path / "snapshots", root.path / "tmp", "b2")
    with other.view(lowers) as view:
        assert look(view / "tmp") == PLAIN


@pytest.mark.parametrize("kind", ["directory", "erofs"])
def test_more_implied_directories_than_can_be_noted_are_refused_when_the_layer_comes(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.layers.implied.MOST_NOTED", 1000)
    tar = make_tar(*(file(f"{n:0200}/f") for n in range(5)))
    with opened(kind, tmp_path) as layers:
        with pytest.raises(VerificationError, match="directories that the layer implies"):
            layers.unpack(sha256(tar), TAR, io.BytesIO(tar))
        assert not layers.has(sha256(tar))
    assert [path for name in ("layers", "tmp") for path in (tmp_path / name).glob("*")] == []
