"""Ingestion: what a source brings lands once or is held, whatever happens meanwhile; nothing is lost."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache, partial
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headrace import ingest, quarantine
from headrace.cluster import cluster, spread
from headrace.ingest import Settled, landing, releasing, staging
from headrace.ingest.errors import StillRejected, WindowsChanged
from headrace.lake import Lake, Window, duckdb_connection, interruptible, windows
from headrace.ledger import EVERY, Ledger
from headrace.pipeline import Source, load
from headrace.quarantine import AlreadyDecided, Superseded
from headrace.settings import Settings
from headrace.sources import Files
from headrace.sources.errors import MissingColumns, SourceUnreadable
from headrace.validation import Validation
from headrace.validation.errors import UnknownSuite
from tests.conftest import ROOT, free_port, utc

SPEC = load("flights")
SCHEDULES, FLIGHTS, WEATHER, PLANES = SPEC.sources
METER = dataclasses.replace(SPEC, name="meter", start=utc(2024, 1, 1), sources=())
FIRST, SECOND = windows(utc(2024, 1, 1), utc(2024, 1, 15), timedelta(weeks=1))


@pytest.fixture
def lake(settings: Settings) -> Lake:
    return Lake(settings.lake)


@pytest.fixture(autouse=True)
def suites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the suites of ``tests/validations`` be found beside the project's."""
    import validations

    monkeypatch.setattr(validations, "__path__", [*validations.__path__, str(ROOT / "tests" / "validations")])


def ledger(lake: Lake) -> Ledger:
    return Ledger(f"sqlite:///{Path(lake.root).parent}/ledger.db")


def run(source: Source, as_of: datetime, lake: Lake, spec: object = SPEC, times: int = 1) -> list[Settled]:
    """Ingest as the flow does; settle each batch so often."""
    with ingest.workspace(Path(lake.root).parent) as folder:
        staged = ingest.stage(spec, source, as_of, lake, ledger(lake), folder)  # type: ignore[arg-type]
        settled: list[Settled] = []
        for _ in range(times):
            settled = [ingest.settle(batch, source, lake, as_of) for batch in staged.batches]
        ingest.close(source, staged.empty, lake)
        return settled


Meter = Callable[..., Source]


@pytest.fixture
def meter(tmp_path: Path) -> Meter:
    """A source of made-up readings: ``meter(rows, **changes)``, each row ``(meter, read_at, value, …)``."""

    def meter(rows: list[tuple], header: str = "meter,read_at,value", **changes: object) -> Source:
        file = tmp_path / "readings.csv"
        lines = [",".join("" if v is None else str(v) for v in row) for row in rows]
        file.write_text("\n".join([header, *lines]) + "\n")
        source = Source("meter", Files({"readings": file}), time="read_at", suite="readings.meter")
        return dataclasses.replace(source, **changes)  # type: ignore[arg-type]

    return meter


def readings(window: Window, count: int, value: float = 50.5) -> list[tuple]:
    return [(f"m{n}", (window.start + timedelta(minutes=n)).isoformat(), value) for n in range(count)]


def landed(lake: Lake, columns: str = "meter, value") -> list[tuple]:
    return lake.connect({"t": "raw/meter"}).sql(f"SELECT {columns} FROM t ORDER BY ALL").fetchall()


# ── together ───────────────────────────────────────────────────────────────────


def test_batches_that_are_alike_land_in_one_commit(lake: Lake, meter: Meter) -> None:
    weeks = windows(FIRST.start, FIRST.start + timedelta(weeks=5), timedelta(weeks=1))
    source = meter([row for week in weeks for row in readings(week, 3)])
    with ingest.workspace(Path(lake.root).parent) as folder:
        staged = ingest.stage(METER, source, weeks[-1].end, lake, ledger(lake), folder)
        settled = ingest.settle_all(staged.batches, source, lake, weeks[-1].end)
        again = ingest.settle_all(staged.batches, source, lake, weeks[-1].end)
    assert [s.batch.lot.window for s in settled] == weeks
    assert [s.landed for s in settled] == [3] * 5
    assert [s.landed for s in again] == [3] * 5
    table = lake.table("raw/meter")
    assert table.open().version() == 2  # made; the first week, which gives it its columns; the others
    assert table.held(map(str, weeks)) == dict(zip(map(str, weeks), [3] * 5, strict=True))
    assert table.count() == 15


def test_where_another_run_was_first_with_one_the_others_land_all_the_same(lake: Lake, meter: Meter) -> None:
    weeks = windows(FIRST.start, FIRST.start + timedelta(weeks=4), timedelta(weeks=1))
    source = meter([row for week in weeks for row in readings(week, 3)])
    with ingest.workspace(Path(lake.root).parent) as folder:
        staged = ingest.stage(METER, source, weeks[-1].end, lake, ledger(lake), folder)
        for number in (0, 2):
            ingest.settle(staged.batches[number], source, lake, weeks[-1].end)
        settled = ingest.settle_all(staged.batches, source, lake, weeks[-1].end)
    assert [s.landed for s in settled] == [3, 3, 3, 3]
    assert lake.table("raw/meter").count() == 12


def test_a_batch_that_cannot_be_settled_keeps_none_of_the_others_from_landing(
    lake: Lake, meter: Meter
) -> None:
    weeks = windows(FIRST.start, FIRST.start + timedelta(weeks=4), timedelta(weeks=1))
    source = meter([row for week in weeks for row in readings(week, 3)])
    with ingest.workspace(Path(lake.root).parent) as folder:
        staged = ingest.stage(METER, source, weeks[-1].end, lake, ledger(lake), folder)
        staged.batches[2].lot.file.unlink()
        with pytest.raises(Exception, match=staged.batches[2].lot.file.name):
            ingest.settle_all(staged.batches, source, lake, weeks[-1].end)
    assert [*lake.table("raw/meter").held(map(str, weeks))] == [str(weeks[n]) for n in (0, 1, 3)]


