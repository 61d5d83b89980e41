"""Release: candidates are tried, the best is judged against who serves, and takes its place or not.

training set ─▶ trials ─▶ choice ─▶ verdict ─▶ promotion
"""

from headrace.release.certificate import certificate, certified
from headrace.release.compare import compare
from headrace.release.promotion import (
    carry_out,
    champions,
    changes,
    first,
    move,
    reconcile,
    rollback,
    settle,
    strayed,
    verify,
)
from headrace.release.study import Study, Tried, best, finished, plots, space_of, tune, tuned
from headrace.release.trial import Trial, choose, settled, try_out
from headrace.release.upstream import complete, downstream, feeds, missing, predict_history, predictor
from headrace.release.verdict import answered, asks, judge

__all__ = [
    "Study",
    "Trial",
    "Tried",
    "answered",
    "asks",
    "best",
    "carry_out",
    "certificate",
    "certified",
    "champions",
    "changes",
    "choose",
    "compare",
    "complete",
    "downstream",
    "feeds",
    "finished",
    "first",
    "judge",
    "missing",
    "move",
    "plots",
    "predict_history",
    "predictor",
    "reconcile",
    "rollback",
    "settle",
    "settled",
    "space_of",
    "strayed",
    "try_out",
    "tune",
    "tuned",
    "verify",
]
