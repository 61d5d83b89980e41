"""Library functions dressed as tasks: names a person recognises, retries, timeouts, artifacts.

Tasks pass snapshots and file names, never frames. They are not cached: every
one is idempotent by itself, so running it again is the cache.
"""

from flows.steps.common import claim, finish, give_up, instant, logger, run_name, slug
from flows.steps.features import (
    announce_overdue,
    apply_features,
    bring_online,
    build_features,
    check_parity,
    report_features,
    stale,
)
from flows.steps.ingest import batches, read, report, settle, staging, tell
from flows.steps.monitoring import announce_drift, await_retraining, compare_releases, watch
from flows.steps.scoring import champion, score, unscored
from flows.steps.training import fit, judge, register, release, training_set

__all__ = [
    "announce_drift",
    "announce_overdue",
    "apply_features",
    "await_retraining",
    "batches",
    "bring_online",
    "build_features",
    "champion",
    "check_parity",
    "claim",
    "compare_releases",
    "finish",
    "fit",
    "give_up",
    "instant",
    "judge",
    "logger",
    "read",
    "register",
    "release",
    "report",
    "report_features",
    "run_name",
    "score",
    "settle",
    "slug",
    "staging",
    "stale",
    "tell",
    "training_set",
    "unscored",
    "watch",
]
