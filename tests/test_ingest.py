"""Ingestion: what is due lands once, what is bad does not land at all, and says why."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from headrace import ingest
from headrace.errors import BatchRejected, MissingColumns, SourceUnreadable
from headrace.lake import Lake, windows
from headrace.pipeline import Source, load
from headrace.settings import Settings
from tests.conftest import ROOT, utc

SPEC = load("flights")
SCHEDULES, FLIGHTS, WEATHER, PLANES = SPEC.sources


@pytest.fixture
def lake(settings: Settings) -> Lake:
    return Lake(settings.lake)


def staged(source: Source, as_of: object, lake: Lake, tmp_path: Path) -> list[ingest.Batch]:
    return ingest.stage(source, SPEC.start, as_of, lake, tmp_path / "staging")  # type: ignore[arg-type]


def test_a_year_of_every_source_lands_whole_and_each_row_in_the_window_it_became_known(
    lake: Lake, tmp_path: Path
) -> None:
    for source, rows in ((SCHEDULES, 336_776), (FLIGHTS, 336_776), (WEATHER, 26_115), (PLANES, 3_322)):
        batches = staged(source, utc(2014, 1, 13), lake, tmp_path)
        for batch in batches:
            ingest.land(batch, lake)
        table = lake.table(source.table)
        assert table.count() == rows
        assert [table.count(b.window, source.time) for b in batches[::10]] == [b.rows for b in batches[::10]]


def test_a_flight_lands_at_the_instant_its_destinations_clock_shows(lake: Lake, tmp_path: Path) -> None:
    (batch, *_) = staged(FLIGHTS, utc(2013, 1, 7), lake, tmp_path)
    ingest.land(batch, lake)
    # UA 1545 left Newark at 05:17 (UTC-5) on 1 January and was in Houston (UTC-6) at 08:30
    found = lake.connect({"f": "raw/flights"}).sql(
        "SELECT departed_at, arrived_at FROM f WHERE carrier = 'UA' AND flight = 1545 ORDER BY 1 LIMIT 1"
    )
    assert [str(at) for at in found.fetchall()[0]] == [
        "2013-01-01 10:17:00+00:00",
        "2013-01-01 14:30:00+00:00",
    ]


def test_only_closed_windows_are_due_and_landed_ones_are_not_staged_again(lake: Lake, tmp_path: Path) -> None:
    assert staged(WEATHER, utc(2013, 1, 6), lake, tmp_path) == []
    first = staged(WEATHER, utc(2013, 1, 15), lake, tmp_path)
    assert [str(batch) for batch in first] == ["weather 2012-12-31", "weather 2013-01-07"]
    for batch in first:
        ingest.land(batch, lake)
    assert [str(b) for b in staged(WEATHER, utc(2013, 1, 21), lake, tmp_path)] == ["weather 2013-01-14"]


def test_landing_a_batch_twice_changes_nothing(lake: Lake, tmp_path: Path) -> None:
    (batch,) = staged(WEATHER, utc(2013, 1, 7), lake, tmp_path)
    copy = batch.file.read_bytes()
    ingest.land(batch, lake)
    batch.file.write_bytes(copy)  # as if a second run had staged before the first one landed
    ingest.land(batch, lake)
    ingest.land(batch, lake)
    assert lake.table("raw/weather").count() == batch.rows


def altered(source: Source, path: Path, old: str, new: str, view: str) -> Source:
    """Return ``source`` reading a copy of its CSV in which ``old`` stands as ``new``."""
    text = source.files()[view].read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return dataclasses.replace(source, files=lambda: {**source.files(), view: path})


def test_a_missing_column_is_named_and_nothing_lands(lake: Lake, tmp_path: Path) -> None:
    source = altered(WEATHER, tmp_path / "w.csv", "wind_gust", "gusts", "weather")
    with pytest.raises(
        MissingColumns, match=r"Source `weather` lacks `wind_gust`; it has .*gusts.*Nothing was landed"
    ):
        staged(source, utc(2013, 1, 7), lake, tmp_path)
    assert not lake.table("raw/weather").exists()


def test_a_file_that_cannot_be_parsed_is_named_with_its_line(lake: Lake, tmp_path: Path) -> None:
    text = WEATHER.files()["weather"].read_text()
    broken = tmp_path / "broken.csv"
    broken.write_text(text + 'EWR,2013,12,"31')
    source = dataclasses.replace(WEATHER, files=lambda: {"weather": broken})
    with pytest.raises(
        SourceUnreadable, match=r"Source `weather` cannot be read from .*broken.csv"
    ) as caught:
        staged(source, utc(2013, 1, 7), lake, tmp_path)
    assert "Nothing was landed" in str(caught.value)
    assert not lake.table("raw/weather").exists()


@pytest.mark.parametrize("name", ["nowhere.csv", "table.xlsx"])
def test_a_file_that_is_missing_or_of_an_unknown_kind_is_named(name: str, lake: Lake, tmp_path: Path) -> None:
    source = dataclasses.replace(WEATHER, files=lambda: {"weather": tmp_path / name})
    with pytest.raises(SourceUnreadable, match=name.replace(".", r"\.")):
        staged(source, utc(2013, 1, 7), lake, tmp_path)


def test_a_batch_that_breaks_its_suite_does_not_land(lake: Lake, tmp_path: Path) -> None:
    source = altered(WEATHER, tmp_path / "w.csv", "EWR,2013,1,1,1,", "NYC,2013,1,1,1,", "weather")
    (batch,) = staged(source, utc(2013, 1, 7), lake, tmp_path)
    with pytest.raises(BatchRejected, match=r"`origin` must be one of EWR, JFK, LGA.*NYC") as caught:
        ingest.check(batch, source.suite)
    assert len(caught.value.failures) == 1
    assert not lake.table("raw/weather").exists()
    assert batch.file.exists()


KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from headrace import ingest
from headrace.lake import Lake, Table
from headrace.pipeline import load

step, root = sys.argv[1:]
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)

source, lake = load("flights").sources[2], Lake(root + "/lake")
if step == "staged": ingest.land = die
if step == "landed": Path.unlink = die
if step == "landing":
    import deltalake
    deltalake.write_deltalake = die
for batch in ingest.stage(source, datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 1, 21, tzinfo=UTC), lake,
                          Path(root, "staging")):
    ingest.land(batch, lake)
"""


@pytest.mark.parametrize("step", ["staged", "landing", "landed"])
def test_an_ingest_killed_at_any_step_and_run_again_leaves_no_gap_and_no_double(
    step: str, tmp_path: Path
) -> None:
    run = partial(subprocess.run, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert run([sys.executable, "-c", KILLED, step, str(tmp_path)]).returncode == -signal.SIGKILL
    assert run([sys.executable, "-c", KILLED, "never", str(tmp_path)]).returncode == 0
    table = Lake(f"{tmp_path}/lake").table("raw/weather")
    weeks = windows(utc(2013, 1, 1), utc(2013, 1, 21), timedelta(weeks=1))
    assert [table.count(week, "observed_at") for week in weeks] == [411, 504, 504]
    assert list(Path(tmp_path, "staging").rglob("*.parquet")) == []
