"""Reading a layer on a thread of its own, which ends with whoever reads."""

from __future__ import annotations

from storage.digest import Hasher
from storage.layers.readahead import ReadAhead
from tests.storage.layers.trees import TAR


class Long:
    """A layer of 200 chunks."""

    def __init__(self) -> None:
        self.times = 0

    def read(self, size: int = -1, /) -> bytes:
        self.times += 1
        return bytes(size) if self.times <= 200 else b""


def test_what_nobody_reads_any_more_is_not_read_to_its_end() -> None:
    source = Long()
    with ReadAhead(source, TAR, Hasher("sha256"), 1 << 40) as ahead:
        assert ahead.read()
    assert source.times < 100
