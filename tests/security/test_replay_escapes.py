"""A bundle of a stranger, replayed: whatever its graph and its listings name, nothing outside of the root changes."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.graph import Copy, GitSource, HttpSource, Op, Run, op_to_json
from engine.ops.keep import restore
from engine.ops.layer import Inode, Tree
from engine.stored import op_from_json
from storage.digest import sha256
from storage.errors import InputError, VerificationError
from storage.git import GitClient
from storage.interfaces.layers import Look
from storage.layers.tars import regular_files
from tests.builder import Builder, Done, base_image
from tests.registry_fixture import RegistryProcess
from tests.security.forging import Json, forge
from tests.web_fixture import Repository, WebServer, git_daemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

PLAIN = b"from the context\n"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, registry: RegistryProcess) -> Iterator[Path]:
    """Of a build that failed, after it took files of a context, of the web, of a repository and of the Dockerfile."""
    place = tmp_path_factory.mktemp("forged")
    base = base_image(registry, "t/security/forged", layers=1)["reference"]
    repository = Repository(place / "served" / "repo.git")
    commit = repository.commit({"sub/file": "in git\n"})
    builder = Builder(place)
    builder.write({"plain": PLAIN})
    with WebServer() as web, git_daemon(place / "served") as git:
        url = web.put("/file.txt", b"of the web")
        builder.build(
            f"FROM {base}\nCOPY plain /x/\nADD --checksum={sha256(b'of the web')} {url} /x/\n"
            f"ADD {git}/repo.git#{commit}:sub /x/\nCOPY <<name /x/\ntext\nname\nRUN exit 7\n"
        )
        done = builder.run("bundle", builder.builds()[0]["id"], "-o", str(place / "bundle"))
        assert done.code == 0, done.err
        yield place / "bundle"


@pytest.fixture
def replayed(bundle: Path, tmp_path: Path, outside: Path) -> Callable[..., Done]:
    """Replays it, forged, from its first step on, in a root of its own; nothing `outside` changes then."""
    builder = Builder(tmp_path / "replays")

    def replay(**how: Any) -> Done:
        done = builder.run("replay", forge(bundle, tmp_path / "forged.bundle", **how), "--all")
        assert builder.leftovers() == []
        assert "internal error" not in done.err
        return done

    return replay


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """Somebody's directory: it stays as it is."""
    place = tmp_path / "outside"
    place.mkdir(mode=0o755)
    (place / "precious").write_text("precious")
    yield place
    assert [(item.name, item.read_text()) for item in place.iterdir()] == [("precious", "precious")]
    assert place.stat().st_mode & 0o7777 == 0o755


def up(directory: Path, name: str) -> str:
    """A path that leads there from wherever it is read."""
    return "../" * 30 + str(directory / "outside" / name).lstrip("/")


ROWS: dict[str, Callable[[Path, bytes], bytes]] = {
    "a path that leads up": lambda at, good: b"%s\tfile\t0644\t%s\n" % (up(at, "evil").encode(), content(good)),
    "an absolute path": lambda at, good: b"%s/outside/evil\tfile\t0644\t%s\n" % (os.fsencode(at), content(good)),
    "a directory that leads up": lambda at, _: b"%s\tdir\t0777\t\n" % up(at, "evil").encode(),
    "the mode of a directory elsewhere": lambda at, _: b"%s/outside\tdir\t0777\t\n" % os.fsencode(at),
    "a content that is a path": lambda at, _: b"f\tfile\t0644\tsha256:%s\n" % up(at, "evil").encode(),
    "an attribute of overlayfs": lambda _, good: (
        b"f\tfile\t0644\t%s\ttrusted.overlay.opaque=79\n" % content(good)
    ),
    "an owner beyond all": lambda _, good: b"f\tfile\t0644\t%s\t99999999999:0\n" % content(good),
    "a device beyond all": lambda _, good: b"f\tchar\t0644\t99999999999999999999:1\n",
    "a name with a zero byte": lambda _, good: b"a\\x00b\tfile\t0644\t%s\n" % content(good),
    "no mode": lambda _, good: b"f\tfile\n",
    "an unknown kind": lambda _, good: b"f\tsocket\t0644\t\n",
}  # fmt: skip


def content(listing: bytes) -> bytes:
    return next(line.split(b"\t")[3] for line in listing.splitlines() if line.startswith(b"plain\t"))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.usefixtures("outside")
def test_a_listing_never_reaches_outside(tmp_path: Path, name: str) -> None:
    good = b"plain\tfile\t0644\t%s\n" % sha256(PLAIN).encode()
    forged = ROWS[name](tmp_path, good)
    pack = io.BytesIO(pack_of(up(tmp_path, "evil"), sha256(PLAIN).hex))
    with pytest.raises(VerificationError, match="a damaged listing of a context"):
        restore(forged, [], [regular_files(pack)], tmp_path / "root" / "context")


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("target", ["{at}/outside", "{up}"])
def test_what_lies_behind_a_link_is_made_inside(tmp_path: Path, target: str) -> None:
    link = target.format(at=tmp_path, up=up(tmp_path, ""))
    digest = str(sha256(PLAIN))
    listing = f"way\tsymlink\t0777\t{link}\nway/evil\tfile\t0644\t{digest}\nway\tdir\t0777\t\n".encode()
    pack = io.BytesIO(pack_of(sha256(PLAIN).hex))
    restore(listing, [], [regular_files(pack)], tmp_path / "root" / "context")
    assert (tmp_path / "root/context" / str(tmp_path / "outside/evil").lstrip("/")).read_bytes() == PLAIN


