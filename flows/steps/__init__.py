"""Library functions dressed as tasks: names a person recognises, retries, timeouts, artifacts.

Tasks pass snapshots and file names, never frames. They are not cached: every
one is idempotent by itself, so running it again is the cache.
"""

from flows.steps.common import claim, finish, give_up, instant, logger, run_name, slug, train_name
from flows.steps.cycle import (
    Parts,
    catching_up,
    closed_since,
    one_heartbeat,
    present,
    settle_dead_parts,
    up_to_date,
)
from flows.steps.features import (
    announce_overdue,
    apply_features,
    bring_online,
    build_features,
    check_parity,
    report_features,
    stale,
)
from flows.steps.ingest import ask, batches, predict_history, report, say_unreadable, settle, staging, tell
from flows.steps.monitoring import (
    announce_drift,
    await_retraining,
    compare_releases,
    judgement,
    note_judgement,
    unanswered_drift,
    unjudged,
    watch,
)
from flows.steps.scoring import champion, released, score, unscored
from flows.steps.training import (
    choose,
    fit,
    fit_again,
    judge,
    known_to,
    outcome,
    register,
    release,
    sources,
    training_set,
)

__all__ = [
    "Parts",
    "announce_drift",
    "announce_overdue",
    "apply_features",
    "ask",
    "await_retraining",
    "batches",
    "bring_online",
    "build_features",
    "catching_up",
    "champion",
    "check_parity",
    "choose",
    "claim",
    "closed_since",
    "compare_releases",
    "finish",
    "fit",
    "fit_again",
    "give_up",
    "instant",
    "judge",
    "judgement",
    "known_to",
    "logger",
    "note_judgement",
    "one_heartbeat",
    "outcome",
    "predict_history",
    "present",
    "register",
    "release",
    "released",
    "report",
    "report_features",
    "run_name",
    "say_unreadable",
    "score",
    "settle",
    "settle_dead_parts",
    "slug",
    "sources",
    "staging",
    "stale",
    "tell",
    "train_name",
    "training_set",
    "unanswered_drift",
    "unjudged",
    "unscored",
    "up_to_date",
    "watch",
]
