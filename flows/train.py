"""Train candidates; release the best if it proves better than the champion.

training set ─▶ fit all ─▶ choose ─▶ fit again ─▶ register ─▶ gate ─▶ (approval) ─▶ promote
"""

from dataclasses import asdict
from datetime import datetime, timedelta

from prefect import flow

from flows import steps
from headrace import release as releases
from headrace.gate import Verdict
from headrace.instants import stamp
from headrace.project import Project


@flow(
    name="train",
    flow_run_name=steps.train_name,
    description=__doc__,
    on_failure=[steps.give_up],
    on_crashed=[steps.give_up],
)
def train(pipeline: str = "flights", as_of: datetime | None = None, cause: str = "") -> Verdict:
    """Return the gate's verdict on the best candidate trained on what was known at ``as_of`` (UTC).

    The champion keeps serving until the verdict says otherwise; a rejected
    challenger stays registered, with the reasons. Without a champion the challenger must
    beat a guess from the past alone. Of several candidates the best on the selection span is
    fitted again on all that comes before the holdout, by which the gate judges. One that fails is
    told and left out; when none is left, the first one's error is raised. One ``cause`` trains once,
    however often its event arrives; left empty, it is this run's instant. What was
    known ends with the last window that had landed, and whose features were built. Where the gate asks for
    approval, a run that would promote pauses until a person has said yes or no.
    """
    project = Project.here()
    spec = project.pipeline(pipeline)
    at = steps.instant(as_of, spec)
    spec = releases.tuned(spec, project.ledger, at)
    cause = cause or f"manual/{stamp(at)}"
    if done := steps.claim(project, spec, "training", cause, spec.gate.approval or timedelta(0)):
        steps.logger().info("Trained already because of %s: %s", cause, done.detail["reason"])
        return Verdict.of(done.detail)
    steps.settle_champion(project, spec)
    at = steps.known_to(project, spec, at)
    data = steps.training_set(project, spec, at)
    sources = steps.sources(project, data)
    fits = [
        steps.fit.submit(project, spec, candidate, data, sources, at, cause) for candidate in spec.candidates
    ]
    fitted, failed = steps.outcome(spec, fits)
    trial = steps.choose(project, spec, fitted, failed)
    if not trial.final:
        trial = steps.fit_again(project, spec, trial, data, sources, at, cause)
    version = steps.register(project, spec, trial)
    verdict = steps.judge(project, spec, version, trial, data, at)
    verdict = steps.approved(project, spec, version, verdict, at)
    while not steps.release(project, spec, version, verdict, at):  # another training was quicker
        verdict = steps.judge(project, spec, version, trial, data, at)
        verdict = steps.approved(project, spec, version, verdict, at)
    steps.finish(project, spec, "training", cause, as_of=at, **asdict(verdict))
    steps.show_status(project, spec)
    return verdict
