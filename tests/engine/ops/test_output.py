"""What a step prints becomes facts: in order, whole, bounded in size and rate, and what is dropped is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine.events import Fact, VertexOutput
from engine.ops.output import BURST, CHUNK, DELAY, RATE, TAIL, OutputRecorder


class Told:
    """Facts in a list."""

    def __init__(self) -> None:
        self.output: list[VertexOutput] = []

    async def record(self, fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> int:
        self.post(fact, vertex=vertex, cause=cause)
        return len(self.output)

    def post(self, fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> None:
        assert isinstance(fact, VertexOutput)
        assert vertex == "v"
        self.output.append(fact)


def told(work: Callable[[OutputRecorder, list[float]], None]) -> list[VertexOutput]:
    """The facts of what `work` printed; the second argument is the clock."""
    facts, now = Told(), [0.0]

    async def main() -> None:
        recorder = OutputRecorder(facts, "v", lambda: now[0])
        work(recorder, now)
        recorder.close()

    asyncio.run(main())
    return facts.output


def test_streams_stay_in_order_and_characters_whole() -> None:
    def work(output: OutputRecorder, _: list[float]) -> None:
        output.write(1, "ä".encode()[:1])
        output.write(2, b"error")
        output.write(1, "ä".encode()[1:] + b"b")

    found = told(work)
    assert [(one.fd, one.text) for one in found] == [(2, "error"), (1, "äb")]


def test_large_output_is_cut_into_events_of_bounded_size() -> None:
    data = bytes(range(32, 127)) * 500
    found = told(lambda output, _: output.write(1, data))
    assert "".join(one.text for one in found).encode() == data
    assert [one.offset for one in found] == list(range(0, len(data), CHUNK))
    assert max(len(one.text) for one in found) <= CHUNK


def test_what_is_more_than_a_step_may_print_is_dropped_and_counted_but_for_its_end() -> None:
    def work(output: OutputRecorder, now: list[float]) -> None:
        output.write(1, b"a" * (BURST - 10))
        output.write(1, b"b" * 2 * TAIL)
        output.write(2, b"c" * (TAIL - 10))
        output.write(1, b"d" * 6)
        now[0] += 2.0
        output.write(1, b"e" * RATE)

    found = told(work)
    text = "".join(one.text for one in found)
    assert [text.count(one) for one in "abcde"] == [BURST - 10, 4, TAIL - 10, 6, RATE]
    [late] = [one for one in found if one.dropped]
    assert (late.fd, late.text, late.offset, late.dropped) == (1, "bbbb", BURST - 10 + 2 * TAIL - 4, 2 * TAIL - 4)
    whole = [one for one in found if one.offset >= late.offset]
    assert [one.offset for one in whole[1:]] == [one.offset + len(one.text) for one in whole[:-1]]
    assert found[-1].offset + len(found[-1].text) == BURST - 10 + 3 * TAIL - 4 + RATE


def test_the_end_of_a_flood_is_told_at_the_end_of_the_step() -> None:
    error = "error: no space left\n"

    def work(output: OutputRecorder, _: list[float]) -> None:
        output.write(1, b"x" * BURST)
        output.write(1, b"y" * 3 * TAIL)
        output.write(2, error.encode())

    *_, flood, last = told(work)
    kept = TAIL - len(error)
    assert (flood.fd, flood.text, flood.dropped) == (1, "y" * kept, 3 * TAIL - kept)
    assert (last.fd, last.text, last.dropped, last.offset) == (2, error, 0, BURST + 3 * TAIL)


def test_the_end_of_a_flood_does_not_wait_for_the_end_of_the_step() -> None:
    facts = Told()

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        recorder = OutputRecorder(facts, "v", clock)
        recorder.write(1, b"x" * (BURST + TAIL) + b"and now something else")
        assert facts.output == []
        while not facts.output:
            await asyncio.sleep(DELAY)

    asyncio.run(main())
    [told] = facts.output
    assert (len(told.text), told.text[-14:]) == (TAIL, "something else")


def test_little_output_waits_for_more_and_not_for_ever() -> None:
    facts = Told()

    async def main() -> None:
        recorder = OutputRecorder(facts, "v", lambda: 0.0)
        recorder.write(1, b"one ")
        recorder.write(1, b"event")
        assert facts.output == []
        while not facts.output:
            await asyncio.sleep(DELAY)
        recorder.write(1, b"and another")
        while len(facts.output) < 2:
            await asyncio.sleep(DELAY)

    asyncio.run(main())
    assert [one.text for one in facts.output] == ["one event", "and another"]


def test_of_a_flood_the_oldest_pieces_go_first_and_whole() -> None:
    def work(output: OutputRecorder, _now: list[float]) -> None:
        output.write(1, b"a" * BURST)
        output.write(1, b"b" * 10)
        output.write(1, b"c" * (TAIL + 5))

    found = told(work)
    text = "".join(one.text for one in found)
    assert [text.count(one) for one in "abc"] == [BURST, 0, TAIL]
    assert sum(one.dropped for one in found) == 15
