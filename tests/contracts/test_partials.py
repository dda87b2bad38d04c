"""What PartialBlobs promise: what came is there for the next one, what cannot be right is not."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import DiskError
from storage.interfaces.images import Descriptor
from storage.locks import FileLocks
from storage.partial import KEPT_SECONDS, DirectoryPartials
from tests.simulation.syscalls import Os
from tests.storage.registry.kit import described, noise
from tests.storage.test_partial import read_all

os = Os()
_EXAMPLES = itertools.count()
DATA = noise(100_000)
BLOB = described(DATA)
SMALL = described(DATA[:10_000])


@pytest.fixture
def partials(place: Path) -> DirectoryPartials:
    return DirectoryPartials(place / "partial")


def of(place: Path, blob: Descriptor = BLOB) -> Path:
    return place / "partial" / f"sha256-{blob.digest.hex}"


def test_what_came_is_read_from_the_start_while_more_comes(partials: DirectoryPartials) -> None:
    partial = partials.open(BLOB)
    assert partial.gaps() == [(0, len(DATA))]
    assert partial.read(0, 10) == b""
    for start in range(0, len(DATA), 30_000):
        partial.write(start, DATA[start : start + 30_000])
        assert read_all(partial) == DATA[: start + 30_000]
    assert partial.gaps() == []
    partial.close()


def test_runs_that_come_out_of_order_are_one_blob_in_the_end(partials: DirectoryPartials) -> None:
    partial = partials.open(BLOB)
    partial.write(60_000, DATA[60_000:70_000])
    partial.write(20_000, DATA[20_000:30_000])
    assert read_all(partial) == b""
    partial.write(70_000, DATA[70_000:])
    partial.write(0, DATA[:20_000])
    assert partial.gaps() == [(30_000, 60_000)]
    assert read_all(partial) == DATA[:30_000]
    partial.write(30_000, DATA[30_000:60_000])
    assert read_all(partial) == DATA
    partial.close()


def test_the_next_one_finds_what_came_and_goes_on(partials: DirectoryPartials, place: Path) -> None:
    first = partials.open(BLOB)
    first.write(0, DATA[:1000])
    first.write(50_000, DATA[50_000:51_000])
    del first  # nobody closes anything when a process is killed
    second = partials.open(BLOB)
    assert second.gaps() == [(1000, 50_000), (51_000, len(DATA))]
    second.write(1000, DATA[1000:50_000])
    second.write(51_000, DATA[51_000:])
    assert read_all(second) == DATA
    second.close()
    assert read_all(partials.open(BLOB)) == DATA
    second.discard()
    assert list((place / "partial").iterdir()) == []


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 3_000), st.booleans()), max_size=12))
def test_any_order_of_writes_and_deaths_keeps_exactly_what_was_written(
    place: Path, steps: list[tuple[float, int, bool]]
) -> None:
    partials = DirectoryPartials(place / f"partial-{next(_EXAMPLES)}")
    partial = partials.open(SMALL)
    came = bytearray(SMALL.size)
    for where, length, dies in steps:
        gaps = partial.gaps()
        if not gaps:
            break
        start, end = gaps[int(where * (len(gaps) - 1))]
        if where > 0.5:  # a range somewhere in the gap
            start += (end - start) // 2
        end = min(end, start + length)
        partial.write(start, DATA[start:end])
        came[start:end] = b"\1" * (end - start)
        if dies:
            partial = partials.open(SMALL)
        missing = {offset for gap in partial.gaps() for offset in range(*gap)}
        assert missing == {offset for offset, here in enumerate(came) if not here}
        contiguous = came.index(0) if 0 in came else len(came)
        assert read_all(partial) == DATA[:contiguous]
    partial.close()


@pytest.mark.parametrize(
    "files",
    [
        {"0": 10, "x": 1},
        {"0": 10, "5": 10},
        {"0": len(DATA) + 1},
        {"90000": 10_001},
        {"007": 1},
        {"-1": 1},
        {"0": 10, "20/": 0},
    ],
)
def test_what_cannot_be_of_this_blob_is_dropped(
    partials: DirectoryPartials, place: Path, files: dict[str, int]
) -> None:
    of(place).mkdir(parents=True)
    for name, size in files.items():
        if name.endswith("/"):
            (of(place) / name).mkdir()
        else:
            (of(place) / name).write_bytes(bytes(size))
    partial = partials.open(BLOB)
    assert partial.gaps() == [(0, len(DATA))]
    partial.write(0, DATA)
    assert read_all(partial) == DATA


def test_a_file_in_place_of_the_directory_is_dropped(partials: DirectoryPartials, place: Path) -> None:
    of(place).parent.mkdir(parents=True)
    of(place).write_bytes(b"?")
    partial = partials.open(BLOB)
    partial.write(0, DATA)
    assert read_all(partial) == DATA


def test_a_run_without_bytes_yet_is_none(partials: DirectoryPartials, place: Path) -> None:
    of(place).mkdir(parents=True)
    (of(place) / "0").touch()
    (of(place) / "500").write_bytes(DATA[500:600])
    partial = partials.open(BLOB)
    assert partial.gaps() == [(0, 500), (600, len(DATA))]
    partial.write(0, DATA[:500])
    assert read_all(partial) == DATA[:600]


def test_nothing_stays_of_a_pull_that_brought_nothing(partials: DirectoryPartials, place: Path) -> None:
    partials.open(BLOB).close()
    partial = partials.open(described(b""))
    assert partial.gaps() == []
    assert partial.read(0, 1) == b""
    partial.close()
    assert not (place / "partial").exists()


def test_a_disk_that_refuses_is_one_line(partials: DirectoryPartials, place: Path) -> None:
    (place / "partial").write_bytes(b"")
    with pytest.raises(DiskError, match="Not a directory"):
        partials.open(BLOB).write(0, DATA)
    (place / "partial").unlink()
    partial = partials.open(BLOB)
    partial.write(0, DATA[:1000])
    os.truncate(of(place) / "0", 10)
    with pytest.raises(DiskError, match="gone"):
        partial.read(500, 10)


def test_old_leftovers_go_unless_somebody_works_on_them(partials: DirectoryPartials, place: Path) -> None:
    now = time.time()
    locks = FileLocks(place / "locks")
    blobs = {name: described(name.encode() * 100) for name in ("old", "held", "fresh", "fed")}
    for blob in blobs.values():
        partial = partials.open(blob)
        partial.write(0, b"1")
        partial.write(50, b"1")
        partial.close()
    past = now - KEPT_SECONDS - 10
    for name in ("old", "held", "fed"):
        for path in (*of(place, blobs[name]).iterdir(), of(place, blobs[name])):
            os.utime(path, (past, past))
    os.utime(of(place, blobs["fed"]) / "50")
    lock = locks.try_acquire(f"partial-{blobs['held'].digest}")
    assert lock is not None
    with lock:
        assert partials.sweep(now - KEPT_SECONDS, locks) == [of(place, blobs["old"]).name]
    left = {path.name for path in (place / "partial").iterdir()}
    assert left == {of(place, blobs[name]).name for name in ("held", "fresh", "fed")}
    assert partials.sweep(now - KEPT_SECONDS, locks) == [of(place, blobs["held"]).name]
    assert list((place / "locks").iterdir()) == []
