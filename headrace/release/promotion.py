"""Carrying a verdict out: intent in the ledger, then the alias, then done. Killed anywhere, done once."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from headrace import registry
from headrace.instants import read
from headrace.ledger import DONE

if TYPE_CHECKING:
    from datetime import datetime

    from headrace.gate import Verdict
    from headrace.ledger import Ledger
    from headrace.pipeline import Pipeline
    from headrace.tracking import MLflow

LEASE = timedelta(hours=6)


def first(spec: Pipeline, ledger: Ledger) -> datetime | None:
    """Return the ``as_of`` (UTC) of the first release that the ledger knows of; None if it knows of none."""
    promotions = ledger.entries(spec.name, "promotion")
    return min((read(entry.detail["as_of"]) for entry in promotions if entry.state == DONE), default=None)


def carry_out(
    spec: Pipeline,
    version: int,
    verdict: Verdict,
    as_of: datetime,
    mlflow: MLflow,
    ledger: Ledger,
    holder: str,
) -> bool:
    """Promote or reject ``version``, as ``verdict`` says, for ``holder``.

    Of those that judged against one champion, one takes its place; False tells the others to judge again.
    """
    if not verdict.promoted:
        registry.reject(mlflow, spec.name, version, verdict.reason, as_of, verdict.decision)
        return True
    if ledger.claim(spec.name, "promotion", str(version), holder=holder, lease=LEASE):
        return True
    before, serving = verdict.champion or "none", _serving(mlflow, spec)
    last = ledger.last(spec.name, "promotion")
    # With the last promotion: a champion that was brought back by hand is succeeded once more.
    succession = f"{before} after {last.key if last else 'none'}"
    if serving != str(version) and (
        serving != before or ledger.claim(spec.name, "succession", succession, holder=holder, lease=LEASE)
    ):
        return False
    registry.promote(mlflow, spec.name, version, verdict.reason, as_of)
    # First: killed between the two, the next succession is called after this promotion.
    ledger.finish(spec.name, "promotion", str(version), holder=holder, as_of=as_of, reason=verdict.reason)
    ledger.finish(spec.name, "succession", succession, holder=holder, version=version)
    return True


def _serving(mlflow: MLflow, spec: Pipeline) -> str:
    champion = registry.champion(mlflow, spec.name)
    return str(champion.version) if champion else "none"
