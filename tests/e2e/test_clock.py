"""Data come by the clock, and a schedule follows them: nothing is lost, and nothing is doubled."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from headrace import services
from tests.e2e.conftest import WINDOW, Project
from tests.flows.conftest import eventually


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

    lived, judged = project.lived_once(), project.done("judgement")
    assert len(lived) >= 10
    drifted = [entry.detail["report"] for entry in judged if entry.detail["drifted"]]
    assert all(Path(report).is_file() for report in drifted)
    assert len({*drifted}) == len(drifted) >= 2
