"""A bundle is attacker input: whatever is wrong with it is one error, and never more was believed than was checked."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from storage.blobs import DirectoryBlobs
from storage.bundle.form import Index, Member, trailer
from storage.bundle.reading import read_bundle
from storage.bundle.writing import write_bundle
from storage.digest import Digest, canonical_json, parse_json, sha256
from storage.errors import DiskError, InputError, LogError, RefledgerError, VerificationError
from storage.interfaces.log import Event, NewEvent

CONTENTS = {b"FROM scratch\n": "definition", b"x" * 3000: "layer", bytes(range(256)) * 4: "pack"}
BLOBS = {sha256(data): data for data in CONTENTS}
EVENTS = [
    Event(3, 1_700_000_000_123_456_789, "build/ab12", 1, "BuildStarted", "ab12", None, None, {"definition": "x"}),
    Event(9, 1_700_000_001_000_000_000, "build/ab12", 2, "BuildFailed", "ab12", "v", 3, {"error": "no\u2028 such"}),
]


def index(**more: Any) -> Index:
    members = [Member(sha256(data), len(data), role) for data, role in CONTENTS.items()]
    return Index("ab12", "1.0", tuple(members), **more)


def written(path: Path, events: list[Event] = EVENTS) -> Path:
    write_bundle(str(path), index(withheld=({"kind": "file", "name": "a", "why": "b"},)), events, opened)
    return path


def opened(digest: Digest) -> Any:
    return io.BytesIO(BLOBS[digest])


def test_what_was_written_is_read_and_small_blobs_are_held(tmp_path: Path) -> None:
    bundle = read_bundle(written(tmp_path / "b"))
    assert bundle.damage is None
    assert bundle.events == EVENTS
    assert list(bundle.log.read(after=3)) == EVENTS[1:]
    assert list(bundle.log.read(until=3)) == EVENTS[:1]
    assert list(bundle.log.read(types=frozenset({"BuildFailed"}))) == EVENTS[1:]
    assert (bundle.log.last_seq(), bundle.log.wait(8, 0), bundle.log.wait(9, 0)) == (9, True, False)
    assert bundle.small == {sha256(b"FROM scratch\n"): b"FROM scratch\n"}
    assert bundle.digest == sha256((tmp_path / "b").read_bytes())
    with pytest.raises(LogError):
        bundle.log.append(NewEvent("build/x", "BuildStarted", {}))


def test_larger_blobs_go_where_the_caller_says(tmp_path: Path) -> None:
    store = DirectoryBlobs(tmp_path / "store", owner="a1")
    read_bundle(written(tmp_path / "b"), lambda member: store.writer() if member.role == "layer" else None)
    assert store.get(sha256(b"x" * 3000)) == b"x" * 3000
    assert store.size(sha256(bytes(range(256)) * 4)) is None


def test_a_blob_that_changes_while_it_is_bundled_leaves_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="changed while it was bundled"):
        write_bundle(str(tmp_path / "b"), index(), EVENTS, lambda digest: io.BytesIO(BLOBS[digest][:-1] + b"?"))
    with pytest.raises(VerificationError, match="changed while it was bundled"):
        write_bundle(str(tmp_path / "b"), index(), EVENTS, lambda digest: io.BytesIO(BLOBS[digest] + b"?"))
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_with_large_blobs_only_has_no_empty_frames(tmp_path: Path) -> None:
    only = Index("ab12", "1.0", (Member(sha256(b"x" * 3000), 3000, "layer"),))
    write_bundle(str(tmp_path / "b"), only, EVENTS, opened)
    assert read_bundle(tmp_path / "b").damage is None
    assert (tmp_path / "b").read_bytes().count(zstandard.FRAME_HEADER) == 3


def test_what_is_no_bundle_or_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="reading the bundle: No such file"):
        read_bundle(tmp_path / "none")
    with pytest.raises(InputError, match="not a bundle"):
        read_bundle(forged(tmp_path / "b", _set("format", to="another")))
    empty = tmp_path / "empty"
    empty.write_bytes(zstandard.compress(bytes(1024)))
    with pytest.raises(InputError, match="not a bundle"):
        read_bundle(empty)


def test_an_index_or_events_of_any_size_are_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.bundle.reading._INDEX_LIMIT", 100)
    with pytest.raises(VerificationError, match="an index of"):
        read_bundle(written(tmp_path / "b"))
    monkeypatch.undo()
    monkeypatch.setattr("storage.bundle.reading._OBJECTS", 3)
    assert "lists and objects" in str(read_bundle(written(tmp_path / "b")).damage)


@given(at=st.integers(0, 10**6), mask=st.integers(1, 255))
@example(at=0, mask=1)
@example(at=3766, mask=1)  # changes compressed bytes, and nothing of what they expand to
@settings(max_examples=300)
def test_no_flipped_bit_goes_unnoticed_and_what_is_told_is_true(tmp_path: Path, at: int, mask: int) -> None:
    good = tmp_path / "good"
    data = bytearray((good if good.exists() else written(good)).read_bytes())
    data[at % len(data)] ^= mask
    (tmp_path / "bad").write_bytes(data)
    try:
        bundle = read_bundle(tmp_path / "bad")
    except RefledgerError as error:
        assert "\n" not in str(error)
        return
    assert bundle.damage is not None
    assert bundle.events in ([], EVENTS)
    assert all(sha256(content) == digest for digest, content in bundle.small.items())


@given(length=st.integers(0, 10**6))
@settings(max_examples=60)
def test_a_truncated_bundle_is_damaged(tmp_path: Path, length: int) -> None:
    good = tmp_path / "good"
    data = (good if good.exists() else written(good)).read_bytes()
    (tmp_path / "bad").write_bytes(data[: length % len(data)])
    try:
        assert read_bundle(tmp_path / "bad").damage is not None
    except RefledgerError as error:
        assert "\n" not in str(error)


# ---------------------------------------------------------------- made to deceive

Change = Callable[[dict[str, Any]], object]


def forged(path: Path, change: Change, members: list[tuple[str, bytes]] | None = None) -> Path:
    """A well-formed archive whose index was changed, with `members` in the place of those that it had."""
    stream = zstandard.ZstdDecompressor().stream_reader(written(path).read_bytes(), read_across_frames=True)
    with tarfile.open(fileobj=io.BytesIO(stream.read())) as tar:
        held = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    said = parse_json(held[0][1])
    change(said)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in [("index.json", canonical_json(said)), *(held[1:] if members is None else members)]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = zstandard.compress(out.getvalue())
    path.write_bytes(data + trailer(sha256(data)))
    return path


def _set(*keys: Any, to: Any) -> Change:
    def change(said: dict[str, Any]) -> None:
        place: Any = said
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("blobs", 1, "bytes", to=1 << 60),
        _set("blobs", 1, "bytes", to=-1),
        _set("blobs", 0, "digest", to="sha256:../../../../etc/passwd"),
        _set("blobs", 0, "digest", to="sha512:" + "0" * 128),
        _set("blobs", 0, "role", to="../x"),
        _set("blobs", 0, "bytes", to=1 << 30),
        _set("blobs", to=[{"digest": str(sha256(b"a")), "bytes": 1, "role": "layer"}] * 2),
        _set("build", to="../../x"),
        _set("layers", to={"a": {"bundled": {"digest": str(sha256(b"a")), "size": 1, "mediaType": "x"}}}),
        _set("layers", to={"a": {"providers": [{"registry": 1, "repository": "x", "scope": "y"}]}}),
        _set("layers", to=[1]),
        _set("kept", to={"x": ["y"]}),
        _set("files", to={"x": "y"}),
        _set("withheld", to=[{}]),
        _set("layers", to={"a": {"providers": [{"registry": "r", "repository": "x", "scope": "y", "mirrors": [1]}]}}),
        _set("layers", to={"a": {"diff_id": "sha256:12"}}),
        _set("layers", to={"a": {"bundled": {"digest": str(sha256(b"z")), "size": 1, "mediaType": "m"}}}),
        _set("blobs", to=[{"digest": str(sha256(b"%d" % n)), "bytes": 60 << 20, "role": "graph"} for n in range(9)]),
        _set("events", to=None),
        _set("layers", to={"a": {"bundled": {"digest": "sha512:12", "size": 1, "mediaType": "m"}}}),
        _set("layers", to={"a": {"digest": str(sha256(b"")), "size": 1, "mediaType": 7}}),
        _set("events", to={"count": 1, "bytes": 1 << 40, "digest": str(sha256(b""))}),
        _set("events", to={"count": 1, "bytes": 1, "digest": "sha256:12"}),
        _set("version", to="1"),
    ],
)
def test_an_index_that_cannot_be_is_refused(tmp_path: Path, change: Change) -> None:
    try:
        damage = read_bundle(forged(tmp_path / "b", change)).damage
        assert damage is not None
        raise damage
    except VerificationError as error:
        assert error.exit_code == 4
        assert "\n" not in str(error)


def test_a_newer_bundle_is_refused_with_a_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the bundle has version 2, this Refledger knows 1") as caught:
        read_bundle(forged(tmp_path / "b", _set("version", to=2)))
    assert "newer Refledger" in str(caught.value)


def test_members_other_than_the_index_says_are_not_believed(tmp_path: Path) -> None:
    bundle = read_bundle(forged(tmp_path / "b", lambda _: None, [("events.jsonl", b"{}\n")]))
    assert bundle.damage is not None
    assert bundle.events == []
    bundle = read_bundle(forged(tmp_path / "b", lambda _: None, []))
    assert "ends before events.jsonl" in str(bundle.damage)
    bundle = read_bundle(forged(tmp_path / "b", lambda _: None, [("../events.jsonl", b"")]))
    assert "stands where events.jsonl should" in str(bundle.damage)


def test_more_than_the_index_says_is_damage(tmp_path: Path) -> None:
    def less(said: dict[str, Any]) -> None:
        said["blobs"].pop()

    assert "more in it than its index says" in str(read_bundle(forged(tmp_path / "b", less)).damage)


@pytest.mark.parametrize(
    "line",
    [
        b"[]", b"{}", b"\xff", b'{"seq":1}',
        canonical_json({**EVENTS[0].to_json(), "seq": -1}), canonical_json({**EVENTS[0].to_json(), "seq": 1 << 63}),
        canonical_json({**EVENTS[0].to_json(), "time": "1969-01-01T00:00:00.000000000Z"}),
        canonical_json({**EVENTS[0].to_json(), "time": "yesterday"}),
        canonical_json({**EVENTS[0].to_json(), "time": "2024-01-01T00:00:00,000000000Z"}),
        canonical_json({**EVENTS[0].to_json(), "data": {"x": "y" * (4 << 20)}}),
        canonical_json({**EVENTS[0].to_json(), "data": []}), canonical_json({**EVENTS[0].to_json(), "build": 7}),
        canonical_json({**EVENTS[0].to_json(), "stream": None}),
        canonical_json(EVENTS[0].to_json()) + b"\n" + canonical_json(EVENTS[0].to_json()),
    ],
)  # fmt: skip
def test_what_is_no_event_is_named_by_its_line(tmp_path: Path, line: bytes) -> None:
    about = {"count": 1, "bytes": len(line), "digest": str(sha256(line))}
    path = forged(tmp_path / "b", lambda said: said.update(events=about, blobs=[]), [("events.jsonl", line)])
    assert "events.jsonl:" in str(read_bundle(path).damage)


def test_a_bomb_is_bounded_in_memory(tmp_path: Path) -> None:
    """A gigabyte of zeros behind a small index is read in pieces, and found to be more than was said."""
    small = forged(tmp_path / "b", lambda _: None)
    head = zstandard.ZstdDecompressor().stream_reader(small.read_bytes()).read(512 * 6)
    bomb = zstandard.ZstdCompressor(level=1).compressobj()
    with small.open("wb") as out:
        out.write(bomb.compress(head))
        for _ in range(256):
            out.write(bomb.compress(bytes(4 << 20)))
        out.write(bomb.flush())
    assert small.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        bundle = read_bundle(small)
        assert bundle.damage is not None
        assert "\n" not in str(bundle.damage)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
