"""BuildKit's cache config: written, read, and read when somebody hostile wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache import config as cache_config
from engine.cache.config import (
    CacheConfig,
    ConfigLayer,
    ConfigRecord,
    ConfigResult,
    Link,
    read,
    time_of,
    time_text,
    write,
)
from engine.errors import VerificationError
from storage.digest import Digest, sha256

GOLDEN = Path(__file__).parent / "golden"
BLOB = "sha256:" + "1" * 64


def parse(document: Any) -> CacheConfig:
    return read(json.dumps(document).encode(), "registry/cache")


# ---------------------------------------------------------------- what it means


def test_golden_config_is_read_as_its_definition_says() -> None:
    config = read((GOLDEN / "config.json").read_bytes(), "golden")
    assert [layer.parent for layer in config.layers] == [-1, 0, 1, -1]  # a parent of 0 is left out by Go
    assert config.layers[3].diff_id == "sha256:" + "d4" * 32
    assert config.layers[3].size == 44
    assert config.layers[3].created == 1_714_979_289_123_456_789
    step, base, context, merged = config.records
    assert config.chain(step.results[0]) == (0, 1, 2)
    assert step.results[0].created == 1_714_979_289_500_000_000
    assert step.inputs == ((Link(1), Link(3, "sha256:" + "e" * 64)), (Link(2, "/src"),))
    assert base.results == (ConfigResult((0,), 0),)  # Go's zero time is no time
    assert context.results == () and context.inputs == ()
    assert merged.digest.startswith("random:")
    assert config.chain(merged.results[0]) == (0, 3)
    assert merged.results[0].created == 1_714_979_289_000_000_000  # 09:08:09+02:00


def test_what_is_written_is_read_again() -> None:
    config = read((GOLDEN / "config.json").read_bytes(), "golden")
    assert read(write(config), "ours") == config
    assert read(write(CacheConfig()), "ours") == CacheConfig()


def test_go_reads_what_is_written() -> None:
    """Field names and types are those of spec.go; a parent is always said."""
    layers = (ConfigLayer(Digest(BLOB)), ConfigLayer(sha256(b"2"), 0))
    record = ConfigRecord("sha256:k", (ConfigResult((1,), 1_700_000_000_000_000_001),), ((Link(0, "/a"),),))
    assert json.loads(write(CacheConfig(layers, (ConfigRecord("sha256:j"), record)))) == {
        "layers": [{"blob": BLOB, "parent": -1}, {"blob": str(sha256(b"2")), "parent": 0}],
        "records": [
            {"digest": "sha256:j"},
            {
                "digest": "sha256:k",
                "layers": [{"layer": 1, "createdAt": "2023-11-14T22:13:20.000000001Z"}],
                "inputs": [[{"link": 0, "selector": "/a"}]],
            },
        ],
    }


@given(st.integers(0, 4_000_000_000 * 10**9))
def test_times_survive_to_the_nanosecond(time: int) -> None:
    assert time_of(time_text(time)) == time


NO_TIMES = ["", "yesterday", "2024-13-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-01-01T00:00:00Z", 5, None, "9" * 99]


@pytest.mark.parametrize("text", NO_TIMES)
def test_what_is_no_time_is_zero(text: Any) -> None:
    assert time_of(text) == 0


# ---------------------------------------------------------------- hostile documents

LOOP = {"digest": "a", "inputs": [[{"link": 0}]]}


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ([], "not a JSON object"),
        ({"layers": {}}, "layers are not a list"),
        ({"layers": [7]}, "a layer is not an object"),
        ({"layers": [{"blob": "sha256:short", "parent": -1}]}, "not a digest"),
        ({"layers": [{"blob": "../../etc/passwd", "parent": -1}]}, "not a digest"),
        ({"layers": [{"blob": BLOB, "parent": 1}]}, "parent is not one of its layers"),
        ({"layers": [{"blob": BLOB, "parent": -2}]}, "parent is not one of its layers"),
        ({"layers": [{"blob": BLOB}]}, "layers go in a circle"),  # its own parent, 0
        ({"layers": [{"blob": BLOB, "parent": 1}, {"blob": BLOB, "parent": 0}]}, "layers go in a circle"),
        ({"layers": [{"blob": BLOB, "parent": "0"}]}, "a parent is not a number"),
        ({"layers": [{"blob": BLOB, "parent": True}]}, "a parent is not a number"),
        ({"layers": [{"blob": BLOB, "parent": -1, "annotations": []}]}, ""),
        ({"layers": [{"blob": BLOB, "parent": -1, "annotations": "x"}]}, "annotations is not an object"),
        ({"records": [{}]}, "no digest"),
        ({"records": [{"digest": 7}]}, "digest is not a short text"),
        ({"records": [{"digest": "a" * 5000}]}, "digest is not a short text"),
        ({"records": [{"digest": "a", "layers": [{"layer": 0}]}]}, "result is not one of its layers"),
        ({"records": [{"digest": "a", "layers": [{"layer": -1}]}]}, "result is not one of its layers"),
        ({"records": [{"digest": "a", "chains": [{"layers": [-1]}]}]}, "result is not one of its layers"),
        ({"records": [{"digest": "a", "chains": [{"layers": ["0"]}]}]}, "chain's layers are not numbers"),
        ({"records": [{"digest": "a", "inputs": [[]]}]}, "has no links"),
        ({"records": [{"digest": "a", "inputs": [[{"link": 1}]]}]}, "does not lead to one of its records"),
        ({"records": [LOOP]}, "records go in a circle"),
        ({"records": [{"digest": "a", "inputs": [[{"link": 1}]]}, LOOP]}, "records go in a circle"),
    ],
)
def test_malformed_config_is_one_clear_error(document: Any, why: str) -> None:
    if not why:
        parse(document)
        return
    with pytest.raises(VerificationError, match=why) as caught:
        parse(document)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("registry/cache: ")


def test_bytes_that_are_no_json_are_one_clear_error() -> None:
    for data in (b"", b"\xff\xfe", b"[" * 100_000, b'{"layers": NaN}'):
        with pytest.raises(VerificationError, match="not JSON"):
            read(data, "registry/cache")


def test_counts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_config, "LAYERS", 3)
    monkeypatch.setattr(cache_config, "RECORDS", 3)
    monkeypatch.setattr(cache_config, "LINKS", 3)
    with pytest.raises(VerificationError, match="4 layers are more than 3"):
        parse({"layers": [{"blob": BLOB, "parent": -1}] * 4})
    with pytest.raises(VerificationError, match="4 records are more than 3"):
        parse({"records": [{"digest": "a"}] * 4})
    with pytest.raises(VerificationError, match="more than 3 links"):
        parse({"records": [{"digest": "a"}, {"digest": "b", "inputs": [[{"link": 0}] * 2] * 2}]})


def test_depth_costs_no_stack_and_too_deep_a_result_is_none() -> None:
    layers = [{"blob": BLOB, "parent": index - 1} for index in range(20_000)]
    records: list[Any] = [{"digest": "a", "layers": [{"layer": 499}]}, {"digest": "b", "layers": [{"layer": 500}]}]
    records += [{"digest": "c", "inputs": [[{"link": index + 1}]]} for index in range(20_000)]
    config = parse({"layers": layers, "records": records})
    assert len(config.chain(config.records[0].results[0])) == 500
    assert config.chain(config.records[1].results[0]) == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(BLOB),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["layers", "records", "blob", "parent", "digest", "inputs", "link", "layer", "chains"]),
        inner, max_size=4,
    ),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=300)
@given(JSON)
def test_any_document_is_read_or_refused(document: Any) -> None:
    try:
        config = parse(document)
    except VerificationError:
        return
    for record in config.records:
        for result in record.results:
            config.chain(result)