# ── what is left out ───────────────────────────────────────────────────────────


def test_rows_from_before_the_start_are_counted_as_long_as_nothing_has_landed(
    lake: Lake, meter: Meter
) -> None:
    old = Window(FIRST.start - timedelta(weeks=52), FIRST.start)
    source = meter([*readings(old, 5), *readings(FIRST, 3), ("m9", None, 50.5)])

    def earlier(source: Source, as_of: datetime) -> int:
        with ingest.workspace(Path(lake.root).parent) as folder:
            return ingest.stage(METER, source, as_of, lake, ledger(lake), folder).earlier

    assert earlier(source, FIRST.end) == 5
    run(source, FIRST.end, lake, METER)
    assert earlier(source, SECOND.end) == 0


# ── what lands ─────────────────────────────────────────────────────────────────


def test_a_year_of_every_source_lands_or_is_held_each_row_in_the_window_it_became_known(lake: Lake) -> None:
    for source, rows in ((SCHEDULES, 336_776), (FLIGHTS, 336_776), (WEATHER, 26_115), (PLANES, 3_322)):
        settled = run(source, utc(2014, 1, 13), lake)
        held = sum(s.entry.held.rows for s in settled if s.entry)
        table = lake.table(source.table)
        assert table.count() + held == sum(s.batch.lot.rows for s in settled) == rows
        assert held == (1 if source is WEATHER else 0)  # 1,048 mph at Newark on 12 February
        assert [table.count(s.batch.lot.window, source.time) for s in settled[::10]] == [
            s.landed for s in settled[::10]
        ]


def test_a_flight_lands_at_the_instant_its_destinations_clock_shows(lake: Lake) -> None:
    run(FLIGHTS, utc(2013, 1, 7), lake)
    # UA 1545 left Newark at 05:17 (UTC-5) on 1 January and was in Houston (UTC-6) at 08:30
    found = lake.connect({"f": "raw/flights"}).sql(
        "SELECT departed_at, arrived_at, available_at = landed_at FROM f "
        "WHERE carrier = 'UA' AND flight = 1545 ORDER BY 1 LIMIT 1"
    )
    departed, arrived, on_time = found.fetchall()[0]
    assert (departed, arrived, on_time) == (utc(2013, 1, 1, 10, 17), utc(2013, 1, 1, 14, 30), True)


def test_only_closed_windows_are_due_and_what_landed_is_not_brought_again(lake: Lake) -> None:
    assert run(WEATHER, utc(2013, 1, 6), lake) == []
    assert [str(s.batch) for s in run(WEATHER, utc(2013, 1, 15), lake)] == [
        "weather/2012-12-31/1",
        "weather/2013-01-07/1",
    ]
    assert [str(s.batch) for s in run(WEATHER, utc(2013, 1, 21), lake)] == ["weather/2013-01-14/1"]
    assert run(WEATHER, utc(2013, 1, 21), lake) == []


def test_a_home_may_have_any_name(tmp_path: Path, meter: Meter) -> None:
    lake = Lake(str(tmp_path / "it's my home" / "lake"))
    rows = [*readings(FIRST, 7), ("bad", FIRST.start.isoformat(), 101.5)]
    (settled,) = run(meter(rows), FIRST.end, lake, METER)
    assert (settled.landed, len(landed(lake)), len(quarantine.entries(lake))) == (7, 7, 1)
    assert run(meter(rows), SECOND.end, lake, METER) == []


# ── late rows ──────────────────────────────────────────────────────────────────


def test_late_rows_are_appended_from_the_instant_they_came_and_nothing_is_rewritten(
    lake: Lake, meter: Meter
) -> None:
    early = readings(FIRST, 2)
    run(meter(early), FIRST.end, lake, METER)
    late = [("m9", FIRST.start.isoformat(), 60.5), early[0]]  # one new, one exactly as one that landed

    (settled,) = run(meter([*early, *late]), SECOND.end, lake, METER)

    assert str(settled.batch) == "meter/2024-01-01/2"
    assert landed(lake, "meter, available_at = read_at, available_at") == [
        ("m0", False, SECOND.end),
        ("m0", True, FIRST.start),
        ("m1", True, FIRST.start + timedelta(minutes=1)),
        ("m9", False, SECOND.end),
    ]
    assert run(meter([*early, *late]), SECOND.end, lake, METER) == []


def test_a_window_is_looked_at_for_late_rows_no_longer_than_declared(lake: Lake, meter: Meter) -> None:
    run(meter(readings(FIRST, 2)), FIRST.end, lake, METER)
    more = meter(readings(FIRST, 3), late=timedelta(0))
    assert run(more, SECOND.end, lake, METER) == []
    assert [s.landed for s in run(meter(readings(FIRST, 3)), SECOND.end, lake, METER)] == [1]


def test_a_late_row_with_a_key_that_landed_is_held_and_names_the_key(lake: Lake, meter: Meter) -> None:
    run(meter(readings(FIRST, 3)), FIRST.end, lake, METER)
    corrected = meter([*readings(FIRST, 2), ("m2", FIRST.start.isoformat(), 1.5)], keys=("meter",))

    (settled,) = run(corrected, SECOND.end, lake, METER)

    assert settled.entry
    assert settled.entry.reasons == ("`meter` must not have landed before, but 1 of 1 rows break this",)
    assert len(landed(lake)) == 3
    assert run(corrected, SECOND.end, lake, METER) == []


