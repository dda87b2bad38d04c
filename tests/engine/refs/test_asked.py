"""What a COPY --from asks for is what all layers would give, and only that moves."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine.errors import DiskError, InputError, MaterializationError
from engine.graph import Copy
from engine.ops.rules import asked_of
from engine.ops.select import select
from engine.refs.ref import Remote
from storage.digest import Digest
from storage.interfaces.images import Descriptor
from storage.parts.trees import DirectoryParts
from tests.chunked import Edit, Made, estargz, gzipped, zstd_chunked
from tests.engine.refs.kit import Kit, kit, push_layers, remote
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess, digest_of
from tests.storage.layers.trees import Member, file, info, make_tar
from tests.storage.registry.kit import noise

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


FORMS = {"plain": gzipped, "estargz": estargz, "zstd:chunked": zstd_chunked}

# ---------------------------------------------------------------- as all layers would

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TARGETS = st.one_of(PATHS, PATHS.map("/{}".format), PATHS.map("../{}".format), st.just("..  "), st.just("."))


@st.composite
def members(draw: st.DrawFn) -> tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]:
    path = draw(PATHS)
    parent, _, base = path.rpartition("/")
    prefix = parent + "/" if parent else ""
    mtime = draw(st.integers(1, 2**31))
    kind = draw(st.sampled_from(["file", "file", "file", "dir", "dir", "link", "hard", "whiteout", "opaque"]))
    if kind == "file":
        return file(path, draw(st.binary(max_size=40)), mtime=mtime, mode=draw(st.sampled_from([0o644, 0o4755])))
    if kind == "dir":
        return info(path, mtime=mtime, mode=draw(st.sampled_from([0o755, 0o1777])), uid=draw(st.integers(0, 9)))
    if kind == "link":
        return info(path, tarfile.SYMTYPE, linkname=draw(TARGETS), mtime=mtime)
    if kind == "hard":
        return info(path, tarfile.LNKTYPE, linkname=draw(PATHS))
    return file(prefix + (".wh." + base if kind == "whiteout" else ".wh..wh..opq"))


def sane(found: Sequence[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]]) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Members that make a layer: hard links have targets, nothing is below what is no directory."""
    out: list[tuple[tarfile.TarInfo, bytes]] = []
    kinds: dict[str, bytes] = {}
    late: list[tuple[tarfile.TarInfo, bytes]] = []
    for item in found:
        one, data = item if isinstance(item, tuple) else (item, b"")
        if ".wh." in one.name:
            late.append((one, data))
            continue
        if one.name in kinds or any(kinds.get(parent, tarfile.DIRTYPE) != tarfile.DIRTYPE for parent in above(one)):
            continue
        if one.type == tarfile.LNKTYPE and kinds.get(one.linkname, tarfile.DIRTYPE) == tarfile.DIRTYPE:
            continue
        kinds |= dict.fromkeys(above(one), tarfile.DIRTYPE)
        kinds[one.name] = tarfile.REGTYPE if one.type == tarfile.LNKTYPE else one.type
        out.append((one, data))
    gone = {one.name.replace(".wh.", "") for one, _ in late}
    for one, data in late:
        made = [kinds.get(way, b"" if way in gone else tarfile.DIRTYPE) for way in above(one)]
        if all(kind == tarfile.DIRTYPE for kind in made):
            out.append((one, data))
    return out


def above(one: tarfile.TarInfo) -> list[str]:
    return [one.name[:at] for at, char in enumerate(one.name) if char == "/"]


LAYERS = st.lists(
    st.tuples(st.sampled_from(list(FORMS)), st.lists(members(), min_size=1, max_size=8)), min_size=1, max_size=4
)
PATTERNS = st.one_of(
    PATHS,
    PATHS,
    st.sampled_from(["*", "a/*", "?/b", "a/*/c", "[ab]", ".", "b/*", "*/*"]),
    st.sampled_from(["a/./b", "a/./*/c", "/./a", "**/c", "a/**", "a/./.", "a/./../b", "b/./**/a", "a/../b", "*/./a"]),
)


