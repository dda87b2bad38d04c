"""What a COPY selects, and that its digest is of content and permission bits alone."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DiskError, InputError
from engine.graph import Copy, Mount
from engine.ops.rootfs import RootDir
from engine.ops.rules import asked_of, source_of
from engine.ops.select import select
from engine.ops.selection import Selection, printable
from engine.ops.visible import VisibleTree
from storage.digest import Digest, sha256


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "ctx"
    for name in ("a.txt", "b.txt", "dir/c.txt", "dir/sub/d.txt", "other/dir/e.txt"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        path.chmod(0o644)
    return root


def _select(tree: Path, *sources: str, excludes: tuple[str, ...] = (), from_context: bool = True) -> Selection:
    return select(Copy(sources, "/x/", from_context=from_context), tree, excludes, hash_files=True)


def _paths(tree: Path, *sources: str, excludes: tuple[str, ...] = ()) -> list[str]:
    return [entry.path for entry in _select(tree, *sources, excludes=excludes).entries]


def test_entries_hold_type_mode_size_and_digest(tree: Path) -> None:
    (tree / "dir").chmod(0o750)
    (tree / "dir/link").symlink_to("c.txt")
    selection = _select(tree, "dir")
    facts = [(e.path, e.type, e.mode, e.size, e.digest, e.target) for e in selection.entries]
    assert facts == [
        ("dir", "dir", 0o750, 0, None, ""),
        ("dir/c.txt", "file", 0o644, 9, sha256(b"dir/c.txt"), ""),
        ("dir/link", "symlink", 0o777, 0, None, "c.txt"),
        ("dir/sub", "dir", 0o755, 0, None, ""),
        ("dir/sub/d.txt", "file", 0o644, 13, sha256(b"dir/sub/d.txt"), ""),
    ]
    assert (selection.files, selection.bytes) == (3, 22)
    (match,) = selection.matches
    assert [match.relative(entry) for entry in selection.entries] == ["", "c.txt", "link", "sub", "sub/d.txt"]


def test_the_listing_is_plain_text_that_two_builds_can_compare(tree: Path) -> None:
    assert _select(tree, "dir/sub").listing().decode() == (
        f"dir/sub\tdir\t0755\t\ndir/sub/d.txt\tfile\t0644\t{sha256(b'dir/sub/d.txt')}\n"
    )


def test_a_touch_and_a_new_owner_change_nothing(tree: Path) -> None:
    before = _select(tree, ".").digest
    for path in [tree, *tree.rglob("*")]:
        os.utime(path, (1, 1))
        if os.geteuid() == 0:
            os.chown(path, 5, 6)
    assert _select(tree, ".").digest == before


def test_a_byte_a_mode_a_name_and_a_target_change_the_digest(tree: Path) -> None:
    link = tree / "dir/link"
    link.symlink_to("c.txt")
    seen = {_select(tree, ".").digest}
    (tree / "a.txt").write_text("b.txt")
    seen.add(_select(tree, ".").digest)
    (tree / "a.txt").chmod(0o755)
    seen.add(_select(tree, ".").digest)
    (tree / "dir/sub").chmod(0o700)
    seen.add(_select(tree, ".").digest)
    (tree / "b.txt").rename(tree / "c.txt")
    seen.add(_select(tree, ".").digest)
    link.unlink()
    link.symlink_to("sub")
    seen.add(_select(tree, ".").digest)
    assert len(seen) == 6


def test_files_outside_of_the_selection_do_not_matter(tree: Path) -> None:
    before = _select(tree, "dir").digest
    (tree / "a.txt").write_text("new")
    (tree / "new").mkdir()
    assert _select(tree, "dir").digest == before


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (2 << 20) + 5])
def test_digests_of_files_of_all_sizes(tree: Path, size: int) -> None:
    data = os.urandom(size)
    (tree / "file").write_bytes(data)
    (entry,) = _select(tree, "file").entries
    assert (entry.digest, entry.size) == (sha256(data), size)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("?.txt", ["a.txt", "b.txt"]),
        ("[!a].txt", ["a.txt"]),
        ("[^a].txt", ["b.txt"]),
        ("d*", ["dir", "dir/c.txt", "dir/sub", "dir/sub/d.txt"]),
        ("*/sub", ["dir/sub", "dir/sub/d.txt"]),
        ("*/*/*.txt", ["dir/sub/d.txt", "other/dir/e.txt"]),
        ("**/d.txt", []),
        ("a.txt/*", []),
        ("nothing/*", []),
        ("dir/../[a].txt", ["a.txt"]),
        ("/*.txt/", ["a.txt", "b.txt"]),
    ],
)
def test_wildcards_match_component_by_component(tree: Path, pattern: str, expected: list[str]) -> None:
    assert _paths(tree, pattern) == expected


def test_a_malformed_wildcard_is_an_input_error(tree: Path) -> None:
    with pytest.raises(InputError, match="malformed pattern"):
        _select(tree, "[a")


@pytest.mark.parametrize("source", [".", "/", "./", "..", "../..", "dir/../.."])
def test_the_whole_tree_and_nothing_above_it(tree: Path, source: str) -> None:
    (tree.parent / "outside").write_text("secret")
    assert _paths(tree, source) == [
        "", "a.txt", "b.txt", "dir", "other", "dir/c.txt", "dir/sub", "dir/sub/d.txt", "other/dir", "other/dir/e.txt",
    ]  # fmt: skip


def test_a_missing_source_is_named(tree: Path) -> None:
    with pytest.raises(InputError, match='"/no/such": not found') as caught:
        _select(tree, "no/such")
    assert "build context" in caught.value.hint
    with pytest.raises(InputError, match=r'"/a\.txt/below": not found'):
        _select(tree, "a.txt/below")


def test_a_source_that_is_a_link_is_followed_under_its_own_name(tree: Path) -> None:
    (tree / "ln").symlink_to("dir/c.txt")
    (tree / "lndir").symlink_to("dir")
    (tree / "abs").symlink_to("/dir/sub")
    assert [(e.path, e.source, e.type) for e in _select(tree, "ln").entries] == [("ln", "dir/c.txt", "file")]
    assert [(e.path, e.source) for e in _select(tree, "lndir/sub").entries] == [
        ("lndir/sub", "dir/sub"), ("lndir/sub/d.txt", "dir/sub/d.txt"),
    ]  # fmt: skip
    assert [(e.path, e.source) for e in _select(tree, "abs").entries] == [
        ("abs", "dir/sub"), ("abs/d.txt", "dir/sub/d.txt"),
    ]  # fmt: skip
    assert [e.type for e in _select(tree, "ln*").entries[:2]] == ["file", "dir"]


def test_links_out_of_the_tree_find_nothing_there(tree: Path) -> None:
    outside = tree.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (tree / "up").symlink_to("../outside")
    (tree / "abs").symlink_to(outside)
    (tree / "proc").symlink_to("/proc/self/cwd")
    (tree / "loop").symlink_to("loop")
    for source in ("up/secret", "up", "abs/secret", "abs", "proc", "loop"):
        with pytest.raises(InputError, match="not found") as caught:
            _select(tree, source)
        if "/" not in source:
            assert "symbolic link" in caught.value.hint
    assert _paths(tree, "up/*") == []


def test_ignored_files_are_not_there(tree: Path) -> None:
    assert _paths(tree, ".", excludes=("dir", "*.txt")) == ["", "other", "other/dir", "other/dir/e.txt"]
    assert _paths(tree, "*.txt", excludes=("a.*",)) == ["b.txt"]
    with pytest.raises(InputError, match=r'"/a\.txt": not found') as caught:
        _select(tree, "a.txt", excludes=("*.txt",))
    assert ".dockerignore" in caught.value.hint
    with pytest.raises(InputError, match='"/dir": not found'):
        _select(tree, "dir", excludes=("dir",))


def test_directories_above_an_exception_are_there_and_no_others(tree: Path) -> None:
    assert _paths(tree, ".", excludes=("*", "!dir/sub/d.txt")) == ["", "dir", "dir/sub", "dir/sub/d.txt"]
    assert _paths(tree, "dir", excludes=("dir", "!dir/c.txt")) == ["dir", "dir/c.txt"]
    assert _paths(tree, "d*", excludes=("dir", "!dir/c.txt")) == ["dir", "dir/c.txt"]
    assert _paths(tree, ".", excludes=("*", "!dir/none.txt")) == [""]


def test_a_link_does_not_reveal_what_is_ignored(tree: Path) -> None:
    (tree / "ln").symlink_to("a.txt")
    for hidden in ("a.txt", "ln"):
        with pytest.raises(InputError, match='"/ln": not found'):
            _select(tree, "ln", excludes=(hidden,))


def test_names_that_are_not_utf8_and_odd_ones(tree: Path) -> None:
    (tree / os.fsdecode(b"odd\xff")).mkdir()
    for name in (b"line\nbreak", b"tab\there", b"back\\slash", b"\xfe"):
        Path(os.fsdecode(os.fsencode(tree) + b"/odd\xff/" + name)).write_text("x")
    selection = _select(tree, "odd*")
    assert len(selection.entries) == 5
    lines = selection.listing().decode().splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        "odd\\xff", "odd\\xff/back\\x5cslash", "odd\\xff/line\\x0abreak", "odd\\xff/tab\\x09here", "odd\\xff/\\xfe",
    ]  # fmt: skip


@given(st.binary(min_size=1, max_size=20).filter(lambda name: 0 not in name), st.binary(min_size=1, max_size=20))
@settings(max_examples=200)
def test_printable_tells_all_names_apart(one: bytes, other: bytes) -> None:
    text = printable(os.fsdecode(one))
    assert text.isprintable()
    text.encode()
    assert (text == printable(os.fsdecode(other))) == (one == other)


def test_sockets_are_left_out_and_other_kinds_kept(tree: Path) -> None:
    os.mkfifo(tree / "dir/fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "dir/sock"))
    kinds = {entry.path: entry.type for entry in _select(tree, "dir").entries}
    assert kinds["dir/fifo"] == "fifo"
    assert "dir/sock" not in kinds
    with pytest.raises(InputError, match="not found") as caught:
        _select(tree, "dir/sock")
    assert "socket" in caught.value.hint


def test_stages_keep_owners_links_and_attributes_in_the_listing(tree: Path) -> None:
    os.link(tree / "dir/c.txt", tree / "dir/hard")
    os.setxattr(tree / "dir/c.txt", "user.note", b"x")
    context = _select(tree, "dir")
    stage = _select(tree, "dir", from_context=False)
    assert [entry.link for entry in context.entries] == [None] * 5
    assert len({entry.link for entry in stage.entries if entry.link}) == 1
    assert [entry.xattrs for entry in stage.entries if entry.link] == [(("user.note", b"x"),)] * 2
    assert b"user.note=78" in stage.listing()
    assert b"user.note" not in context.listing()


def test_without_hashing_no_file_is_read(tree: Path) -> None:
    (tree / "a.txt").chmod(0)
    selection = select(Copy(("a.txt",), "/x"), tree, (), hash_files=False)
    assert selection.entries[0].digest is None
    assert (selection.files, selection.bytes) == (1, 5)


def test_a_copy_of_inline_files_selects_nothing(tree: Path) -> None:
    selection = _select(tree)
    assert selection.entries == ()
    assert selection.digest == Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


def test_hundreds_of_directories_keep_few_descriptors_open(tree: Path) -> None:
    path = tree / "deep"
    for _ in range(400):
        path = path / "d"
    path.mkdir(parents=True)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 50, hard))
    try:
        assert len(_paths(tree, "deep")) == 401
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---------------------------------------------------------------- --parents, --exclude, mounts


def _taken(tree: Path, op: Copy, excludes: tuple[str, ...] = ()) -> list[str]:
    """Where each file lands below the destination."""
    selection = select(op, tree, excludes, hash_files=False)
    return [
        match.relative(selection.entries[index]) or f"({match.path or '.'})"
        for match in selection.matches
        for index in range(match.start, match.end)
    ]


@pytest.mark.parametrize(
    ("sources", "taken"),
    [
        (("dir/c.txt", "other/dir/e.txt"), ["(.)", "dir", "dir/c.txt", "(.)", "other", "other/dir", "other/dir/e.txt"]),
        (("dir/sub",), ["(.)", "dir", "dir/sub", "dir/sub/d.txt"]),
        (("other/./dir/*.txt",), ["(other)", "dir", "dir/e.txt"]),
        (("other/./dir/e.txt",), ["(other)", "dir", "dir/e.txt"]),
        (("./**/d*.txt",), ["(.)", "dir", "dir/sub", "dir/sub/d.txt"]),
        (("**/dir/*.txt",), ["(.)", "dir", "other", "dir/c.txt", "other/dir", "other/dir/e.txt"]),
        (("dir/./.",), ["(dir)", "c.txt", "sub", "sub/d.txt"]),
        (("nothing/*",), ["(.)"]),
        ((".",), ["(.)", "a.txt", "b.txt", "dir", "other", "dir/c.txt", "dir/sub", "dir/sub/d.txt", "other/dir",
                  "other/dir/e.txt"]),
    ],
)  # fmt: skip
def test_parents_keep_the_directories_that_lead_to_a_source(
    tree: Path, sources: tuple[str, ...], taken: list[str]
) -> None:
    assert _taken(tree, Copy(sources, "/x/", parents=True)) == taken


def test_parents_without_a_wildcard_need_their_source(tree: Path) -> None:
    for source in ("dir/none.txt", "none/./a", "a.txt/./b"):
        with pytest.raises(InputError, match="not found"):
            select(Copy((source,), "/x/", parents=True), tree, hash_files=False)
    with pytest.raises(InputError, match="dockerignore hides it"):
        select(Copy(("dir/c.txt",), "/x/", parents=True), tree, ("**/c.txt",), hash_files=False)


@pytest.mark.parametrize(
    ("sources", "excludes", "taken"),
    [
        ((".",), ("*.txt",), ["(.)", "dir", "other", "dir/c.txt", "dir/sub", "dir/sub/d.txt", "other/dir",
                              "other/dir/e.txt"]),
        ((".",), ("**/*.txt",), ["(.)", "dir", "other", "dir/sub", "other/dir"]),
        ((".",), ("dir", "other"), ["(.)", "a.txt", "b.txt"]),
        ((".",), ("dir", "!dir/sub/d.txt", "other"), ["(.)", "a.txt", "b.txt", "dir", "dir/sub", "dir/sub/d.txt"]),
        (("dir",), ("sub",), ["(dir)", "c.txt"]),
        (("dir",), ("dir", "dir/c.txt"), ["(dir)", "c.txt", "sub", "sub/d.txt"]),
        (("*.txt",), ("b*",), ["(a.txt)"]),
        (("a.txt", "b.txt"), ("*.txt",), []),
        (("*",), ("other", "a.txt", "b.txt"), ["(dir)", "c.txt", "sub", "sub/d.txt"]),
    ],
)  # fmt: skip
def test_excluded_paths_are_left_out_below_each_source(
    tree: Path, sources: tuple[str, ...], excludes: tuple[str, ...], taken: list[str]
) -> None:
    assert _taken(tree, Copy(sources, "/x/", excludes=excludes)) == taken


def test_parents_and_excludes_go_together_relative_to_the_kept_part(tree: Path) -> None:
    op = Copy(("other/./dir/*.txt", "dir"), "/x/", parents=True, excludes=("dir/sub", "dir/e.txt"))
    assert _taken(tree, op) == ["(other)", "(.)", "dir", "dir/c.txt"]


def test_a_mounted_path_is_no_pattern(tree: Path) -> None:
    (tree / "a[1]*").write_text("x")
    mount = Mount("bind", "/m", input=1, source="a[1]*")
    selection = select(source_of(mount, from_context=True), tree, hash_files=True, literal=True)
    assert [entry.path for entry in selection.entries] == ["a[1]*"]
    with pytest.raises(InputError, match="not found"):
        select(Copy(("a*",), "/"), tree, hash_files=True, literal=True)


@pytest.mark.parametrize(
    ("op", "asked"),
    [
        (Copy(("a/b*", "c"), "/"), ("a/b*", "c")),
        (Copy(("a/./b/*.txt", "c"), "/", parents=True), ("a/b/*.txt", "c")),
        (Copy(("a/**/x", "**/y", "./b/c**"), "/", parents=True), (".", ".", ".")),
        (Copy((".",), "/", parents=True), (".",)),
    ],
)
def test_what_is_asked_for_holds_all_that_is_taken(op: Copy, asked: tuple[str, ...]) -> None:
    assert tuple(source.strip("/") or "." for source in asked_of(op)) == asked


@pytest.mark.parametrize("there", [True, False])
def test_parents_take_nothing_beside_the_directory_whatever_is_there(tree: Path, there: bool) -> None:
    if there:
        (tree / "beside").write_text("b")
    with pytest.raises(InputError, match='"/beside": not found') as caught:
        select(Copy(("dir/./../beside",), "/x/", parents=True), tree, hash_files=False)
    assert caught.value.hint == 'it does not lie below "/dir"'


def _deep(root: Path, depth: int) -> None:
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


@pytest.fixture
def few_frames(tmp_path: Path) -> Iterator[Path]:
    """What recurses fails at a depth of hundreds already, but for what removes the directory afterwards."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(350)
    yield tmp_path
    sys.setrecursionlimit(limit)


