"""Serving one champion of 200 trees on loopback, one process each: ours, what people run, and an empty page.

The champion is that of flights, made of January to March 2013; its features are in Feast's SQLite online
store. All are asked for the same departures. Latencies are those of a client on the same machine.

- ours: `headrace serve`, every answer on disk before it is given.
- the peer: `get_online_features` of Feast's client, then a row to `mlflow models serve`. Nothing is logged.
- Feast's feature server alone, which is asked for features and predicts nothing.
- the bound: a FastAPI page that reads the body and answers with as many bytes, under the same server.

Throughput is with 32 clients that ask again as soon as they are answered (the peer: 4); half load is half of
that, with requests at fixed instants whether or not answers come; overload is twice that. With a shadow, one
more version predicts all that is asked. While the champion changes, twice, is half load again: one command
makes another version champion, and the next brings the one before back.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks._load import Told, closed, opened, request
from benchmarks.result import Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import httpx

CLIENTS, SECONDS, AGAIN = 32, 8.0, 3
AS_OF = datetime(2013, 4, 1, tzinfo=UTC)
PORTS = {"ours": 18_231, "peer": 18_232, "feast": 18_233, "empty": 18_234}
EMPTY = """
import sys, uvicorn
from fastapi import FastAPI, Request, Response
app = FastAPI()
@app.post("/empty")
async def empty(request: Request) -> Response:
    await request.body()
    return Response(b"x" * 200, media_type="application/json")
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
"""


def run() -> Result:
    """Make the champion once, then measure each."""
    with TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        env = os.environ | {"HEADRACE_HOME": str(home), "HEADRACE_SERVE_PORT": str(PORTS["ours"])}
        # MLflow starts uvicorn by its name.
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        child("prepare", folder, env)
        rows = json.loads((Path(folder) / "rows.json").read_text())
        single = [json.dumps({"rows": [row]}).encode() for row in rows]
        hundred = [json.dumps({"rows": rows[n : n + 100]}).encode() for n in range(0, 1_000, 100)]
        with _server(
            [sys.executable, "-m", "headrace.cli", "serve", "flights"], "ours", "/readyz", env
        ) as pid:
            ours = _measured("ours", "/v1/flights/predict", single)
            many = _load(
                "closed", "ours", [request("/v1/flights/predict", b, PORTS["ours"]) for b in hundred], 1
            )
            changed = _changed(single, ours["rate"] / 2, env)
            shadowed = _shadowed(single, ours["rate"] / 2, env)
            time.sleep(3)
            before = _memory(pid)
            over = _load("open", "ours", _requests("ours", "/v1/flights/predict", single), 2 * ours["rate"])
            after = _memory(pid)
            again = _load("closed", "ours", _requests("ours", "/v1/flights/predict", single), CLIENTS)
        with _server([sys.executable, "-c", EMPTY, str(PORTS["empty"])], "empty", "", env):
            empty = _measured("empty", "/empty", single)
        peer = json.loads(child("peer", folder, env))
        feast = json.loads(child("feast", folder, env))
    refused = over.statuses[429] / sum(over.statuses.values())
    columns = ("what", "requests/s", "p50, 1 client", "p99 at half load")

    def row(what: str, found: dict[str, float]) -> tuple[object, ...]:
        half = f"{found['p99']:.1f} ms" if "p99" in found else ""
        return (what, f"{found['rate']:,.0f}", f"{found['p50']:.2f} ms", half)

    table = (
        row("headrace serve", ours),
        ("  with a shadow, of that", f"{shadowed['rate']:.2f} times", "", f"{shadowed['p99']:.2f} times"),
        (
            "  while the champion changes twice",
            f"{changed.rate:,.0f}",
            f"{changed.failed} fail",
            f"{changed.quantile(0.99):.1f} ms",
        ),
        ("headrace serve, 100 rows a request", f"{many.rate:,.0f}", f"{many.quantile(0.5):.1f} ms", ""),
        (
            "  at twice its throughput",
            f"{over.rate:,.0f}",
            f"{refused:.0%} are 429",
            f"{over.quantile(0.99):.1f} ms",
        ),
        ("  afterwards", f"{again.rate:,.0f}", f"{after - before:+.0f} MB", ""),
        row("an empty page of FastAPI", empty),
        row("Feast's client, then mlflow models serve", peer),
        row("Feast's feature server, which predicts nothing", feast),
    )
    return Result(
        "serving",
        f"requests of one row, {CLIENTS} clients, one process on {os.cpu_count()} cores with its clients",
        1 / ours["rate"],
        1 / peer["rate"],
        1 / empty["rate"],
        columns,
        table,
        {
            "requests_a_second": round(ours["rate"]),
            "p50_ms": round(ours["p50"], 2),
            "p99_half_load_ms": round(ours["p99"], 1),
            "p50_100_rows_ms": round(many.quantile(0.5), 1),
            "shadow_throughput_ratio": round(shadowed["rate"], 2),
            "shadow_p99_ratio": round(shadowed["p99"], 2),
            "rows_unshadowed_share": round(shadowed["left out"], 3),
            "failed_while_changing": changed.failed,
            "overload_p99_ms": round(over.quantile(0.99), 1),
            "overload_refused": round(refused, 2),
        },
    )


def _requests(side: str, path: str, bodies: Sequence[bytes]) -> list[bytes]:
    return [request(path, body, PORTS[side]) for body in bodies]


def _measured(side: str, path: str, bodies: Sequence[bytes]) -> dict[str, float]:
    """Return throughput, p50 of one client and p99 at half load, each the median of several."""
    asked = _requests(side, path, bodies)
    _load("closed", side, asked, 4)  # what is made at the first use
    alone = _median([_load("closed", side, asked, 1).quantile(0.5) for _ in range(AGAIN)])
    rate = _median([_load("closed", side, asked, CLIENTS).rate for _ in range(AGAIN)])
    half = _median([_load("open", side, asked, rate / 2).quantile(0.99) for _ in range(AGAIN)])
    return {"rate": rate, "p50": alone, "p99": half}


def _changed(bodies: Sequence[bytes], rate: float, env: dict[str, str]) -> Told:
    """Ask while one command makes another version champion and the next one brings this one back."""
    command = f"{sys.executable} -m headrace.cli models"
    both = f"{command} promote flights@2 --reason load && {command} rollback flights --reason load"
    asked, told = _requests("ours", "/v1/flights/predict", bodies), Told()
    with subprocess.Popen(["sh", "-ec", both], env=env, stdout=subprocess.DEVNULL) as commands:
        while commands.poll() is None:
            told.add(_load("open", "ours", asked, rate))
        told.add(_load("open", "ours", asked, rate))  # it is seen within two seconds
        assert not commands.returncode
    return told


def _shadowed(bodies: Sequence[bytes], half: float, env: dict[str, str]) -> dict[str, float]:
    """Load without and with a shadow, in turns, so that what else the machine does befalls both.

    Return what the shadow makes of throughput and of the p99 at half load, as the median of ratios, and the
    share of rows that it left out.
    """
    asked, found = _requests("ours", "/v1/flights/predict", bodies), []
    for _ in range(AGAIN):
        turn = {}
        for side in ("unshadow", "shadow"):
            child(side, "flights", env)
            time.sleep(5)  # until it is seen
            before = _counted("headrace_rows_unshadowed")
            full = _load("closed", "ours", asked, CLIENTS)
            turn[side] = full.rate, _load("open", "ours", asked, half).quantile(0.99)
            out = (_counted("headrace_rows_unshadowed") - before) / full.statuses[200]
        (rate, p99), (rate_with, p99_with) = turn["unshadow"], turn["shadow"]
        found.append({"rate": rate_with / rate, "p99": p99_with / p99, "left out": out})
    child("unshadow", "flights", env)
    return {name: _median([one[name] for one in found]) for name in found[0]}


def _counted(name: str) -> float:
    """Return what the service has counted."""
    import httpx

    told = httpx.get(f"http://127.0.0.1:{PORTS['ours']}/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in told if line.startswith(name)), 0.0)


def shadow(pipeline: str, *, on: bool = True) -> None:
    """Let version 2 be a shadow."""
    from headrace import registry
    from headrace.project import Project

    registry.set_shadow(Project.here().mlflow, pipeline, 2, on=on)


def unshadow(pipeline: str) -> None:
    """Let it go."""
    shadow(pipeline, on=False)


def _median(found: list[float]) -> float:
    return sorted(found)[len(found) // 2]


def _load(kind: str, side: str, asked: Sequence[bytes], much: float) -> Told:
    """Load from this process, which does nothing else."""
    if kind == "closed":
        return closed(PORTS[side], asked, int(much), SECONDS)
    return opened(PORTS[side], asked, much, SECONDS)


@contextmanager
def _server(command: Sequence[str], side: str, health: str, env: dict[str, str]) -> Iterator[int]:
    """Run a server until the block ends; give its process id."""
    import httpx

    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            until = time.monotonic() + 120
            while time.monotonic() < until:
                try:
                    if httpx.get(f"http://127.0.0.1:{PORTS[side]}{health}").status_code < 500:
                        break
                except httpx.TransportError:
                    time.sleep(0.2)
            yield child.pid
        finally:
            child.terminate()
            child.wait(60)


def _memory(pid: int) -> float:
    """Return a process's resident memory, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def child(side: str, folder: str, env: dict[str, str], module: str = "serving") -> str:
    """Run a side in a process of its own; return what it prints last."""
    code = f"from benchmarks.{module} import {side}; {side}({folder!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=1800
    )
    return done.stdout.strip().rpartition("\n")[2]


