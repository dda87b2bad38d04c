"""What every LayerStore promises: what a layer says is what is mounted, whole or not at all."""

from __future__ import annotations

import errno
import gzip
import io
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.digest import sha256
from storage.errors import DiskError, VerificationError
from storage.interfaces.layers import CheckedLayers, LayerStore
from storage.layers.directory import DirectoryLayers
from storage.layers.erofs.layers import ErofsLayers
from tests.contracts.conftest import simulated_place
from tests.simulation.mounting import SimulatedMounts
from tests.simulation.paths import DiskPath
from tests.simulation.syscalls import Os
from tests.storage.layers.test_directory import is_whiteout, opened, unpack
from tests.storage.layers.trees import GZIP, TAR, Member, diff_id, file, info, make_tar

os = Os()
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="ownership and devices need root")


@pytest.fixture(params=["directory", "erofs", "simulated"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if kind != "simulated":
        yield tmp_path_factory.mktemp("layers")
        return
    with simulated_place() as place:
        yield place


@pytest.fixture
def layers(kind: str, place: Path) -> Iterator[LayerStore]:
    if kind != "simulated":
        with opened(kind, place) as store:
            yield store
        return
    yield ErofsLayers(place / "layers", place / "tmp", "b1", SimulatedMounts(place / "tmp", "b1"))


def is_opaque(path: Path) -> bool:
    return "trusted.overlay.opaque" in os.listxattr(path)


def test_the_bytes_of_regular_files_are_returned(layers: LayerStore) -> None:
    tar = make_tar(info("d"), file("d/a", b"x" * 1000), file("b", b"y"), info("l", tarfile.LNKTYPE, linkname="b"))
    packed = gzip.compress(tar)
    assert not layers.has(diff_id(tar))
    assert layers.unpack(diff_id(tar), GZIP, io.BytesIO(packed)) == 1001
    assert layers.has(diff_id(tar))


def test_a_setgid_directory_passes_nothing_on(layers: LayerStore) -> None:
    lower = unpack(layers, make_tar(info("d", mode=0o2775, gid=50), file("d/f", b"x"), info("d/sub")))
    assert (lower / "d/f").stat().st_gid == 0
    assert ((lower / "d/sub").stat().st_gid, (lower / "d/sub").stat().st_mode & 0o7777) == (0, 0o755)
    assert (lower / "d").stat().st_mode & 0o7777 == 0o2775


def test_missing_parents_and_parents_after_children(layers: LayerStore) -> None:
    lower = unpack(layers, make_tar(file("a/b/c", b"x"), info("a", mode=0o711, uid=7, mtime=99), file("x/y", b"z")))
    a, b = (lower / "a").stat(), (lower / "a/b").stat()
    assert (a.st_mode & 0o7777, a.st_uid, a.st_mtime) == (0o711, 7, 99)
    assert (b.st_mode & 0o7777, b.st_uid, b.st_mtime) == (0o755, 0, 0)
    assert (lower / "x/y").read_bytes() == b"z"


@pytest.mark.parametrize("first", ["file", "dir", "link", "fifo"])
@pytest.mark.parametrize("second", ["file", "dir", "link", "fifo", "hard"])
def test_the_last_of_several_members_wins(layers: LayerStore, first: str, second: str) -> None:
    kinds: dict[str, Member] = {
        "file": file("x", b"content", mode=0o640),
        "dir": info("x", mode=0o711),
        "link": info("x", tarfile.SYMTYPE, linkname="victim"),
        "fifo": info("x", tarfile.FIFOTYPE),
        "hard": info("x", tarfile.LNKTYPE, linkname="victim"),
    }
    below = [file("x/below", b"b")] if first == "dir" else []
    lower = unpack(layers, make_tar(file("victim", b"v"), kinds[first], *below, kinds[second]))
    expected = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "link": stat.S_IFLNK, "fifo": stat.S_IFIFO,
                "hard": stat.S_IFREG}[second]  # fmt: skip
    assert stat.S_IFMT((lower / "x").lstat().st_mode) == expected
    assert (lower / "victim").read_bytes() == b"v"
    if second == "dir":
        assert (lower / "x").stat().st_mode & 0o7777 == 0o711
        assert (lower / "x/below").exists() == (first == "dir")


def test_a_hard_link_to_itself_is_harmless(layers: LayerStore) -> None:
    lower = unpack(layers, make_tar(file("a", b"x"), info("a", tarfile.LNKTYPE, linkname="./a")))
    assert (lower / "a").read_bytes() == b"x"


def test_whiteouts_hide_what_lies_below(layers: LayerStore) -> None:
    lower = unpack(
        layers, make_tar(file(".wh.gone"), info("d"), file("d/.wh.old"), file("new/.wh.x"), file("o/.wh..wh..opq"))
    )
    assert all(is_whiteout(lower / name) for name in ("gone", "d/old", "new/x"))
    assert is_opaque(lower / "o")
    assert not is_opaque(lower / "d")
    assert not any(path.name.startswith(".wh.") for path in lower.rglob("*"))


@pytest.mark.parametrize("order", ["before", "after"])
def test_whiteouts_never_hide_their_own_layer(layers: LayerStore, order: str) -> None:
    marks: list[Member] = [file(".wh.f"), file(".wh.d"), file("o/.wh..wh..opq"), file("o/.wh.g")]
    own: list[Member] = [file("f", b"f"), info("d"), file("d/in", b"i"), info("o"), file("o/g", b"g")]
    lower = unpack(layers, make_tar(*(marks + own if order == "before" else own + marks)))
    assert (lower / "f").read_bytes() == b"f"
    assert (lower / "d/in").read_bytes() == b"i"
    assert (lower / "o/g").read_bytes() == b"g"
    assert is_opaque(lower / "d")
    assert is_opaque(lower / "o")


def test_bookkeeping_of_aufs_is_left_out(layers: LayerStore) -> None:
    lower = unpack(layers, make_tar(info(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", b"x"), file(".wh..wh.aufs")))
    assert list(lower.iterdir()) == []


def test_attributes_that_would_redirect_overlay_are_left_out(layers: LayerStore) -> None:
    told = {"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.trusted.overlay.opaque": "y",
            "SCHILY.xattr.security.selinux": "x", "SCHILY.xattr.user.kept": "k",
            "SCHILY.xattr.com.apple.quarantine": "q"}  # fmt: skip
    lower = unpack(layers, make_tar(info("d", pax_headers=told), file("f", pax_headers=told)))
    assert os.listxattr(lower / "d") == os.listxattr(lower / "f") == ["user.kept"]


def test_links_inside_a_layer_resolve_inside_its_tree(layers: LayerStore) -> None:
    lower = unpack(
        layers,
        make_tar(
            info("etc"), info("abs", tarfile.SYMTYPE, linkname="/etc"), file("abs/one", b"1"),
            info("up", tarfile.SYMTYPE, linkname="../../../../../../etc"), file("up/two", b"2"),
            info("later", tarfile.SYMTYPE, linkname="/run/x"), file("later/three", b"3"),
            info("a"), info("a/rel", tarfile.SYMTYPE, linkname="../b/./c"), file("a/rel/four", b"4"),
        ),
    )  # fmt: skip
    assert (lower / "etc/one").read_bytes() == b"1"
    assert (lower / "etc/two").read_bytes() == b"2"
    assert (lower / "run/x/three").read_bytes() == b"3"
    assert (lower / "b/c/four").read_bytes() == b"4"
    assert (lower / "abs").is_symlink()


def test_absolute_names_are_inside(layers: LayerStore) -> None:
    lower = unpack(layers, make_tar(file("/abs/file", b"x"), file("//./double//slash", b"y")))
    assert (lower / "abs/file").read_bytes() == b"x"
    assert (lower / "double/slash").read_bytes() == b"y"


@pytest.mark.parametrize("tail", [b"", b"garbage" * 3000])
def test_I3_a_wrong_diff_id_leaves_nothing(place: Path, layers: LayerStore, tail: bytes) -> None:
    tar = make_tar(info("d"), file("d/f", b"x" * 3_000_000))
    with pytest.raises(VerificationError, match=sha256(tar + tail).hex):
        layers.unpack(sha256(b"another"), GZIP, io.BytesIO(gzip.compress(tar + tail, 1)))
    assert list((place / "tmp").iterdir()) == []
    assert not layers.has(sha256(b"another"))
    assert not layers.has(sha256(tar + tail))


def test_bytes_behind_the_end_count_for_the_diff_id(layers: LayerStore) -> None:
    assert (unpack(layers, make_tar(file("f", b"x")) + b"garbage" * 300_000) / "f").read_bytes() == b"x"


def test_the_error_of_a_source_passes_and_leaves_nothing(place: Path, layers: LayerStore) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(1000)
            if not data:
                raise DiskError("the source broke")
            return data

    with pytest.raises(DiskError, match="the source broke"):
        layers.unpack(sha256(b""), TAR, Broken(make_tar(file("f", bytes(100_000)))[:50_000]))
    assert list((place / "tmp").iterdir()) == []


# ---------------------------------------------------------------- damage


def test_I8_damage_is_told_and_what_was_damaged_can_be_removed(place: Path, layers: CheckedLayers) -> None:
    tar = make_tar(file("f", b"x" * 5000))
    lower = unpack(layers, tar)
    name = str(diff_id(tar))
    assert layers.check(name) == ""
    layers.close()
    kept = place / "layers" / f"{diff_id(tar).hex}.erofs"
    if not kept.exists():
        kept = lower / "f"
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(bytes(data))
    again = another(place, layers)
    assert again.check(name) != ""
    again.discard(name)
    assert not again.has(diff_id(tar))
    assert again.check(name) == ""
    assert (unpack(again, tar) / "f").read_bytes() == b"x" * 5000
    again.close()


def another(place: Path, layers: LayerStore) -> CheckedLayers:
    """The store as a later process opens it."""
    if isinstance(layers, DirectoryLayers):
        return DirectoryLayers(place / "layers", place / "tmp", "b2")
    assert isinstance(layers, ErofsLayers)
    return ErofsLayers(place / "layers", place / "tmp", "b2", type(layers._mounts)(place / "tmp", "b2"))


def test_a_layer_is_laid_out_although_the_scratch_beside_it_cannot_be_removed(
    layers: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stays is for the next build to remove."""

    def refused(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    tar = make_tar(file("a", b"x"))
    with monkeypatch.context() as failing:
        failing.setattr(Path, "unlink", refused)
        failing.setattr(DiskPath, "unlink", refused)
        assert layers.unpack(diff_id(tar), TAR, io.BytesIO(tar)) == 1
        with pytest.raises(VerificationError):
            layers.unpack(sha256(b"another"), TAR, io.BytesIO(tar))
    assert layers.has(diff_id(tar))
    assert not layers.has(sha256(b"another"))
