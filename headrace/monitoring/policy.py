"""Policy: when drift calls for a retraining. Not of one odd window, and not again and again for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.instants import read
from headrace.ledger import DONE
from headrace.monitoring import judgements

if TYPE_CHECKING:
    from headrace.lake import Window
    from headrace.ledger import Ledger
    from headrace.pipeline import Pipeline


def decide(spec: Pipeline, ledger: Ledger, window: Window, version: int) -> tuple[bool, str]:
    """Say whether a window that has drifted calls for a retraining, and why, or why not.

    It does once ``rule.windows`` of the last ``rule.of`` have drifted, of those that the same ``version``
    predicted since the last call. While retrainings do not help, as many windows are waited for as
    there were of them in a row, doubled each time: 2, 4, 8.
    """
    rule = spec.drift
    past = [
        one.detail
        for one in ledger.entries(spec.name, judgements.KIND)
        if one.state == DONE and read(one.detail["end"]) <= window.start
    ]
    called = [place for place, one in enumerate(past) if judgements.calls(one)]
    since = len(past) - 1 - called[-1] if called else len(past)
    if (vain := _vain(spec, ledger)) and since < 2**vain - 1:
        told = f"the last {vain} retrainings" if vain > 1 else "the last retraining"
        return False, f"It calls for none: {told} did not help, so {2**vain} windows are waited for."
    of_version = [one for one in past[len(past) - since :] if one.get("champion") == version]
    drifted = 1 + sum(one["drifted"] for one in of_version[::-1][: rule.of - 1])
    if drifted < rule.windows:
        return False, f"That is {drifted} of the last {rule.of} windows; {rule.windows} call for retraining."
    return True, "It calls for retraining."


def _vain(spec: Pipeline, ledger: Ledger) -> int:
    """Return how many retrainings there were because of drift since a model was promoted."""
    vain = 0
    for one in ledger.entries(spec.name, "training")[::-1]:
        if one.state == DONE and one.detail.get("decision") == "promoted":
            break
        vain += one.state == DONE and one.key.startswith("drift/")
    return vain
