"""A person's mistakes: one clear message that says what to do, a non-zero exit, nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.errors import BatchRejected, MissingColumns
from headrace.lake import Lake
from headrace.pipeline import Pipeline, load
from headrace.settings import Settings
from tests.conftest import ROOT, free_port
from tests.flows.conftest import River, flows


def test_an_unknown_pipeline_is_told_its_neighbour(settings: Settings) -> None:
    done = flows(settings, "ingest", "flihgts")
    assert done.returncode == 1
    assert "No pipeline `flihgts`" in done.stderr
    assert "Did you mean `flights`?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not settings.home.exists()


def test_an_unreachable_server_says_how_to_start_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    done = flows(settings, "ingest", "flights")
    assert done.returncode == 1
    assert "Prefect does not answer at http://127.0.0.1:" in done.stderr
    assert "make up" in done.stderr
    assert "Traceback" not in done.stderr
    assert not settings.home.exists()


def test_a_port_in_use_names_the_setting_that_moves_it(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = str(held.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "headrace.cli", "up"],
            env=os.environ | {"HEADRACE_HOME": str(settings.home), "HEADRACE_PREFECT_PORT": port},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert f"Port {port}, wanted by Prefect, is in use" in done.stderr
    assert "HEADRACE_PREFECT_PORT" in done.stderr


def test_outside_a_project_the_command_says_so(settings: Settings, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "headrace.cli", "demo"],
        env=os.environ | {"HEADRACE_HOME": str(settings.home)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "has no `prefect.yaml`" in done.stderr


def with_weather(tmp_path: Path, old: str, new: str) -> Pipeline:
    """Return the flights pipeline with a copy of the weather file in which ``old`` stands as ``new``."""
    spec = load("flights")
    weather = next(source for source in spec.sources if source.name == "weather")
    text = weather.files()["weather"].read_text()
    assert old in text
    changed = tmp_path / "weather.csv"
    changed.write_text(text.replace(old, new, 1))
    broken = dataclasses.replace(weather, files=lambda: {"weather": changed})
    return dataclasses.replace(spec, sources=(broken,))


@pytest.fixture
def fresh_lake(in_river: River, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """The river's server, but a lake and home of one's own."""
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    return Lake(Settings().lake)


def ingest_on(river: River, spec: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import ingest as module
    from headrace import services
    from tests.conftest import utc

    monkeypatch.setattr(module, "load", lambda name: spec)
    with temporary_settings({PREFECT_API_URL: services.environment(river.settings)["PREFECT_API_URL"]}):
        module.ingest("flights", utc(2013, 1, 15))


@pytest.mark.timeout(600)
def test_a_rejected_batch_leaves_its_broken_rules_as_an_artifact_and_lands_nothing(
    river: River, fresh_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = with_weather(tmp_path, "EWR,2013,1,8,1,", "NYC,2013,1,8,1,")  # in the second week
    with pytest.raises(BatchRejected, match=r"1 expectations? failed"):
        ingest_on(river, spec, monkeypatch)
    assert fresh_lake.table("raw/weather").count() == 411  # the first week, which is sound
    artifacts = river.prefect("artifacts", artifacts={"key": {"any_": ["rejected-weather"]}})
    table = json.loads(artifacts[0]["data"])
    failed = [row["rule"] for row in table if row["result"] == "failed"]
    assert failed == ["`origin` must be one of EWR, JFK, LGA"]


@pytest.mark.timeout(600)
def test_a_missing_column_fails_the_run_at_once_with_its_name(
    river: River, fresh_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = with_weather(tmp_path, "wind_gust", "gusts")
    with pytest.raises(MissingColumns, match="lacks `wind_gust`"):
        ingest_on(river, spec, monkeypatch)
    assert not fresh_lake.table("raw/weather").exists()
    runs = river.prefect(
        "task_runs", task_runs={"name": {"any_": ["read weather"]}}, sort="EXPECTED_START_TIME_DESC"
    )
    failed = [run for run in runs if run["state_type"] == "FAILED"]
    assert failed[0]["run_count"] == 1, "a mistake that would be made again is not retried"
