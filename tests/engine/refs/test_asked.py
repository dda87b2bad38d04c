"""What a COPY --from asks for is what all layers would give, and only that moves."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.graph import Copy
from engine.ops.select import select
from engine.refs.ref import Remote
from tests.chunked import Made, estargz, zstd_chunked
from tests.engine.refs.kit import Kit, kit, push_layers, remote
from tests.registry_fixture import OCI_LAYER, RegistryProcess, digest_of
from tests.storage.trees import file, info, make_tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


def plain(tar: bytes) -> Made:
    """An ordinary gzip layer."""
    blob = gzip.compress(tar, mtime=0)
    return Made(blob, {"mediaType": OCI_LAYER, "digest": digest_of(blob), "size": len(blob),
                       "diff_id": digest_of(tar)}, {})  # fmt: skip


FORMS = {"plain": plain, "estargz": estargz, "zstd:chunked": zstd_chunked}

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
PATTERNS = st.one_of(PATHS, PATHS, st.sampled_from(["*", "a/*", "?/b", "a/*/c", "[ab]", ".", "b/*", "*/*"]))


def taken(tree: Path, sources: Sequence[str], *, looks: bool) -> list[object]:
    """What a COPY of `sources` sees in `tree`, with all that there is to it; or the error."""
    try:
        found = select(Copy(tuple(sources), "/", from_context=False), tree, hash_files=True)
    except InputError as error:
        return [str(error)]
    seen: list[object] = [found.listing()]
    inodes: dict[object, int] = {}
    for number, entry in enumerate(found.entries):
        path = tree / entry.source
        status = path.lstat()
        seen.append((entry.path, entry.source, status.st_mtime_ns if entry.source else 0))
        seen.append(inodes.setdefault(entry.link, number) if entry.link else number)
        for parent in path.parents if looks else ():
            if parent.is_relative_to(tree) and parent != tree:
                about = parent.stat()
                seen.append((about.st_mode, about.st_uid, about.st_mtime_ns))
    return seen


async def both_ways(parts: Kit, ref: Remote, sources: Sequence[str], *, looks: bool) -> tuple[object, object]:
    async with parts.asked.paths(ref, sources, vertex=None, needed_by="test", looks=looks) as lowers:
        with parts.snapshots.view(lowers) as tree:
            ours = taken(tree, sources, looks=looks)
    whole = await parts.materializer.materialize(ref, vertex=None, reason="copy")
    with parts.snapshots.view(whole.lowers) as tree:
        return ours, taken(tree, sources, looks=looks)


@settings(max_examples=25, deadline=None, phases=set(Phase) - {Phase.shrink}, suppress_health_check=list(HealthCheck))
@given(LAYERS, st.lists(PATTERNS, min_size=1, max_size=2), st.booleans())
def test_paths_have_what_all_layers_would_give(
    registry: RegistryProcess,
    repository: str,
    layers: list[tuple[str, list[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]]]],
    sources: list[str],
    looks: bool,
) -> None:
    made = [FORMS[form](make_tar(*sane(found))) for form, found in layers]
    push_layers(registry.host, repository, made)
    directory = Path(tempfile.mkdtemp())
    try:
        with kit(directory) as parts:

            async def run() -> tuple[object, object]:
                try:
                    return await both_ways(parts, remote([registry.host], repository, made), sources, looks=looks)
                finally:
                    await parts.registry.aclose()

            ours, theirs = asyncio.run(run())
            assert ours == theirs
            assert parts.leftovers() == []
    finally:
        shutil.rmtree(directory)
