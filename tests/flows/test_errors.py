"""A person's mistakes: one clear message that says what to do, a non-zero exit, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from headrace import services
from headrace.errors import DiskRefused, disks_explained
from headrace.lake import Lake
from headrace.services import PortInUse
from headrace.settings import Settings
from pipelines import _nycflights13 as nyc
from tests.conftest import ROOT, free_port
from tests.flows.conftest import River, eventually, flows


def headrace(
    settings: Settings, *arguments: str, cwd: Path = ROOT, within: Sequence[str] = (), port: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the ``headrace`` command in a home, with Prefect at ``port``; at a free one unless given."""
    address = f"http://127.0.0.1:{port or free_port()}/api"
    return subprocess.run(
        [*within, sys.executable, "-m", "headrace.cli", *arguments],
        env=os.environ | {"HEADRACE_HOME": str(settings.home), "PREFECT_API_URL": address},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_an_unknown_pipeline_is_told_its_neighbour(settings: Settings) -> None:
    done = flows(settings, "ingest", "flihgts")
    assert done.returncode == 1
    assert "No pipeline `flihgts`" in done.stderr
    assert "Did you mean `flights`?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not settings.home.exists()


def test_an_unreachable_server_says_how_to_start_one(home: Path) -> None:
    settings = Settings(home=home, prefect_api_url=f"http://127.0.0.1:{free_port()}/api")
    done = flows(settings, "ingest", "flights")
    assert done.returncode == 1
    assert "Prefect does not answer at http://127.0.0.1:" in done.stderr
    assert "make up" in done.stderr
    assert "Traceback" not in done.stderr
    assert not settings.home.exists()


def test_a_home_that_may_not_be_written_to_is_named(settings: Settings) -> None:
    settings.home.mkdir()
    settings.home.chmod(0o500)
    mortal = ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []
    done = headrace(settings, "features", "list", within=mortal)
    assert done.returncode == 1
    assert f"Permission denied: '{settings.home}" in done.stderr
    assert "let this user read and write there" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "lake/part-0"),
        sqlite3.OperationalError("database or disk is full"),
        RuntimeError("Unable to open file lake/part-0: Permission denied (os error 13)\nmore"),
    ],
)
def test_a_full_or_forbidden_disk_is_told_from_other_failures(error: Exception) -> None:
    with pytest.raises(DiskRefused, match=re.escape(str(error).splitlines()[0])), disks_explained():
        raise error
    with pytest.raises(KeyError), disks_explained():
        raise KeyError("lake")


