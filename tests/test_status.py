"""How a pipeline is: which model serves, how well it does, what changed, and what was decided."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from headrace import registry, status, tracking
from headrace.cli import status as command
from headrace.instants import stamp
from headrace.lake import Lake, Window
from headrace.ledger import Ledger
from headrace.monitoring import judgements, metrics
from headrace.monitoring.matured import judge_again
from headrace.monitoring.watch import judge
from headrace.project import Project
from headrace.release import promotion
from headrace.tracking import MLflow
from tests.conftest import utc
from tests.test_monitoring import TOY, toy_release, toy_rows

WEEK = timedelta(weeks=1)
FIRST = Window(utc(2013, 4, 1), utc(2013, 4, 8))


@pytest.fixture
def rooms(tmp_path) -> tuple[Lake, MLflow, Ledger]:
    mlflow = MLflow(f"sqlite:///{tmp_path}/mlflow/mlflow.db", tmp_path)
    return Lake(str(tmp_path / "lake")), mlflow, Ledger(f"sqlite:///{tmp_path}/ledger.db")


def predict(lake: Lake, mlflow: MLflow, version: int, week: Window, first: int) -> None:
    """Log 350 predictions of a week, 50 of each day."""
    rows = toy_rows(week, first, 350, 0.0)
    days = [week.start + timedelta(days=n // 50) for n in range(350)]
    place = rows.schema.get_field_index("event_timestamp")
    rows = rows.set_column(place, "event_timestamp", pa.array(days, pa.timestamp("us", "UTC")))
    scores = tracking.load_model(mlflow, registry.version(mlflow, "toy", version).model_uri).predict(rows)
    made = {"probability": scores, "model_version": np.full(350, version)}
    made = pa.table({**{name: rows[name] for name in rows.column_names}, **made})
    lake.table("predictions/toy").overwrite(made, week, "event_timestamp")


def watch(rooms: tuple[Lake, MLflow, Ledger], spec, week: Window, folder) -> None:
    """Judge a week as the flow does."""
    lake, mlflow, ledger = rooms
    (found,) = judge(spec, lake, mlflow, week, week.end, folder)
    told = [(found.release.version, one) for one in metrics.of_finding(found)]
    metrics.note(spec, lake, week, "closed", week.end, told)
    outcomes = int(found.performance.scores.get("rows", 0))
    detail = {
        **{"window": str(week), "end": stamp(week.end), "cause": f"drift/{stamp(week.end)}"},
        **{"drifted": found.drift.drifted, "reason": found.drift.reason, "worse": found.performance.worse},
        **{"hurt": [one.name for one in found.fared.hurt], "champion": found.release.version},
        **{"predictions": found.rows, "outcomes": outcomes},
    }
    ledger.finish("toy", judgements.KIND, str(week), holder="a test", **detail)


def test_before_anything_is_released_it_says_so(rooms):
    found = status.of(TOY, *rooms)
    assert metrics.gauges(TOY, rooms[0]) == (None, [])
    assert (found.champion, found.windows, found.decided) == (None, (), ())
    page = status.page(found)
    for said in ("Nothing was released yet", "No window was judged yet", "Nothing yet"):
        assert said in page


def test_it_says_what_was_expected_before_the_truth_and_what_came_true(rooms, tmp_path):
    """In the third week nothing is known when it closes; later all of it is."""
    lake, mlflow, ledger = rooms
    version = toy_release(lake, mlflow, 0.0)
    promotion.move(TOY, version, "by a test", mlflow, ledger, "a test")
    late = utc(2013, 4, 24)
    label = (
        f"SELECT id, label, CASE WHEN id >= 3000 THEN TIMESTAMPTZ '{late}' ELSE available_at END "
        f"AS available_at FROM ({TOY.label})"
    )
    spec = replace(TOY, label=label)
    for number in range(3):
        week = Window(FIRST.start + number * WEEK, FIRST.end + number * WEEK)
        predict(lake, mlflow, version, week, 1000 * (number + 1))
        watch(rooms, spec, week, tmp_path / "reports")

    found = status.of(spec, *rooms)
    assert found.champion.version == version
    assert "made champion past the gate" in found.serves
    assert found.title == "AUC" and found.rising
    first, second, third = found.windows
    assert first.expected is None  # all that it was proven on is of one day
    assert first.realised is not None
    assert second.low <= second.realised <= second.high
    assert (third.realised, third.outcomes, third.predictions) == (None, 0, 350)
    assert third.low < third.expected < third.high
    assert second.promised == pytest.approx(
        tracking.scores(mlflow, registry.version(mlflow, "toy", version).run_id)["auc"]
    )

    at = late + timedelta(days=1)
    grown = judgements.maturing(spec, lake, ledger, at)
    judge_again(spec, grown, lake, mlflow, ledger, at, "a test")
    *_, third = status.of(spec, *rooms).windows
    assert third.outcomes == 350
    end, numbers = metrics.gauges(spec, lake)
    assert end == third.end
    of_truth = {labels: value for labels, value in numbers if labels[1] == "realised"}
    assert of_truth[str(version), "realised", "auc", "", ""] == third.realised
    assert third.low <= third.realised <= third.high
    page = status.page(found := status.of(spec, *rooms), "http://mlflow", status.picture(found))
    assert f"http://mlflow/#/models/toy/versions/{version}" in page
    assert "data:image/png;base64," in page
    kinds = {one["kind"] for one in metrics.latest(spec, lake).to_pylist()}
    assert kinds == {*("contribution", "data", "drift", "estimated", "promised", "realised", "segment")}


def test_it_says_what_is_pending_what_was_decided_and_who_moved_the_alias(rooms):
    lake, mlflow, ledger = rooms
    one, other = (toy_release(lake, mlflow, around) for around in (0.0, 1.0))
    promotion.move(TOY, one, "by a test", mlflow, ledger, "a test")
    registry.set_alias(mlflow, "toy", registry.CHAMPION, other)
    registry.set_shadow(mlflow, "toy", one, on=True)
    detail = {"window": str(FIRST), "end": stamp(FIRST.end), "drifted": True, "reason": "`x` is far off"}
    cause = f"drift/{stamp(FIRST.end)}"
    ledger.finish("toy", judgements.KIND, str(FIRST), holder="a test", cause=cause, **detail)
    found = status.of(TOY, *rooms)
    assert [line for line in found.beside if "moved the alias by hand" in line]
    assert f"version {one} is a shadow" in found.beside
    assert found.pending == (f"drift in {FIRST}: no training has taken it up yet",)
    assert next((d.what, d.why) for d in found.decided) == ("drift, so train", "`x` is far off")

    ledger.claim("toy", "training", cause, holder="a run", lease=WEEK)
    assert status.of(TOY, *rooms).pending == (f"training of {cause}: a run is at work",)
    verdict = {"as_of": stamp(FIRST.end), "decision": "rejected", "reason": "no better", "challenger": "3"}
    ledger.finish("toy", "training", cause, holder="a run", **verdict)
    found = status.of(TOY, *rooms)
    assert found.pending == ()
    assert found.decided[0].what == f"version 3 rejected ({cause})"
    assert found.decided[0].as_of == "2013-04-08"


def test_who_is_hurt_by_what_came_later_is_said_and_of_the_version_that_predicted_most(rooms):
    lake, mlflow, ledger = rooms
    version = toy_release(lake, mlflow, 0.0)
    promotion.move(TOY, version, "by a test", mlflow, ledger, "a test")
    about = {"window": str(FIRST), "end": stamp(FIRST.end)}
    closed = {"drifted": False, "cause": "", "reason": "", "hurt": [], "champion": version}
    ledger.finish("toy", judgements.KIND, str(FIRST), holder="a test", **about, **closed)
    far = metrics.Metric("drift", "score", 2.0, high=1.0, of="x")
    numbers = [
        (version, far),
        (version + 1, far),
        (version, metrics.Metric("contribution", "share", 0.4, of="x", high=0.3)),
    ]
    metrics.note(TOY, lake, FIRST, "closed", FIRST.end, numbers)
    (said,) = status.of(TOY, *rooms).changed
    assert (
        said
        == "`x` lies 2.00 from what the champion knows (at most 1.00 before), and is 40% of what it goes by"
    )

    worse = metrics.Metric("segment", "change", 0.5, high=0.001, of="x below 1", rows=90)
    metrics.note(TOY, lake, FIRST, "by 300", FIRST.end + WEEK, [(version, worse)])
    later = {"outcomes": 300, "worse": False, "hurt": ["x below 1"]}
    ledger.finish("toy", judgements.AGAIN, f"{FIRST} by 300", holder="a test", **about, **later)
    assert status.of(TOY, *rooms).changed[1:] == (
        "where x below 1 the champion costs +0.500 per row more than expected (90 rows, p 0.001)",
    )


def test_the_command_shows_one_or_all_to_people_and_to_programs(rooms, monkeypatch):
    lake, mlflow, ledger = rooms
    version = toy_release(lake, mlflow, 0.0)
    promotion.move(TOY, version, "\x1b[31mby a test", mlflow, ledger, "a test")
    project = type("P", (), {"lake": lake, "mlflow": mlflow, "ledger": ledger})()
    project.pipeline, project.pipelines = lambda _: TOY, lambda: [TOY]
    monkeypatch.setattr(Project, "here", lambda: project)
    import typer

    app = typer.Typer()
    app.command()(command.status)
    whole = CliRunner().invoke(app, ["toy"]).output
    for said in ("which model serves?", "How well does it do?", "What has changed?", "Nothing."):
        assert said in whole
    assert "\x1b[31mby" not in whole
    assert f"version {version}" in CliRunner().invoke(app, []).output
    (told,) = json.loads(CliRunner().invoke(app, ["--json"]).output)
    assert told["champion"]["version"] == version
    assert told["decided"][0]["what"].startswith(f"version {version} made champion past the gate")
