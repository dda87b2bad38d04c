"""However much is missing, the fact of it fits an event, and the line says how much it was."""

from __future__ import annotations

from engine.events import to_data
from engine.offline.missing import Missing, NotHere
from storage.digest import canonical_json

EVENT = 1024 * 1024


def test_an_event_has_room_for_what_is_told_and_counts_all_of_it() -> None:
    names = tuple(f"[{number}/9] RUN {'x' * 20_000}" for number in range(9))
    layers = [Missing("layer", f"sha256:{number:064x}", 10, names, ("host/repository",)) for number in range(500)]
    fact = NotHere(layers).fact
    assert len(canonical_json(to_data(fact))) < EVENT
    assert (fact.count, fact.bytes) == (500, 5000)
    assert 0 < len(fact.items) < 500


def test_the_line_counts_by_kind() -> None:
    image, layer = Missing("image", "debian"), Missing("layer", "sha256:1")
    assert "offline: 1 image is not here" in str(NotHere([image]))
    assert "offline: 2 images and 1 layer are not here" in str(NotHere([image, layer, image]))
    url, git = Missing("url", "https://h"), Missing("git", "https://h/a.git")
    assert "1 URL, 1 git repository and 1 image are not here" in str(NotHere([url, git, image]))


def test_another_output_is_hinted_at_only_where_that_is_all_that_it_takes() -> None:
    image, blob = Missing("image", "debian"), Missing("layer", "sha256:1", passing=True)
    assert NotHere([blob, blob]).hint == "build without --offline, or write type=local"
    assert NotHere([blob, image]).hint == "build once without --offline"
