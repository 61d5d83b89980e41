"""Run one flow in this process: ``python -m flows train flights --as-of 2013-04-01``.

The run, its tasks and artifacts show in the Prefect UI as any other.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from headrace import services
from headrace.cli.instant import utc
from headrace.errors import HeadraceError, did_you_mean, disks_explained
from headrace.legible import legible_lines
from headrace.pipeline import declared, load
from headrace.settings import Settings

FLOWS = ("cycle", "ingest", "materialize", "tune", "train", "score", "monitor", "lifecycle")
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def run(
    flow: Annotated[str, typer.Argument(help=f"One of {', '.join(FLOWS)}.")],
    pipeline: Annotated[str, typer.Argument(help=f"One of {', '.join(declared())}.")] = "flights",
    as_of: Annotated[str, typer.Option(help="The instant to believe in, UTC; the present if left out.")] = "",
    start: Annotated[str, typer.Option(help="lifecycle: where to begin, UTC.")] = "",
    end: Annotated[str, typer.Option(help="lifecycle: where to end, UTC.")] = "",
    cause: Annotated[str, typer.Option(help="train: why; one cause trains once.")] = "",
    trials: Annotated[int, typer.Option(help="tune: how many; those of before included.")] = 0,
    result: Annotated[str, typer.Option(help="Write what the flow returns to this JSON file.")] = "",
) -> None:
    """Run ``flow``; exit with 1 and one message when it fails in a way we know."""

    def refuse(message: object, code: int = 1) -> typer.Exit:
        Console(stderr=True).print(
            legible_lines(message), style="red", markup=False, highlight=False, soft_wrap=True
        )
        return typer.Exit(code)

    if flow not in FLOWS:
        raise refuse(f"No flow `{flow}`: there are {', '.join(FLOWS)}.{did_you_mean(flow, FLOWS)}", 2)
    instants = {"as_of": as_of, "start": start, "end": end}
    try:
        load(pipeline)
        parameters = {"pipeline": pipeline, **{k: utc(text) for k, text in instants.items() if text}}
        services.reach_prefect(Settings())
        with disks_explained():
            returned = _call(
                flow, parameters | {k: v for k, v in {"cause": cause, "trials": trials}.items() if v}
            )
    except HeadraceError as error:
        raise refuse(error) from None
    if result:
        Path(result).write_text(json.dumps(returned, default=_plain, indent=2))
    if flow != "lifecycle":  # it has told each window as it passed
        print(_told(returned))


def _call(flow: str, parameters: dict[str, Any]) -> Any:
    os.environ.update(services.environment(Settings()))
    # Prefect's console would show every task, and a traceback for every error. The UI keeps both;
    # here only what the flows themselves say is shown, and an error is printed once.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    dag = getattr(import_module(f"flows.{flow}"), flow)
    taken = inspect.signature(dag.fn).parameters
    if unknown := set(parameters) - set(taken):
        raise typer.BadParameter(f"`{flow}` takes no {', '.join(sorted(unknown))}")
    needed = [name for name, parameter in taken.items() if parameter.default is parameter.empty]
    if missing := [f"--{name}" for name in needed if name not in parameters]:
        raise typer.BadParameter(f"`{flow}` needs {' and '.join(missing)}")
    said = logging.StreamHandler(sys.stdout)
    said.setFormatter(Legible())
    said.addFilter(lambda record: record.pathname.startswith(str(Path(__file__).parent)))
    # Of the hundreds of steps that a lifecycle takes, none says why it was due.
    for runs in ("flow_runs",) if flow == "lifecycle" else ("flow_runs", "task_runs"):
        logging.getLogger(f"prefect.{runs}").addHandler(said)
    # A run waits up to a second for its heartbeat thread to end. Heartbeats tell the server of runs
    # that died unseen; here a person looks on.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        return dag(**parameters)


class Legible(logging.Formatter):
    """What is logged may hold names and values that came with data."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, with nothing in it that a terminal obeys."""
        return legible_lines(super().format(record))


def _told(returned: Any) -> str:
    """Say what a flow returned: counts or findings by name, or a verdict."""
    if not isinstance(returned, dict):
        return str(returned)
    lines = [f"{name}: {_of(value)}" for name, value in returned.items() if value != {}]
    return "\n".join(lines) or "Nothing was due."


def _of(value: Any) -> str:
    """Say a value in a line; what was found of each window, in one of its own."""
    if not isinstance(value, dict):
        return {int: "{:,}", float: "{:,.4g}"}.get(type(value), "{}").format(value)
    if any("reason" in one for one in value.values() if isinstance(one, dict)):
        return "".join(f"\n  {name}: {one['reason']}" for name, one in value.items())
    return ", ".join(f"{name} {_of(one)}" for name, one in value.items())


def _plain(value: Any) -> Any:
    return vars(value) if hasattr(value, "__dataclass_fields__") else str(value)
