"""Facts on their way into the log."""

from __future__ import annotations

from engine.ledger import ROOM, fitting
from storage.digest import canonical_json


def test_a_list_is_cut_to_what_an_event_has_room_for() -> None:
    layer = {"digest": f"sha256:{'0' * 64}", "transport": "streamed", "bytes": 1, "source": "r.example/" + "x" * 200}
    assert fitting([layer] * 10) == (layer,) * 10
    kept = fitting([layer] * 1000)
    assert 0 < len(kept) < 1000
    assert ROOM - 400 < sum(len(canonical_json(item)) for item in kept) <= ROOM
