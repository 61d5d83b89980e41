"""Seconds from process start to process end of a scheduled cycle of a quiet window: the 10th and the 1,000th.

Ours: the process that Prefect's worker starts for a run of the deployment `cycle`,
on a real server. It lands the window's two sources of twenty pumps (600 rows each),
builds features and brings them online, predicts and judges. Bound: the 10th cycle,
before there is much history; at a ratio of 1 time does not grow with it. Both are measured
in turn, in two homes of their own; the windows before are lived 50 at a time, as after an
outage. Beside them, the same without the fork server that `make up` keeps: there a run
imports its libraries itself.

That each window was landed, predicted and judged once is checked. How long the
worker takes to notice that a run is due is not measured.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, chdir
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
from tests.e2e import projects

START, WINDOW, ROWS = datetime(2026, 1, 5, tzinfo=UTC), timedelta(seconds=30), 600
TRAINED = 5
"""Windows lived before the first release."""
MEASURED = (10, 1000)
REPEATS, AT_ONCE = 9, 50
FORKED, ALONE = "fork server", "a process of its own"
QUIET = {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PYTHONWARNINGS": "ignore"}


def run() -> Result:
    """Live to the 10th window in one home, to the 1,000th in another; then run their cycles in turn."""
    foreign = ("HEADRACE_", "PREFECT_API", "PREFECT_HOME")  # would point it at someone's real state
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    with (
        TemporaryDirectory() as folder,
        patch.dict(os.environ, clean | QUIET, clear=True),
        ExitStack() as stack,
    ):
        homes = {number: _Home(Path(folder, str(number)), number, stack) for number in MEASURED}
        for number, home in homes.items():
            home.live([TRAINED, *range(TRAINED + AT_ONCE, number - 1, AT_ONCE), number - 1])
        took: dict[str, dict[int, float]] = {}
        for how in (FORKED, ALONE):
            seconds = [{number: home.cycle(how) for number, home in homes.items()} for _ in range(REPEATS)]
            took[how] = {number: median(each[number] for each in seconds) for number in homes}
        for home in homes.values():
            home.check()
    early, late = MEASURED
    return Result(
        name="cycle",
        about=f"seconds of a cycle of a quiet window, median of {REPEATS}, from process start to end",
        ours_s=took[FORKED][late],
        peer_s=None,
        bound_s=took[FORKED][early],
        columns=("a scheduled cycle", f"number {early}", f"number {late:,}", "times as long"),
        rows=tuple((how, each[early], each[late], each[late] / each[early]) for how, each in took.items()),
    )


class _Home:
    """A project's folder with a Prefect server and a fork server of its own, until ``stack`` is left."""

    def __init__(self, folder: Path, number: int, stack: ExitStack) -> None:
        """Lay down the project; ``number`` is the first window to be measured."""
        self.folder, self.number = folder, number
        folder.mkdir()
        projects.lay("pumps", folder)
        with socket.create_server((services.HOST, 0)) as probe:
            port = probe.getsockname()[1]
        here = {
            "HEADRACE_HOME": f"{folder}/home",
            "PREFECT_API_URL": f"http://{services.HOST}:{port}/api",
            "PUMPS_START": START.isoformat(),
            "PUMPS_WORLD": str(folder),
            "PYTHONPATH": str(Path.cwd()),
        }
        with patch.dict(os.environ, here), chdir(folder):
            self.settings = Settings()
            started = [services.prefect_server(self.settings), services.fork_server()]
            stack.enter_context(services.running(started, self.settings))
            services.deploy(self.settings)
            self.env = services.environment(self.settings)
        # Without a worker, the schedule's own runs would only be late, and be noted as such.
        for each in self._ask("POST", "deployments/filter", limit=100):
            self._ask("PATCH", f"deployments/{each['id']}", paused=True)

    def live(self, ends: list[int]) -> None:
        """Live to each of the windows ``ends``, each in a process of its own."""
        for end in ends:
            done = self._run(["-c", f"from benchmarks.cycle import child; child({end})"])
            if done.returncode:
                sys.exit(f"The windows to {end} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")

    def cycle(self, how: str) -> float:
        """Run the cycle of the next window as the worker does; return its seconds."""
        deployment = self._ask("GET", "deployments/name/cycle/pumps")["id"]
        parameters = {"pipeline": "pumps", "as_of": _end(self.number).isoformat()}
        made = self._ask("POST", f"deployments/{deployment}/create_flow_run", parameters=parameters)
        began = time.perf_counter()
        self._run(["-m", "headrace.forkserver"], how, PREFECT__FLOW_RUN_ID=made["id"]).check_returncode()
        took = time.perf_counter() - began
        state = self._ask("GET", f"flow_runs/{made['id']}")["state"]
        assert state["type"] == "COMPLETED", state
        self.number += 1
        return took

    def check(self) -> None:
        """Stop unless each window was landed, predicted and judged once."""
        lake, windows = Lake(self.settings.lake), self.number - 1
        landed, made = (lake.table(name).count() for name in ("raw/readings", "predictions/pumps"))
        judged = len(Ledger(self.settings.ledger).entries("pumps", "judgement"))
        assert (landed, made, judged) == (ROWS * windows, ROWS * (windows - TRAINED), windows - TRAINED)

    def _run(self, arguments: list[str], how: str = FORKED, **more: str) -> subprocess.CompletedProcess[str]:
        env = self.env | more | ({} if how == FORKED else {"HEADRACE_FORKSERVER": ""})
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )

    def _ask(self, method: str, path: str, **json: Any) -> Any:
        url = f"{self.settings.prefect_api_url}/{path}"
        answer = httpx.request(method, url, json=json or None, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None


def child(end: int) -> None:
    """Live through all windows to ``end``, in this process; release a model after the first."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.cycle import cycle
    from flows.train import train

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        cycle("pumps", _end(end))
        if end == TRAINED:
            train("pumps", _end(end))


def _end(number: int) -> datetime:
    return START + number * WINDOW