def prepare(folder: str) -> None:
    """Land, build, bring online, train two versions and release one; write the rows to ask for."""
    from functools import partial

    from headrace import registry
    from headrace import release as releases
    from headrace.cluster import cluster
    from headrace.feature_store import store as features
    from headrace.feature_store.tables import build
    from headrace.lake import Window, duckdb_connection, windows
    from headrace.project import Project
    from headrace.sources import Files
    from headrace.training import dataset

    project = Project.here()
    spec, lake = project.pipeline("flights"), project.lake
    for source in spec.sources:
        con, origin = duckdb_connection(), source.origin
        assert isinstance(origin, Files)
        for part in origin.read(con, source.name, source.time, Window(spec.start, AS_OF)):
            rows = con.sql(f"SELECT *, {source.time} AS available_at FROM {part.relation}")
            lake.table(source.table).append(rows.to_arrow_table(), part.relation)
    for table in spec.feature_tables:
        build(table, spec.raw, windows(spec.start, AS_OF, spec.window), lake)
    store = project.store
    features.apply(store, "features.flights")
    features.materialize(store, spec.feature_service, AS_OF, spec.start)
    joined = partial(features.historical, store, spec.feature_service)
    data = dataset.build(spec, lake, AS_OF, joined, features.pins(store, spec.feature_service))
    for seed in (1, 2):
        with cluster() as client:
            trial = releases.try_out(
                *(spec, replace(spec.candidates[0], seed=seed), data),
                final=True,
                sources=(),
                lake=lake,
                mlflow=project.mlflow,
                cause=f"a benchmark, seed {seed}",
                as_of=AS_OF,
                client=client,
            )
        registry.register(project.mlflow, spec.name, trial.logged)
    registry.set_alias(project.mlflow, spec.name, registry.CHAMPION, 1)
    names = "carrier, flight, origin, sched_dep, tailnum, dest, distance, known_hour, event_timestamp"
    asked = lake.connect(spec.raw).sql(
        f"SELECT {names} FROM ({spec.spine}) WHERE event_timestamp BETWEEN '2013-03-20' AND '2013-03-28' "
        "ORDER BY hash(flight, sched_dep) LIMIT 2000"
    )
    rows = asked.to_arrow_table().to_pylist()
    told = [{name: _plain(value) for name, value in row.items()} for row in rows]
    (Path(folder) / "rows.json").write_text(json.dumps(told))


