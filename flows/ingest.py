"""Land what the sources published.

source ─▶ staged batch ─▶ validate ─▶ land
"""

from datetime import datetime

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows import steps
from headrace.pipeline import load


@flow(name="ingest", flow_run_name=steps.run_name, description=__doc__)
def ingest(pipeline: str = "flights", as_of: datetime | None = None) -> dict[str, int]:
    """Land every window that ended by ``as_of`` (UTC) and is not landed yet; return rows per source.

    A batch that fails its suite stops the run before anything of it lands; what
    other windows landed stays, and running again goes on from there.
    """
    spec, at = load(pipeline), steps.instant(as_of)
    landed: dict[str, int] = {}
    report = []
    for source in spec.sources:
        for batch in steps.stage(spec, source, at):
            checked = steps.validate(batch, source.suite)
            rows = steps.land(batch)
            landed[source.name] = landed.get(source.name, 0) + rows
            report.append(
                {
                    "source": source.name,
                    "window": str(batch.window),
                    "rows": f"{rows:,}",
                    "expectations passed": len(checked.outcomes),
                    "seconds to validate": f"{checked.seconds:.2f}",
                }
            )
    create_table_artifact(
        key=f"landed-{pipeline}",
        table=report,
        description=f"## {sum(landed.values()):,} rows landed as of {at:%Y-%m-%d %H:%M} UTC",
    )
    return landed
