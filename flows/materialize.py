"""Build features and bring them online.

raw tables ─▶ feature tables ─▶ online store
"""

from datetime import datetime

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows import steps
from headrace.pipeline import load


@flow(name="materialize", flow_run_name="materialize {pipeline}", description=__doc__)
def materialize(pipeline: str = "flights", as_of: datetime | None = None) -> dict[str, int]:
    """Build every feature window that closed by ``as_of`` (UTC); return new rows per feature table."""
    spec, at = load(pipeline), as_of or steps.now()
    built = {table.name: steps.build_features(spec, table, at) for table in spec.feature_tables}
    steps.apply_features(spec)
    steps.bring_online(spec, at)
    create_table_artifact(
        key=f"features-{pipeline}",
        table=[
            {"feature table": name, "windows built": len(new), "rows": f"{sum(new.values()):,}"}
            for name, new in built.items()
        ],
        description=f"## Features of `{pipeline}` as of {at:%Y-%m-%d %H:%M} UTC",
    )
    return {name: sum(new.values()) for name, new in built.items()}