def test_a_late_batch_that_is_held_as_a_whole_waits_and_is_released_once(
    lake: Lake, meter: Meter, tmp_path: Path
) -> None:
    run(meter(readings(FIRST, 2)), FIRST.end, lake, METER)
    late = meter([*readings(FIRST, 2), (None, FIRST.start.isoformat(), 60.5)])
    (settled,) = run(late, SECOND.end, lake, METER)
    assert settled.entry
    assert (settled.entry.whole, settled.entry.late, settled.landed) == (True, True, 0)
    assert run(late, SECOND.end, lake, METER) == []
    (entry,) = quarantine.waiting(lake, ledger(lake), METER)
    mended = f"meter,read_at,value\nm2,{FIRST.start.isoformat()},60.5\n"
    assert release(entry, late, lake, tmp_path, mended) == 1

    with pytest.raises(AlreadyDecided):
        release(entry, late, lake, tmp_path, mended)
    assert landed(lake, "meter, available_at")[-1] == ("m2", SECOND.end)
    assert run(late, SECOND.end, lake, METER) == []


def test_a_row_like_one_that_was_released_and_comes_once_more_is_seen(
    lake: Lake, meter: Meter, tmp_path: Path
) -> None:
    odd = ("m7", FIRST.start.isoformat(), 100.5)
    (settled,) = run(meter([*readings(FIRST, 7), odd]), FIRST.end, lake, METER)
    assert settled.entry
    assert settled.entry.held.rows == 1
    source, at = meter([*readings(FIRST, 7), odd], suite="readings.lenient"), SECOND.end
    assert release(settled.entry, source, lake, tmp_path) == 1
    assert run(source, at, lake, METER) == []

    (again,) = run(meter([*readings(FIRST, 7), odd, odd], suite="readings.lenient"), at, lake, METER)

    assert (again.landed, len(landed(lake))) == (1, 9)


