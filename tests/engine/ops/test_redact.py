"""Secrets in output: gone wherever a write ends, and nothing else changed."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.ops.redact import Redactor

VALUES = (b"aabaabaabaab", b"long enough\n", b"aabaabaabaab and more", b"multi\nline secret\n", b"short")


def redact(values: tuple[bytes, ...], writes: list[tuple[int, bytes]]) -> dict[int, bytes]:
    out = {1: b"", 2: b""}

    def emit(fd: int, data: bytes) -> None:
        assert data
        out[fd] += data

    redactor = Redactor(values, emit)
    for fd, data in writes:
        redactor.write(fd, data)
    redactor.close()
    redactor.close()
    return out


def test_every_occurrence_becomes_stars() -> None:
    text = b"<long enough> long enoughlong enough\nmulti\nline secret!"
    assert redact(VALUES, [(1, text)])[1] == b"<***> ******\n***!"


def test_a_longer_value_goes_before_a_shorter_one_that_begins_it() -> None:
    assert redact(VALUES, [(1, b"aabaabaabaab"), (1, b" and more.")])[1] == b"***."
    assert redact(VALUES, [(1, b"aabaabaabaab"), (1, b" and less.")])[1] == b"*** and less."


def test_values_under_eight_bytes_and_strangers_stay() -> None:
    assert redact(VALUES, [(1, b"short, long enoug"), (2, b"h")]) == {1: b"short, long enoug", 2: b"h"}


def test_streams_do_not_complete_each_other_and_what_is_held_comes_in_the_end() -> None:
    writes = [(1, b"long "), (2, b"long enough"), (1, b"enough"), (1, b" multi\nline")]
    assert redact(VALUES, writes) == {1: b"*** multi\nline", 2: b"***"}


def test_without_secrets_bytes_pass_at_once() -> None:
    seen: list[tuple[int, bytes]] = []
    Redactor((), lambda fd, data: seen.append((fd, data))).write(2, b"x")
    assert seen == [(2, b"x")]


@given(st.lists(st.sampled_from([*VALUES[:4], b"aab", b"a", b"b", b"long ", b"enough", b"\n"]), max_size=12), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_I9_no_way_of_cutting_the_stream_lets_a_value_through(words: list[bytes], data: st.DataObject) -> None:
    text = b"".join(words)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    out = redact(VALUES, [(1, piece) for piece in pieces])[1]
    for value in VALUES:
        if len(value.rstrip()) >= 8:
            assert value.rstrip() not in out
    assert out == redact(VALUES, [(1, text)])[1]
