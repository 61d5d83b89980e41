"""Instants from outside end here: whatever gives them, they are plain, in UTC, and named to the second."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace

import pandas as pd
import pytest

from headrace.instants import plain, read, shown, stamp
from headrace.lake import Window, edge, windows
from tests.conftest import utc

AT = datetime(2026, 11, 26, 12, 2, 5, tzinfo=UTC)


def pendulum() -> datetime:
    return pytest.importorskip("pendulum").instance(AT)


@pytest.mark.parametrize(
    "given",
    [
        AT,
        AT.replace(tzinfo=None),
        AT.astimezone(timezone(timedelta(hours=-5))),
        pd.Timestamp(AT),
        pd.Timestamp(AT).tz_convert("Asia/Kolkata"),
        pytest.param(pendulum, id="pendulum"),
    ],
)
def test_an_instant_from_anywhere_becomes_plain(given: object) -> None:
    at = plain(given() if callable(given) else given)  # type: ignore[arg-type]
    assert (type(at), at, at.tzinfo) == (datetime, AT, UTC)
    assert windows(at - timedelta(minutes=2), at, timedelta(minutes=1))[-1].end == utc(2026, 11, 26, 12, 2)


def test_a_stamp_is_read_back_and_never_shared_by_two_seconds() -> None:
    assert read(stamp(AT)) == AT
    assert stamp(AT) != stamp(AT + timedelta(seconds=1))
    assert [shown(at) for at in (utc(2013), utc(2013, 1, 1, 6), AT)] == [
        "2013-01-01",
        "2013-01-01 06:00",
        "2026-11-26 12:02:05",
    ]


def test_windows_of_seconds_have_names_of_their_own_and_those_of_minutes_keep_theirs() -> None:
    names = [str(window) for window in windows(AT, AT + timedelta(seconds=40), timedelta(seconds=20))]
    assert names == [
        "2026-11-26T12:02Z/2026-11-26T12:02:20Z",
        "2026-11-26T12:02:20Z/2026-11-26T12:02:40Z",
    ]
    assert str(Window(utc(2013), utc(2013, 1, 8))) == "2013-01-01T00:00Z/2013-01-08T00:00Z"
    assert edge(AT, timedelta(seconds=20)) == utc(2026, 11, 26, 12, 2)


def test_only_windows_of_days_go_by_the_day() -> None:
    midnight = utc(2026, 11, 26)
    assert Window(midnight, midnight + timedelta(days=7)).label == "2026-11-26"
    assert Window(midnight, midnight + timedelta(minutes=2)).label == "2026-11-26T00:00"
    assert Window(AT, AT + timedelta(seconds=5)).label == "2026-11-26T12:02:05"


def test_a_run_that_begins_before_its_time_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the window that it is meant for would still be open."""
    from flows.steps import instant

    meant = datetime.now(UTC) + timedelta(seconds=0.3)
    monkeypatch.setattr("flows.steps.common.flow_run", SimpleNamespace(scheduled_start_time=meant))
    assert instant(None) == meant <= datetime.now(UTC)
    assert instant(meant + timedelta(days=1)) == meant + timedelta(days=1)