def test_late_rows_that_two_runs_bring_at_once_land_once(
    lake: Lake, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(meter(readings(FIRST, 3)), FIRST.end, lake, METER)
    late = meter([*readings(FIRST, 10), ("m10", FIRST.start.isoformat(), 100.5)])
    land, ours = landing.land, []

    def meanwhile(*arguments: Any) -> bool:
        monkeypatch.setattr(landing, "land", land)
        ours.extend(run(late, SECOND.end, lake, METER))  # the other run, which sees what we hold already
        return land(*arguments)

    monkeypatch.setattr(landing, "land", meanwhile)
    (first,) = run(late, SECOND.end, lake, METER)

    (second,) = ours
    assert (first.landed, second.landed) == (7, 7)  # what lies under the key they share
    assert len(landed(lake)) == 10
    assert [e.held.rows for e in quarantine.waiting(lake, ledger(lake), METER)] == [1]
    assert run(late, SECOND.end, lake, METER) == []


def test_rows_that_come_into_an_empty_window_count_from_when_they_came(lake: Lake, meter: Meter) -> None:
    at = SECOND.end + timedelta(days=1)
    run(meter(readings(FIRST, 2)), FIRST.end, lake, METER)
    assert run(meter(readings(FIRST, 2)), SECOND.end, lake, METER) == []

    (settled,) = run(meter([*readings(FIRST, 2), *readings(SECOND, 1)]), at, lake, METER)

    assert settled.landed == 1
    assert landed(lake, "available_at")[-1] == (at,)


def test_other_windows_than_those_that_landed_are_refused(lake: Lake, meter: Meter) -> None:
    run(meter(readings(FIRST, 3)), FIRST.end, lake, METER)
    with pytest.raises(WindowsChanged, match="windows of 7 days, 0:00:00, and is now declared with windows"):
        run(meter(readings(FIRST, 3), window=timedelta(days=1)), FIRST.end, lake, METER)
    with pytest.raises(ValueError, match="whole seconds"):
        run(meter([], name="other", window=timedelta(seconds=0.5)), FIRST.end, lake, METER)


OTHER = dataclasses.replace(METER, name="other")
"""A second pipeline that shares the source."""


def test_a_source_of_two_pipelines_has_the_windows_by_which_it_landed(lake: Lake, meter: Meter) -> None:
    before = datetime.now(UTC)
    run(meter(readings(FIRST, 3)), FIRST.end, lake, METER)
    with pytest.raises(WindowsChanged):
        run(meter(readings(FIRST, 3), window=timedelta(days=1)), FIRST.end, lake, OTHER)
    assert run(meter(readings(FIRST, 3)), FIRST.end, lake, OTHER) == []
    (noted,) = ledger(lake).entries(EVERY, "windows", "raw/meter")
    assert before <= noted.at <= datetime.now(UTC)  # by the clock, whatever the run believed in


def test_windows_that_were_noted_for_one_pipeline_hold_for_all(lake: Lake, meter: Meter) -> None:
    noted = {"holder": "the first ingest", "window": str(timedelta(days=1))}
    ledger(lake).finish("meter", "windows", "raw/meter", **noted)
    run(meter(readings(FIRST, 3), window=timedelta(days=1)), FIRST.end, lake, METER)
    with pytest.raises(WindowsChanged):
        run(meter(readings(FIRST, 3)), FIRST.end, lake, OTHER)


def test_what_one_pipeline_decides_on_a_source_holds_for_another_that_shares_it(
    lake: Lake, meter: Meter
) -> None:
    spoilt = [*readings(FIRST, 3), (None, FIRST.start.isoformat(), 5.5)]
    entry, shared = held_row(lake, source := meter(spoilt)), dataclasses.replace(OTHER, sources=(source,))
    assert entry.whole
    assert quarantine.waiting(lake, ledger(lake), shared) == [entry]
    assert ingest.complete(shared, FIRST.end, lake, ledger(lake)) == {"meter": FIRST.start}

    quarantine.drop(entry, lake, ledger(lake), reason="", holder="a person")

    assert quarantine.waiting(lake, ledger(lake), shared) == []
    assert ingest.complete(shared, FIRST.end, lake, ledger(lake)) == {"meter": FIRST.end}
    late = meter([*spoilt, ("late", FIRST.start.isoformat(), 6.5)])
    assert [settled.batch.lot.rows for settled in run(late, FIRST.end, lake, shared)] == [1]


def held_row(lake: Lake, source: Source, at: datetime = FIRST.end) -> quarantine.Entry:
    (settled,) = run(source, at, lake, METER)
    assert settled.entry
    return settled.entry


def release(entry: quarantine.Entry, source: Source, lake: Lake, folder: Path, mended: str = "") -> int:
    """Release as a person does, with a CSV file of mended rows if given."""
    rows = folder / "mended.csv"
    rows.write_text(mended)
    return ingest.release(
        dataclasses.replace(METER, sources=(source,)), entry, lake, ledger(lake), folder=folder,
        as_of=SECOND.end, holder="a person", rows=rows if mended else None,
    )  # fmt: skip


def test_mended_rows_must_be_of_the_window_that_is_released(lake: Lake, meter: Meter, tmp_path: Path) -> None:
    source = meter([(None, FIRST.start.isoformat(), 5.5)])
    entry, header = held_row(lake, source), "meter,read_at,value\n"
    for when, why in (("", "must not be null"), (SECOND.start.isoformat(), "1 rows are not")):
        with pytest.raises(StillRejected, match=why):
            release(entry, source, lake, tmp_path, f"{header}m1,{when},5.5\n")

    assert release(entry, source, lake, tmp_path, f"{header}NA,{FIRST.start.isoformat()},5.5\n") == 1
    assert landed(lake) == [("NA", 5.5)]  # a word in a file that a person wrote


def test_rows_without_a_time_are_released_once_they_have_one(
    lake: Lake, meter: Meter, tmp_path: Path
) -> None:
    source = meter([("m7", None, 5.5)])
    entry = held_row(lake, source)
    assert [e.id for e in quarantine.waiting(lake, ledger(lake), METER)] == ["meter/undated/1"]

    mended = f"meter,read_at,value\nm7,{FIRST.start.isoformat()},5.5\n"
    assert release(entry, source, lake, tmp_path, mended) == 1

    assert landed(lake, "meter, available_at") == [("m7", SECOND.end)]
    assert run(source, SECOND.end, lake, METER) == []


def test_what_lacked_a_column_is_not_released_as_it_is(lake: Lake, tmp_path: Path) -> None:
    for number, names in enumerate((("meter", "read_at", "value"), ("meter", "read_at"))):
        rows = readings((FIRST, SECOND)[number], 2)
        lines = [",".join(map(str, row[: len(names)])) for row in rows]
        (tmp_path / f"r{number}.csv").write_text("\n".join([",".join(names), *lines]) + "\n")
    source = Source("meter", Files({"r": tmp_path / "r*.csv"}), time="read_at", suite="readings.lenient")
    _, bad = run(source, SECOND.end, lake, METER)
    assert bad.entry
    with pytest.raises(StillRejected, match="`value` must be in every file"):
        release(bad.entry, source, lake, tmp_path)


def test_what_its_source_brought_anew_cannot_be_dropped(lake: Lake, meter: Meter) -> None:
    old = held_row(lake, meter([*readings(FIRST, 3), (None, FIRST.start.isoformat(), 5.5)]))
    new = held_row(lake, meter([*readings(FIRST, 3), (None, FIRST.start.isoformat(), 6.5)]))
    with pytest.raises(Superseded):
        quarantine.drop(old, lake, ledger(lake), reason="", holder="a person")
    assert quarantine.waiting(lake, ledger(lake), METER) == [new]


def test_a_window_brought_anew_during_its_release_lands_once(
    lake: Lake, meter: Meter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = meter([*readings(FIRST, 3), (None, FIRST.start.isoformat(), 5.5)])
    (settled,) = run(bad, FIRST.end, lake, METER)
    assert settled.entry
    source = meter(readings(FIRST, 4), suite="readings.lenient")
    validate = releasing.validate

    def meanwhile(*arguments: Any, **options: Any) -> Validation:
        run(source, SECOND.end, lake, METER)
        return validate(*arguments, **options)

    monkeypatch.setattr(releasing, "validate", meanwhile)
    with pytest.raises(Superseded):
        release(settled.entry, source, lake, tmp_path)

    assert [row[0] for row in landed(lake)] == ["m0", "m1", "m2", "m3"]
    assert quarantine.superseded(settled.entry, lake)


# ── what is held ───────────────────────────────────────────────────────────────


def test_rows_that_break_a_rule_within_its_tolerance_are_held_with_it_and_the_rest_lands(
    lake: Lake, meter: Meter
) -> None:
    (settled,) = run(
        meter([*readings(FIRST, 7), ("bad", FIRST.start.isoformat(), 101.5)]), FIRST.end, lake, METER
    )

    assert settled.entry
    assert (settled.landed, settled.entry.whole, settled.entry.held.rows) == (7, False, 1)
    held = lake.connect({"h": settled.entry.held}).sql("FROM h").fetchall()
    rule = "`value` must be at least 0 and at most 100 in at least 75 % of the rows"
    assert held == [("bad", FIRST.start, 101.5, [rule])]
    assert (
        run(meter([*readings(FIRST, 7), ("bad", FIRST.start.isoformat(), 101.5)]), FIRST.end, lake, METER)
        == []
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([("b", 1, 101.5), ("c", 2, -1.5), ("d", 3, 102.5)], "75 % of the rows, but 3 of 10 rows"),
        ([(None, 1, 5.5)], "`meter` must not be null"),
        ([("b", 1, 5000.5)], "maximum"),
    ],
    ids=["beyond the tolerance", "no tolerance", "a rule for the table"],
)
def test_beyond_a_tolerance_or_by_a_rule_for_the_table_the_whole_batch_is_held(
    lake: Lake, meter: Meter, bad: list[tuple], reason: str
) -> None:
    rows = [(name, (FIRST.start + timedelta(hours=hour)).isoformat(), value) for name, hour, value in bad]
    rows += readings(FIRST, 10 - len(rows))

    (settled,) = run(meter([*rows, *readings(SECOND, 3)]), FIRST.end, lake, METER)

    assert settled.entry
    assert (settled.landed, settled.entry.whole, settled.entry.held.rows) == (0, True, 10)
    assert reason in " ".join(settled.entry.reasons)
    assert not lake.table("raw/meter").exists()
    assert [s.landed for s in run(meter([*rows, *readings(SECOND, 3)]), SECOND.end, lake, METER)] == [3]


def test_a_window_held_as_a_whole_lands_whole_and_on_time_once_its_source_is_mended(
    lake: Lake, meter: Meter
) -> None:
    bad = meter([*readings(FIRST, 3), (None, FIRST.start.isoformat(), 5.5)])
    assert [s.landed for s in run(bad, FIRST.end, lake, METER)] == [0]
    assert run(bad, SECOND.end, lake, METER) == []
    worse = meter([*readings(FIRST, 3), (None, FIRST.start.isoformat(), 6.5)])
    assert [s.landed for s in run(worse, SECOND.end, lake, METER)] == [0]
    mended = meter([*readings(FIRST, 3), ("m3", FIRST.start.isoformat(), 5.5)], late=timedelta(0))

    (settled,) = run(mended, SECOND.end, lake, METER)

    assert (settled.landed, settled.entry) == (4, None)
    assert landed(lake, "meter, available_at = read_at") == [(f"m{n}", True) for n in range(4)]
    first, second = quarantine.entries(lake)
    assert quarantine.superseded(first, lake)
    assert quarantine.superseded(second, lake)
    assert quarantine.waiting(lake, ledger(lake), METER) == []
    assert run(mended, SECOND.end, lake, METER) == []


def test_rows_without_a_time_belong_to_no_window_and_are_held(lake: Lake, meter: Meter) -> None:
    rows = [*readings(FIRST, 3), ("m7", None, 5.5)]
    dated, undated = run(meter(rows), FIRST.end, lake, METER)
    assert undated.entry
    assert (dated.landed, undated.entry.id, undated.entry.held.rows) == (3, "meter/undated/1", 1)
    assert "`read_at` must not be null" in undated.entry.reasons[-1]
    assert run(meter(rows), FIRST.end, lake, METER) == []


@hypothesis_settings(max_examples=20)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["a", "b", "c", None]),
                st.sampled_from([None, "infinity", -70, 0, 0, 1, 30, 170, 170, 280]),
                st.sampled_from([50.5, 50.5, 100.5, 2000.5]),
            ),
            max_size=8,
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([(), ("meter",)]),
)
@example([[("a", 0, 1.5)], [("a", 0, 100.5)], [("b", 0, 100.5)]], ())  # late batches, held as a whole
@example([[("a", 0, 1.5)], [("b", 0, 1.5)], [("b", 0, 1.5)], [("b", 0, 1.5)]], ("meter",))  # copies, held
@example([[("a", None, 1.5)], [("a", None, 1.5), ("b", None, 1.5)]], ())  # undated, more than once
@example([[(None, 0, 1.5)], [(None, 0, 1.5)]], ())  # brought anew with a copy of what is held
def test_every_row_of_a_growing_source_lands_or_is_held_exactly_once(
    meter: Meter, tmp_path_factory: pytest.TempPathFactory, growth: list[list[tuple]], keys: tuple[str, ...]
) -> None:
    lake = Lake(str(tmp_path_factory.mktemp("home") / "lake"))
    rows: list[tuple] = [("x", FIRST.end.isoformat(), 7.5)]
    for turn, more in enumerate(growth):
        rows += [
            (m, (FIRST.start + timedelta(hours=h)).isoformat() if isinstance(h, int) else h, v)
            for m, h, v in more
        ]
        for _ in range(2):  # a second run, like a batch that is settled again, must find nothing to do
            run(meter(rows, keys=keys), SECOND.end + timedelta(days=turn), lake, METER, times=2)
        assert run(meter(rows, keys=keys), SECOND.end + timedelta(days=turn), lake, METER) == []
    due = [
        (m, v)
        for m, at, v in rows
        if at in (None, "infinity") or FIRST.start <= datetime.fromisoformat(at) < SECOND.end
    ]
    found = landed(lake) if lake.table("raw/meter").exists() else []
    for entry in quarantine.waiting(lake, ledger(lake), METER):
        found += lake.connect({"h": entry.held}).sql("SELECT meter, value FROM h").fetchall()
    assert sorted(map(str, found)) == sorted(map(str, due))


