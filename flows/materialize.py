"""Build features and bring them online.

raw tables ─▶ feature tables ─▶ online store
"""

from datetime import datetime

from prefect import flow

from flows import steps
from headrace.project import Project


@flow(name="materialize", flow_run_name=steps.run_name, description=__doc__)
def materialize(pipeline: str = "flights", as_of: datetime | None = None) -> dict[str, int]:
    """Build every window that closed by ``as_of`` (UTC) and is new, or would be built differently today.

    Returns the rows written per feature table; killed anywhere, it is safe to run
    again, and goes on with the windows not built yet.
    """
    project = Project.here()
    spec = project.pipeline(pipeline)
    at = steps.instant(as_of, spec)
    due = steps.stale(project, spec, at)
    steps.apply_features(project, spec, due)
    built = steps.build_features(project, spec, due)
    steps.bring_online(project, spec, at)
    overdue = steps.report_features(project, spec, due, built, at)
    steps.announce_overdue(spec, overdue, at)
    return built
