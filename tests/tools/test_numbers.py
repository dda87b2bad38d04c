"""Numbers, times and ages as anybody may write them: of any length, they mean something or are refused."""

from __future__ import annotations

from datetime import datetime

import pytest

from engine.events import to_data
from projections.history import History
from projections.runner import Views
from projections.standard import STANDARD
from storage.errors import InputError
from storage.interfaces.log import NewEvent
from tests.projections import story
from tests.projections.support import BEGIN, ListLog
from tools.bootstrap.here import layer_limit
from tools.cli.fields import pattern
from tools.cli.moment import build_moment, instant, log_moment
from tools.cli.options import read_epoch

NINES = "9" * 5000
"""More digits than Python makes a number of."""


@pytest.mark.parametrize(
    "text", [NINES, f"{NINES}d", "900000d", "999999999h", "1969-01-01", "0001-01-01", f"1.{NINES}s"]
)
def test_a_moment_that_no_log_has_is_refused_in_words(text: str) -> None:
    log, views = ListLog(), Views(None, STANDARD)
    log.append(NewEvent("build/b1", "BuildStarted", to_data(story.started("b1")), "b1"))
    views.catch_up(log)
    record = History(views).get("b1")
    views.close()
    with pytest.raises(InputError, match=r"there is no event|is no moment|the log begins later"):
        log_moment(log, text, BEGIN)
    if text == NINES:  # whatever comes after the end of a build is its end
        assert build_moment(log, record, text, BEGIN) == 1
    else:
        with pytest.raises(InputError, match=r"no step matches|began later"):
            build_moment(log, record, text, BEGIN)


@pytest.mark.parametrize("text", [NINES, "253402300800", "-1", "1.5", "٣"])
def test_an_epoch_is_a_time_that_images_can_name(text: str) -> None:
    assert read_epoch("253402300799") == 253402300799
    with pytest.raises(InputError, match="seconds since 1970"):
        read_epoch(text)


def test_a_limit_of_layers_is_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFLEDGER_LAYER_LIMIT", NINES)
    with pytest.raises(InputError, match=r"REFLEDGER_LAYER_LIMIT=9{40}: not a number of bytes"):
        layer_limit()


@pytest.mark.parametrize("text", ["(", "a{99999999999}", "(" * 500 + ")" * 500])
def test_a_pattern_that_is_none_is_an_error_of_its_flag(text: str) -> None:
    with pytest.raises(InputError, match="--grep"):
        pattern("--grep", text)


def test_times_that_no_event_can_have_are_the_nearest_that_can() -> None:
    assert instant("9999-12-31", BEGIN) == (1 << 63) - 1
    assert instant("999999999d", BEGIN) == instant("1969-12-31T00:00+00:00", BEGIN) == 0


def test_a_time_of_day_is_the_last_one_or_the_first_after_a_build_began() -> None:
    noon = datetime.now().astimezone().replace(hour=12, minute=0, second=0, microsecond=0)
    now = int(noon.timestamp()) * 10**9
    hour = 3600 * 10**9
    assert instant("11:00", now) == now - hour
    assert instant("13:00:00", now) == now - 23 * hour
    assert instant("13:00:00.25", now, now) == now + hour + 250_000_000
    assert instant("11:00", now, now) == now + 23 * hour
    assert instant("24:00", now) is instant("noon", now) is None
