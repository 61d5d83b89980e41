"""Policy: when a retraining is called for. Not of one odd window, and not again and again for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.instants import read, shown
from headrace.ledger import DONE
from headrace.monitoring import judgements
from headrace.monitoring.rule import Never, OnDrift, OnEstimate, OnShift, Periodic
from headrace.problem.base import FALLING, RISING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from headrace.ledger import Ledger, Record
    from headrace.monitoring.estimates import Estimate
    from headrace.monitoring.rule import Policy
    from headrace.pipeline import Pipeline

CAUSES = {Periodic: "age", OnDrift: "drift", OnShift: "drift", OnEstimate: "estimate"}
"""What a retraining's cause is called, before the window that it came of."""
SIGNALS = {
    OnDrift: ("drifted", "drifted"),
    OnShift: ("moved", "had columns that moved"),
    OnEstimate: ("foreseen", "are expected to be worse than promised"),
}
"""What a finding has of a window, and how that is said of several."""
PREFERRED = ("PAPE", "CBPE", "DLE")
"""Which estimate counts, if there are several: the one that is off by least (``benchmarks estimates``)."""


@dataclass(frozen=True)
class Trained:
    """A training that came to its end, of what was known at ``at`` (UTC)."""

    at: datetime
    cause: str
    promoted: bool


def cause(policy: Policy, end: str) -> str:
    """Return the cause of a retraining that a window calls for, which ended at ``end``."""
    return f"{CAUSES.get(type(policy), 'nothing')}/{end}"


def decide(
    policy: Policy, judged: Sequence[Mapping[str, Any]], trained: Sequence[Trained]
) -> tuple[bool, str]:
    """Say whether the last of the windows that were ``judged`` calls for a retraining, and why, or why not.

    Windows come oldest first, each as ``monitor`` found it; of those before the last it is known whether they
    called. Of drift, and of estimates, only windows count that the same version predicted since the last
    call; and while retrainings do not help, as many windows are waited for as there were of them in a row,
    doubled each time: 2, 4, 8. ``trained`` are in order of time.

    >>> from headrace.monitoring.rule import Periodic
    >>> decide(Periodic(), [{"end": "2013-05-06T00:00:00Z"}], [Trained(read("2013-04-08"), "age/1", True)])
    (True, 'It calls for retraining: the last one was of what was known on 2013-04-08.')
    """
    *past, last = judged
    called = [one for one in past if judgements.calls(one)]
    if isinstance(policy, Never):
        return False, ""
    if isinstance(policy, Periodic):
        since = max((one.at for one in trained), default=None)
        if since is not None and read(last["end"]) - since < policy.every:
            return False, ""
        of = f"the last one was of what was known on {shown(since)}" if since else "there was none yet"
        found = f"It calls for retraining: {of}."
    elif isinstance(policy, OnDrift | OnShift | OnEstimate):
        found = _signalled(policy, past, last, trained)
        if not found.startswith("It calls for retraining"):
            return False, found
    else:
        raise TypeError(f"`{type(policy).__name__}` is no policy of headrace.monitoring.rule.")
    recent = [one for one in called if read(last["end"]) - read(one["end"]) < policy.per]
    if policy.limit is not None and len(recent) >= policy.limit:
        span = str(policy.per).removesuffix(", 0:00:00")
        return False, f"It calls for none: {len(recent)} within {span} are as many as may be."
    return True, found


def _signalled(
    policy: OnDrift | OnShift | OnEstimate,
    past: Sequence[Mapping[str, Any]],
    last: Mapping[str, Any],
    trained: Sequence[Trained],
) -> str:
    signal, told = SIGNALS[type(policy)]
    if not last.get(signal):
        return ""
    called = [place for place, one in enumerate(past) if judgements.calls(one)]
    since = len(past) - 1 - called[-1] if called else len(past)
    if (vain := _vain(trained)) and since < 2**vain - 1:
        those = f"the last {vain} retrainings" if vain > 1 else "the last retraining"
        return f"It calls for none: {those} did not help, so {2**vain} windows are waited for."
    of_version = [one for one in past[len(past) - since :] if one.get("champion") == last.get("champion")]
    windows, of = (getattr(policy, name, 1) for name in ("windows", "of"))
    count = 1 + sum(bool(one.get(signal)) for one in of_version[::-1][: of - 1])
    if count < windows:
        return f"{count} of the last {of} windows {told}; {windows} call for retraining."
    return "It calls for retraining."


def foreseen(estimates: Iterable[Estimate], promised: Mapping[str, float]) -> bool:
    """Say whether a version is expected to do worse than ``promised``, whatever lies within the interval.

    By its skill, of which hard weeks take nothing; else by the first of its scores that was promised.
    """
    each = [one for one in estimates if one.metric in promised]
    for method in PREFERRED:
        of = {one.metric: one for one in each if one.method == method}
        for name, one in sorted(of.items(), key=lambda item: item[0] != "skill"):
            if name == "skill" or name in RISING:
                return one.high < promised[name]
            if name in FALLING:
                return one.low > promised[name]
    return False


def known(spec: Pipeline, ledger: Ledger, before: datetime) -> tuple[list[dict[str, Any]], list[Trained]]:
    """Return what the ledger has of windows that ended by ``before`` (UTC), and of trainings, in order."""
    judged = [one.detail for one in ledger.entries(spec.name, judgements.KIND) if one.state == DONE]
    trained = [
        Trained(_as_of(one), one.key, one.detail.get("decision") == "promoted")
        for one in ledger.entries(spec.name, "training")
        if one.state == DONE
    ]
    return [one for one in judged if read(one["end"]) <= before], trained


def _as_of(record: Record) -> datetime:
    return read(record.detail["as_of"]) if "as_of" in record.detail else record.at


def _vain(trained: Sequence[Trained]) -> int:
    """Return how many retrainings a policy called for since a model was promoted."""
    vain, called = 0, tuple(f"{CAUSES[kind]}/" for kind in SIGNALS)
    for one in trained[::-1]:
        if one.promoted:
            break
        vain += one.cause.startswith(called)
    return vain
