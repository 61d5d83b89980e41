"""Predict, from the online store, with the champion.

online store ─▶ parity ─▶ champion ─▶ prediction log
"""

from datetime import datetime

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows import steps
from headrace.project import Project


@flow(name="score", flow_run_name=steps.run_name, description=__doc__)
def score(pipeline: str = "flights", as_of: datetime | None = None) -> dict[str, int]:
    """Score every window that closed by ``as_of`` (UTC) since the first release; return rows per window.

    Before each, a sample shows that the online store serves what the model was trained on.
    """
    project = Project.here()
    spec = project.pipeline(pipeline)
    at = steps.instant(as_of, spec)
    steps.settle_champion(project, spec)
    champion = steps.champion(project, spec)
    scored = {}
    for window in steps.unscored(project, spec, at):
        steps.check_parity(project, spec, window)
        scored[str(window)] = steps.score(project, spec, champion, window)
    create_table_artifact(
        key=steps.slug("scored", pipeline),
        table=[{"window": w, "rows": f"{n:,}", "model version": champion.version} for w, n in scored.items()],
        description=f"## Scored by version {champion.version} ({champion.candidate}) of `{pipeline}`",
    )
    return scored
