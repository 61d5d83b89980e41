"""Data come by the clock, and a schedule follows them: nothing is lost, and nothing is doubled."""

from __future__ import annotations

import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

from headrace import registry, services
from headrace.instants import read
from headrace.lake import windows
from headrace.tracking import MLflow
from tests.e2e.conftest import Project
from tests.flows.conftest import eventually

WINDOW, ROWS = timedelta(seconds=30), 20 * 30


def test_life_by_the_clock_is_exactly_once(project: Project) -> None:
    """Ten windows and more; the worker killed, a source that is late, and a world that changes."""
    settings = project.settings
    with services.running([services.prefect_server(settings)], settings):
        project.run("cycle", "pumps")
        project.run("train", "pumps")
        services.deploy(settings)
        with services.running([services.prefect_worker()], settings) as (worker,):
            eventually(project.judges(3), seconds=240)
            project.schedule(on=False)  # else what is cleared away with the worker says that it crashed
            worker.process.kill()
        project.schedule(on=True)
        time.sleep(3 * WINDOW.total_seconds())  # nobody is there
        (project.world / "late").touch()
        with services.running([services.prefect_worker()], settings):
            again = {"state": {"name": {"any_": ["AwaitingRetry"]}}}
            eventually(lambda: project.prefect("task_runs", task_runs=again), seconds=120)
            (project.world / "late").unlink()
            eventually(project.judges(5), seconds=240)
            (project.world / "heavier").write_text(f"{time.time():.0f}")
            eventually(lambda: len(project.retrainings()) >= 2, seconds=360)
            project.schedule(on=False)
        runs = project.prefect("flow_runs", flow_runs={"parent_task_run_id": {"is_null_": True}})
    states = Counter(run["state_name"] for run in runs if run["state_name"] != "Scheduled")
    assert not states["Failed"], states
    assert not states["Crashed"], states
    assert states["Completed"] >= 5, states

    judged, (first, *_) = project.done("judgement"), project.done("promotion")
    lived = windows(read(first.detail["as_of"]), read(judged[-1].detail["end"]), WINDOW)
    assert [entry.key for entry in judged] == [str(window) for window in lived]
    assert len(lived) >= 10
    drifted = [entry.detail["report"] for entry in judged if entry.detail["drifted"]]
    assert all(Path(report).is_file() for report in drifted)
    assert len({*drifted}) == len(drifted) >= 2
    assert project.counted("raw/readings", "read_at", lived) == [ROWS] * len(lived)
    assert project.counted("predictions/pumps", "event_timestamp", lived) == [ROWS] * len(lived)
    con = project.lake.connect({"p": "predictions/pumps"})
    assert con.sql("SELECT 1 FROM p GROUP BY pump, second HAVING count(*) > 1").fetchall() == []
    assert con.sql("SELECT count(*) FROM p WHERE mean_load IS NULL").fetchall() == [(0,)]

    retrained, (*drifts, last) = project.retrainings(), project.drifts()
    assert len({*retrained}) == len(retrained)
    # In any order: Prefect's queue of waiting runs has none. The last may be found as the worker ends.
    assert {*drifts} <= {*retrained} <= {*drifts, last}
    mlflow = MLflow(settings.mlflow, settings.home)
    assert len(registry.versions(mlflow, "pumps")) == len(project.done("training"))
