"""Look for the best parameters of the candidates that say what to look for.

training set ─▶ trials, some at a time ─▶ best ─▶ what `train` fits from then on
"""

from datetime import datetime

from prefect import flow

from flows import steps
from headrace.project import Project


@flow(
    name="tune",
    flow_run_name=steps.run_name,
    description=__doc__,
    on_failure=[steps.give_up],
    on_crashed=[steps.give_up],
)
def tune(pipeline: str = "flights", as_of: datetime | None = None, trials: int = 50) -> dict[str, object]:
    """Return the best parameters of each candidate with a ``search``, by name.

    Trials learn from what there was to train on at ``as_of`` (UTC), and are judged by the selection span:
    the holdout is not looked at. The same study has the same trials, and has them once: one that was killed
    goes on, and more ``trials`` than before are added to those there are.
    """
    project = Project.here()
    spec = project.pipeline(pipeline)
    at = steps.known_to(project, spec, steps.instant(as_of, spec))
    data = steps.training_set(project, spec, at)
    studies = steps.studies(spec, data)
    return {study.candidate.name: steps.tune(project, study, trials, at).params for study in studies}
