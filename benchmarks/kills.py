"""A service under load, killed with -9 again and again: is an answer lost, or logged twice?

Each life serves on a port of its own until it is killed at an instant that nobody chose, while four clients
ask without a pause; two lives at a time share lake, registry and online store. What a life leaves is brought
into the lake by those that come after it. In the end, the ids of all answers that clients received are held
against the lake's table.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.result import Result
from benchmarks.serving import child

KILLS, AT_ONCE, CLIENTS = 200, 2, 4


def run() -> Result:
    """Make a champion, then live and kill."""
    with TemporaryDirectory() as folder:
        env = os.environ | {"HEADRACE_HOME": f"{folder}/home"}
        child("prepare", folder, env)
        told: dict[str, Any] = json.loads(child("lives", folder, env, module="kills"))
    columns = ("kills", "answers", "lost", "logged twice", "logged, and received by nobody")
    row = tuple(f"{told[name]:,}" for name in ("kills", "answers", "lost", "doubled", "unheard"))
    each = told["seconds"] / told["kills"] * AT_ONCE
    about = f"lives of {each:.1f} s, {AT_ONCE} at a time, {CLIENTS} clients each"
    more = {name: told[name] for name in ("kills", "answers", "lost", "doubled")}
    return Result("kills", about, told["seconds"], None, None, columns, (row,), more)


def lives(folder: str) -> None:
    """Let lives begin and end; print what became of their answers."""
    from headrace.project import Project
    from headrace.serving.journal import adopt

    rows = json.loads((Path(folder) / "rows.json").read_text())
    forks = get_context("forkserver")
    forks.set_forkserver_preload(["benchmarks.kills", "fastapi", "feast", "mlflow", "xgboost", "uvicorn"])
    answered, draw, began = list[str](), random.Random(0), time.perf_counter()

    def live(number: int) -> None:
        port = 19_000 + number
        serving = forks.Process(target=serve, args=(folder, port))
        serving.start()
        first, ended = threading.Event(), threading.Event()
        with ThreadPoolExecutor(CLIENTS) as clients:
            for client in range(CLIENTS):
                clients.submit(_ask, port, rows[client::CLIENTS], answered, first, ended)
            first.wait(60)
            time.sleep(draw.uniform(0, 1))
            serving.kill()
            serving.join()
            ended.set()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(live, range(KILLS)))
    seconds, project = time.perf_counter() - began, Project.here()
    adopt(project.settings.home / "served", project.lake)
    con = project.lake.connect({"served": "served/flights"})
    logged = [one for (one,) in con.sql("SELECT prediction_id FROM served").fetchall()]
    told = {
        "kills": KILLS,
        "answers": len(answered),
        "lost": len(set(answered) - set(logged)),
        "doubled": len(logged) - len(set(logged)),
        "unheard": len(set(logged) - set(answered)),
        "seconds": seconds,
    }
    print(json.dumps(told))


def serve(folder: str, port: int) -> None:
    """Be a life."""
    os.environ["HEADRACE_SERVE_PORT"] = str(port)
    from functools import partial

    from headrace.feature_store.plan import Plan
    from headrace.project import Project
    from headrace.serving import run as serving
    from headrace.serving.keys import Keys

    project, none = Project.here(), Keys(Path(folder) / "no-keys.json")
    specs, planned = [project.pipeline("flights")], partial(Plan, project.store)
    serving.run(project.settings, specs, planned, project.mlflow, project.lake, none)


def _ask(
    port: int,
    rows: list[dict[str, Any]],
    answered: list[str],
    first: threading.Event,
    ended: threading.Event,
) -> None:
    """Ask until told to end; note the ids of answers."""
    import httpx

    at = 0
    with httpx.Client(timeout=30) as connection:
        while not ended.is_set():
            body = {"rows": [rows[at % len(rows)]]}
            at += 1
            with suppress(httpx.TransportError):
                answer = connection.post(f"http://127.0.0.1:{port}/v1/flights/predict", json=body)
                if answer.status_code == 200:
                    answered.extend(one["id"] for one in answer.json()["predictions"])
                    first.set()
                continue
            time.sleep(0.02)
