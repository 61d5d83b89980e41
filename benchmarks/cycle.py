"""Seconds from process start to process end of a scheduled cycle of a quiet window: the 10th and the 1,000th.

Ours: the process that Prefect's worker starts for a run of the deployment `cycle`,
on a real server. It lands the window's two sources of twenty pumps (600 rows each),
builds features and brings them online, predicts and judges. Bound: the 10th cycle,
before there is much history; at a ratio of 1 time does not grow with it. The windows
between are lived 50 at a time, as after an outage. Beside them, the same without the
fork server that `make up` keeps: there a run imports its libraries itself.

That each window was landed, predicted and judged once is checked. How long the
worker takes to notice that a run is due is not measured.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import httpx

from benchmarks.result import Result
from headrace import services
from headrace.lake import Lake
from headrace.ledger import Ledger
from headrace.settings import Settings
from tests.e2e import pumps

START, WINDOW, ROWS = datetime(2026, 1, 5, tzinfo=UTC), timedelta(seconds=30), 600
TRAINED = 5
"""Windows lived before the first release."""
MEASURED = (10, 1000)
REPEATS, AT_ONCE = 3, 50
QUIET = {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PYTHONWARNINGS": "ignore"}


def run() -> Result:
    """Live to the 10th window, and on to the 1,000th; run the cycles there as Prefect's worker does."""
    early, late = MEASURED
    foreign = ("HEADRACE_", "PREFECT_API", "PREFECT_HOME")  # would point it at someone's real state
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    here = Path.cwd()
    with TemporaryDirectory() as folder, patch.dict(os.environ, clean, clear=True):
        with socket.create_server((services.HOST, 0)) as probe:
            port = probe.getsockname()[1]
        os.environ |= QUIET | {
            "HEADRACE_HOME": f"{folder}/home",
            "PREFECT_API_URL": f"http://{services.HOST}:{port}/api",
            "PUMPS_START": START.isoformat(),
            "PUMPS_WORLD": folder,
            "PYTHONPATH": str(here),
        }
        pumps.lay(Path(folder))
        os.chdir(folder)
        try:
            settings = Settings()
            with services.running([services.prefect_server(settings)], settings):
                services.deploy(settings)
                _live([TRAINED, early - 1])
                first = _both(settings, early)
                _live([*range(early + 2 * REPEATS - 1, late - 1, AT_ONCE), late - 1])
                last = _both(settings, late)
                _check(settings, late + 2 * REPEATS - 1)
        finally:
            os.chdir(here)
    return Result(
        name="cycle",
        about=f"seconds of a cycle of a quiet window, median of {REPEATS}, from process start to end",
        ours_s=last["fork server"],
        peer_s=None,
        bound_s=first["fork server"],
        columns=("a scheduled cycle", f"number {early}", f"number {late:,}", "times as long"),
        rows=tuple((how, first[how], last[how], last[how] / first[how]) for how in first),
    )


def child(ends: list[int]) -> None:
    """Live through all windows to each of ``ends``, in this process; release a model after the first."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.cycle import cycle
    from flows.train import train

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        for number in ends:
            cycle("pumps", _end(number))
            if number == TRAINED:
                train("pumps", _end(number))


def _live(ends: list[int]) -> None:
    command = [sys.executable, "-c", f"from benchmarks.cycle import child; child({ends})"]
    env = services.environment(Settings())
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"The windows to {ends[-1]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _both(settings: Settings, number: int) -> dict[str, float]:
    """Return the seconds of scheduled cycles from window ``number`` on, with and without a fork server."""
    listens = settings.home / "forkserver.sock"
    listens.unlink(missing_ok=True)
    with services.running([services.fork_server()], settings):
        while not listens.exists():
            time.sleep(0.5)
        forked = [_scheduled(settings, number + n) for n in range(REPEATS)]
    alone = [_scheduled(settings, number + REPEATS + n) for n in range(REPEATS)]
    return {"fork server": median(forked), "a process of its own": median(alone)}


def _scheduled(settings: Settings, number: int) -> float:
    """Run the cycle at the end of a window as the worker does; return its seconds."""
    deployment = _ask(settings, "GET", "deployments/name/cycle/pumps")["id"]
    parameters = {"pipeline": "pumps", "as_of": _end(number).isoformat()}
    made = _ask(settings, "POST", f"deployments/{deployment}/create_flow_run", parameters=parameters)
    env = services.environment(settings) | {"PREFECT__FLOW_RUN_ID": made["id"]}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "headrace.forkserver"], env=env, capture_output=True, check=True)
    took = time.perf_counter() - began
    state = _ask(settings, "GET", f"flow_runs/{made['id']}")["state"]
    assert state["type"] == "COMPLETED", state
    return took


def _ask(settings: Settings, method: str, path: str, **json: Any) -> Any:
    answer = httpx.request(method, f"{settings.prefect_api_url}/{path}", json=json or None, timeout=30)
    answer.raise_for_status()
    return answer.json()


def _end(number: int) -> datetime:
    return START + number * WINDOW


def _check(settings: Settings, windows: int) -> None:
    lake = Lake(settings.lake)
    landed, made = (lake.table(name).count() for name in ("raw/readings", "predictions/pumps"))
    judged = len(Ledger(settings.ledger).entries("pumps", "judgement"))
    assert (landed, made, judged) == (ROWS * windows, ROWS * (windows - TRAINED), windows - TRAINED)
