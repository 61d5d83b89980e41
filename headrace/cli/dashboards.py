"""``headrace dashboards``: Evidently's own UI, of what was measured."""

from __future__ import annotations

import time
from threading import Thread
from typing import TYPE_CHECKING

from rich.console import Console

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.project import Project

console = Console()
AGAIN = 15.0
"""Seconds after which is looked for what was measured since."""


def dashboards() -> None:
    """Serve Evidently's UI, with what was measured of each pipeline over time, until Ctrl-C."""
    from headrace.monitoring import dashboards as made
    from headrace.project import Project

    project = Project.here()
    folder = project.settings.home / "evidently"
    folder.mkdir(parents=True, exist_ok=True)
    seen = _bring(project, {})
    Thread(target=_keep, args=(project, seen), daemon=True).start()
    console.print(f"Serving at {project.settings.evidently_page}. Ctrl-C ends it.", highlight=False)
    made.serve(folder, "127.0.0.1", project.settings.evidently_port)


def _bring(project: Project, seen: Mapping[str, int]) -> dict[str, int]:
    """Bring what was measured since ``seen``, by pipeline; return what is seen by now."""
    from headrace.monitoring.dashboards import bring
    from headrace.monitoring.metrics import noted

    now = {}
    for spec in project.sound_pipelines():
        now[spec.name] = noted(spec, project.lake)
        if now[spec.name] != seen.get(spec.name):
            bring(spec, project.lake, project.settings.home / "evidently")
    return now


def _keep(project: Project, seen: Mapping[str, int]) -> None:
    """Bring what is measured from now on."""
    while True:
        time.sleep(AGAIN)
        try:
            seen = _bring(project, seen)
        except (HeadraceError, OSError) as error:  # a lake that is gone for a while: it is looked for again
            console.print(f"What was measured could not be read: {error}", markup=False)