def taken(op: Copy, tree: Path) -> list[object]:
    """What `op` sees in `tree`, with all that there is to it; or the error."""
    try:
        found = select(op, tree, hash_files=True)
    except InputError as error:
        return [str(error)]
    seen: list[object] = [found.listing()]
    inodes: dict[object, int] = {}
    for number, entry in enumerate(found.entries):
        path = tree / entry.source
        status = path.lstat()
        seen.append((entry.path, entry.source, status.st_mtime_ns if entry.source else 0))
        seen.append(inodes.setdefault(entry.link, number) if entry.link else number)
        for parent in path.parents if op.parents else ():
            if parent.is_relative_to(tree) and parent != tree:
                about = parent.stat()
                seen.append((about.st_mode, about.st_uid, about.st_mtime_ns))
    return seen


async def both_ways(parts: Kit, ref: Remote, op: Copy) -> tuple[object, object]:
    async with parts.asked.paths(ref, asked_of(op), vertex=None, needed_by="test", looks=op.parents) as lowers:
        with parts.snapshots.view(lowers) as tree:
            ours = taken(op, tree)
    whole = await parts.materializer.materialize(ref, vertex=None, reason="copy")
    with parts.snapshots.view(whole.lowers) as tree:
        return ours, taken(op, tree)


def compared(
    directory: Path, registry: RegistryProcess, repository: str, made: list[Made], op: Copy, *, erofs: bool
) -> tuple[object, object]:
    """What `op` sees of pushed layers when it asks for what it needs, and when they are all here. Nothing is left."""
    push_layers(registry.host, repository, made)
    with kit(directory, erofs=erofs) as parts:

        async def run() -> tuple[object, object]:
            try:
                return await both_ways(parts, remote([registry.host], repository, made), op)
            finally:
                await parts.registry.aclose()

        found = asyncio.run(run())
    assert parts.leftovers() == []
    return found


@settings(max_examples=25, phases=set(Phase) - {Phase.shrink}, suppress_health_check=list(HealthCheck))
@given(LAYERS, st.lists(PATTERNS, min_size=1, max_size=2), st.booleans(), st.booleans())
def test_paths_have_what_all_layers_would_give(
    registry: RegistryProcess,
    repository: str,
    layers: list[tuple[str, list[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]]]],
    sources: list[str],
    parents: bool,
    erofs: bool,
) -> None:
    made = [FORMS[form](make_tar(*sane(found))) for form, found in layers]
    op = Copy(tuple(sources), "/", from_context=False, parents=parents)
    directory = Path(tempfile.mkdtemp())
    try:
        ours, theirs = compared(directory, registry, repository, made, op, erofs=erofs)
        assert ours == theirs
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("form", list(FORMS))
def test_a_directory_that_is_only_implied_is_there_when_nothing_in_it_matches(
    registry: RegistryProcess, repository: str, tmp_path: Path, form: str
) -> None:
    made = [FORMS[form](make_tar(file("a/a/a", b"x")))]
    op = Copy(("a/./*/c",), "/", from_context=False, parents=True)
    ours, theirs = compared(tmp_path, registry, repository, made, op, erofs=True)
    assert ours == theirs == [b"a\tdir\t0755\t\n", ("a", "a", 0), 0]


# ---------------------------------------------------------------- only what is asked


def ask(
    parts: Kit, ref: Remote, *sources: str, looks: bool = False
) -> dict[str, bytes | None]:
    """What a COPY of `sources` would take: path → content, None for what is no file."""

    async def run() -> dict[str, bytes | None]:
        async with parts.asked.paths(ref, sources, vertex=None, needed_by="test", looks=looks) as lowers:
            with parts.snapshots.view(lowers) as tree:
                found = select(Copy(sources, "/", from_context=False), tree, hash_files=True)
                return {
                    entry.path: (tree / entry.source).read_bytes() if entry.type == "file" else None
                    for entry in found.entries
                }

    async def closing() -> dict[str, bytes | None]:
        try:
            return await run()
        finally:
            await parts.registry.aclose()

    return asyncio.run(closing())


