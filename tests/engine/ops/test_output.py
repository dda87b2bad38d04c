"""What a step prints becomes facts: in order, whole, bounded in size and rate, and what is dropped is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine.events import Fact, VertexOutput
from engine.ops.output import BURST, CHUNK, DELAY, RATE, OutputRecorder


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


def test_what_is_more_than_a_step_may_print_is_dropped_and_counted() -> None:
    def work(output: OutputRecorder, now: list[float]) -> None:
        output.write(1, b"a" * (BURST - 10))
        output.write(1, b"b" * 11)
        output.write(1, b"c" * 5)
        output.write(1, b"d" * 6)
        now[0] += 2.0
        output.write(1, b"e" * RATE)

    found = told(work)
    text = "".join(one.text for one in found)
    assert (text.count("a"), "b" in text, text.count("c"), "d" in text, text.count("e")) == (
        BURST - 10, False, 5, False, RATE
    )  # fmt: skip
    assert [one.dropped for one in found if one.dropped] == [11, 6]
    assert found[-1].offset + len(found[-1].text) == BURST - 10 + 11 + 5 + 6 + RATE


def test_what_is_dropped_last_is_told_at_the_end() -> None:
    def work(output: OutputRecorder, _: list[float]) -> None:
        output.write(2, b"x" * (BURST + 1))

    assert [(one.text, one.dropped) for one in told(work)] == [("", BURST + 1)]


def test_little_output_waits_for_more_and_not_for_ever() -> None:
    facts = Told()

    async def main() -> None:
        recorder = OutputRecorder(facts, "v", lambda: 0.0)
        recorder.write(1, b"one ")
        recorder.write(1, b"event")
        assert facts.output == []
        while not facts.output:
            await asyncio.sleep(DELAY)

    asyncio.run(main())
    assert [one.text for one in facts.output] == ["one event"]
