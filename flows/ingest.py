"""Land what the sources published.

source ─▶ staged batches ─▶ gate ─▶ raw tables
                             └─▶ quarantine
"""

from collections import Counter
from datetime import datetime

from prefect import flow

from flows import steps
from headrace.ingest import Settled
from headrace.project import Project


@flow(name="ingest", flow_run_name=steps.run_name, description=__doc__)
def ingest(pipeline: str = "flights", as_of: datetime | None = None) -> dict[str, int]:
    """Land what every window that ended by ``as_of`` (UTC) brings and has not brought before.

    Returns the rows landed per source. A batch that may not pass waits in
    quarantine; the run fails for it, or for a source that cannot be read, once
    everything else has landed. A source that is late is asked again until its
    deadline. Killed anywhere, or run twice, it is safe to run again.
    """
    project = Project.here()
    spec = project.pipeline(pipeline)
    at = steps.instant(as_of, spec)
    steps.predict_history(project, spec, at)
    settled: list[Settled] = []
    unread = []
    with steps.staging(project) as folder:
        for answers in steps.ask(project, spec, at, folder):
            settled += steps.settle(project, spec, answers.came, at)
            unread += answers.failed
    steps.tell(project, spec, settled)
    steps.report(project, spec, settled, at)
    for source, answer in unread:
        steps.say_unreadable(spec, source, at)
        answer.result()  # a source that cannot be read fails the run, once the others have landed
    landed: Counter[str] = Counter()
    for done in settled:
        landed[done.batch.lot.table.removeprefix("raw/")] += done.landed
    return dict(landed)
