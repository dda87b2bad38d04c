"""Descriptors that somebody else wrote."""

from __future__ import annotations

from typing import Any

import pytest

from storage.digest import sha256
from storage.interfaces.images import Descriptor

SAID = {"mediaType": "application/octet-stream", "digest": str(sha256(b"")), "size": 0}


@pytest.mark.parametrize("size", [-1, 1 << 63, 1e30, 5.5, "5", True, None])
def test_a_size_that_no_event_could_tell_is_none(size: Any) -> None:
    with pytest.raises(ValueError, match="no number of bytes"):
        Descriptor.from_json({**SAID, "size": size})


def test_what_was_read_is_told_as_it_was() -> None:
    said = {**SAID, "size": (1 << 63) - 1, "annotations": {"a": "b"}, "urls": ["https://elsewhere.example"]}
    assert Descriptor.from_json(said).to_json() == said
