"""How long until the command line answers and until each flow could begin.

Ours: what a fresh process imports for it. Peer: the eight packages imported at
the top of one file, as their own quickstarts do. Bound: Python with Prefect
alone (for the command line: Python with Typer).
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from benchmarks.result import Result

REPEATS = 3
PEER = (
    "import prefect, great_expectations, feast, mlflow, evidently, xgboost, torch, dask.distributed, "
    "great_expectations.expectations, mlflow.pyfunc, xgboost.dask"
)
FLOWS = ("cycle", "ingest", "materialize", "train", "score", "monitor", "lifecycle")


def run() -> Result:
    """Time each import in fresh processes, interleaved so that a noisy moment hits all."""
    jobs = {
        "headrace --help": ["-m", "headrace.cli", "--help"],
        "typer alone": ["-c", "import typer"],
        **{f"flows.{flow}": ["-c", f"import flows.{flow}"] for flow in FLOWS},
        "prefect alone": ["-c", "from prefect import flow, task"],
        "all eight packages": ["-c", PEER],
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(REPEATS):
        for name, command in jobs.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - began)
    took = {name: median(times) for name, times in seconds.items()}
    peer, bound = took["all eight packages"], took["prefect alone"]
    rows = tuple(
        (name, took[name], peer / took[name], took[name] / (took["typer alone"] if "help" in name else bound))
        for name in jobs
    )
    return Result(
        name="imports",
        about=f"seconds to start, median of {REPEATS}",
        ours_s=max(took[f"flows.{flow}"] for flow in FLOWS),
        peer_s=peer,
        bound_s=bound,
        columns=("start", "seconds", "times faster than all eight", "times the bound"),
        rows=rows,
    )