# ── schema drift ───────────────────────────────────────────────────────────────


def test_a_new_column_is_kept_aside_as_json_and_reported(lake: Lake, meter: Meter) -> None:
    rows = [(*row, "mild") for row in readings(FIRST, 2)]
    (settled,) = run(meter(rows, "meter,read_at,value,mood"), FIRST.end, lake, METER)
    assert (settled.aside, settled.landed) == (("mood",), 2)
    assert landed(lake, "meter, aside") == [("m0", '{"mood":"mild"}'), ("m1", '{"mood":"mild"}')]


def test_a_source_may_let_new_columns_land_or_reject_them(lake: Lake, meter: Meter) -> None:
    run(meter(readings(FIRST, 2), suite="readings.lenient"), FIRST.end, lake, METER)
    header, rows = "meter,read_at,value,mood", [(*row, "mild") for row in readings(SECOND, 2)]
    rejecting = meter(rows, header, suite="readings.lenient", new_columns="reject")

    (settled,) = run(rejecting, SECOND.end, lake, METER)
    assert settled.entry
    assert settled.entry.reasons == ("the columns must be declared, but `mood` is not",)

    landing = meter(
        [(*row, "wild") for row in readings(SECOND, 3)], header, suite="readings.lenient", new_columns="land"
    )
    (settled,) = run(landing, SECOND.end, lake, METER)
    assert settled.landed == 3
    assert landed(lake, "meter, mood") == [
        ("m0", "wild"),
        ("m0", None),
        ("m1", "wild"),
        ("m1", None),
        ("m2", "wild"),
    ]


