"""Four weeks of a pipeline whose names and types are awkward: `order` as a key, shops in five scripts."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from headrace import quarantine, services
from headrace.lake import Lake, Window
from headrace.ledger import Ledger
from headrace.settings import Settings
from tests.conftest import free_port, utc
from tests.e2e import projects
from tests.flows.conftest import flows

START, WEEK = utc(2024, 1, 1), timedelta(weeks=1)
LIVED = [Window(START + n * WEEK, START + (n + 1) * WEEK) for n in range(3, 7)]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    projects.lay("orders", tmp_path)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    monkeypatch.chdir(tmp_path)
    return Settings()


def headrace(settings: Settings, *arguments: str) -> str:
    """Run the command line in the project's folder; return what it says."""
    command = [sys.executable, "-m", "headrace.cli", *arguments]
    env = services.environment(settings)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=True).stdout


def test_four_weeks_are_lived_through(settings: Settings, tmp_path: Path) -> None:
    with services.running([services.prefect_server(settings)], settings):
        ends = ("--start", f"{LIVED[0].start:%Y-%m-%d}", "--end", f"{LIVED[-1].end:%Y-%m-%d}")
        done = flows(settings, "lifecycle", "orders", *ends, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    judged = Ledger(settings.ledger).entries("orders", "judgement")
    assert [entry.key for entry in judged] == [str(window) for window in LIVED]
    views = {"made": "predictions/orders", "placed": "raw/placed", "pace": "features/shop_pace"}
    lake = Lake(settings.lake)
    con = lake.connect(views)
    # Of each week's 1,008 orders the one that names no shop waits in quarantine.
    weeks = con.sql(
        "SELECT count(*), count(DISTINCT \"order\") FROM made GROUP BY date_trunc('week', event_timestamp)"
    )
    assert weeks.fetchall() == [(1007, 1007)] * len(LIVED)
    unlike = 'FROM (SELECT "order", shop FROM made EXCEPT SELECT "order", shop FROM placed)'
    assert con.sql(unlike).fetchall() == []
    assert con.sql("SELECT count(DISTINCT shop), min(len(last_waits)) FROM pace").fetchall() == [(5, 3)]
    held = [(entry.held.rows, entry.of) for entry in quarantine.entries(lake)]
    assert held == [(1, 1008)] * 2 * 7

    said = headrace(settings, "features", "parity", "orders", "--all")
    assert "1,007" in said, said
