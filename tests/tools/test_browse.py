"""`refledger browse`: what a person sees of a root or a bundle after some keys; nothing is written, nobody is asked."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

import pytest
from textual.widgets import Static

from storage.errors import VerificationError
from tests.builder import PROJECT, Builder, base_image
from tests.registry_fixture import RegistryProcess
from tests.state import state_of
from tests.tools.test_offline_reading import SCRIPT
from tests.waiting import PATIENCE
from tools.cli.browse.browser import Browser
from tools.cli.browse.command import open_source
from tools.cli.browse.nodes import Node, tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

DOCKERFILE = "FROM {base}\nCOPY a /copied/a\nRUN echo made > /made; ln -s /made /link; rm /data/1\n"
FAILING = DOCKERFILE + "RUN printf 'moved \\033[2J\\033]0;title\\007 [bold]here'; exit 7\n"


@dataclass(frozen=True)
class Built:
    """A build that ran, the same one cached, one that failed at a further step; and a bundle of the last."""

    builder: Builder
    bundle: Path
    registry: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, registry: RegistryProcess) -> Built:
    directory = tmp_path_factory.mktemp("browse")
    builder = Builder(directory)
    base = base_image(registry, "t/browse/base", layers=2)["reference"]
    builder.write({"a": "content"})
    builder.must_build(DOCKERFILE.format(base=base))
    builder.must_build(DOCKERFILE.format(base=base))
    assert builder.build(FAILING.format(base=base)).code == 1
    bundle = directory / "failed.bundle"
    done = builder.run("bundle", builder.builds()[0]["id"], "-o", str(bundle))
    assert done.code == 0, done.err
    return Built(builder, bundle, registry.host)


def screen(app: Browser) -> str:
    """The characters on the screen, a line a row."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


def see(place: Path, keys: Sequence[str], width: int = 100, height: int = 60) -> str:
    """The screen after `keys`; those of several characters that no key is called are typed."""

    async def walk() -> str:
        with open_source(place) as source:
            app = Browser(tree(source))
            async with app.run_test(size=(width, height)) as pilot:
                for key in keys:
                    await pilot.press(*([key] if key in {"enter", "escape", "up", "down"} else key))
                    await pilot.pause()
                seen = ""
                while seen != (seen := screen(app)):  # on a busy machine a pause may be over before all is drawn
                    await pilot.pause()
                return seen

    return asyncio.run(walk())


def test_the_builds_are_listed_with_why_they_ran(built: Built) -> None:
    seen = see(built.builder.root, [])
    records = built.builder.builds()
    at = [seen.index(record["id"][:12]) for record in records]
    assert at == sorted(at)
    assert "failed" in seen.splitlines()[1]
    assert "completed" in seen.splitlines()[2]
    assert "exit code 7" in seen
    assert "2 cached" in seen


def test_arrows_enter_and_escape_walk_to_the_reason_of_a_hit_and_back(built: Built) -> None:
    steps = see(built.builder.root, ["down", "enter", "RUN"])
    assert "cached" in steps.splitlines()[1]
    assert f"cached: made by build {built.builder.builds()[2]['id']}" in steps
    back = see(built.builder.root, ["down", "enter", "RUN", "escape", "escape"])
    assert all(record["id"][:12] in back for record in built.builder.builds())


def test_a_step_that_failed_shows_its_reason_and_its_output_without_control_characters(built: Built) -> None:
    seen = see(built.builder.root, ["enter", "printf"])
    assert "failed" in seen.splitlines()[1]
    assert "moved" in seen
    assert "\\x1b]0;title\\x07 [bold]here" in seen
    assert "\x1b" not in seen
    assert "\x07" not in seen


def test_events_are_filtered_while_one_types(built: Built) -> None:
    events = ["enter", "events", "enter"]
    assert "GraphDefined" in see(built.builder.root, events)
    seen = see(built.builder.root, [*events, "vertexfailed"])
    assert "VertexFailed" in seen
    assert "GraphDefined" not in seen
    assert "1 of " in seen.splitlines()[0]
    assert "GraphDefined" in see(built.builder.root, [*events, "vertexfailed", "escape"])
    assert "nothing matches" in see(built.builder.root, [*events, "nosuchevent"])


def test_the_files_of_a_step_s_layer_are_listed(built: Built) -> None:
    layers = ["down", "down", "enter", "RUN", "enter", "ref", "enter"]
    seen = see(built.builder.root, layers)
    assert "snapshot" in seen
    files = see(built.builder.root, [*layers, "snapshot", "up", "enter"])
    assert "0644" in files
    assert "made" in files
    assert "link -> /made" in files
    assert "deleted" in files


