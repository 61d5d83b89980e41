"""Run one flow in this process: ``python -m flows train flights --as-of 2013-04-01``.

The run, its tasks and artifacts show in the Prefect UI as any other.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from headrace import services
from headrace.errors import HeadraceError
from headrace.pipeline import declared, load
from headrace.settings import Settings

FLOWS = ("ingest", "materialize", "train", "score", "monitor", "lifecycle")
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _utc(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=at.tzinfo or UTC).astimezone(UTC)


@app.command(help=__doc__)
def run(
    flow: Annotated[str, typer.Argument(help=f"One of {', '.join(FLOWS)}.")],
    pipeline: Annotated[str, typer.Argument(help=f"One of {', '.join(declared())}.")] = "flights",
    as_of: Annotated[str, typer.Option(help="The instant to believe in, UTC; the present if left out.")] = "",
    start: Annotated[str, typer.Option(help="lifecycle: where to begin, UTC.")] = "",
    end: Annotated[str, typer.Option(help="lifecycle: where to end, UTC.")] = "",
    cause: Annotated[str, typer.Option(help="train: why; one cause trains once.")] = "",
    result: Annotated[str, typer.Option(help="Write what the flow returns to this JSON file.")] = "",
) -> None:
    """Run ``flow``; exit with 1 and one message when it fails in a way we know."""
    console = Console(stderr=True)
    if flow not in FLOWS:
        console.print(f"No flow `{flow}`: there are {', '.join(FLOWS)}.", style="red")
        raise typer.Exit(2)
    instants = {"as_of": as_of, "start": start, "end": end}
    try:
        load(pipeline)
        wanted = {name: _utc(text) for name, text in instants.items() if text}
    except (HeadraceError, ValueError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
    try:
        services.reach_prefect(Settings())
        returned = _call(flow, {"pipeline": pipeline, **wanted} | ({"cause": cause} if cause else {}))
    except HeadraceError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    if result:
        Path(result).write_text(json.dumps(returned, default=_plain, indent=2))


def _call(flow: str, parameters: dict[str, Any]) -> Any:
    os.environ.update(services.environment(Settings()))
    dag = getattr(import_module(f"flows.{flow}"), flow)
    if unknown := set(parameters) - set(inspect.signature(dag.fn).parameters):
        raise typer.BadParameter(f"`{flow}` takes no {', '.join(sorted(unknown))}")
    # Prefect's console shows every task and a traceback for every error. The UI keeps both; here
    # only what the flows themselves say is shown, and errors are printed once.
    logging.getLogger("prefect").handlers = []
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        quiet = logging.getLogger(name)
        quiet.handlers = [h for h in quiet.handlers if type(h).__name__ == "APILogHandler"]
        quiet.propagate = False
    said = logging.getLogger("headrace")
    said.handlers = [h for h in said.handlers if type(h).__name__ == "APILogHandler"]
    said.addHandler(RichHandler(show_time=False, show_level=False, show_path=False, markup=True))
    return dag(**parameters)


def _plain(value: Any) -> Any:
    return vars(value) if hasattr(value, "__dataclass_fields__") else str(value)


if __name__ == "__main__":
    sys.exit(app())
