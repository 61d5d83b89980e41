"""Land what the sources published.

source ─▶ staged batches ─▶ gate ─▶ raw tables
                             └─▶ quarantine
"""

from datetime import datetime

from prefect import flow

from flows import steps
from headrace.pipeline import load


@flow(name="ingest", flow_run_name=steps.run_name, description=__doc__)
def ingest(pipeline: str = "flights", as_of: datetime | None = None) -> dict[str, int]:
    """Land what every window that ended by ``as_of`` (UTC) brings and has not brought before.

    Returns the rows landed per source. A batch that may not pass waits in
    quarantine; the run fails for it, or for a source that cannot be read, once
    everything else has landed. Killed anywhere, or run twice, it is safe to run
    again.
    """
    spec, at = load(pipeline), steps.instant(as_of)
    with steps.staging() as folder:
        read = [(s, steps.read(spec, s, at, folder, return_state=True)) for s in spec.sources]
        staged = [(s, batch) for s, state in read if state.is_completed() for batch in state.result()]
        settled = steps.settle(spec, staged, at)
    steps.tell(spec, settled)
    steps.report(spec, settled, at)
    for _, state in read:
        state.result()  # a source that cannot be read fails the run, once the others have landed
    landed: dict[str, int] = {}
    for (source, _), done in zip(staged, settled, strict=True):
        landed[source.name] = landed.get(source.name, 0) + done.landed
    return landed