@pytest.mark.usefixtures("few_frames")
def test_a_deep_tree_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _deep(tmp_path / "deep", 400)
    scans: list[str] = []
    scan = VisibleTree.scan

    def counting(visible: VisibleTree, path: str) -> object:
        scans.append(path)
        return scan(visible, path)

    monkeypatch.setattr(VisibleTree, "scan", counting)
    hidden = ("*", "!**/x")
    assert len(_select(tmp_path / "deep", ".", excludes=hidden).entries) == 402
    assert _select(tmp_path / "deep", ".", excludes=("*", "!**/y")).files == 0
    only = Copy((".",), "/x/", from_context=True, excludes=("**/d", "!**/x"))
    assert select(only, tmp_path / "deep", (), hash_files=False).files == 1
    assert len(scans) <= 6 * 401
    assert len(_select(tmp_path / "deep", "/".join(["*"] * 401)).entries) == 1


@pytest.mark.parametrize("victim", ["dir", "dir/sub"])
def test_a_directory_that_goes_away_while_it_is_read_is_a_changed_context(
    tree: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    scan = VisibleTree.scan

    def racing(self: VisibleTree, source: str) -> object:
        if source == victim:
            shutil.rmtree(tree / victim, ignore_errors=True)
        return scan(self, source)

    monkeypatch.setattr(VisibleTree, "scan", racing)
    with pytest.raises(InputError, match="changed during the build"):
        _select(tree, ".")


def test_parents_are_kept_of_a_directory_only(tree: Path) -> None:
    with pytest.raises(InputError, match=r'"/a\.txt": not found|does not lie below'):
        select(Copy(("a.txt/./*",), "/x/", from_context=True, parents=True), tree, (), hash_files=True)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_disk_that_cannot_be_read_is_told_with_the_name(
    tree: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "read", broken)
    with pytest.raises(DiskError, match=r"a\.txt: reading the files to copy"):
        _select(tree, "a.txt")


def test_a_file_that_becomes_another_kind_of_thing_while_it_is_looked_at_is_a_change(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat_of = os.fstat

    def swapped(fd: int) -> os.stat_result:
        info = stat_of(fd)
        return Path("/").stat() if stat.S_ISREG(info.st_mode) else info

    monkeypatch.setattr("engine.ops.select.os.fstat", swapped)
    with pytest.raises(InputError, match="changed during the build"):
        select(Copy((".",), "/x/", from_context=True), tree, (), hash_files=True)


def test_a_name_that_no_file_can_have_is_not_found(tmp_path: Path) -> None:
    for name in ("a" * 300, "/".join(["a" * 200] * 30)):
        with pytest.raises(InputError, match="not found"):
            select(Copy((f"/{name}",), "/"), tmp_path, hash_files=True)


def test_a_disk_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    tree = RootDir(tmp_path)
    tree.close()
    tree.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        VisibleTree(tree, ()).real("/f")


def test_parents_below_a_wildcard_may_be_anywhere() -> None:
    assert asked_of(Copy(("a*/./b",), "/", parents=True)) == ("/",)
