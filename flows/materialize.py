"""Build features and bring them online.

raw tables ─▶ feature tables ─▶ online store
"""

from datetime import datetime
from itertools import chain

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows import steps
from headrace.pipeline import load


@flow(name="materialize", flow_run_name=steps.run_name, description=__doc__)
def materialize(pipeline: str = "flights", as_of: datetime | None = None) -> dict[str, int]:
    """Build every window that closed by ``as_of`` (UTC) and is new, or whose raw rows have changed.

    Returns the rows written per feature table; killed anywhere, it is safe to run again.
    """
    spec, at = load(pipeline), steps.instant(as_of)
    stale = steps.stale(spec, at)
    steps.apply_features(spec, chain.from_iterable(stale.values()))
    built = {table.name: steps.build_features(spec, table, due) for table, due in stale.items() if due}
    steps.bring_online(spec, at)
    create_table_artifact(
        key=f"features-{pipeline}",
        table=[
            {"feature table": table.name, "windows": len(due), "rows": f"{built.get(table.name, 0):,}"}
            for table, due in stale.items()
        ],
        description=f"## Features of `{pipeline}` built as of {at:%Y-%m-%d %H:%M} UTC",
    )
    return built