STACK = [
    make_tar(file("etc/bottom", b"0"), info("usr"), info("usr/lib"), file("usr/lib/low", b"low"),
             file("bin/tool", b"t0"), info("opaque"),
             file("opaque/under", b"hidden"), file("gone", b"gone"), file("filler0", noise(9000, 0))),
    make_tar(file("etc/middle", b"1"), file("usr/lib/mid", b"mid"), file("real/data", b"data"),
             file("filler1", noise(9000, 1))),
    make_tar(info("lnk", tarfile.SYMTYPE, linkname="/real"), file(".wh.gone"), info("opaque"),
             file("opaque/.wh..wh..opq"), file("opaque/new", b"new"), file("filler2", noise(9000, 2))),
    make_tar(file("etc/top", b"3"), file("bin/tool", b"t3"), file("filler3", noise(9000, 3))),
]  # fmt: skip
"""Layers, bottom first."""


@pytest.mark.parametrize(
    ("source", "content", "layers"),
    [
        ("/etc/top", {"etc/top": b"3"}, {3}),
        ("/bin/tool", {"bin/tool": b"t3"}, {3}),
        ("/opaque/new", {"opaque/new": b"new"}, {3, 2}),
        ("/etc/middle", {"etc/middle": b"1"}, {3, 2, 1}),
        ("/etc/bottom", {"etc/bottom": b"0"}, {3, 2, 1, 0}),
        ("/lnk/data", {"lnk/data": b"data"}, {3, 2, 1}),
        ("/opaque", {"opaque": None, "opaque/new": b"new"}, {3, 2}),
        ("/opaque/n*", {"opaque/new": b"new"}, {3, 2}),
        ("/usr/lib", {"usr/lib": None, "usr/lib/low": b"low", "usr/lib/mid": b"mid"}, {3, 2, 1, 0}),
        ("/usr/*/mid", {"usr/lib/mid": b"mid"}, {3, 2, 1, 0}),
    ],
)
def test_the_search_ends_at_the_first_layer_that_answers(
    registry: RegistryProcess, repository: str, tmp_path: Path, source: str, content: object, layers: set[int]
) -> None:
    made = [gzipped(tar) for tar in STACK]
    push_layers(registry.host, repository, made)
    digests = [one.descriptor["digest"] for one in made]
    mark = registry.mark()
    with kit(tmp_path / "root") as parts:
        assert ask(parts, remote([registry.host], repository, made), source) == content
        assert {digests.index(line.blob) for line in registry.layer_gets(digests, since=mark)} == layers
        last = parts.events("Materialized")[-1]
        assert last["avoided"] == sum(one.descriptor["size"] for n, one in enumerate(made) if n not in layers)
        assert last["whole"] is (layers == {0, 1, 2, 3})
        assert parts.leftovers() == []


@pytest.mark.parametrize("source", ["/gone", "/opaque/under", "/etc/top/below"])
def test_what_is_hidden_is_not_found_and_what_hides_it_ends_the_search(
    registry: RegistryProcess, repository: str, tmp_path: Path, source: str
) -> None:
    made = [gzipped(tar) for tar in STACK]
    push_layers(registry.host, repository, made)
    digests = [one.descriptor["digest"] for one in made]
    mark = registry.mark()
    with kit(tmp_path / "root") as parts:
        with pytest.raises(InputError, match="not found"):
            ask(parts, remote([registry.host], repository, made), source)
        got = {digests.index(line.blob) for line in registry.layer_gets(digests, since=mark)}
        assert got == ({3} if source.startswith("/etc") else {3, 2})


