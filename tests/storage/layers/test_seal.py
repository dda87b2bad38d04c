"""Damage to layers and snapshots is found before they are used; what only was copied is not damage."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.digest import Digest, canonical_json
from storage.errors import VerificationError
from storage.interfaces.layers import CheckedLayers, CheckedSnapshots, Look
from storage.layers.directory import ChosenLayers, DirectoryLayers
from storage.layers.erofs.check import check_image, examine_image
from storage.layers.erofs.header import HEADER_SIZE, SEAL
from storage.layers.erofs.layers import ErofsLayers
from storage.layers.erofs.mount import ErofsMounts
from storage.layers.seal import broken, write_seal
from storage.layers.snapshots import OverlaySnapshots
from storage.scratch import Scratch
from tests.storage.layers.trees import TAR, diff_id, facts, file, info, make_tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

CONTENT = os.urandom(5000)
TAR_BYTES = make_tar(
    info("d"), file("d/a", CONTENT), file("b", b"second"), info("l", b"2", linkname="d/a"), file("x/y", b"implied")
)
LAYER = diff_id(TAR_BYTES)


@dataclass(frozen=True)
class Stores:
    """As one process opens them."""

    layers: CheckedLayers
    snapshots: CheckedSnapshots


@contextmanager
def opened(root: Path, kind: str) -> Iterator[Stores]:
    mounts = ErofsMounts(root / "mnt", "b1")
    images = kind == "erofs"
    layers: CheckedLayers = (
        ErofsLayers(root / "layers", root / "tmp", "b1", mounts) if images
        else DirectoryLayers(root / "layers", root / "tmp", "b1")
    )  # fmt: skip
    snapshots = OverlaySnapshots(root / "snapshots", root / "tmp", "b1", mounts=mounts, as_images=lambda: images)
    try:
        yield Stores(layers, snapshots)
    finally:
        mounts.close()


@pytest.fixture(params=["erofs", "directory"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def fill(root: Path, kind: str) -> None:
    """A layer, a snapshot `ran` as a command leaves it, and a snapshot `copied` as the engine composes it."""
    with opened(root, kind) as stores:
        stores.layers.unpack(LAYER, TAR, io.BytesIO(TAR_BYTES))
        snapshot = stores.snapshots.begin("ran", [stores.layers.lower(LAYER)])
        (snapshot.root / "made").write_bytes(CONTENT)
        (snapshot.root / "d/more").mkdir()
        (snapshot.root / "d/more/link").symlink_to("made")
        (snapshot.root / "b").unlink()
        os.mkfifo(snapshot.root / "pipe")
        snapshot.commit()
        writer = stores.snapshots.compose("copied")
        writer.directory(b"to", Look(0o755, 0, 0, 5))
        writer.file(b"to/here", Look(0o644, 0, 0, 5), len(CONTENT), [CONTENT])
        writer.node(b"to/link", Look(0o777, 0, 0, 5), "symlink", b"here", 0)
        writer.commit()


def problems(root: Path, kind: str) -> dict[str, str]:
    """What a new process finds wrong."""
    with opened(root, kind) as stores:
        found = {
            "layer": stores.layers.check(LAYER), "ran": stores.snapshots.check("ran"),
            "copied": stores.snapshots.check("copied"),
        }  # fmt: skip
    return {name: problem for name, problem in found.items() if problem}


def place(root: Path, kind: str, what: str) -> Path:
    """The image or the directory that holds `what`."""
    if what == "layer":
        return root / "layers" / (LAYER.hex + (".erofs" if kind == "erofs" else ""))
    return root / "snapshots" / (what + (".erofs" if kind == "erofs" and what == "copied" else ""))


def test_what_was_made_is_sound(tmp_path: Path, kind: str) -> None:
    fill(tmp_path, kind)
    assert problems(tmp_path, kind) == {}


def both(root: Path) -> ChosenLayers:
    """As a build has them that may use either layout."""
    directories = DirectoryLayers(root / "layers", root / "tmp", "b2")
    images = ErofsLayers(root / "layers", root / "tmp", "b2", ErofsMounts(root / "mnt", "b2"))
    return ChosenLayers((images, directories), lambda: directories)


def test_a_layer_whose_damage_only_a_reader_finds_is_discarded_all_the_same(tmp_path: Path, kind: str) -> None:
    fill(tmp_path, kind)
    path = place(tmp_path, kind, "layer")
    if kind == "erofs":
        flip(path, 4096 + 1600)
        os.utime(path, ns=(SEAL, SEAL))  # as a disk that rots leaves it
    layers = both(tmp_path)
    assert layers.check(LAYER) == ""
    layers.discard(LAYER)
    assert not path.exists()


def test_of_two_layouts_the_one_that_a_check_finds_damaged_is_discarded(tmp_path: Path) -> None:
    for kind in ("erofs", "directory"):
        fill(tmp_path / kind, kind)
    shutil.copytree(tmp_path / "directory/layers", tmp_path / "erofs/layers", symlinks=True, dirs_exist_ok=True)
    image = place(tmp_path / "erofs", "erofs", "layer")
    flip(image, 4096 + 1600)
    layers = both(tmp_path / "erofs")
    layers.discard(LAYER)
    assert not image.exists()
    assert layers.has(LAYER)


def test_a_copy_that_keeps_times_is_sound(tmp_path: Path, kind: str) -> None:
    fill(tmp_path / "one", kind)
    subprocess.run(["cp", "-a", tmp_path / "one", tmp_path / "two"], check=True)
    times = {path: path.lstat().st_mtime_ns for path in (tmp_path / "two").rglob("*")}
    assert problems(tmp_path / "two", kind) == {}
    assert {path: path.lstat().st_mtime_ns for path in times} == times


def test_an_image_copied_without_times_is_hashed_once_and_sealed(tmp_path: Path) -> None:
    fill(tmp_path, "erofs")
    for what in ("layer", "copied"):
        os.utime(place(tmp_path, "erofs", what))
    assert problems(tmp_path, "erofs") == {}
    assert [place(tmp_path, "erofs", what).stat().st_mtime_ns for what in ("layer", "copied")] == [SEAL, SEAL]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as out:
        out.seek(at)
        byte = out.read(1)[0]
        out.seek(at)
        out.write(bytes([byte ^ 1]))


IMAGE_DAMAGE: dict[str, Callable[[Path], None]] = {
    "a byte of the tar": lambda path: flip(path, 4096 + 1600),
    "a byte of the superblock": lambda path: flip(path, 1024 + 14),
    "a byte of the metadata": lambda path: flip(path, path.stat().st_size - 300),
    "a byte of the header": lambda path: flip(path, 40),
    "a number in the header": lambda path: _in_header(path, b'"bytes":', b'"bytes":1'),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "a directory in its place": lambda path: _replace(path, None),
    "another file in its place": lambda path: _replace(path, b"{}"),
}


def _replace(path: Path, content: bytes | None) -> None:
    """Put a file with `content`, or a directory, in the place of `path`."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)