def _plain(value: Any) -> Any:
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value


def peer(folder: str) -> None:
    """Read with Feast's client, ask MLflow's server; print requests a second and milliseconds."""

    from headrace.project import Project
    from headrace.settings import Settings

    project, settings = Project.here(), Settings()
    store, spec = project.store, project.pipeline("flights")
    service, rows = store.get_feature_service(spec.feature_service), _rows(folder)
    env = os.environ | {"MLFLOW_TRACKING_URI": settings.mlflow.get_secret_value()}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/flights/1"]
    command += ["--env-manager", "local", "-p", str(PORTS["peer"]), "-w", "1"]
    with _server(command, "peer", "/ping", env):
        address = f"http://127.0.0.1:{PORTS['peer']}/invocations"
        numbers = {*spec.columns.numeric}

        def ask(client: httpx.Client, row: dict[str, Any]) -> None:
            keys = {"origin": row["origin"], "carrier": row["carrier"], "tailnum": row["tailnum"]}
            keys |= {"known_hour": row["known_hour"], "sched_dep": datetime.fromisoformat(row["sched_dep"])}
            found = store.get_online_features(features=service, entity_rows=[keys]).to_dict()
            inputs = {name: found[name][0] if name in found else row[name] for name in spec.columns.names}
            record = {n: float(v) if n in numbers and v is not None else v for n, v in inputs.items()}
            client.post(address, json={"dataframe_records": [record]}).raise_for_status()

        print(json.dumps(_asked(ask, rows)))


