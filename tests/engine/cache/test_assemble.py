"""What goes into the config of an image as its inline cache."""

from __future__ import annotations

import base64
import json

from engine.cache.assemble import INLINE_FIELD, Step, inline
from engine.refs.ref import Layer, Remote
from engine.solver.cache import CacheKey
from storage.digest import Digest, sha256
from tests.engine.cache.kit import Before


def layer(name: str) -> Layer:
    return Layer(snapshot=name, created=1_700_000_000_000_000_000)


def step(name: str, *layers: Layer) -> Step:
    return Step(sha256(name.encode()), f"ref-{name}", layers, (CacheKey(Digest(sha256(name.encode())), ()),), "b0")


IMAGE = Remote("image", (layer("a"), layer("b"), layer("c")))


def test_results_are_told_by_the_layers_of_the_image_from_its_bottom_or_one_by_one() -> None:
    steps = [step("below", *IMAGE.layers[:2]), step("beside", IMAGE.layers[2]), step("elsewhere", layer("d"))]
    count, fields = inline(steps, {}, Before(), IMAGE)
    records = json.loads(base64.b64decode(fields[INLINE_FIELD]))
    assert count == len(records) == 2
    assert [record["layers"][0]["layer"] for record in records if "layers" in record] == [1]
    assert [record["chains"][0]["layers"] for record in records if "chains" in record] == [[2]]


def test_an_image_of_nothing_that_is_known_has_no_such_fields() -> None:
    assert inline([step("elsewhere", layer("d"))], {}, Before(), IMAGE) == (0, {})