@pytest.mark.usefixtures("outside")
def test_a_link_of_one_listing_is_no_way_for_the_next(tmp_path: Path) -> None:
    dest = tmp_path / "root" / "context"
    restore(b"way\tsymlink\t0777\t%s/outside\n" % os.fsencode(tmp_path), [], [], dest)
    for row in (b"way/evil\tsymlink\t0777\tx\n", b"way\tdir\t0777\t\n"):
        restore(row, [], [], dest)
    assert (dest / str(tmp_path / "outside/evil").lstrip("/")).readlink() == Path("x")  # as COPY follows it


def test_a_sparse_member_of_a_pack_does_not_fill_the_disk(tmp_path: Path) -> None:
    member = tarfile.TarInfo(sha256(PLAIN).hex)
    member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0",
                          "GNU.sparse.size": str(1 << 60)}  # fmt: skip
    pack = regular_files(io.BytesIO(member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)))
    listing = b"plain\tfile\t0644\t%s\n" % sha256(PLAIN).encode()
    with pytest.raises(VerificationError, match="is not kept any more"):
        restore(listing, [], [pack], tmp_path / "context")


def pack_of(*names: str) -> bytes:
    pack = io.BytesIO()
    with tarfile.open(fileobj=pack, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(PLAIN)
            tar.addfile(info, io.BytesIO(PLAIN))
    return pack.getvalue()


# ---------------------------------------------------------------- from end to end


def test_what_is_forged_is_replayed(replayed: Callable[..., Done]) -> None:
    """The forging itself is sound: what it changes comes out."""
    def another(op: Json) -> None:
        if op.get("files"):
            op.update(files=[{"name": "name", "data": "another text"}])

    done = replayed(op=another)
    assert (done.code, "same failure" in done.out) == (1, True), done.err


def test_a_forged_listing_fails_the_replay(replayed: Callable[..., Done], tmp_path: Path) -> None:
    pack = pack_of(up(tmp_path, "evil"), sha256(PLAIN).hex)
    forged = ROWS["a path that leads up"]
    done = replayed(listing=lambda good: forged(tmp_path, good), pack=pack)
    assert done.code == 4, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("ERROR")]
    assert "a damaged listing of a context" in line


def test_a_forged_op_fails_the_replay(replayed: Callable[..., Done], tmp_path: Path) -> None:
    def lead_up(op: Json) -> None:
        if op["op"] == "http":
            op.update(filename=up(tmp_path, "evil"))

    done = replayed(op=lead_up)
    assert done.code == 2, (done.out, done.err)
    assert "cannot be a file's name" in done.out


def test_a_step_that_asks_for_more_is_not_given_it(replayed: Callable[..., Done]) -> None:
    done = replayed(op=lambda op: op.update(security="insecure") if op["op"] == "run" else None)
    assert "--allow security.insecure" in done.err + done.out


# ---------------------------------------------------------------- ops that no frontend makes


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("http", {"url": 5}), ("http", {"mtime": "now"}), ("copy", {"sources": [["a"]]}), ("copy", {"unpack": "yes"}),
        ("copy", {"files": [{"name": 7, "data": ""}]}), ("run", {"mounts": [{"kind": "bind", "target": 7}]}),
        ("run", {"argv": [b"sh"]}), ("run", {"env": [["A", 1]]}), ("git", {"subdir": None}),
    ],
)  # fmt: skip
def test_an_op_whose_fields_are_of_another_type_is_refused(kind: str, change: Json) -> None:
    ops: dict[str, Op] = {
        "http": HttpSource("http://h/f", "f"), "git": GitSource("git://h/r"), "copy": Copy(("a",), "/b"),
        "run": Run(("true",), (("A", "b"),), "/"),
    }  # fmt: skip
    good = ops[kind]
    assert op_from_json(op_to_json(good)) == good
    with pytest.raises(TypeError):
        op_from_json({**op_to_json(good), **change})


@pytest.mark.parametrize(
    ("commit", "subdir"),
    [("--output=evil", ""), ("HEAD", ""), ("a" * 40, "../outside"), ("a" * 40, "x/../../outside"), ("a" * 40, "/etc")],
)
def test_git_is_given_no_option_and_no_way_out(tmp_path: Path, commit: str, subdir: str) -> None:
    client = GitClient(tmp_path / "tmp", "a1", {})
    with pytest.raises(InputError, match="not a commit and a directory in it"):
        asyncio.run(client.checkout("git://127.0.0.1:1/r", commit, tmp_path / "tree", subdir=subdir))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../evil", "a\0b"])
def test_no_file_of_a_layer_has_a_name_that_leads_elsewhere(name: str) -> None:
    with Tree(None) as tree, pytest.raises(InputError, match="cannot be a file's name"):
        tree.put(tree.root, name, Inode("file", Look(0o644, 0, 0, 0), b""))
