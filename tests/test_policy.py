"""When drift calls for a retraining: not of one odd window, and not again and again for nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from headrace.instants import stamp
from headrace.lake import Window
from headrace.ledger import Ledger
from headrace.monitoring import judgements
from headrace.monitoring.estimates import Estimate
from headrace.monitoring.policy import cause, decide, foreseen, known
from headrace.monitoring.rule import Never, OnDrift, OnEstimate, OnShift, Periodic, Policy
from tests.conftest import utc
from tests.test_monitoring import TOY

WEEK = timedelta(weeks=1)


class Lived:
    """Weeks judged one after the other, each as drifted or not, and what came of what they called for."""

    def __init__(self, folder, policy: Policy | None = None) -> None:
        self.spec = replace(TOY, policy=policy or OnDrift())
        self.ledger = Ledger(f"sqlite:///{folder}/ledger.db")
        self.end = utc(2013, 4, 1)

    def decide(self, **found: Any) -> tuple[bool, str]:
        """Say whether the next week calls for a retraining, if that is what is found in it."""
        past, trained = known(self.spec, self.ledger, self.end)
        return decide(self.spec.policy, [*past, {"end": stamp(self.end + WEEK), **found}], trained)

    def week(self, *, version: int = 1, helps: bool | None = None, **found: Any) -> bool:
        """Judge a week; if it calls for a retraining, and ``helps`` says how that ended, note it."""
        found = {"drifted": False, "champion": version, **found}
        called, _ = self.decide(**found)
        window = Window(self.end, self.end + WEEK)
        self.end, detail = window.end, {**found, "retrain": called, "end": stamp(window.end)}
        cause_of = cause(self.spec.policy, stamp(window.end))
        self.ledger.finish("toy", judgements.KIND, str(window), holder="m", cause=cause_of, **detail)
        if called and helps is not None:
            self.trained(cause_of, helps=helps)
        return called

    def trained(self, cause_of: str, *, helps: bool) -> None:
        decision, as_of = "promoted" if helps else "rejected", stamp(self.end)
        about = {"decision": decision, "reason": "", "as_of": as_of}
        self.ledger.finish("toy", "training", cause_of, holder="t", **about)


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
    lived = Lived(tmp_path, OnDrift(windows=1, of=1))
    called = [week for week in range(20) if lived.week(drifted=True, helps=False)]
    assert called == [0, 2, 6, 14]
    assert lived.decide(drifted=True, champion=1) == (
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


def test_what_is_expected_to_be_worse_calls_for_a_retraining_as_drift_does_and_drift_does_not(tmp_path):
    lived = Lived(tmp_path, OnEstimate())
    weeks = [
        {"drifted": True, "foreseen": False},
        {"drifted": True, "foreseen": True},
        {"drifted": False, "foreseen": True},
    ]
    assert [lived.week(**week, helps=False) for week in weeks] == [False, False, True]
    called, why = lived.decide(foreseen=True, champion=1)
    assert not called
    assert why == "It calls for none: the last retraining did not help, so 2 windows are waited for."


def test_a_column_that_has_moved_calls_at_once_and_rarer_while_nothing_helps(tmp_path):
    lived = Lived(tmp_path, OnShift())
    assert [lived.week(drifted=True, moved=moved, helps=False) for moved in ([], ["x"], ["x"], ["x"])] == [
        *(False, True, False, True)
    ]
    assert lived.decide(moved=["x"], champion=1)[1].startswith("It calls for none: the last 2 retrainings")


def test_age_calls_for_a_retraining_whether_or_not_the_last_helped(tmp_path):
    lived = Lived(tmp_path, Periodic(every=3 * WEEK))
    lived.trained("first release", helps=True)
    assert [lived.week(drifted=True, helps=False) for _ in range(9)] == 3 * [False, False, True]
    lived.trained("manual/1", helps=False)  # by hand: what was learnt from is new all the same
    assert [lived.week() for _ in range(3)] == [False, False, True]


def test_never_calls_for_nothing(tmp_path):
    lived = Lived(tmp_path, Never())
    assert not any(lived.week(drifted=True, foreseen=True) for _ in range(5))


def test_no_more_retrainings_are_called_for_than_the_limit_within_a_span(tmp_path):
    lived = Lived(tmp_path, OnDrift(windows=1, of=1, limit=2, per=4 * WEEK))
    assert [lived.week(drifted=True, helps=True) for _ in range(9)] == [
        *(True, True, False, False),
        *(True, True, False, False),
        True,
    ]
    assert lived.decide(drifted=True, champion=1)[0]
    lived.week(drifted=True, helps=True)
    told = "It calls for none: 2 within 28 days are as many as may be."
    assert lived.decide(drifted=True, champion=1) == (False, told)


@pytest.mark.parametrize(
    ("estimates", "worse"),
    [
        ([("skill", 0.2, 0.1, 0.29, "PAPE")], True),
        ([("skill", 0.2, 0.1, 0.31, "PAPE")], False),
        # The one that is off by least counts, and skill before what a hard week raises.
        ([("skill", 0.2, 0.1, 0.29, "CBPE"), ("skill", 0.2, 0.1, 0.31, "PAPE")], False),
        ([("log_loss", 0.6, 0.55, 0.65, "PAPE"), ("skill", 0.2, 0.1, 0.31, "PAPE")], False),
        ([("mae", 21, 20.1, 22, "DLE")], True),
        ([("mae", 21, 19.9, 22, "DLE")], False),
        ([("rmse", 50, 49, 51, "DLE")], False),  # which was not promised
        ([], False),
    ],
)
def test_worse_is_foreseen_where_the_whole_interval_is_worse_than_promised(estimates, worse):
    promised = {"skill": 0.3, "log_loss": 0.5, "mae": 20.0, "bias": 0.1}
    assert foreseen([Estimate(*one) for one in estimates], promised) is worse


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (OnDrift(windows=0, of=1), "`policy.windows` must be from 1 to `policy.of`"),
        (OnEstimate(windows=3, of=2), "`policy.windows` must be from 1 to `policy.of`"),
        (Periodic(every=timedelta(0)), "`policy.every` must be longer than 0"),
        (Never(limit=0), "`policy.limit` must be 1 or more"),
        (Never(limit="often"), "`policy.limit` must be int | None"),
        ("weekly", "`policy` must be Policy"),
        (Policy(), "`policy` must be one of OnShift, OnDrift"),
    ],
)
def test_a_policy_that_cannot_be_met_is_a_slip(policy, told):
    from headrace.declaration import slips

    assert [slip for slip in slips(replace(TOY, policy=policy)) if told in slip]