def _in_header(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    header = data[:HEADER_SIZE].rstrip(b"\0").replace(old, new)
    path.write_bytes(header.ljust(HEADER_SIZE, b"\0") + data[HEADER_SIZE:])


@pytest.mark.parametrize("damage", IMAGE_DAMAGE)
@pytest.mark.parametrize("what", ["layer", "copied"])
def test_I8_a_damaged_image_is_found_removed_and_made_again(tmp_path: Path, what: str, damage: str) -> None:
    fill(tmp_path, "erofs")
    IMAGE_DAMAGE[damage](place(tmp_path, "erofs", what))
    assert set(problems(tmp_path, "erofs")) == {what}
    _remove_and_make_again(tmp_path, "erofs", what)


def test_I8_the_image_of_something_else_is_found_though_it_is_sealed(tmp_path: Path) -> None:
    fill(tmp_path, "erofs")
    subprocess.run(["cp", "-a", place(tmp_path, "erofs", "copied"), place(tmp_path, "erofs", "layer")], check=True)
    assert set(problems(tmp_path, "erofs")) == {"layer"}


TREE_DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte of a file": lambda tree: flip(_any_file(tree), 2),
    "a file truncated": lambda tree: os.truncate(_any_file(tree), 1),
    "a file removed": lambda tree: _any_file(tree).unlink(),
    "a file added": lambda tree: (tree / "new").touch(),
    "a file renamed": lambda tree: _any_file(tree).rename(tree / "other"),
    "a mode": lambda tree: _any_file(tree).chmod(0o777),
    "an owner": lambda tree: os.chown(_any_file(tree), 7, 7),
    "a link added": lambda tree: (tree / "s").symlink_to("elsewhere"),
    "a link that leads elsewhere": lambda tree: _lead_elsewhere(next(p for p in tree.rglob("*") if p.is_symlink())),
    "a whiteout": lambda tree: os.mknod(tree / "gone", 0o020000, 0),
    "the root's mode": lambda tree: tree.chmod(0o700),
    "an opaque mark": lambda tree: os.setxattr(
        next(path for path in tree.rglob("*") if path.is_dir()), "trusted.overlay.opaque", b"y"
    ),
    "no tree": shutil.rmtree,
    "a file in its place": lambda tree: _replace(tree.parent, b"x"),
    "a file beside it": lambda tree: (tree.parent / "root-changed").touch(),
}


def _lead_elsewhere(link: Path) -> None:
    time = link.lstat().st_mtime_ns
    link.unlink()
    link.symlink_to("elsewhere")
    os.utime(link, ns=(time, time), follow_symlinks=False)


def _any_file(tree: Path) -> Path:
    return next(path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink())


@pytest.mark.parametrize("damage", TREE_DAMAGE)
@pytest.mark.parametrize("what", ["layer", "ran", "copied"])
def test_I8_a_damaged_tree_is_found_removed_and_made_again(tmp_path: Path, what: str, damage: str) -> None:
    fill(tmp_path, "directory")
    TREE_DAMAGE[damage](place(tmp_path, "directory", what) / "fs")
    assert set(problems(tmp_path, "directory")) == {what}
    _remove_and_make_again(tmp_path, "directory", what)


