"""A run that would promote pauses in the Prefect UI until a person says yes or no; silence is no."""

from __future__ import annotations

import threading
import time
from contextvars import copy_context
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from httpx import HTTPError
from prefect import flow
from prefect.exceptions import FlowPauseTimeout, NotPausedError
from prefect.flow_runs import resume_flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import steps
from flows.steps import training
from headrace.gate import Gain, Verdict, judge
from headrace.pipeline import Pipeline, load
from headrace.project import Project
from tests.conftest import ROOT, utc
from tests.flows.conftest import River, eventually


def asking(within: timedelta) -> Pipeline:
    spec = load("flights")
    return replace(spec, gate=replace(spec.gate, approval=within))


def resumed(run: UUID, answer: dict[str, Any] | None) -> bool:
    """Return whether a run could be resumed: just after it paused, what it asks for is not yet known."""
    try:
        resume_flow_run(run, run_input=answer)
    except (FlowPauseTimeout, NotPausedError, RuntimeError, HTTPError):
        return False
    return True


def ask(river: River, within: timedelta, answer: dict[str, Any] | None) -> tuple[Verdict, dict[str, Any]]:
    """Return the verdict after a person was asked, who gives ``answer`` or nothing, and how the run ended."""
    project, spec = Project(ROOT, river.settings), asking(within)
    before = judge(spec.gate, "1", "2", Gain(0.02, 0.001, 500, 50, 49.0), "nats")
    name = f"asks {time.time()}"

    @flow(name="asks", flow_run_name=name)
    def asks() -> Verdict:
        return steps.approved(project, spec, 1, before, utc(2013, 4, 29))

    def answers() -> None:
        [paused] = eventually(
            lambda: river.prefect(
                "flow_runs", flow_runs={"name": {"any_": [name]}, "state": {"type": {"any_": ["PAUSED"]}}}
            )
        )
        eventually(lambda: resumed(UUID(paused["id"]), answer), seconds=30)

    with temporary_settings({PREFECT_API_URL: river.settings.prefect_api_url}):
        person = threading.Thread(target=copy_context().run, args=(answers,))
        if answer is not None:
            person.start()
        verdict = asks()
    if answer is not None:
        person.join()
    [run] = river.prefect("flow_runs", flow_runs={"name": {"any_": [name]}})
    return verdict, run


@pytest.mark.usefixtures("in_river")
@pytest.mark.parametrize(
    ("answer", "decision", "told"),
    [
        ({"approve": True, "name": "Ada", "reason": "seen"}, "promoted", "Approved by Ada: seen."),
        ({"approve": False, "name": "Ada"}, "rejected", "Not approved by Ada."),
        (None, "rejected", "Nobody approved it within 0:00:03."),
    ],
    ids=["yes", "no", "nothing"],
)
def test_what_a_person_says_is_the_verdict_and_the_run_completes(
    river: River, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any] | None, decision: str, told: str
) -> None:
    monkeypatch.setattr(training, "POLL", 0.5)
    verdict, run = ask(river, timedelta(seconds=60 if answer else 3), answer)
    assert (verdict.decision, verdict.reason.endswith(told)) == (decision, True)
    assert run["state_type"] == "COMPLETED"
    made = river.prefect("artifacts", sort="UPDATED_DESC")
    [shown, *_] = [one["data"] for one in made if one["key"] == "verdict-flights"]
    assert "Version 1 of flights" in shown


@pytest.mark.usefixtures("in_river")
def test_nobody_is_asked_about_what_the_gate_does_not_promote(river: River) -> None:
    project, spec = Project(ROOT, river.settings), asking(timedelta(days=1))
    refused = judge(spec.gate, "2", "1", Gain(-0.02, 0.001, 500, 50, 49.0), "nats")
    assert steps.approved(project, spec, 2, refused, utc(2013, 4, 29)) is refused


@pytest.mark.usefixtures("in_river")
def test_nobody_is_asked_about_who_serves_already(river: River) -> None:
    project, spec = Project(ROOT, river.settings), asking(timedelta(days=1))
    serves = Verdict("promoted", "by a run that was killed", "2")
    assert steps.approved(project, spec, 2, serves, utc(2013, 4, 29)) is serves