def test_a_port_in_use_names_the_setting_that_moves_it(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        done = headrace(settings, "up", port=port)
    assert done.returncode == 1
    assert f"Port {port}, wanted by Prefect, is in use" in done.stderr
    assert "another port with `PREFECT_API_URL`, or `api.url` in `pyproject.toml`" in done.stderr


def test_a_prefect_that_answers_is_used_if_the_environment_names_it_and_else_in_the_way(
    in_river: River, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert services.prefect(Settings()) == []
    (tmp_path / "prefect.yaml").touch()
    (tmp_path / "prefect.toml").write_text(f'api.url = "{Settings().prefect_api_url}"')
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PortInUse), services.running(services.prefect(Settings()), Settings()):
        pass


@pytest.mark.parametrize("command", ["demo", "up", "deploy", "quarantine list", "features list"])
def test_outside_a_project_the_command_says_so_and_makes_nothing(
    command: str, settings: Settings, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = headrace(settings, *command.split(), cwd=elsewhere)
    assert done.returncode == 1
    assert "has no `prefect.yaml`" in done.stderr
    assert (list(elsewhere.iterdir()), settings.home.exists()) == ([], False)
    assert headrace(settings, *command.split(), "--help", cwd=elsewhere).returncode == 0


def test_a_demo_whose_deployments_are_refused_ends_at_once_and_says_why(
    settings: Settings, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "deployments", project / "deployments")
    (project / "prefect.yaml").write_text("deployments: [{name: flights, entrypoint: nowhere.py:ingest}]")
    done = headrace(settings, "demo", cwd=project)
    assert done.returncode == 1
    assert "nowhere.py" in done.stderr
    assert not (settings.home / "demo" / "summary.json").exists()


@pytest.fixture
def spoil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put a copy of the weather file, in which one text stands for another, in the package's place."""

    def spoil(old: str, new: str) -> Path:
        text = nyc.files("weather")["weather"].read_text()
        assert old in text
        file = tmp_path / "data" / "weather.csv"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text.replace(old, new))
        monkeypatch.setenv("NYCFLIGHTS13_DATA", str(file.parent))
        return file

    return spoil


@pytest.fixture
def fresh_lake(in_river: River, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """The river's server, but a lake and home of one's own."""
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    return Lake(Settings().lake)


def test_a_rejected_batch_leaves_its_broken_rules_where_people_look_and_all_else_lands(
    river: River, fresh_lake: Lake, spoil: Callable[[str, str], Path]
) -> None:
    file = spoil("EWR,2013,1,8,", "NYC,2013,1,8,")  # in the second week
    done = flows(Settings(), "ingest", "flights", "--as-of", "2013-01-15")
    assert done.returncode == 1
    assert "`weather/2013-01-07/1` was rejected, all 504 rows" in done.stderr
    assert "`origin` must be one of EWR, JFK, LGA, but 24 of 504 rows hold others" in done.stderr
    assert "headrace quarantine show weather/2013-01-07/1" in done.stderr
    assert "Traceback" not in done.stderr
    assert fresh_lake.table("raw/weather").count() == 411  # the first week, which is sound
    assert fresh_lake.table("raw/flights").count() == 10_930

    artifacts = river.prefect("artifacts", artifacts={"key": {"any_": ["checked-raw-weather"]}})
    (artifact,) = (a for a in artifacts if a["description"].startswith("## weather/2013-01-07/1: 504 of 504"))
    failed = [row["rule"] for row in json.loads(artifact["data"]) if row["result"] == "failed"]
    assert failed == ["`origin` must be one of EWR, JFK, LGA"]
    link = re.search(r"\[Data Docs\]\(http://127\.0\.0\.1:8080/(\S+)\)", artifact["description"])
    assert link
    page = Settings().home / "validations" / "docs" / link[1]
    assert "weather/2013-01-07/1" in page.read_text()

    def told() -> dict[str, int]:  # the server writes down what it was told every few seconds
        found = river.prefect("events", filter={"event": {"name": ["headrace.quarantine"]}})["events"]
        return {e["resource"]["prefect.resource.name"]: e["payload"]["rows"] for e in found}

    eventually(lambda: "weather/2013-01-07/1" in told())
    assert told() == {"weather/2013-02-11/1": 1, "weather/2013-01-07/1": 504}  # the river's own, and this one

    again = flows(Settings(), "ingest", "flights", "--as-of", "2013-01-15")
    assert again.returncode == 0, again.stderr
    assert "weather/2013-01-07/1" in again.stdout  # still waits, and is told so
    file.write_text(file.read_text().replace("NYC", "EWR"))
    assert flows(Settings(), "ingest", "flights", "--as-of", "2013-01-15").returncode == 0
    assert fresh_lake.table("raw/weather").count() == 411 + 504


def test_features_that_nothing_new_reaches_are_announced_as_overdue(river: River, fresh_lake: Lake) -> None:
    assert flows(Settings(), "ingest", "flights", "--as-of", "2013-01-15").returncode == 0
    done = flows(Settings(), "materialize", "flights", "--as-of", "2013-02-01")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"origin_delays: \d+ to build, new window .*\norigin_delays: [\d,]+\n", done.stdout, re.DOTALL
    )
    assert "origin_delays is overdue: newest row online 2013-01-13 23:00 UTC, ttl 1:00:00" in done.stdout

    def announced() -> dict[str, str]:
        found = river.prefect("events", filter={"event": {"name": ["headrace.features.overdue"]}})["events"]
        return {e["payload"]["view"]: e["payload"]["as_of"] for e in found}

    eventually(lambda: "origin_delays" in announced())
    overdue = announced()
    assert overdue["origin_delays"] == "2013-02-01T00:00:00+00:00"
    assert "planes" not in overdue  # the registry is one extract, and has no time to live


def test_a_missing_column_fails_the_run_at_once_with_its_name(
    river: River, fresh_lake: Lake, spoil: Callable[[str, str], Path]
) -> None:
    spoil("wind_gust", "gusts")
    done = flows(Settings(), "ingest", "flights", "--as-of", "2013-01-15")
    assert done.returncode == 1
    assert "Source `weather` lacks `wind_gust`" in done.stderr
    assert not fresh_lake.table("raw/weather").exists()
    assert fresh_lake.table("raw/flights").count() == 10_930  # what another source brings lands all the same

    def failed() -> list[dict[str, Any]]:  # the server hears of tasks by events
        runs = river.prefect("task_runs", task_runs={"name": {"any_": ["read weather"]}})
        return [run for run in runs if run["state_type"] == "FAILED"]

    (run,) = eventually(failed)
    assert run["run_count"] == 1, "a mistake that would be made again is not retried"


BUSY = """
from pathlib import Path
from prefect import flow
from flows.steps.common import step
from headrace.lake import duckdb_connection

@step("count for ever")
def count(begun):
    con = duckdb_connection()
    Path(begun).touch()
    con.execute("SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b")

@flow(flow_run_name="busy")
def busy(begun):
    count(begun)

busy("{begun}")
"""


def test_a_run_that_is_told_to_end_does_so_in_the_middle_of_a_query(river: River, tmp_path: Path) -> None:
    """DuckDB takes the signal for a failed query, which Prefect would try again."""
    begun = tmp_path / "begun"
    script = [sys.executable, "-c", BUSY.replace("{begun}", str(begun))]
    with subprocess.Popen(script, env=services.environment(river.settings), cwd=ROOT) as run:
        eventually(begun.exists)
        run.terminate()
        assert run.wait(timeout=60) != 0
    (found,) = river.prefect("flow_runs", flow_runs={"name": {"any_": ["busy"]}})
    assert found["state_type"] == "CRASHED"

    def tasks() -> list[dict[str, Any]]:  # the server hears of tasks by events
        return river.prefect("task_runs", task_runs={"name": {"any_": ["count for ever"]}})

    eventually(lambda: any(task["state_type"] == "CRASHED" for task in tasks()))
    assert [task["run_count"] for task in tasks()] == [1]


TRIES = """
from prefect import flow
from flows.steps.common import step
from headrace.errors import ServerUnreachable
from headrace.sources.errors import MissingColumns

tries = []

@step("try")
def attempt(error):
    tries.append(type(error).__name__)
    if tries.count(tries[-1]) == 1:
        raise error

@flow
def attempts(error):
    attempt(error)

attempts(ServerUnreachable("The database", "postgresql://nowhere", "it starts"))
attempts(MissingColumns("weather", ["temp"], ["origin"]), return_state=True)
print(*tries)
"""


def test_what_may_be_well_a_little_later_is_tried_again_and_what_will_not_is_not(river: River) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRIES],
        env=services.environment(river.settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == ["ServerUnreachable", "ServerUnreachable", "MissingColumns"]
