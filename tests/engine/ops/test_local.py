"""The executor's own steps: what they ask of their base, and what they leave when they are stopped."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import InputError, MaterializationError
from engine.grants import Grants
from engine.graph import ContextSource, Copy, Mkdir, Op, Scratch, vertex
from engine.ops.executor import Outcome, Task
from engine.ops.local import LocalExecutor
from engine.ops.select import select
from engine.refs.ref import Layer, Remote, scratch
from storage.digest import sha256
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.layers import Snapshot
from storage.layers.snapshots import OverlaySnapshots
from storage.overlay import detach_below, mounts_below
from tests.waiting import PATIENCE
from tools.bootstrap import engine
from tools.roots import Root, open_root

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

NOWHERE = Remote(
    "sha256:big",
    (Layer(sha256(b"big"), Descriptor("application/vnd.oci.image.layer.v1.tar", sha256(b"b"), 1 << 30),
           (Provider.of("localhost:1", "gone"),)),),
)  # fmt: skip


@contextmanager
def _root(path: Path) -> Iterator[Root]:
    with open_root(path / "root") as root:
        try:
            yield root
        finally:
            detach_below(path)


def _execute(root: Root, ctx: Path, op: Op, *bases: Remote) -> Outcome:
    async def run() -> Outcome:
        made, registry = engine(root, "b1", None, {}, "directory", Grants())
        try:
            selection = select(op, ctx, (), hash_files=True) if isinstance(op, Copy) else None
            step = vertex(op, (), "a step")
            task = Task(step, f"b1-{step.digest.short}", 1, bases, str(ctx), selection=selection, epoch=1_600_000_000)
            return await made.executor.execute(task)
        finally:
            await registry.aclose()

    return asyncio.run(run())


def _tree(root: Root, ref: Remote) -> Path:
    return root.path / "snapshots" / ref.layers[-1].snapshot / "fs"


def _types(root: Root) -> list[str]:
    return [event.type for event in root.log.read()]


@pytest.fixture
def ctx(tmp_path: Path) -> Path:
    path = tmp_path / "ctx"
    (path / "d").mkdir(parents=True)
    (path / "d/f").write_text("content")
    return path


def test_a_linked_copy_asks_nothing_of_its_base(tmp_path: Path, ctx: Path) -> None:
    with _root(tmp_path) as root:
        outcome = _execute(root, ctx, Copy(("d",), "/new/d/", chown="7:8", link=True), NOWHERE)
        made = _tree(root, outcome.ref)
        assert outcome.ref.layers[:-1] == NOWHERE.layers
        assert (made / "new/d/f").read_text() == "content"
        assert {(p.stat().st_uid, p.stat().st_gid) for p in made.rglob("*")} == {(7, 8)}
        assert "MaterializationRequested" not in _types(root)
        created = next(event for event in root.log.read() if event.type == "LocalCreated")
        assert (created.data["parent"], created.data["bytes"]) == (NOWHERE.id, 7)


@pytest.mark.parametrize("op", [Copy(("d",), "/d/"), Mkdir("/d"), Copy(("d",), "/d/", chown="app", link=True)])
def test_any_other_needs_the_files_of_its_base(tmp_path: Path, ctx: Path, op: Op) -> None:
    with _root(tmp_path) as root:
        with pytest.raises(MaterializationError):
            _execute(root, ctx, op, NOWHERE)
        assert "MaterializationRequested" in _types(root)


def test_a_linked_copy_does_not_see_the_links_of_its_base_but_its_users(tmp_path: Path, ctx: Path) -> None:
    with _root(tmp_path) as root:
        (ctx / "passwd").write_text("app:x:41:42::/:/bin/sh\n")
        (ctx / "lnk").symlink_to("/elsewhere")
        (ctx / "base").mkdir()
        (ctx / "lnk").rename(ctx / "base/lnk")
        base = _execute(root, ctx, Copy(("passwd",), "/etc/"), scratch()).ref
        base = _execute(root, ctx, Copy(("base",), "/"), base).ref
        followed = _execute(root, ctx, Copy(("d",), "/lnk/", chown="app"), base).ref
        linked = _execute(root, ctx, Copy(("d",), "/lnk/", chown="app", link=True), base).ref
        assert (_tree(root, followed) / "elsewhere/f").stat().st_uid == 41
        assert not (_tree(root, followed) / "lnk").exists()
        assert (_tree(root, linked) / "lnk/f").stat().st_uid == 41
        assert not (_tree(root, linked) / "elsewhere").exists()


def test_a_failed_step_leaves_nothing(tmp_path: Path, ctx: Path) -> None:
    with _root(tmp_path) as root:
        for op in (Copy(("d/f", "d"), "/x"), Copy(("d",), "/d/", chown="nobody")):
            with pytest.raises(InputError):
                _execute(root, ctx, op, scratch())
        assert [*root.tmp.iterdir(), *(root.path / "snapshots").iterdir(), *mounts_below(root.path)] == []
        assert "LocalCreated" not in _types(root)


def test_a_step_that_changes_nothing_is_a_layer_too(tmp_path: Path, ctx: Path) -> None:
    with _root(tmp_path) as root:
        base = _execute(root, ctx, Copy(("d",), "/d/"), scratch()).ref
        for op in (Copy(("nothing*",), "/d/"), Mkdir("/d")):
            made = _execute(root, ctx, op, base).ref
            assert len(made.layers) == 2
            assert list(_tree(root, made).iterdir()) == []


def test_an_image_of_nothing_is_no_step_and_a_context_is_none(tmp_path: Path, ctx: Path) -> None:
    with _root(tmp_path) as root:
        assert _execute(root, ctx, Scratch()).ref == scratch()
        with pytest.raises(AssertionError, match="a context has no ref"):
            _execute(root, ctx, ContextSource())


def test_a_step_that_is_cancelled_twice_while_it_mounts_leaves_no_mount(tmp_path: Path, ctx: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    class Slow(OverlaySnapshots):
        """Takes its time."""

        def begin(self, ref: str, lowers: Sequence[Path]) -> Snapshot:
            inside.set()
            assert go_on.wait(PATIENCE)
            return super().begin(ref, lowers)

    nothing: Any = None  # of the other collaborators
    store = Slow(tmp_path / "snapshots", tmp_path / "tmp", "b1")
    executor = LocalExecutor(nothing, nothing, store, nothing, nothing, nothing, nothing, nothing)
    base: Any = SimpleNamespace(lowers=(ctx,))

    async def run() -> None:
        beginning = asyncio.ensure_future(executor._begin(Task(vertex(Scratch(), (), "x"), "b1-x", 1, ()), base))
        while not inside.is_set():
            await asyncio.sleep(0.01)
        for _ in range(2):
            beginning.cancel()
            await asyncio.sleep(0.02)
        ended = beginning.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await beginning
        assert not ended

    try:
        asyncio.run(run())
        assert [*(tmp_path / "tmp").iterdir(), *mounts_below(tmp_path)] == []
    finally:
        detach_below(tmp_path)
