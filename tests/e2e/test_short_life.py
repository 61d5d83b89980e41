"""What CI runs on every version of Python: a week of flights by all trainers, then a window by the clock."""

from __future__ import annotations

import pytest

from headrace import services
from headrace.settings import Settings
from tests.conftest import free_port
from tests.e2e.conftest import Project
from tests.flows.conftest import eventually, flows

pytestmark = pytest.mark.short_life


def test_a_week_is_lived_through(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    settings = Settings()
    with services.running([services.prefect_server(settings)], settings):
        done = flows(settings, "lifecycle", "flights", "--start", "2013-04-01", "--end", "2013-04-08")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "version 1 AUC" in done.stdout


def test_a_schedule_is_followed(project: Project) -> None:
    settings = project.settings
    with services.running([services.prefect_server(settings)], settings):
        project.run("cycle", "pumps")
        project.run("train", "pumps")
        services.deploy(settings)
        with services.running([services.fork_server()], settings):
            eventually((settings.home / "forkserver.sock").exists, seconds=120)
            with services.running([services.prefect_worker()], settings):
                eventually(project.judges(1), seconds=240)
                project.schedule(on=False)  # else a run that ends with the worker says that it crashed
        runs = project.prefect("flow_runs", flow_runs={"state": {"name": {"any_": ["Failed", "Crashed"]}}})
    assert runs == []
