"""``headrace up``, ``headrace deploy`` and ``headrace demo``."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from headrace import services
from headrace.imports import whole
from headrace.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

console = Console()


def up() -> None:
    """Serve Prefect, MLflow, the UIs of Feast and Evidently, Data Docs, models and a worker until Ctrl-C."""
    whole()
    settings = Settings()
    servers = services.embedded(settings)
    console.print("Starting; half a minute or so…")
    with services.running(servers, settings) as serving:
        console.print(services.deploy(settings), highlight=False, markup=False)
        with services.running([services.fork_server(), services.prefect_worker()], settings) as working:
            console.print(_addresses(settings))
            console.print("Ctrl-C ends all of them.")
            try:
                _keep([*serving, *working], lambda: True)
            except KeyboardInterrupt:
                console.print("Ending.")


def deploy() -> None:
    """Put what prefect.yaml and deployments/ declare on the Prefect server; say what that changed."""
    whole()
    settings = Settings()
    services.reach_prefect(settings)
    command = [sys.executable, "-m", "deployments"]
    raise typer.Exit(subprocess.run(command, env=services.environment(settings), check=False).returncode)


def demo(
    start: Annotated[str, typer.Option(help="The first release's instant, UTC.")] = "2013-04-01",
    end: Annotated[str, typer.Option(help="Where to stop, UTC.")] = "2013-08-05",
) -> None:
    """Live through April to July 2013 week by week, and write what happened to demo/summary.json."""
    whole()
    settings, began = Settings(), time.perf_counter()
    folder = settings.home / "demo"
    lived = folder / "lifecycle.json"
    console.print(
        "[bold]headrace[/] starts a Prefect server and a worker, then lives through the flights of 2013."
    )
    with services.running(services.prefect(settings), settings) as serving:
        folder.mkdir(parents=True, exist_ok=True)
        up_after = time.perf_counter() - began
        console.print(f"Prefect server up after {up_after:.0f} s.")
        worker = services.running([services.fork_server(), services.prefect_worker()], settings)
        with worker as working, ThreadPoolExecutor(1) as aside:
            living = subprocess.Popen(
                [
                    *(sys.executable, "-m", "flows", "lifecycle", "flights"),
                    *("--start", start, "--end", end, "--result", str(lived)),
                ],
                env=services.environment(settings),
            )
            deploying = aside.submit(services.deploy, settings)
            # Without deployments no event is ever taken up: better to end now than to wait for that.
            deploying.add_done_callback(
                lambda done: (
                    living.terminate()
                    if done.exception()
                    else console.print(done.result(), highlight=False, markup=False)
                )
            )
            try:
                _keep([*serving, *working], lambda: living.poll() is None)
            finally:
                living.terminate()
            deploying.result()
    if living.returncode:
        raise typer.Exit(living.returncode)
    summary = json.loads(lived.read_text())
    summary["seconds"] |= {
        "start Prefect": round(up_after, 1),
        "total": round(time.perf_counter() - began, 1),
    }
    summary["addresses"] = {"Prefect": settings.prefect_page, "MLflow": settings.mlflow_page}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    lived.unlink()
    _tell(summary)
    answer(settings, "flights")
    console.print(f"Written to {folder / 'summary.json'}. [bold]make up[/] serves:")
    console.print(_addresses(settings))


def answer(settings: Settings, pipeline: str) -> None:
    """Let the champion of a pipeline answer once, and show how it is asked."""
    import httpx

    path = f"/v1/{pipeline}/predict"
    page = f"{settings.serve_page}{path}"
    try:
        with services.running([services.model_server(settings)], settings):
            described = httpx.get(f"{settings.serve_page}/openapi.json", timeout=60).json()
            body = described["paths"][path]["post"]["requestBody"]
            if not (example := body["content"]["application/json"].get("example")):
                console.print(f"The champion answers at {page}, to whoever has a key: `headrace keys list`.")
                return
            answer = httpx.post(page, json=example, timeout=60)
    except services.PortInUse as busy:  # all that the demo is for is done
        console.print(f"The champion was to answer over HTTP, but: {busy}", markup=False)
        return
    console.print("The champion answers over HTTP:")
    asked = f"$ curl {page} -d '{json.dumps(example)}'"
    console.print(f"{asked}\n{answer.text}", markup=False, highlight=False, soft_wrap=True)


def _keep(children: list[services.Child], while_: Callable[[], bool]) -> None:
    """Keep them all running; print what befell which of them, and when."""
    for befell in services.keep(children, while_):
        console.print(f"{datetime.now():%H:%M:%S} {befell}", markup=False, soft_wrap=True)


def _tell(summary: dict[str, Any]) -> None:
    """Print what happened, as tables."""
    span, score = next(((r["unseen"], r["score"]) for r in summary["releases"]), ("none", "score"))
    releases = Table(
        "version", "candidate", "verdict", "trained to", "unseen rows", score, f"{score} of the first"
    )
    for r in summary["releases"]:
        scores = [f"{r[k]:.3f}" if r[k] is not None else "-" for k in ("value", "value_of_first")]
        releases.add_row(
            str(r["version"]), r["candidate"], r["verdict"], r["trained_to"][:10], f"{r['rows']:,}", *scores
        )
    spent = Table("stage", "seconds")
    for stage, seconds in summary["seconds"].items():
        spent.add_row(stage, f"{seconds:,.1f}")
    console.print(f"Every release on the flights of {span} that it was not trained on, beside the first:")
    console.print(releases, spent)


def _addresses(settings: Settings) -> Table:
    """Return where to look at what; an address is clicked on, or copied, and never cut."""
    grid = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))
    for what, where, told in (
        ("Prefect", settings.prefect_page, "runs, deployments, artifacts, automations"),
        ("MLflow", services.mlflow_models(settings), "models, their runs, and what the monitor saw"),
        ("Feast", settings.feast_page, "features: where from, what they mean, who uses them"),
        ("models", f"{settings.serve_page}/docs", "ask champions over HTTP; every answer is logged"),
        ("Evidently", settings.evidently_page, "scores, expected and come true, and drift over time"),
        ("Data Docs", settings.docs_page, "what each batch was checked for, and what was found"),
        ("state", str(settings.home), "lake, ledger, features, logs"),
    ):
        grid.add_row(f"[bold]{what}[/]", where)
        grid.add_row("", f"[dim]{told}[/]")
    return grid
