"""Watch the champion: has its world changed, does it still predict well?

prediction log ─▶ drift + performance ─▶ finding ─▶ event (drift ─▶ retraining)
"""

from datetime import datetime
from typing import Any

from prefect import flow

from flows import steps
from headrace.pipeline import load


@flow(name="monitor", flow_run_name=steps.run_name, description=__doc__)
def monitor(pipeline: str = "flights", as_of: datetime | None = None) -> dict[str, Any]:
    """Judge the last window that closed by ``as_of`` (UTC); drift emits ``headrace.drift``.

    The event starts the `train` deployment through its trigger in
    ``prefect.yaml``; its ``cause`` names the window, so that a window that is
    monitored again retrains once.
    """
    spec, at = load(pipeline), steps.instant(as_of)
    finding = steps.watch(spec, at)
    if finding["drifted"]:
        steps.announce_drift(spec, at, finding)
    return finding
