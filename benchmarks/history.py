"""Does it grow with its history? Seconds and memory with 10, 100, 1,000 and 10,000 windows behind.

A window is twenty pumps for thirty seconds (600 rows of each of two sources). Measured is

- a quiet window: the process that Prefect's worker starts for a run of the deployment `cycle`, on a real
  server, from start to end: it lands both sources, builds features and brings them online, predicts and
  judges. Once as a fork of the server that `make up` keeps, once as a process of its own, whose largest
  memory is told.
- a backfill: 200 windows that are due at once are landed and built by the flows `ingest` and
  `materialize`; told is the time for one of them.

Ours is a quiet window, as a fork, with the longest history; the bound is the same with the shortest:
at a ratio of 1 time does not grow. All are measured in turn, in a home each.

The history lies there as if it had been lived: raw rows and features by the flows themselves, as one
backfill; predictions and judgements, which the flows would make one after the other, written by the
library. That each measured window was landed, predicted and judged once is checked. What Prefect's own
database holds of runs is not part of it, nor how long the worker takes to notice that a run is due.
"""

from __future__ import annotations

import json
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
from headrace.lake import Lake, Window
from headrace.ledger import Ledger
from headrace.settings import Settings
from tests.e2e import projects

START, WINDOW, ROWS = datetime(2026, 1, 5, tzinfo=UTC), timedelta(seconds=30), 600
TRAINED = 5
"""Windows lived before the first release."""
MEASURED = (10, 100, 1_000, 10_000)
REPEATS, BACKFILL = 5, 200
FORKED, ALONE = "fork server", "a process of its own"
QUIET = {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PYTHONWARNINGS": "ignore"}


def run() -> Result:
    """Lay down a home for each length of history; then run their cycles, and their backfills, in turn."""
    foreign = ("HEADRACE_", "PREFECT_API", "PREFECT_HOME")  # would point it at someone's real state
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    with (
        TemporaryDirectory() as folder,
        patch.dict(os.environ, clean | QUIET, clear=True),
        ExitStack() as stack,
    ):
        homes = {number: _Home(Path(folder, str(number)), number, stack) for number in MEASURED}
        for number, home in homes.items():
            home.child(f"live({number - 1})")
        took: dict[str, dict[int, float]] = {}
        memory: dict[str, dict[int, float]] = {}
        for how in (FORKED, ALONE):
            ran = [{number: home.cycle(how) for number, home in homes.items()} for _ in range(REPEATS)]
            took[how] = {number: median(each[number][0] for each in ran) for number in homes}
            memory[how] = {number: median(each[number][1] for each in ran) for number in homes}
        for home in homes.values():
            home.check()
        backfills = {number: home.backfill() for number, home in homes.items()}
    took["a backfill's window"] = {number: seconds for number, (seconds, _) in backfills.items()}
    memory["a backfill"] = {number: peak for number, (_, peak) in backfills.items()}
    early, *_, late = MEASURED
    told = {
        f"a quiet window, {FORKED}, s": took[FORKED],
        f"a quiet window, {ALONE}, s": took[ALONE],
        "one window of a backfill, s": took["a backfill's window"],
        f"a quiet window, {ALONE}, MB": memory[ALONE],
        "a backfill, MB": memory["a backfill"],
    }
    return Result(
        name="history",
        about=f"with so many windows behind; a quiet window is the median of {REPEATS}",
        ours_s=took[FORKED][late],
        peer_s=None,
        bound_s=took[FORKED][early],
        columns=("", *(f"{number:,}" for number in MEASURED), "last to first"),
        rows=tuple((what, *each.values(), each[late] / each[early]) for what, each in told.items()),
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

    def child(self, call: str) -> float:
        """Call a function of this module in a process of its own; return its largest memory in MB."""
        return self._run(["-c", f"from benchmarks.history import *; {call}"])

    def cycle(self, how: str) -> tuple[float, float]:
        """Run the cycle of the next window as the worker does; return its seconds, and memory in MB."""
        deployment = self._ask("GET", "deployments/name/cycle/pumps")["id"]
        parameters = {"pipeline": "pumps", "as_of": end_of(self.number).isoformat()}
        made = self._ask("POST", f"deployments/{deployment}/create_flow_run", parameters=parameters)
        began = time.perf_counter()
        memory = self._run(["-m", "headrace.forkserver"], how, PREFECT__FLOW_RUN_ID=made["id"])
        took = time.perf_counter() - began
        state = self._ask("GET", f"flow_runs/{made['id']}")["state"]
        assert state["type"] == "COMPLETED", state
        self.number += 1
        return took, memory

    def backfill(self) -> tuple[float, float]:
        """Land and build many more windows; return the seconds for one, and the memory of all in MB."""
        memory = self.child(f"fill({self.number - 1 + BACKFILL}, '{self.folder}/filled.json')")
        return json.loads((self.folder / "filled.json").read_text()) / BACKFILL, memory

    def check(self) -> None:
        """Stop unless each window was landed, predicted and judged once."""
        lake, windows = Lake(self.settings.lake), self.number - 1
        landed, made = (lake.table(name).count() for name in ("raw/readings", "predictions/pumps"))
        judged = len(Ledger(self.settings.ledger).entries("pumps", "judgement"))
        assert (landed, made, judged) == (ROWS * windows, ROWS * (windows - TRAINED), windows - TRAINED)

    def _run(self, arguments: list[str], how: str = FORKED, **more: str) -> float:
        env = self.env | more | ({} if how == FORKED else {"HEADRACE_FORKSERVER": ""})
        log = self.folder / "run.log"
        with log.open("w") as said:
            child = subprocess.Popen(
                [sys.executable, *arguments], cwd=self.folder, env=env, stdout=said, stderr=said
            )
            _, status, used = os.wait4(child.pid, 0)
        if status:
            sys.exit(f"{arguments} failed:\n{log.read_text()[-4000:]}")
        return used.ru_maxrss / 1e3

    def _ask(self, method: str, path: str, **json: Any) -> Any:
        url = f"{self.settings.prefect_api_url}/{path}"
        answer = httpx.request(method, url, json=json or None, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None


def live(windows: int) -> None:
    """Let so many windows lie behind, in this process; a model is released after the first few."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.cycle import cycle
    from flows.ingest import ingest
    from flows.materialize import materialize
    from flows.train import train

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        cycle("pumps", end_of(TRAINED))
        train("pumps", end_of(TRAINED))
        ingest("pumps", end_of(windows))
        materialize("pumps", end_of(windows))
    _predict([Window(end_of(n), end_of(n + 1)) for n in range(TRAINED, windows)])


def _predict(windows: list[Window]) -> None:
    """Predict and judge ``windows``, without the flows that would take them one after the other."""
    from headrace import registry, spine, tracking
    from headrace.feature_store import store
    from headrace.instants import stamp
    from headrace.monitoring import judgements
    from headrace.project import Project
    from headrace.serving import log

    project = Project.here()
    spec, champion = project.pipeline("pumps"), registry.champion(project.mlflow, "pumps")
    assert champion
    model = tracking.load_model(project.mlflow, champion.model_uri)
    table = project.lake.table(log.table_of(spec))
    for first in range(0, len(windows), 1_000):
        part = windows[first : first + 1_000]
        span = Window(part[0].start, part[-1].end)
        asked = spine.rows(spec, project.lake, span).sort_by([("event_timestamp", "ascending")])
        rows = store.historical(project.store, spec.feature_service, asked)
        made = log.predicted(spec, rows, model, champion.version, champion.as_of)
        table.overwrite(made, span, "event_timestamp", {str(window): 1 for window in part})
    for window in windows:
        detail = {"end": stamp(window.end), "drifted": False, "cause": f"drift/{stamp(window.end)}"}
        project.ledger.finish("pumps", judgements.KIND, str(window), holder="a benchmark", **detail)
        project.ledger.finish("pumps", "cycle", stamp(window.end), holder="a benchmark")


def fill(windows: int, told: str) -> None:
    """Land and build all windows to that one, in this process; write down the seconds that it took."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.ingest import ingest
    from flows.materialize import materialize

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        began = time.perf_counter()
        ingest("pumps", end_of(windows))
        materialize("pumps", end_of(windows))
    Path(told).write_text(json.dumps(time.perf_counter() - began))


def end_of(number: int) -> datetime:
    """Return when a window ends; the first is number 1."""
    return START + number * WINDOW