def feast(folder: str) -> None:
    """Ask Feast's feature server; print requests a second and milliseconds."""
    import httpx

    rows = _rows(folder)
    command = [sys.executable, "-m", "feast.cli.cli", "-c", "features", "serve", "-h", "127.0.0.1"]
    command += ["-p", str(PORTS["feast"]), "--no-access-log", "-w", "1"]
    with _server(command, "feast", "/health", dict(os.environ)):
        address = f"http://127.0.0.1:{PORTS['feast']}/get-online-features"

        def ask(client: httpx.Client, row: dict[str, Any]) -> object:
            names = ("origin", "carrier", "tailnum", "known_hour", "sched_dep")
            entities = {name: [row[name]] for name in names}
            asked = {"feature_service": "flight_delay", "entities": entities}
            while True:
                try:
                    return client.post(address, json=asked).raise_for_status()
                except httpx.TransportError:  # its worker starts again after so many requests
                    continue

        print(json.dumps(_asked(ask, rows)))


def _rows(folder: str) -> list[dict[str, Any]]:
    rows = json.loads((Path(folder) / "rows.json").read_text())
    return [row for row in rows if row["tailnum"]]  # Feast's client dies of a key that is null


def _asked(ask: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return requests a second of four clients, and the p50 of one."""
    import httpx

    def client(number: int, until: float) -> list[float]:
        took, at = list[float](), number
        with httpx.Client() as connection:
            while time.perf_counter() < until:
                begun = time.perf_counter()
                ask(connection, rows[at % len(rows)])
                took.append(time.perf_counter() - begun)
                at += 4
        return took

    client(0, time.perf_counter() + 3)
    alone = sorted(client(0, time.perf_counter() + SECONDS))
    rates = []
    for _ in range(AGAIN):
        begun = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(client, range(4), [begun + SECONDS] * 4))
        rates.append(sum(map(len, found)) / (time.perf_counter() - begun))
    return {"rate": _median(rates), "p50": alone[len(alone) // 2] * 1000}
