"""Bring a pipeline up to date: what is scheduled, one run at a time.

ingest ─▶ materialize ─▶ score ─▶ monitor ─▶ (drift ─▶ retraining)
"""

from datetime import datetime
from typing import Any

from prefect import flow

from flows import steps
from flows.ingest import ingest
from flows.materialize import materialize
from flows.monitor import monitor
from flows.score import score
from headrace.project import Project


@flow(name="cycle", flow_run_name=steps.run_name, description=__doc__)
def cycle(pipeline: str = "flights", as_of: datetime | None = None) -> dict[str, Any]:
    """Do all that is due as of ``as_of`` (UTC); return what landed, was scored and was found.

    Without an ``as_of``, as scheduled runs have none, that is the present: the first of
    several late runs catches up with the clock, window by window, and the others see
    it and end. A part that fails stops what depends on it, and fails the run once all
    else is done. Killed anywhere, or run twice, it is safe to run again. A change of champion that was
    cut short is finished first, whether anything is due or not.
    """
    project = Project.here()
    spec = project.pipeline(pipeline)
    meant, parts = steps.instant(as_of, spec), steps.Parts(project, spec)
    steps.settle_dead_parts(spec)
    steps.settle_champion(project, spec)
    if as_of is None and steps.up_to_date(project, spec, meant):
        return parts.summary()
    at: datetime | None = meant if as_of else steps.present()
    with steps.one_heartbeat():
        while at:
            ingested = parts.run(ingest, at)
            for edge in steps.catching_up(project, spec, at):
                built = parts.run(materialize, edge, after=ingested)
                if not steps.released(project, spec):
                    continue
                # What failed to be built must not be predicted from; what was predicted before is judged.
                scored = parts.run(score, edge, after=built) if built.is_completed() else built
                parts.run(monitor, edge, after=scored)
                if not scored.is_completed():
                    break  # later features would take the place of those that this window needs
            parts.finish(at)
            at = None if as_of else steps.closed_since(spec, at)
    return parts.summary()