def _remove_and_make_again(root: Path, kind: str, what: str) -> None:
    with opened(root, kind) as stores:
        store = stores.layers if what == "layer" else stores.snapshots
        name: Digest | str = LAYER if what == "layer" else what
        store.discard(name)
        assert not store.has(name)  # type: ignore[arg-type]
        assert not os.path.lexists(place(root, kind, what))
        store.discard(name)  # harmless
    shutil.rmtree(root / "snapshots")
    fill(root, kind)
    assert problems(root, kind) == {}
    assert [path.name for path in (root / "tmp").iterdir()] == []


def test_what_is_not_here_is_not_damaged(tmp_path: Path, kind: str) -> None:
    assert problems(tmp_path, kind) == {}


def test_snapshots_from_before_there_were_seals_are_believed(tmp_path: Path) -> None:
    fill(tmp_path, "directory")
    for seal in tmp_path.glob("*/*/seal"):
        seal.unlink()
    assert problems(tmp_path, "directory") == {}


@pytest.mark.parametrize("what", ["layer", "copied"])
def test_images_from_before_there_were_seals_are_checked_against_their_tar_and_sealed(
    tmp_path: Path, what: str
) -> None:
    fill(tmp_path, "erofs")
    image = place(tmp_path, "erofs", what)
    before = _content(tmp_path, what)
    _as_written_before(image)
    assert problems(tmp_path, "erofs") == {}
    assert image.stat().st_mtime_ns == SEAL
    assert _content(tmp_path, what) == before
    _as_written_before(image)
    flip(image, 4096 + 1600)
    assert set(problems(tmp_path, "erofs")) == {what}
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == []


def _content(root: Path, what: str) -> object:
    with opened(root, "erofs") as stores:
        return facts(stores.layers.lower(LAYER) if what == "layer" else stores.snapshots.lower(what))


def _as_written_before(image: Path) -> None:
    data = image.read_bytes()
    said = json.loads(data[:HEADER_SIZE].rstrip(b"\0"))
    del said["name"], said["rest"]
    image.write_bytes(canonical_json(said).ljust(HEADER_SIZE, b"\0") + data[HEADER_SIZE:])


def test_bytes_that_rot_under_the_seal_are_found_when_they_are_packed(tmp_path: Path) -> None:
    fill(tmp_path, "erofs")
    image = place(tmp_path, "erofs", "copied")
    flip(image, 4096 + 1600)
    os.utime(image, ns=(SEAL, SEAL))
    with opened(tmp_path, "erofs") as stores:
        for clamp in (None, 1):
            with pytest.raises(VerificationError):
                stores.snapshots.pack("copied", lambda data: None, clamp_mtime=clamp)


def test_directories_that_a_step_only_touched_leave_the_seal_whole(tmp_path: Path) -> None:
    (tmp_path / "lower/etc/deep").mkdir(parents=True)
    with opened(tmp_path, "directory") as stores:
        snapshot = stores.snapshots.begin("s", [tmp_path / "lower"])
        (snapshot.root / "etc/deep/file").touch()
        (snapshot.root / "etc/deep/file").unlink()
        snapshot.commit()
    with opened(tmp_path, "directory") as stores:
        assert stores.snapshots.check("s") == ""


def _sealed(directory: Path) -> Path:
    (directory / "fs").mkdir(parents=True)
    write_seal(directory)
    return directory


def test_a_seal_of_another_refledger_is_not_judged(tmp_path: Path) -> None:
    tree = _sealed(tmp_path / "s")
    (tree / "seal").write_text("2 of another kind")
    assert broken(tree) == ""


def test_a_seal_that_is_no_file_seals_nothing(tmp_path: Path) -> None:
    tree = _sealed(tmp_path / "s")
    (tree / "seal").unlink()
    (tree / "seal").mkdir()
    assert broken(tree) == "its files are not those it was made of"


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EIO, "it cannot be read: Input/output error"), (errno.EUCLEAN, "it cannot be read")]
)
def test_a_tree_that_the_disk_does_not_give_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def scandir(_: object) -> object:
        raise OSError(number, os.strerror(number))

    tree = _sealed(tmp_path / "s")
    monkeypatch.setattr("storage.layers.seal.os.scandir", scandir)
    assert broken(tree).startswith(said)


def test_a_tree_that_somebody_removes_meanwhile_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(_: object) -> object:
        tree.rename(tmp_path / "taken")
        raise FileNotFoundError(errno.ENOENT, "gone")

    tree = _sealed(tmp_path / "s")
    monkeypatch.setattr("storage.layers.seal.os.scandir", scandir)
    assert broken(tree) == ""


def test_what_stands_in_the_place_of_an_image_is_said(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "tmp", "b1")
    image = tmp_path / "x.erofs"
    image.mkdir()
    assert check_image(image, "x", scratch) == examine_image(image, "x") == (
        "something else stands in the place of its file"
    )
    image.rmdir()
    image.write_bytes(b"no image")
    for found in (check_image(image, "x", scratch), examine_image(image, "x")):
        assert found.startswith("not a layer image of this Refledger")
    image.unlink()
    assert check_image(image, "x", scratch) == ""
