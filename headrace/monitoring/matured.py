"""Truth that came after a window closed: how its predictions fared by all that is known by now.

What was found when the window closed stands; each later look is kept beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

from headrace import tracking
from headrace.instants import stamp
from headrace.monitoring import judgements, metrics, watch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from headrace.lake import Lake, Window
    from headrace.ledger import Ledger
    from headrace.monitoring.watch import Fared
    from headrace.pipeline import Pipeline
    from headrace.registry import Release
    from headrace.tracking import MLflow


@dataclass(frozen=True)
class Matured:
    """A window, of whose ``predictions`` the truth of ``outcomes`` is known, and was of ``before``.

    ``versions`` are who predicted, who predicted most first, and how each fared; ``skill_closed`` is the
    first one's when the window closed, None if it was not known. ``page`` is its run in MLflow.
    """

    window: Window
    predictions: int
    before: int
    outcomes: int
    skill_closed: float | None
    versions: tuple[tuple[Release, Fared], ...]
    page: str

    @property
    def worse(self) -> bool:
        """Whether any version is worse than was promised."""
        return any(fared.performance.worse for _, fared in self.versions)

    @property
    def reason(self) -> str:
        """What is said of performance."""
        if len(self.versions) == 1:
            return self.versions[0][1].told
        return " ".join(f"Version {release.version}: {fared.told}" for release, fared in self.versions)


def judge_again(
    spec: Pipeline,
    grown: Mapping[Window, tuple[int, int]],
    lake: Lake,
    mlflow: MLflow,
    ledger: Ledger,
    as_of: datetime,
    holder: str,
) -> list[Matured]:
    """Judge windows of which more truth is known ``as_of`` (UTC), as ``judgements.maturing`` says; note it.

    Killed, or done twice, each is noted once.
    """
    found = []
    for window, (before, outcomes) in grown.items():
        closed = judgements.of(spec, ledger, window) or {}
        looks = ledger.entries(spec.name, judgements.AGAIN)
        step = 1 + sum(one.detail["window"] == str(window) for one in looks)
        versions, pages = [], []
        for name, release, fared in watch.fared(spec, lake, mlflow, window, as_of):
            did = fared.performance
            told = {**did.scores, "skill": did.skill}
            numbers = {metric: float(value) for metric, value in told.items() if not isnan(value)}
            noted = tracking.log_watch(mlflow, spec.name, name, numbers, "", as_of=window.end, step=step)
            pages.append(noted)
            versions.append((release, fared))
        seen = closed.get("predictions", 0), before, outcomes, closed.get("skill")
        one = Matured(window, *seen, tuple(versions), pages[0])
        told_of = [(release.version, one) for release, of in versions for one in metrics.of_truth(of)]
        metrics.note(spec, lake, window, f"by {outcomes}", as_of, told_of)
        first = versions[0][1].performance
        detail = {
            "window": str(window),
            "end": stamp(window.end),
            "outcomes": outcomes,
            "skill": None if isnan(first.skill) else first.skill,
            "score": spec.problem.told(first.scores, most=1),
            "worse": one.worse,
            "hurt": [part.name for _, of in versions for part in of.hurt],
            "performance": one.reason,
        }
        ledger.finish(spec.name, judgements.AGAIN, f"{window} by {outcomes}", holder=holder, **detail)
        found.append(one)
    return found