def test_I2_every_layer_is_asked_for_in_the_log_before_it_moves(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = [gzipped(tar) for tar in STACK]
    push_layers(registry.host, repository, made)
    with kit(tmp_path / "root") as parts:
        ask(parts, remote([registry.host], repository, made), "/etc/middle")
        asked: set[str] = set()
        order = []
        for event in parts.root.log.read(types=frozenset({"MaterializationRequested", "PullStarted", "Materialized"})):
            order.append(event.type)
            if event.type == "MaterializationRequested":
                assert event.data["reason"] == "copy"
                asked |= set(event.data["layers"])
            elif event.type == "PullStarted":
                assert event.data["digest"] in asked
        assert order == ["MaterializationRequested", "PullStarted", "Materialized"] * 3


def test_what_is_here_costs_nothing_the_second_time(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = [gzipped(tar) for tar in STACK]
    push_layers(registry.host, repository, made)
    ref = remote([registry.host], repository, made)
    with kit(tmp_path / "root") as parts:
        ask(parts, ref, "/etc/middle")
    mark = registry.mark()
    with kit(tmp_path / "root", build="b2") as parts:
        assert ask(parts, ref, "/etc/middle") == {"etc/middle": b"1"}
        assert registry.requests()[mark:] == []
        last = parts.events("Materialized")[-1]
        assert (last["bytes"], last["avoided"]) == (0, made[0].descriptor["size"])


# ---------------------------------------------------------------- by range

BIG: list[Member] = [
    info("usr", mode=0o711), info("usr/share", mode=0o700, uid=5), file("usr/share/first", noise(400_000, 1)),
    file("usr/share/small", b"small file\n", mode=0o4755, uid=7, gid=8, mtime=1_600_000_000),
    info("usr/share/link", tarfile.SYMTYPE, linkname="small"), info("usr/share/hard", tarfile.LNKTYPE,
                                                                    linkname="usr/share/small"),
    file("usr/share/dir/x", b"x" * 5000), file("usr/share/dir/y", b""), file("usr/share/dir/z", noise(3000, 3)),
    *(file(f"opt/{n}", noise(20_000, n)) for n in range(40)), file("usr/share/last", noise(900_000, 2)),
]  # fmt: skip


@pytest.mark.parametrize("form", ["estargz", "zstd:chunked"])
@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("/usr/share/small", {"usr/share/small": b"small file\n"}),
        ("/usr/share/link", {"usr/share/link": b"small file\n"}),
        ("/usr/share/hard", {"usr/share/hard": b"small file\n"}),
        ("/usr/share/dir", {"usr/share/dir": None, "usr/share/dir/x": b"x" * 5000, "usr/share/dir/y": b"",
                            "usr/share/dir/z": noise(3000, 3)}),
        ("/usr/share/s*", {"usr/share/small": b"small file\n"}),
    ],
)  # fmt: skip
def test_of_a_layer_with_a_table_only_the_asked_files_move(
    registry: RegistryProcess, repository: str, tmp_path: Path, form: str, source: str, content: object
) -> None:
    made = FORMS[form](make_tar(*BIG))
    push_layers(registry.host, repository, [made])
    digest, size = made.descriptor["digest"], made.descriptor["size"]
    mark = registry.mark()
    with kit(tmp_path / "root", small=1000) as parts:
        assert ask(parts, remote([registry.host], repository, [made]), source) == content
        moved = registry.layer_gets([digest], since=mark)
        assert all(line.partial for line in moved)
        assert 0 < sum(line.bytes for line in moved) <= size * 0.05
        (table,), (files,) = parts.events("LayerTocRead"), parts.events("FilesFetched")
        assert table["bytes"] + files["bytes"] == sum(line.bytes for line in moved)
        assert files["avoided"] == size - table["bytes"] - files["bytes"]
        last = parts.events("Materialized")[-1]
        assert (last["avoided"], last["whole"]) == (files["avoided"], False)
        assert not (parts.root.path / "layers").exists() or list((parts.root.path / "layers").iterdir()) == []
        assert parts.leftovers() == []


