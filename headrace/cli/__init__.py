"""The ``headrace`` command: what a person types; each command imports only what it uses."""

from __future__ import annotations

import signal
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from headrace.cli import (
    backtest,
    backup,
    claims,
    dashboards,
    doctor,
    features,
    init,
    keys,
    live,
    models,
    new,
    place,
    quarantine,
    replay,
    report,
    reproduce,
    resume,
    serve,
    status,
    trace,
    vacuum,
    verify,
)
from headrace.errors import HeadraceError, disks_explained
from headrace.imports import explained
from headrace.lake import damage_explained, interruptible
from headrace.legible import legible_lines

app = typer.Typer(
    help="ML pipelines as scheduled, retryable DAGs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"headrace {version('headrace')}")
        raise typer.Exit


ANYWHERE = ("init",)
"""What needs no project around it."""


@app.callback()
def _in_a_project(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which one this is.")
    ] = False,
) -> None:
    """Refuse any other folder first: what is not there would be made there, or seem to be in order."""
    if "--help" not in sys.argv and context.invoked_subcommand not in ANYWHERE:
        place.enter()


app.command()(live.up)
app.command()(live.deploy)
app.command()(live.demo)
app.command()(init.init)
app.command()(init.upgrade)
app.command()(new.new)
app.command()(status.status)
app.command()(doctor.doctor)
app.command()(resume.resume)
app.command()(serve.serve)
app.command()(trace.trace)
app.command()(replay.replay)
app.command()(backtest.backtest)
app.command()(report.report)
app.command()(dashboards.dashboards)
app.command()(verify.verify)
app.command()(reproduce.reproduce)
app.command()(vacuum.vacuum)
app.command()(backup.backup)
app.command()(backup.restore)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(claims.app, name="claims")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(features.app, name="features")


def main() -> None:
    """Run the command line; an error a user can mend is one message and exit code 1."""
    # Whichever way it is told to end, it takes its servers along, also where SIGINT came ignored.
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    try:
        with disks_explained(), damage_explained(), interruptible():
            app()
    except KeyboardInterrupt:
        sys.exit(130)
    except HeadraceError as error:
        _refuse(error)
    except ModuleNotFoundError as error:
        told = explained(error)
        if not isinstance(told, HeadraceError):
            raise
        _refuse(told)


def _refuse(error: HeadraceError) -> NoReturn:
    Console(stderr=True).print(
        legible_lines(error), style="red", markup=False, highlight=False, soft_wrap=True
    )
    sys.exit(1)
