"""Links and patterns lead where an overlay would lead, and a loop of links ends."""

from __future__ import annotations

import pytest

from engine.refs.search import Search
from storage.parts.lookup import Own
from tests.engine.attest.test_scan import Layer


class Linked(Layer):
    """Contents that begin with `->` are links to what follows."""

    def _own(self, path: bytes) -> Own:
        own, data = super()._own(path), self.files.get(path, b"")
        return Own("symlink", data[2:]) if isinstance(data, bytes) and data.startswith(b"->") else own


TREE = Linked(
    {"d/file": b"", "e/other": b"", "up": b"->e/../d/file", "top": b"->/d/./file", "loop": b"->pool", "pool": b"->loop",
     "d/up": b"->../../../../e/other"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("/up", {b"d/file"}), ("/top", {b"d/file"}), ("/loop", set()), ("/d/up", {b"e/other"}), ("/up/x", set()),
        ("/?/file", {b"d/file"}), ("/d/f*", {b"d/file"}), ("/d/x*", set()), ("/none/*", set()),
    ],
)  # fmt: skip
def test_what_a_source_leads_to(source: str, files: set[bytes]) -> None:
    search = Search([TREE], lambda _: 0, looks=False)
    assert list(search.run([source])) == [], "it is all here"
    assert search.part(0).files == files


def test_what_the_layers_above_have_at_a_path_is_told_of_each() -> None:
    upper, lower = Linked({"d/x": b"", "d/s/deep": b""}), Linked({"d/x/y": b"", "d/s": b"", "d/z": b""})
    search = Search([upper, lower], lambda _: 0, looks=False)
    assert list(search.run(["/d"])) == []
    above = search.part(1).above
    assert [above(path) for path in (b"d", b"d/s", b"d/z", b"d/x", b"d/x/y")] == [
        "directory", "directory", "nothing", "covers", "covers",
    ]  # fmt: skip
