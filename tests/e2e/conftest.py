"""Projects whose data come by the clock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from headrace import registry, services
from headrace.instants import read
from headrace.lake import Lake, Window, windows
from headrace.ledger import DONE, Ledger, Record
from headrace.settings import Settings
from headrace.tracking import MLflow
from tests.conftest import free_port
from tests.e2e import projects
from tests.flows.conftest import eventually

WINDOW, ROWS = timedelta(seconds=30), 20 * 30
"""Of the pumps: how long a window is, and how many readings are in it."""


class Project:
    """The pumps' project, alone in a folder; its data began two minutes ago."""

    def __init__(self, world: Path) -> None:
        self.world, self.settings = world, Settings()
        self.ledger, self.lake = Ledger(self.settings.ledger), Lake(self.settings.lake)

    def run(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "flows", *arguments]
        env = services.environment(self.settings)
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=800, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def prefect(self, kind: str, **filters: Any) -> list[dict[str, Any]]:
        with services.prefect_api(self.settings) as api:
            answer = api.post(f"{kind}/filter", json=filters).raise_for_status()
        return answer.json()  # type: ignore[no-any-return]

    def done(self, kind: str) -> list[Record]:
        return [entry for entry in self.ledger.entries("pumps", kind) if entry.state == DONE]

    def judges(self, more: int) -> Callable[[], bool]:
        wanted = len(self.done("judgement")) + more
        return lambda: len(self.done("judgement")) >= wanted

    def at_rest(self) -> bool:
        """Say whether nothing runs, nor is about to: a drift's training begins when its event arrives."""
        going = {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}}
        return {*self.drifts()} <= {*self.retrainings()} and not self.prefect("flow_runs", flow_runs=going)

    def schedule(self, *, on: bool, seconds: float = 180) -> None:
        """Switch the cycle's schedule on or off; off, wait until nothing runs."""

        def patched() -> bool:
            with services.prefect_api(self.settings) as api:
                made = api.get("deployments/name/cycle/pumps").json()
                answer = api.patch(f"deployments/{made['id']}", json={"paused": not on})
            if answer.status_code != 503:  # SQLite is busy: as Prefect's client, again
                answer.raise_for_status()
            return answer.is_success

        eventually(patched)
        if not on:
            eventually(self.at_rest, seconds=seconds)

    def drifts(self) -> list[str]:
        return [entry.detail["cause"] for entry in self.done("judgement") if entry.detail["retrain"]]

    def retrainings(self) -> list[str]:
        return [entry.key for entry in self.done("training") if entry.key.startswith("drift/")]

    def counted(self, table: str, time: str, lived: list[Window]) -> list[int]:
        return [self.lake.table(table).count(window, time) for window in lived]

    def lived_once(self) -> list[Window]:
        """Return the windows lived through: each is there once, whole; each call for training answered."""
        judged, (first, *_) = self.done("judgement"), self.done("promotion")
        lived = windows(read(first.detail["as_of"]), read(judged[-1].detail["end"]), WINDOW)
        assert [entry.key for entry in judged] == [str(window) for window in lived]
        assert self.counted("raw/readings", "read_at", lived) == [ROWS] * len(lived)
        assert self.counted("predictions/pumps", "event_timestamp", lived) == [ROWS] * len(lived)
        con = self.lake.connect({"p": "predictions/pumps"})
        assert con.sql("SELECT 1 FROM p GROUP BY pump, second HAVING count(*) > 1").fetchall() == []
        assert con.sql("SELECT count(*) FROM p WHERE mean_load IS NULL").fetchall() == [(0,)]
        retrained, (*drifts, last) = self.retrainings(), self.drifts()
        assert len({*retrained}) == len(retrained)
        # In any order: Prefect's queue of waiting runs has none. The last may be found as the worker ends.
        assert {*drifts} <= {*retrained} <= {*drifts, last}
        mlflow = MLflow(self.settings.mlflow, self.settings.home)
        assert len(registry.versions(mlflow, "pumps")) == len(self.done("training"))
        return lived


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    projects.lay("pumps", tmp_path)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    for name, value in {
        "HEADRACE_HOME": str(tmp_path / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "PUMPS_START": (datetime.now(UTC) - timedelta(minutes=2)).isoformat(),
        "PUMPS_WORLD": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)
