"""How far sources and views have come: what waits, what is closed, and what does not grow."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from headrace import ingest
from headrace.feature_store import tables
from headrace.feature_store.errors import StaleFeatures
from headrace.feature_store.feast.brought import TICK, joined
from headrace.lake import Lake, Window, windows
from headrace.ledger import Ledger
from headrace.pipeline import FeatureTable, Pipeline, load
from headrace.training import dataset
from tests.conftest import utc

DAY = timedelta(days=1)
START = utc(2013, 1, 7)


@pytest.fixture
def spec() -> Pipeline:
    return load("flights")


def complete(spec: Pipeline, lake: Lake, tmp_path: Path) -> dict[str, object]:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    return ingest.complete(spec, utc(2013, 1, 28), lake, ledger)


def test_a_source_is_complete_to_its_first_window_that_is_open(spec: Pipeline, tmp_path: Path) -> None:
    lake, source = Lake(str(tmp_path / "lake")), spec.sources[2]
    due = windows(spec.start, utc(2013, 1, 28), source.window)
    assert complete(spec, lake, tmp_path)[source.name] == due[0].start
    rows = pa.table({"origin": ["EWR"]})
    for window in (due[0], due[2]):
        lake.table(source.table).append(rows, str(window))
    assert complete(spec, lake, tmp_path)[source.name] == due[1].start
    ingest.close(source, due[1:2], lake)
    assert complete(spec, lake, tmp_path)[source.name] == due[3].start
    ingest.close(source, due[3:], lake)
    assert complete(spec, lake, tmp_path)[source.name] == utc(2013, 1, 28)
    assert lake.table(source.table).count() == 2


def test_a_window_that_was_closed_empty_takes_its_key_and_no_row(spec: Pipeline, tmp_path: Path) -> None:
    lake, source = Lake(str(tmp_path / "lake")), spec.sources[2]
    (window, *_) = windows(spec.start, utc(2013, 1, 28), source.window)
    ingest.close(source, [window], lake)
    assert not lake.table(source.table).exists()  # nothing ever came: it stays open
    lake.table(source.table).append(pa.table({"origin": ["EWR"]}), "another window")
    ingest.close(source, [window], lake)
    ingest.close(source, [window], lake)
    assert lake.table(source.table).held([str(window)]) == {str(window): 0}


def test_intervals_that_meet_are_one_however_many_there_were() -> None:
    noted = [(START + n * DAY, START + (n + 1) * DAY - TICK) for n in range(1000)]
    assert joined(noted) == [(START, START + 1000 * DAY - TICK)]


def test_intervals_with_a_gap_stay_apart() -> None:
    apart = [(START, START + DAY), (START + 2 * DAY, START + 3 * DAY)]
    assert joined(apart) == apart


def test_what_is_to_be_brought_again_is_not_lost_by_joining() -> None:
    brought, again = (START, START + DAY), (START + DAY, START)
    assert joined([brought, again]) == [brought, again]
    assert joined([brought, again, (START, START + 2 * DAY)]) == [(START, START + 2 * DAY)]


def test_training_knows_what_has_landed_and_is_built_and_refuses_what_is_built_otherwise(
    spec: Pipeline, tmp_path: Path
) -> None:
    lake, sql = Lake(str(tmp_path / "lake")), tmp_path / "toy.sql"
    sql.write_text("SELECT k, available_at AS event_timestamp, available_at FROM toy")
    table = FeatureTable("toy", sql, lookback=timedelta(0), window=DAY)
    source = replace(spec.sources[0], name="toy", window=DAY)
    query = "SELECT k, available_at AS event_timestamp FROM toy"
    spec = replace(spec, start=START, sources=(source,), feature_tables=(table,), spine=query, label=query)
    days = windows(START, START + 4 * DAY, DAY)

    def land(window: Window, key: str) -> None:
        rows = pa.table({"k": ["a"], "available_at": pa.array([window.start], pa.timestamp("us", "UTC"))})
        lake.table(source.table).append(rows, key)

    for day in days:
        land(day, str(day))
    for day in days[:2]:
        tables.build(table, spec.raw, day, lake)
    ends = [day.end for day in days]
    assert dataset.known_to(spec, {"toy": ends[3]}, lake) == ends[1]  # so far the features are built
    tables.build(table, spec.raw, days[2], lake)
    assert dataset.known_to(spec, {"toy": ends[3]}, lake) == ends[2]
    assert dataset.known_to(spec, {"toy": ends[1] + DAY / 2}, lake) == ends[1]  # a day that has not ended
    land(days[0], "came late")
    with pytest.raises(StaleFeatures, match="new raw rows"):
        dataset.known_to(spec, {"toy": ends[3]}, lake)
