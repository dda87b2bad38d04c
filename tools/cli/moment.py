"""Moments as a person names them: an event's number, a time, a step of a build."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from projections.history import BuildRecord
from projections.moments import event_at, seq_at
from projections.progress import ProgressView, fold
from projections.steps import Step
from storage.errors import InputError
from storage.interfaces.log import EventLog
from tools.format import local_time


class Numbered(Protocol):
    """A step as people see it: what `Step`s of several views have in common."""

    @property
    def number(self) -> int:
        """From 1."""
        ...

    @property
    def name(self) -> str:
        """As in the Dockerfile, with its place."""
        ...


S = TypeVar("S", bound=Numbered)
_SPAN = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9}(?:\.\d{1,9})?)s)?")
_CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?")
_DIGITS = 19
_LATEST = (1 << 63) - 1
_DAY = 24 * 3600 * 10**9
_FORMS = "give an event's number, a time such as 14:05:30 or 2026-01-31T14:05, or an age such as 90m"


def span(text: str) -> int | None:
    """Nanoseconds of `1h30m`, `45s`, `2d`; None when it is none."""
    found = _SPAN.fullmatch(text)
    if not text or found is None:
        return None
    days, hours, minutes = (int(found[n] or 0) for n in (1, 2, 3))
    try:
        length = timedelta(days=days, hours=hours, minutes=minutes, seconds=float(found[4] or 0))
    except OverflowError:
        return None
    return length // timedelta(microseconds=1) * 1000


def instant(text: str, now: int, since: int | None = None) -> int | None:
    """UTC ns of a time as written: a date and time, a time of day (here; of the day of `since`, or the next one when
    that is earlier; without `since` the last one that is over), or how long before `now`; None when it is none of
    them. What no event's time can be is the nearest that can."""
    found = _instant(text, now, since)
    return None if found is None else min(max(found, 0), _LATEST)


def _instant(text: str, now: int, since: int | None) -> int | None:
    age = span(text)
    if age is not None:
        return now - age
    try:
        if _CLOCK.fullmatch(text):
            day = datetime.fromtimestamp((now if since is None else since) / 1e9).astimezone()
            clock = datetime.strptime(text.partition(".")[0], "%H:%M:%S" if text.count(":") > 1 else "%H:%M")  # noqa: DTZ007
            found = _ns(day.replace(hour=clock.hour, minute=clock.minute, second=clock.second, microsecond=0))
            found += int(f"{text.partition('.')[2]:0<9.9}") if "." in text else 0
            if since is None:
                return found if found <= now else found - _DAY
            return found if found >= since // 10**9 * 10**9 else found + _DAY
        return _ns(datetime.fromisoformat(text).astimezone())
    except (ValueError, OverflowError):
        return None


def _ns(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def log_moment(log: EventLog, text: str, now: int) -> int:
    """The event after which the log is meant: `text` is its number or a time. Raises InputError."""
    head = log.last_seq()
    if text.isdecimal():
        if not 1 <= (seq := _seq(text)) <= head:
            raise InputError(f"there is no event {text[:20]}", hint=f"the log has events 1 to {head}")
        return seq
    time = instant(text, now)
    if time is None:
        raise InputError(f"{text[:80]!r} is no moment", hint=_FORMS)
    seq = seq_at(log, time)
    if not seq:
        raise InputError(f"the log begins later than {local_time(time)}", hint=f"at {local_time(_began(log))}")
    return seq


def _seq(text: str) -> int:
    """The number in `text`, digits alone; one larger than any event's when it has too many of them."""
    return int(text) if len(text) < _DIGITS else 10**_DIGITS


def _began(log: EventLog) -> int:
    return event_at(log, 1).time if log.last_seq() else 0


def build_moment(log: EventLog, record: BuildRecord, text: str, now: int) -> int:
    """The event after which `record` is meant: `text` is its number, a time, how long after the build's start (`+45s`),
    or a step (`step:3`, or a part of its name) at the end of its last attempt. Raises InputError."""
    if text.isdecimal():
        return _in_build(log, record, text)
    time = _time(text, record, now)
    if time is None:
        return _step_end(log, record, text)
    if time < record.started:
        began = local_time(record.started)
        raise InputError(f"build {record.id} began later than {local_time(time)}", hint=f"it began at {began}")
    return min(max(seq_at(log, time), record.first_seq), record.last_seq or log.last_seq())


def _in_build(log: EventLog, record: BuildRecord, text: str) -> int:
    seq, last = _seq(text), record.last_seq or log.last_seq()
    if seq < record.first_seq:
        raise InputError(
            f"build {record.id} began after event {text[:20]}",
            hint=f"its events are {record.first_seq} to {last}; a step is named as step:{text[:20]}",
        )
    return min(seq, last)


def _time(text: str, record: BuildRecord, now: int) -> int | None:
    if text.startswith("+"):
        after = span(text[1:])
        if after is None:
            raise InputError(f"{text[:80]!r} is no time after the start", hint="write it as +45s or +1m30s")
        return record.started + after
    return instant(text, now, record.started)


def _step_end(log: EventLog, record: BuildRecord, text: str) -> int:
    view = whole_view(log, record)
    step = find_step(view.steps, record.id, text.removeprefix("step:"))
    last = record.first_seq
    for event in log.read(after=record.first_seq - 1, until=record.last_seq, types=ProgressView.TYPES):
        if event.build == record.id and (event.vertex == step.vertex or _exports(step, event.type)):
            last = event.seq
    return last


def _exports(step: Step, name: str) -> bool:
    return step.kind == "export" and name in {"ExportStarted", "ExportProgressed", "Exported"}


def whole_view(log: EventLog, record: BuildRecord) -> ProgressView:
    """The view at the build's end, without output."""
    return fold(log, record.id, after=record.first_seq - 1, until=record.last_seq, tail=0)


def find_step(steps: Iterable[S], build: str, text: str) -> S:
    """The one of the `steps` of `build` (an id) whose number, or a part of whose name, is `text`. Raises InputError."""
    known = list(steps)
    found = [step for step in known if str(step.number) == text] or [step for step in known if text in step.name]
    if not found:
        raise InputError(f"no step matches {text[:80]!r} in build {build}", hint="refledger show lists the steps")
    if len(found) > 1:
        numbers = ", ".join(str(step.number) for step in found[:10]) + (", …" if len(found) > 10 else "")
        hint = f"give the number of one: {numbers}"
        raise InputError(f"several steps match {text[:80]!r} in build {build}", hint=hint)
    return found[0]