def test_files_that_are_not_here_are_said_to_lie_where_they_lie(built: Built, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(built.builder.root), str(root)], check=True)
    for name in ("layers", "blobs"):
        shutil.rmtree(root / name, ignore_errors=True)
    seen = see(root, ["down", "down", "enter", "RUN", "enter", "ref", "enter"])
    assert f"not here: at {built.registry}/t/browse/base" in seen
    assert "its files cannot be listed" in seen


def test_a_bundle_is_walked_like_a_root(built: Built, tmp_path: Path) -> None:
    bundle = tmp_path / "b"
    shutil.copy(built.bundle, bundle)
    seen = see(bundle, [])
    assert "(1)" in seen.splitlines()[0]
    records = built.builder.builds()
    assert records[0]["id"][:12] in seen
    assert "failed" in seen.splitlines()[1]
    step = see(bundle, ["enter", "printf"])
    assert "failed" in step.splitlines()[1]
    assert "moved \\x1b" in step
    layers = ["enter", "RUN echo", "enter", "ref", "enter"]
    assert f"not here: at {built.registry}/t/browse/base" in see(bundle, layers)
    files = see(bundle, [*layers, "bundle", "up", "enter"])
    assert "link -> /made" in files
    assert "deleted data/1" in files


def test_a_narrow_window_cuts_and_does_not_wrap(built: Built) -> None:
    lines = see(built.builder.root, ["enter"], width=60, height=24).splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 60 for line in lines)
    assert sum("RUN printf" in line for line in lines[1:7]) == 1


@pytest.mark.parametrize("place", ["root", "bundle"])
def test_without_a_terminal_it_is_one_line(built: Built, place: str) -> None:
    done = built.builder.run("browse", str(built.bundle if place == "bundle" else built.builder.root))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "terminal" in done.err


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    outer, inner = pty.openpty()
    ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    yield outer, inner
    os.close(outer)


def test_I13_it_needs_no_network_and_leaves_a_read_only_root_as_it_was(
    built: Built, tmp_path: Path, terminal: tuple[int, int]
) -> None:
    root = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(built.builder.root), str(root)], check=True)
    state = state_of(root)
    outer, inner = terminal
    args = ["unshare", "-n", "-m", "sh", "-c", SCRIPT, str(root), sys.executable, "-m", "tools.cli.main"]
    env = {**built.builder.env, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    process = subprocess.Popen([*args, "browse", str(root)], cwd=PROJECT, env=env, stdin=inner, stdout=inner,
                               stderr=inner, start_new_session=True)  # fmt: skip
    os.close(inner)
    read_until(outer, b"completed")
    os.write(outer, b"\x1b[B\r")  # faster than anything is drawn
    read_until(outer, f"> build {built.builder.builds()[1]['id']}".encode())
    os.write(outer, b"\x03")
    read_until(outer, None)
    assert process.wait(PATIENCE) == 0
    assert state_of(root) == state


def test_starting_other_commands_does_not_load_the_terminal_library() -> None:
    code = "import sys, tools.cli.main, tools.cli.browse; sys.exit('textual' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


def test_a_damaged_bundle_shows_what_could_be_read_and_then_says_so(built: Built, tmp_path: Path) -> None:
    bundle = tmp_path / "b"
    bundle.write_bytes(built.bundle.read_bytes()[:-50])
    with pytest.raises(VerificationError) as caught, open_source(bundle) as source:
        assert [node.name for node in tree(source).children()] == [f"build {built.builder.builds()[0]['id']}"]
    assert str(bundle) in str(caught.value)


def read_until(fd: int, text: bytes | None) -> None:
    """Until `text` was written (None: until the other end is closed)."""
    seen = b""
    while text is None or text not in seen:
        assert select.select([fd], [], [], PATIENCE)[0], seen[-2000:]
        try:
            seen += os.read(fd, 65536)
        except OSError:
            assert text is None, seen[-2000:]
            return


def test_an_event_of_a_million_characters_is_told_in_part_and_at_once() -> None:
    top = Node("top", "top", lambda: [Node("event", "event", lines=lambda _: iter(["first", "x" * 1_000_000, "last"]))])

    async def said() -> str:
        app = Browser(top)
        async with app.run_test(size=(100, 40)) as pilot:
            await pilot.pause()
            return str(app.query_one("#said", Static).content)

    text = asyncio.run(said())
    assert text.startswith("first\nxxx")
    assert text.endswith("x\n…")
    assert len(text) < 100_000
