"""A week goes bad: it is refused, looked at, mended at its source or by hand, and lands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headrace import services
from headrace.lake import Lake, Window, duckdb_connection
from headrace.settings import Settings
from pipelines import _nycflights13 as nyc
from tests.conftest import ROOT, free_port, utc

WEEK = Window(utc(2013, 1, 7), utc(2013, 1, 14))


def test_a_spoilt_week_is_refused_inspected_mended_and_released(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    monkeypatch.setenv("NYCFLIGHTS13_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(ROOT)
    settings = Settings()
    lake = Lake(settings.lake)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            env=services.environment(settings) | {"COLUMNS": "250"},
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )

    def ingest() -> subprocess.CompletedProcess[str]:
        return run("flows", "ingest", "flights", "--as-of", "2013-01-21")

    def quarantine(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run("headrace.cli", "quarantine", *arguments)

    spoil = ("pipelines._spoil", "2013-01-07", str(tmp_path / "data"))
    assert run(*spoil).returncode == 0
    with services.running([services.prefect_server(settings)], settings):
        refused = ingest()
        assert refused.returncode == 1
        assert "`flights/2013-01-07/1` was rejected" in refused.stderr
        assert 'rows hold others (first: "NYC")' in refused.stderr
        assert "must be unique together" in refused.stderr
        assert "`distance` must be above 0" in refused.stderr
        assert "`air_time` must be in every file, but this batch's lack it" in refused.stderr
        assert lake.table("raw/flights").count(WEEK, "landed_at") == 0
        assert lake.table("raw/weather").count() > 1000  # what is sound has landed

        waits = quarantine("list").stdout
        assert "flights/2013-01-07/1" in waits
        assert "schedules/2013-01-07/1" in waits
        assert "NYC" in quarantine("show", "flights/2013-01-07/1").stdout

        # By hand: the rows as they should be, in place of those that are held.
        con = duckdb_connection()
        con.read_parquet(str(nyc.packed("flights"))).create_view("flights")
        con.read_csv(str(nyc.packed("airports")), na_values=["NA"]).create_view("airports")
        sound = con.sql(f"FROM ({nyc.FLIGHTS}) WHERE {WEEK.predicate('landed_at')}")
        sound.write_parquet(str(tmp_path / "sound.parquet"))
        released = quarantine("release", "flights/2013-01-07/1", "--rows", str(tmp_path / "sound.parquet"))
        assert released.returncode == 0, released.stderr
        assert lake.table("raw/flights").count(WEEK, "landed_at") == 6_104

        # At the source: the next ingest brings the other refused batches anew.
        assert run(*spoil, "--mend").returncode == 0
        assert ingest().returncode == 0
        for table in ("flights", "schedules"):
            con = lake.connect({"t": f"raw/{table}"})
            twice = "SELECT 1 FROM t GROUP BY carrier, flight, origin, sched_dep HAVING count(*) > 1"
            assert con.sql(twice).fetchall() == []
        assert lake.table("raw/schedules").count(WEEK, "published_at") > 6_000
        assert quarantine("list").stdout.strip() == "Nothing waits in quarantine."
        assert ingest().returncode == 0
    assert list((settings.home / "staging").iterdir()) == []
