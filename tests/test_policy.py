"""When drift calls for a retraining: not of one odd window, and not again and again for nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from headrace.instants import stamp
from headrace.lake import Window
from headrace.ledger import Ledger
from headrace.monitoring import judgements
from headrace.monitoring.policy import decide
from headrace.monitoring.rule import DriftRule
from tests.conftest import utc
from tests.test_monitoring import TOY

WEEK = timedelta(weeks=1)


class Lived:
    """Weeks judged one after the other, each as drifted or not, and what came of what they called for."""

    def __init__(self, folder, rule: DriftRule | None = None) -> None:
        self.spec = replace(TOY, drift=rule or DriftRule())
        self.ledger = Ledger(f"sqlite:///{folder}/ledger.db")
        self.end = utc(2013, 4, 1)

    def week(self, *, drifted: bool, version: int = 1, helps: bool | None = None) -> bool:
        """Judge a week; if it calls for a retraining, and ``helps`` says how that ended, note it."""
        window = Window(self.end, self.end + WEEK)
        self.end, cause = window.end, f"drift/{stamp(window.end)}"
        called = drifted and decide(self.spec, self.ledger, window, version)[0]
        detail = {"drifted": drifted, "retrain": called, "cause": cause, "champion": version}
        self.ledger.finish("toy", judgements.KIND, str(window), holder="m", end=stamp(window.end), **detail)
        if called and helps is not None:
            self.trained(cause, helps=helps)
        return called

    def trained(self, cause: str, *, helps: bool) -> None:
        decision = "promoted" if helps else "rejected"
        self.ledger.finish("toy", "training", cause, holder="t", decision=decision, reason="")


def test_two_of_three_windows_call_for_a_retraining_and_one_does_not(tmp_path):
    lived = Lived(tmp_path)
    wanted = {"yes": [], "no": []}
    for drifted in (True, False, True, True, False, False, True):
        wanted["yes" if lived.week(drifted=drifted, helps=True) else "no"].append(lived.end)
    # The third week calls; the fourth is one of one since then, and the seventh one of three.
    assert wanted["yes"] == [utc(2013, 4, 22)]


def test_windows_of_another_version_do_not_count(tmp_path):
    lived = Lived(tmp_path)
    assert not lived.week(drifted=True, version=1)
    assert not lived.week(drifted=True, version=2)
    assert lived.week(drifted=True, version=2)


def test_retrainings_that_do_not_help_are_ever_farther_apart_until_one_does(tmp_path):
    lived = Lived(tmp_path, DriftRule(windows=1, of=1))
    called = [week for week in range(20) if lived.week(drifted=True, helps=False)]
    assert called == [0, 2, 6, 14]
    told = decide(lived.spec, lived.ledger, Window(lived.end, lived.end + WEEK), 1)
    assert told == (
        False,
        "It calls for none: the last 4 retrainings did not help, so 16 windows are waited for.",
    )
    lived.trained("manual/1", helps=True)  # by hand
    assert [lived.week(drifted=True, helps=True) for _ in range(3)] == [True, True, True]


def test_what_was_judged_before_there_was_a_policy_counts(tmp_path):
    lived = Lived(tmp_path)
    window = Window(utc(2013, 3, 25), utc(2013, 4, 1))
    detail = {"end": stamp(window.end), "drifted": True, "cause": "drift/2013-04-01T00:00:00Z"}
    lived.ledger.finish("toy", judgements.KIND, str(window), holder="m", **detail)
    assert judgements.unanswered(lived.spec, lived.ledger)["cause"] == detail["cause"]
    lived.trained(detail["cause"], helps=True)
    assert not lived.week(drifted=True)
    assert lived.week(drifted=True)


@pytest.mark.parametrize(("windows", "of"), [(0, 1), (3, 2)])
def test_a_rule_that_cannot_be_met_is_a_slip(windows, of):
    from headrace.declaration import slips

    wrong = slips(replace(TOY, drift=DriftRule(windows=windows, of=of)))
    assert [slip for slip in wrong if "`drift.windows` must be from 1 to `drift.of`" in slip]
