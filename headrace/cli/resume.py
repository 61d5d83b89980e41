"""``headrace resume``: a run that ended badly goes on where it stopped."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from headrace.cli.listing import AsJson  # noqa: TC001  # typer reads it
from headrace.settings import Settings


def resume(
    run: Annotated[str, typer.Argument(help="Its name or id, as Prefect's UI shows it.")],
    as_json: AsJson = False,
) -> None:
    """Put a run that failed, crashed or was cancelled back to work: it goes on where it stopped."""
    from headrace.runs import resume as put_back

    settings = Settings()
    found = put_back(settings, run)
    page = f"{settings.prefect_page}/runs/flow-run/{found['id']}"
    if as_json:
        print(
            json.dumps({"id": found["id"], "name": found["name"], "was": found["state_name"], "page": page})
        )
    else:
        told = f"{found['name']} was {found['state_name'].lower()}; a worker takes it up: {page}"
        Console().print(told, markup=False, highlight=False, soft_wrap=True)
