"""Watch the champion: has its world changed, does it still predict well?

prediction log ─▶ drift + performance ─▶ finding ─▶ event (drift ─▶ retraining)
"""

from datetime import datetime
from typing import Any

from prefect import flow

from flows import steps
from headrace.project import Project


@flow(name="monitor", flow_run_name=steps.run_name, description=__doc__)
def monitor(pipeline: str = "flights", as_of: datetime | None = None) -> dict[str, Any]:
    """Judge, in order, every predicted window that closed by ``as_of`` (UTC) and was not judged yet.

    Windows of which more truth is known than they were judged by are judged by it again; both stand.
    Where the pipeline's policy calls for a retraining, ``headrace.drift`` or ``headrace.due`` is emitted,
    which starts the `train` deployment through its trigger in ``prefect.yaml``; its ``cause`` names the
    window, so that one window retrains once. A call that nothing has answered is announced again. A version
    that has become worse, on the whole or in a segment, is announced as ``headrace.worse``, which starts
    nothing. A canary that live traffic proves to be worse is returned; where the gate says ``live``, what it
    proves to be better is promoted.
    """
    project = Project.here()
    spec = project.pipeline(pipeline)
    at = steps.instant(as_of, spec)
    steps.settle_champion(project, spec)
    steps.judge_live(project, spec, at)
    findings = {}
    for window in steps.unjudged(project, spec, at):
        finding = steps.watch(project, spec, window, at)
        if finding["retrain"]:
            steps.call_for_training(spec, at, finding)
        if finding.get("worse") or finding.get("hurt"):
            steps.announce_worse(spec, str(window), finding["performance"], finding["outcomes"])
        findings[str(window)] = steps.note_judgement(project, spec, window, finding)
    again = steps.judge_again(project, spec, at)
    if findings or again:
        steps.show_status(project, spec)
    if not findings and (unanswered := steps.unanswered(project, spec)):
        steps.call_for_training(spec, at, unanswered)
    return findings
