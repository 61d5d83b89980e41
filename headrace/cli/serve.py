"""``headrace serve``: champions answer over HTTP."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.pipeline import Pipeline
    from headrace.settings import Settings

console = Console()


def serve(
    pipeline: Annotated[
        list[str] | None, typer.Argument(help="Such as flights; all of them if left out.")
    ] = None,
) -> None:
    """Answer requests with each pipeline's champion until Ctrl-C, and log every answer; see /docs there."""
    from headrace import release as releases
    from headrace.feature_store.plan import Plan
    from headrace.monitoring import metrics
    from headrace.project import Project
    from headrace.serving import run
    from headrace.serving.keys import Keys
    from headrace.settings import BadSetting

    project = Project.here()
    settings = project.settings
    for name in ("serve_certificate", "serve_certificate_key"):
        file = getattr(settings, name)
        if file and not file.is_file():
            raise BadSetting(name, file, "there is no such file")
    keys = keys_of(settings)
    run.refuse_open(settings.serve_host, Keys(keys))
    specs = [project.pipeline(name) for name in pipeline] if pipeline else project.sound_pipelines()
    console.print(
        f"{settings.serve_page} answers for {', '.join(spec.name for spec in specs)}; Ctrl-C ends it."
    )

    def notice(spec: Pipeline) -> str:
        return str(releases.strayed(spec, project.mlflow, project.ledger) or "")

    planned = partial(Plan, project.store)
    watched = partial(metrics.gauges, lake=project.lake)
    run.run(settings, specs, planned, project.mlflow, project.lake, Keys(keys), notice, watched)


def keys_of(settings: Settings) -> Path:
    """Return the file that API keys are in."""
    return settings.api_keys or settings.home / "api_keys.json"
