"""Every attack of the table is found, where it was made; and what is no attack is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry_fixture import RegistryProcess
from tests.tools.auditing.attack_table import ATTACKS
from tests.tools.auditing.attacks import PAGE, Attack, Scene, attempt, clear, make_scene, open_copy, page, row, verify

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, registry: RegistryProcess) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("attacked root")
    yield make_scene(directory, registry, "t/attacks")
    clear(directory)


def test_an_honest_root_is_sound_and_all_but_its_tail_is_signed(scene: Scene) -> None:
    found = verify(scene.root, "--key", scene.key, "--against", str(scene.published))
    assert (found.code, found.error) == (0, "")
    assert found.found["checkpoints"] == found.found["published"] == 4
    assert found.found["uncovered"] == 2  # the last checkpoint itself, and that it was published
    assert found.found["views"] == "equal to a fresh fold"


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.what)
def test_what_somebody_does_to_a_root_is_found_where_it_was_done(scene: Scene, tmp_path: Path, attack: Attack) -> None:
    copy = open_copy(scene, tmp_path / "root")
    expected = attack.do(copy)
    found = attempt(scene, copy.target, against=attack.against)
    clear(tmp_path)
    line, rows = row(attack.what, attack.against, expected, found), PAGE.read_text().splitlines()
    if expected.kind in {"layer", "snapshot", "file"}:  # in the words of how this machine lays layers out, or of zstd
        line, rows = line.partition(" | `` ")[0], [one.partition(" | `` ")[0] for one in rows]
    assert line in rows
    if not expected.kind:
        assert (found.code, found.error) == (0, "")
        assert found.found["uncovered"] == expected.uncovered
        return
    assert found.code == 4, found
    first = found.found["first"]
    assert first["kind"] == expected.kind, found.found["faults"]
    if expected.until:
        assert expected.seq <= first["seq"] <= first["until"] <= expected.until, found.found["faults"]
    else:
        assert (first["seq"], first["until"]) == (expected.seq or None, expected.seq or None), found.found["faults"]
    assert first["what"] in found.error


def test_the_page_has_a_row_for_every_attack_and_no_other() -> None:
    text = PAGE.read_text()
    assert text.startswith(page(()))
    rows = text.removeprefix(page(())).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in rows] == [attack.what for attack in ATTACKS]
