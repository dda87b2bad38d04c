"""What a cache says is used as far as it makes sense; the rest of it is passed over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.cache import facts, manifest
from engine.cache.assemble import _Records
from engine.cache.config import CacheConfig, ConfigLayer, ConfigRecord, ConfigResult, Link
from engine.cache.facts import CacheFacts, KeyFacts
from engine.cache.imports import Cache
from engine.errors import VerificationError
from engine.refs.ref import Layer
from storage.digest import sha256
from storage.interfaces.images import Descriptor

BLOBS = [Descriptor("t", sha256(text), 1) for text in (b"a", b"b")]
LAYERS = [Layer(blob.digest, blob) for blob in BLOBS]
KEY = str(sha256(b"key"))


def cache(records: list[ConfigRecord], layers: list[Layer | None], known: KeyFacts | None = None) -> Cache:
    named = tuple(ConfigLayer(blob.digest, number - 1) for number, blob in enumerate(BLOBS))
    return Cache("i", CacheConfig(named, tuple(records)), layers, CacheFacts({KEY: known} if known else {}))


def result(*layers: int, created: int = 0) -> tuple[ConfigResult, ...]:
    return (ConfigResult(layers, created, listed=True),)


def test_a_result_without_one_of_its_layers_is_none() -> None:
    there = cache([ConfigRecord(KEY, result(0, 1))], [*LAYERS])
    assert [found.ref.layers for found in there.under(KEY)] == [tuple(LAYERS)]
    for layers in ([LAYERS[0], None], [None, LAYERS[1]]):
        assert list(cache([ConfigRecord(KEY, result(0, 1))], layers).under(KEY)) == []


def test_a_record_that_links_to_several_inputs_names_no_result_of_ours() -> None:
    below = ConfigRecord(KEY, result(0))
    above = ConfigRecord("other", result(1), ((Link(0),), (Link(0),)))
    assert list(cache([below, above], [*LAYERS]).under("other")) == []


def test_times_count_where_there_is_one_for_each_layer() -> None:
    records = [ConfigRecord(KEY, result(0, 1, created=7))]
    (found,) = cache(records, [*LAYERS], KeyFacts("r", created=(1, 2))).under(KEY)
    assert [layer.created for layer in found.ref.layers] == [1, 2]
    (found,) = cache(records, [*LAYERS], KeyFacts("r", created=(1,))).under(KEY)
    assert [layer.created for layer in found.ref.layers] == [0, 7], "the result's own time is that of its top layer"


def test_a_result_is_listed_once_under_a_key() -> None:
    records = _Records()
    (one,), (other,) = result(0), result(1)
    for _ in range(2):
        records.add_key(KEY, one)
    assert records.made() == (ConfigRecord(KEY, (one,)),)
    number = records.index("theirs", ())
    records.give(number, other)
    records.give(number, one)
    assert records.made()[1].results == (other,)


def test_more_facts_than_a_cache_may_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "RECORDS", 1)
    data = facts.write(CacheFacts({}, {"b1": 1, "b2": 2}), 1 << 20)
    with pytest.raises(VerificationError, match="there are too many"):
        facts.read(data, "here")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layers": [BLOBS[0].to_json()] * 3}, "3 entries are more than 2"),
        ({"layers": [{**BLOBS[0].to_json(), "size": 1 << 60}]}, "a size is none that a blob can have"),
    ],
)
def test_a_manifest_that_describes_what_cannot_be_is_refused(
    change: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "ENTRIES", 2)
    with pytest.raises(VerificationError, match=why):
        manifest.read(json.dumps({"config": BLOBS[0].to_json(), "layers": [], **change}).encode(), "here")


def test_a_layer_whose_diff_id_is_none_cannot_be_used() -> None:
    wrong = Descriptor("t", BLOBS[0].digest, 1, {manifest.DIFF_ID: "sha256:x"})
    assert manifest.layer_of(wrong, ConfigLayer(wrong.digest, diff_id=BLOBS[0].digest)) is None