def test_new_columns_may_land_though_the_suite_lists_others(lake: Lake, meter: Meter) -> None:
    rows = [(*row, "mild") for row in readings(FIRST, 2)]
    (settled,) = run(meter(rows, "meter,read_at,value,mood", new_columns="land"), FIRST.end, lake, METER)
    assert (settled.aside, landed(lake, "mood, aside")) == ((), [("mild", None)] * 2)


def test_whole_numbers_land_where_fractions_did(lake: Lake, meter: Meter) -> None:
    run(meter(readings(FIRST, 2, 1.5)), FIRST.end, lake, METER)
    late = [*readings(FIRST, 2, 1.5)[:1], *readings(FIRST, 2, 2)[1:], *readings(SECOND, 2, 3)]
    # Read by themselves, as the files of another day are.
    whole = meter(late[1:])
    first, second = run(whole, SECOND.end, lake, METER)
    assert (first.entry, second.entry) == (None, None)
    assert landed(lake) == [("m0", 1.5), ("m0", 3.0), ("m1", 1.5), ("m1", 2.0), ("m1", 3.0)]


def test_every_type_of_the_sources_lands_once_in_a_type_that_the_lake_has(lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "r.parquet"
    duckdb_connection().sql(f"""
        SELECT TIMESTAMPTZ '{FIRST.start.isoformat()}' AS read_at, 'm0' AS meter, 1.5 AS value,
               TIMESTAMP_NS '2024-01-01 00:00:00.123456789' AS ns, 200::UTINYINT AS u8, (-1)::TINYINT AS i8,
               18446744073709551615::UBIGINT AS u64, TIME '05:30:00' AS t,
               uuid() AS id, INTERVAL 1 DAY AS gap, 'on'::ENUM ('on', 'off') AS state,
               [7::UINTEGER] AS list, {{'a b': [TIMESTAMP_NS '2024-01-01 00:00:00.000000001']}} AS nested,
               MAP {{'k': 1::USMALLINT}} AS pairs, 'x' AS "q""q", 'y' AS "it's", 'z' AS "row", 1 AS rule
    """).write_parquet(str(file))
    source = Source("meter", Files({"r": file}), time="read_at", suite="readings.odd", keys=("meter", 'q"q'))
    assert [s.landed for s in run(source, FIRST.end, lake, METER)] == [0]
    assert run(source, FIRST.end, lake, METER) == []
    (entry,) = quarantine.waiting(lake, ledger(lake), METER)
    source = dataclasses.replace(source, suite="readings.lenient")
    assert release(entry, source, lake, tmp_path) == 1

    assert run(source, SECOND.end, lake, METER) == []
    assert landed(lake, "u8, i8, u64, t, state, list[1], nested['a b'][1]::VARCHAR, pairs['k']") == [
        (200, -1, Decimal(2**64 - 1), "05:30:00", "on", 7, "2024-01-01 00:00:00", 1)
    ]


def test_a_time_that_is_text_in_some_files_is_the_same_instant(lake: Lake, tmp_path: Path) -> None:
    header, good = "meter,read_at,value", "2024-01-01 05:00:00"
    (tmp_path / "r0.csv").write_text(f"{header}\nm0,{good},5.5\n")
    (tmp_path / "r1.csv").write_text(f"{header}\nm1,2024-01-08 05:00:00,5.5\nm2,soon,5.5\n")
    source = Source("meter", Files({"r": tmp_path / "r*.csv"}), time="read_at", suite="readings.lenient")

    found = run(source, SECOND.end, lake, METER)

    assert [(s.batch.lot.id, s.batch.lot.rows, s.landed) for s in found] == [
        ("meter/2024-01-01/1", 1, 1), ("meter/2024-01-08/1", 1, 0), ("meter/undated/1", 1, 0)
    ]  # fmt: skip
    assert found[1].entry
    assert "`read_at` must be TIMESTAMP WITH TIME ZONE" in found[1].entry.reasons[0]


def test_a_key_that_no_file_has_is_named(lake: Lake, meter: Meter) -> None:
    with pytest.raises(MissingColumns, match="lacks `metre`"):
        run(meter(readings(FIRST, 2), keys=("metre",)), FIRST.end, lake, METER)


def test_a_retyped_column_rejects_the_batch(lake: Lake, meter: Meter) -> None:
    run(meter(readings(FIRST, 2)), FIRST.end, lake, METER)
    words = [(m, at, "high") for m, at, _ in readings(SECOND, 2)]
    (settled,) = run(meter(words, suite="readings.lenient"), SECOND.end, lake, METER)
    assert settled.entry
    assert settled.entry.reasons == ("`value` must be DOUBLE, as in batches before, but is VARCHAR",)
    assert len(landed(lake)) == 2


def test_one_file_that_lacks_a_column_holds_its_own_windows_only(lake: Lake, tmp_path: Path) -> None:
    for number, window in enumerate((FIRST, SECOND)):
        names = ("meter", "read_at", "value")[: 3 - number]
        lines = [",".join(map(str, row[: len(names)])) for row in readings(window, 3)]
        (tmp_path / f"r{number}.csv").write_text("\n".join([",".join(names), *lines]) + "\n")
    source = Source("meter", Files({"r": tmp_path / "r*.csv"}), time="read_at", suite="readings.lenient")

    good, bad = run(source, SECOND.end, lake, METER)

    assert good.landed == 3
    assert bad.entry
    assert (bad.landed, bad.entry.whole) == (0, True)
    assert "`value` must be in every file, but this batch's lack it" in bad.entry.reasons


def altered(source: Source, path: Path, old: str, new: str) -> Source:
    """Return ``source`` reading a copy of its CSV in which ``old`` stands as ``new``."""
    files = source.origin.files()  # type: ignore[union-attr, operator]
    text = Path(files[source.name]).read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    origin = dataclasses.replace(source.origin, files={**files, source.name: path})
    return dataclasses.replace(source, origin=origin)


def test_a_column_that_no_file_has_is_named_and_nothing_lands(lake: Lake, tmp_path: Path) -> None:
    source = altered(WEATHER, tmp_path / "w.csv", "wind_gust", "gusts")
    with pytest.raises(
        MissingColumns, match=r"Source `weather` lacks `wind_gust`; it has .*gusts.*Nothing was landed"
    ):
        run(source, utc(2013, 1, 7), lake)
    assert not lake.table("raw/weather").exists()


def test_a_column_named_as_one_of_ours_is_refused(lake: Lake, meter: Meter) -> None:
    rows = [(*row, "x") for row in readings(FIRST, 2)]
    with pytest.raises(SourceUnreadable, match="`aside`, which is a name of headrace's own"):
        run(meter(rows, "meter,read_at,value,aside"), FIRST.end, lake, METER)


# ── faults ─────────────────────────────────────────────────────────────────────

CHILD = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path

import deltalake
import headrace.validation.run  # once for all children: Great Expectations takes seconds to import
from headrace import ingest, lake, quarantine
from headrace.ingest import landing, staging
from headrace.ledger import EVERY, Ledger
from headrace.pipeline import load
import validations.flights

def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
def then_die(function):
    def done(*args, **kwargs):
        function(*args, **kwargs)
        die()
    return done

def child(step, root):
    if os.path.exists(root + "/data"): os.environ["NYCFLIGHTS13_DATA"] = root + "/data"
    if step == "read": staging._new_rows = die
    if step == "staged": ingest.settle = die
    if step == "validated": quarantine.validate = then_die(quarantine.validate)
    if step == "held rows written": lake.Table.replace = then_die(lake.Table.replace)
    if step == "held": quarantine._hold = then_die(quarantine._hold)
    if step == "table made": lake.Table._made = then_die(lake.Table._made)
    if step == "landing":
        write = deltalake.write_deltalake
        deltalake.write_deltalake = lambda *a, **k: die() if k["mode"] == "append" else write(*a, **k)
    if step == "landed": landing.land = then_die(landing.land)
    spec, at = load("flights"), datetime(2013, 2, 18, tzinfo=UTC)
    weather, ledger = spec.sources[2], Ledger(f"sqlite:///{root}/ledger.db")
    with ingest.workspace(Path(root)) as folder:
        staged = ingest.stage(spec, weather, at, lake.Lake(root + "/lake"), ledger, folder)
        for batch in staged.batches:
            ingest.settle(batch, weather, lake.Lake(root + "/lake"), at)

# Each line asks for some children at once; their exit codes are the answer.
for line in sys.stdin:
    asked = [ask.split(",") for ask in line.split()]
    pids = []
    for step, root in asked:
        pid = os.fork()
        if not pid:
            child(step.replace("_", " "), root)
            os._exit(0)
        pids.append(pid)
    print(*[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids], flush=True)
"""
STEPS = ("read", "staged", "validated", "held rows written", "held", "table made", "landing", "landed")


@pytest.fixture(scope="module")
def ingests() -> Iterator[Callable[..., list[int]]]:
    """Run real processes that ingest seven weeks of weather: ``ingests((step to die at, home), …)``."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin
        assert parent.stdout

        def ingests(*asked: tuple[str, Path]) -> list[int]:
            assert parent.stdin
            assert parent.stdout
            print(
                *(f"{step.replace(' ', '_')},{home}" for step, home in asked), file=parent.stdin, flush=True
            )
            return [int(code) for code in parent.stdout.readline().split()]

        yield ingests
        parent.stdin.close()


def state(home: Path) -> tuple:
    """Return what landed, how much, and what is held."""
    lake = Lake(f"{home}/lake")
    held = [(e.id, e.whole, e.reasons, e.held.fingerprint) for e in quarantine.entries(lake)]
    raw = lake.table("raw/weather").snapshot()
    return raw.fingerprint, raw.rows, held


def weather(home: Path, without: str = "nothing") -> None:
    """Put the weather into ``home/data``, but for the lines that hold a text."""
    lines = Path(WEATHER.origin.files()["weather"]).read_text().splitlines(keepends=True)  # type: ignore[union-attr, operator]
    (home / "data").mkdir(exist_ok=True)
    (home / "data" / "weather.csv").write_text("".join(line for line in lines if without not in line))


Clean = Callable[[bool], tuple]


@pytest.fixture(scope="module")
def clean(ingests: Callable[..., list[int]], tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """What a run that nobody disturbs leaves, or two if some rows came late."""

    @cache
    def clean(late: bool) -> tuple:
        home = tmp_path_factory.mktemp("clean")
        before(home, late, ingests)
        assert ingests(("nowhere", home)) == [0]
        found = state(home)
        number = 2 if late else 1
        assert (found[1], [entry[:2] for entry in found[2]]) == (
            3_434, [(f"weather/2013-02-11/{number}", False)]
        )  # fmt: skip
        return found

    return clean


def before(home: Path, late: bool, ingests: Callable[..., list[int]]) -> None:
    """If rows shall come late, land the others: all but those of Newark in the middle of February."""
    if late:
        weather(home, without="EWR,2013,2,1")
        assert ingests(("nowhere", home)) == [0]
        weather(home)


@pytest.mark.parametrize("late", [False, True], ids=["on time", "late"])
@pytest.mark.parametrize("step", STEPS)
def test_an_ingest_killed_at_any_step_and_run_again_leaves_what_a_clean_run_leaves(
    step: str, late: bool, ingests: Callable[..., list[int]], clean: Clean, tmp_path: Path
) -> None:
    before(tmp_path, late, ingests)
    assert ingests((step, tmp_path)) == [-signal.SIGKILL]
    assert ingests(("nowhere", tmp_path)) == [0]
    assert state(tmp_path) == clean(late)
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.mark.parametrize("late", [False, True], ids=["on time", "late"])
def test_three_ingests_at_once_land_and_hold_each_row_once(
    late: bool, ingests: Callable[..., list[int]], clean: Clean, tmp_path: Path
) -> None:
    before(tmp_path, late, ingests)
    assert ingests(*[("nowhere", tmp_path)] * 3) == [0, 0, 0]
    assert state(tmp_path) == clean(late)


class _TimedOut(BaseException):
    pass


@pytest.mark.timeout(60, method="thread")  # which a process that waits for itself does not survive
def test_a_source_that_took_too_long_is_staged_again_in_the_same_process(
    lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Prefect ends a task that is out of time, and tries it again in the same folder."""
    new_rows, times = staging._new_rows, []

    def slow_at_first(con: duckdb.DuckDBPyConnection, *given: Any) -> Any:
        times.append(1)
        if len(times) == 1:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            con.execute("CREATE TABLE t AS SELECT a.range FROM range(1000000) a, range(1000000)")
        return new_rows(con, *given)

    def ring(*_: object) -> None:
        raise _TimedOut

    monkeypatch.setattr(staging, "_new_rows", slow_at_first)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with ingest.workspace(settings.home) as folder:
            again = partial(ingest.stage, SPEC, WEATHER, utc(2013, 1, 14), lake, ledger(lake), folder)
            with pytest.raises(_TimedOut), interruptible():
                again()
            assert [batch.lot.rows for batch in again().batches] == [411, 504]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_batches_are_settled_in_parallel_by_workers_of_a_scheduler_elsewhere(
    settings: Settings, lake: Lake
) -> None:
    port = free_port()
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}"]
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    commands = [[*scheduler, *local, "--port", str(port)]]
    commands += [[*worker, *local, "--nthreads", "1", "--no-nanny"] for _ in range(2)]
    started = [subprocess.Popen(c, cwd=ROOT, stderr=subprocess.DEVNULL) for c in commands]
    at = utc(2013, 3, 11)
    try:
        with ingest.workspace(settings.home) as folder, cluster(f"tcp://127.0.0.1:{port}") as client:
            client.wait_for_workers(2, timeout=60)
            batches = ingest.stage(SPEC, WEATHER, at, lake, ledger(lake), folder).batches
            work = [(batch, WEATHER, lake, at) for batch in batches]
            done = dict(spread(client, ingest.settle, work))
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert len(done) == len(batches) == 10
    assert lake.table("raw/weather").count() == sum(b.lot.rows for b in batches) - 1


def test_a_suite_that_does_not_exist_is_told_before_any_row_comes(lake: Lake) -> None:
    source = dataclasses.replace(PLANES, suite="flights.plane", origin=Files({"planes": "nowhere.csv"}))
    with pytest.raises(UnknownSuite, match=r"Did you mean `flights\.planes`"):
        run(source, utc(2013, 1, 15), lake)


def test_a_start_without_a_zone_is_utc() -> None:
    assert dataclasses.replace(SPEC, start=datetime(2013, 1, 1)).start == SPEC.start