@pytest.mark.parametrize("form", ["estargz", "zstd:chunked"])
def test_large_files_come_in_verified_chunks(
    registry: RegistryProcess, repository: str, tmp_path: Path, form: str
) -> None:
    data = noise(300_000, 9)
    tar = make_tar(file("other", noise(1_500_000, 8)), file("big", data), file("end", b"end"))
    made = FORMS[form](tar, chunk=70_001)  # type: ignore[call-arg]
    push_layers(registry.host, repository, [made])
    with kit(tmp_path / "root", small=1000) as parts:
        assert ask(parts, remote([registry.host], repository, [made]), "big", "end") == {"big": data, "end": b"end"}
        assert [event["files"] for event in parts.events("FilesFetched")] == [2]


def test_the_table_of_a_layer_that_has_nothing_of_it_is_all_that_moves(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = [gzipped(STACK[0]), estargz(make_tar(*BIG)), zstd_chunked(make_tar(*BIG[:-1]))]
    push_layers(registry.host, repository, made)
    digests = [one.descriptor["digest"] for one in made]
    mark = registry.mark()
    with kit(tmp_path / "root", small=20_000) as parts:
        assert ask(parts, remote([registry.host], repository, made), "/etc/bottom") == {"etc/bottom": b"0"}
        came = dict.fromkeys(digests, 0)
        for line in registry.layer_gets(digests, since=mark):
            came[line.blob] += line.bytes
        assert came[digests[0]] == made[0].descriptor["size"]
        for n in (1, 2):
            assert 0 < came[digests[n]] < made[n].descriptor["size"] * 0.02
        assert parts.events("FilesFetched") == []
        assert [event["layers"] for event in parts.events("MaterializationRequested")] == [
            [digests[n]] for n in (2, 1, 0)
        ], "nobody asks for what does not move"
        assert parts.events("Materialized")[-1]["avoided"] == sum(
            made[n].descriptor["size"] - came[digests[n]] for n in (1, 2)
        )


def test_a_small_layer_comes_whole_though_it_has_a_table(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = [estargz(make_tar(*BIG[:8]))]
    push_layers(registry.host, repository, made)
    with kit(tmp_path / "root", small=made[0].descriptor["size"]) as parts:
        found = ask(parts, remote([registry.host], repository, made), "/usr/share/small")
        assert found == {"usr/share/small": b"small file\n"}
        assert parts.events("LayerTocRead") == []
        assert [event["bytes"] for event in parts.events("LayerPulled")] == [made[0].descriptor["size"]]


def test_when_most_of_a_layer_is_asked_for_all_of_it_comes_and_stays(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = estargz(make_tar(*BIG))
    push_layers(registry.host, repository, [made])
    with kit(tmp_path / "root", small=1000) as parts:
        assert len(ask(parts, remote([registry.host], repository, [made]), "/")) > 50
        assert [event["digest"] for event in parts.events("LayerPulled")] == [made.descriptor["digest"]]
        assert parts.events("Materialized")[-1]["whole"] is True
        assert parts.materializer.layers.has(Digest(made.descriptor["diff_id"]))


# ---------------------------------------------------------------- what goes wrong


def spoil(registry: RegistryProcess, made: Made, at: int) -> None:
    """Flip a byte of the registry's copy."""
    path = registry.blob_path(made.descriptor["digest"])
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def place_of(made: Made, name: str) -> int:
    """An offset within the compressed content of file `name`."""
    return next(int(told["offset"]) for told in made.toc["entries"] if told["name"] == name) + 15


@pytest.mark.parametrize("form", ["estargz", "zstd:chunked"])
@pytest.mark.parametrize("where", ["chunk", "table"])
def test_I3_a_provider_that_lies_is_left_for_the_next_one(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, tmp_path: Path, form: str, where: str
) -> None:
    made = FORMS[form](make_tar(*BIG, file("salt", f"{form}{where}".encode())))
    for one in (registry, second_registry):
        push_layers(one.host, repository, [made])
    spoil(registry, made, place_of(made, "usr/share/dir/z") if where == "chunk" else len(made.blob) - 500)
    with kit(tmp_path / "root", small=1000) as parts:
        ref = remote([registry.host, second_registry.host], repository, [made])
        assert ask(parts, ref, "usr/share/dir/z") == {"usr/share/dir/z": noise(3000, 3)}
        (failure,) = parts.events("PullFailed")
        assert failure["class"] == "corrupt"
        assert failure["provider"]["registry"] == registry.host
        assert failure["bytes"] > 0
        (right,) = parts.events("FilesFetched" if where == "chunk" else "LayerTocRead")
        assert right["provider"]["registry"] == second_registry.host
        assert parts.leftovers() == []


def test_I3_a_chunk_that_nobody_has_right_leaves_nothing_and_fails_with_the_layer(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = estargz(make_tar(*BIG, file("salt", b"nobody")))
    push_layers(registry.host, repository, [made])
    spoil(registry, made, place_of(made, "usr/share/dir/z"))
    with kit(tmp_path / "root", small=1000) as parts:
        with pytest.raises(MaterializationError, match="cannot be had") as caught:
            ask(parts, remote([registry.host], repository, [made]), "usr/share/dir/z")
        assert caught.value.exit_code == 4
        assert parts.leftovers() == []
        assert not parts.materializer.layers.has(Digest(made.descriptor["diff_id"]))


def test_a_full_disk_is_said_of_files_that_are_asked_for_and_no_provider_is_blamed(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = estargz(make_tar(*BIG, file("salt", b"full")))
    push_layers(registry.host, repository, [made])
    with kit(tmp_path / "root", small=1000) as parts:
        tmp = parts.root.tmp
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp], check=True)
        try:
            with pytest.raises(OSError, match="No space"), (tmp / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
            with pytest.raises(DiskError, match="No space left on device"):
                ask(parts, remote([registry.host], repository, [made]), "usr/share/dir/z")
            assert [path.name for path in tmp.iterdir()] == ["filler"]
        finally:
            subprocess.run(["umount", "--lazy", tmp], check=True)
        (failed,) = parts.events("MaterializationFailed")
        assert (failed["class"], failed["providers"]) == ("disk", [])
        assert parts.events("PullFailed") == []


def set_in(name: str, /, **fields: object) -> Edit:
    """An edit of the entry called `name`."""
    return lambda toc: next(told for told in toc["entries"] if told["name"] == name).update(fields)


HOSTILE: dict[str, Edit] = {
    "leads out": set_in("opt/1", name="../../etc/passwd"),
    "below a link": lambda toc: toc["entries"].append({"type": "reg", "name": "usr/share/link/x", "mode": 0o644}),
    "no list": lambda toc: toc.update(entries="none"),
    "not objects": lambda toc: toc.update(entries=[1, 2]),
    "unknown type": set_in("opt/1", type="door"),
    "link to nothing": set_in("usr/share/hard", linkName="usr/share/absent"),
    "link to itself": set_in("usr/share/hard", linkName="usr/share/hard"),
    "offset behind the end": set_in("usr/share/small", offset=2**50),
    "negative offset": set_in("usr/share/small", offset=-5),
    "offset of a header": set_in("usr/share/small", offset=3),
    "huge size": set_in("usr/share/small", size=2**62),
    "size is text": set_in("usr/share/small", size="11"),
    "wrong chunk digest": set_in("usr/share/small", chunkDigest=digest_of(b"other")),
    "no digest": set_in("usr/share/small", chunkDigest="", digest=""),
    "chunks overlap": set_in("usr/share/small", chunkSize=4),
    "too far inside": set_in("usr/share/small", innerOffset=2**40),
    "bad owner": set_in("usr/share/small", uid=2**40),
    "bad time": set_in("usr/share/small", modtime="yesterday"),
    "bad xattr": set_in("usr/share/small", xattrs={"user.x": "*"}),
    "replaced name": set_in("opt/1", name="opt/\ufffd"),
    "zero in a name": set_in("opt/1", name="opt/\0"),
    "many entries": lambda toc: toc["entries"].extend([{}] * 400_001),
}


@pytest.mark.parametrize("form", ["estargz", "zstd:chunked"])
@pytest.mark.parametrize("case", HOSTILE)
def test_of_a_hostile_table_nothing_is_believed_and_the_layer_comes_whole(
    registry: RegistryProcess, repository: str, tmp_path: Path, form: str, case: str
) -> None:
    made = FORMS[form](make_tar(*BIG), edit=HOSTILE[case])  # type: ignore[call-arg]
    push_layers(registry.host, repository, [made])
    with kit(tmp_path / "root", small=1000) as parts:
        found = ask(parts, remote([registry.host], repository, [made]), "usr/share/small")
        assert found == {"usr/share/small": b"small file\n"}
        assert [event["digest"] for event in parts.events("LayerPulled")] == [made.descriptor["digest"]]
        assert "table of contents" in parts.events("PullFailed")[0]["error"]
        assert parts.leftovers() == []


@pytest.mark.parametrize("annotation", ["", "sha256:12", "md5:" + "0" * 32, "sha256:" + "0" * 64])
def test_without_the_right_digest_in_the_manifest_a_layer_is_like_any_other(
    registry: RegistryProcess, repository: str, tmp_path: Path, annotation: str
) -> None:
    made = estargz(make_tar(*BIG))
    notes = {"containerd.io/snapshot/stargz/toc.digest": annotation} if annotation else {}
    made = replace(made, descriptor={**made.descriptor, "annotations": notes})
    push_layers(registry.host, repository, [made])
    with kit(tmp_path / "root", small=1000) as parts:
        assert ask(parts, remote([registry.host], repository, [made]), "usr/share/small")
        assert len(parts.events("LayerPulled")) == 1


def test_a_registry_without_ranges_is_asked_for_the_layer(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = estargz(make_tar(*BIG))
    push_layers(registry.host, repository, [made])
    with (
        FaultyProxy(registry.host, Fault(strip=("range",))) as proxy,
        kit(tmp_path / "root", small=1000) as parts,
    ):
        ref = remote([f"127.0.0.1:{proxy.port}"], repository, [made])
        assert ask(parts, ref, "usr/share/small") == {"usr/share/small": b"small file\n"}
        assert "whole only" in parts.events("PullFailed")[0]["error"]
        assert len(parts.events("LayerPulled")) == 1


def test_a_disk_that_cannot_be_read_is_said(
    registry: RegistryProcess, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = gzipped(make_tar(file("f", b"broken")))
    push_layers(registry.host, repository, [made])

    def broken(_self: object, _lower: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(DirectoryParts, "tree", broken)
    with kit(tmp_path / "root") as parts, pytest.raises(DiskError, match="Input/output error"):
        ask(parts, remote([registry.host], repository, [made]), "f")


def test_what_is_stored_did_not_have_to_come_either_way(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    below, above = (gzipped(make_tar(file(name, name.encode() * 50))) for name in ("below", "above"))
    push_layers(registry.host, repository, [below, above])
    with kit(tmp_path / "root") as parts:
        parts.materializer.blobs.put(below.blob)
        assert ask(parts, remote([registry.host], repository, [below, above]), "above") == {"above": b"above" * 50}
        assert parts.events("Materialized")[-1]["unfetched"] == []


def test_only_so_many_tables_of_contents_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.refs.asked._KEPT", 1)
    blobs = [Descriptor("t", Digest(f"sha256:{number:064}"), 1) for number in range(2)]
    table: Any = object()
    with kit(tmp_path / "root") as parts:
        for blob in blobs:
            parts.asked.keep(blob, table)
        assert [parts.asked.toc(blob) for blob in blobs] == [None, table]


@pytest.mark.parametrize("parents", [True, False])
def test_a_file_that_two_sources_lead_to_is_the_same_wherever_its_other_names_are(
    registry: RegistryProcess, repository: str, tmp_path: Path, parents: bool
) -> None:
    link = info("other", tarfile.LNKTYPE, linkname="a/c/x")
    made = [estargz(make_tar(file("a/c/x", b"abc"), link))]
    ours, theirs = compared(
        tmp_path, registry, repository, made, Copy(("a", "a/c"), "/", from_context=False, parents=parents), erofs=False
    )
    assert ours == theirs
