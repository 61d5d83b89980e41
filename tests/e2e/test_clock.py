"""Data come by the clock, and a schedule follows them: nothing is lost, and nothing is doubled."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace import services
from headrace.instants import read
from headrace.lake import Lake, Window, windows
from headrace.ledger import DONE, Ledger
from headrace.settings import Settings
from tests.conftest import ROOT, free_port
from tests.flows.conftest import eventually

HERE = Path(__file__).parent / "pumps"
WINDOW, ROWS = timedelta(seconds=30), 20 * 30


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own: this one's flows, and a pipeline whose data began two minutes ago."""
    for name in ("flows", "deployments", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    for folder in ("features", "pipelines", "validations"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
        for file in (HERE / folder).glob("*"):
            (tmp_path / folder / file.name).symlink_to(file)
    (tmp_path / "features/feature_store.yaml").symlink_to(ROOT / "features/feature_store.yaml")
    (tmp_path / "prefect.yaml").symlink_to(HERE / "prefect.yaml")
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    for name, value in {
        "HEADRACE_HOME": str(tmp_path / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "PUMPS_START": (datetime.now(UTC) - timedelta(minutes=2)).isoformat(),
        "PUMPS_LATE": str(tmp_path / "late"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_scheduled_cycles_land_score_and_judge_each_window_once_also_after_an_outage(project: Path) -> None:
    settings = Settings()
    ledger, lake = Ledger(settings.ledger), Lake(settings.lake)

    def run(*arguments: str) -> None:
        command = [sys.executable, "-m", "flows", *arguments]
        env = services.environment(settings)
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def asked(kind: str, **filters: Any) -> list[dict[str, Any]]:
        answer = httpx.post(f"{settings.prefect_api_url}/{kind}/filter", json=filters, timeout=30)
        answer.raise_for_status()
        return answer.json()  # type: ignore[no-any-return]

    def judged() -> list[str]:
        return [entry.key for entry in ledger.entries("pumps", "judgement") if entry.state == DONE]

    def more(windows: int) -> Callable[[], bool]:
        wanted = len(judged()) + windows
        return lambda: len(judged()) >= wanted

    with services.running([services.prefect_server(settings)], settings):
        run("cycle", "pumps")
        run("train", "pumps")
        services.deploy(settings)
        with services.running([services.prefect_worker()], settings):
            eventually(more(2), seconds=240)
        time.sleep(3 * WINDOW.total_seconds())  # nobody is there
        (project / "late").touch()
        with services.running([services.prefect_worker()], settings):
            again = {"state": {"name": {"any_": ["AwaitingRetry"]}}}
            eventually(lambda: asked("task_runs", task_runs=again), seconds=120)
            (project / "late").unlink()
            eventually(more(4), seconds=240)
        runs = asked("flow_runs", flow_runs={"parent_task_run_id": {"is_null_": True}})
    states = Counter(run["state_name"] for run in runs if run["state_name"] != "Scheduled")
    assert not states["Failed"], states
    assert not states["Crashed"], states
    assert states["Completed"] >= 3, states

    promoted = next(e for e in ledger.entries("pumps", "promotion") if e.state == DONE)
    newest = ledger.last("pumps", "judgement")
    assert newest
    lived = windows(read(promoted.detail["as_of"]), read(newest.detail["end"]), WINDOW)
    assert judged() == [str(window) for window in lived]
    assert len(lived) >= 6

    def counted(table: str, time: str) -> dict[Window, int]:
        return {window: lake.table(table).count(window, time) for window in lived}

    assert counted("raw/readings", "read_at") == dict.fromkeys(lived, ROWS)
    assert counted("predictions/pumps", "event_timestamp") == dict.fromkeys(lived, ROWS)
    con = lake.connect({"p": "predictions/pumps"})
    assert con.sql("SELECT 1 FROM p GROUP BY pump, second HAVING count(*) > 1").fetchall() == []
    assert con.sql("SELECT count(*) FROM p WHERE mean_load IS NULL").fetchall() == [(0,)]
