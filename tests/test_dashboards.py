"""Evidently's workspace is made of the table of metrics, and of nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from headrace.cli import dashboards as command
from headrace.lake import Lake, Window
from headrace.monitoring import dashboards, metrics
from headrace.monitoring.dashboards import bring
from headrace.monitoring.metrics import Metric
from headrace.pipeline import Columns
from headrace.problem import MultiClass, Regression
from tests.conftest import utc
from tests.test_monitoring import TOY

WEEK = Window(utc(2013, 4, 1), utc(2013, 4, 8))


def found(auc: float) -> list[tuple[int | None, Metric]]:
    return [
        (None, Metric("data", "rows", 10, of="readings")),
        (1, Metric("data", "predictions", 10)),
        (1, Metric("realised", "auc", auc, rows=10)),
        (1, Metric("promised", "auc", 0.8)),
        (1, Metric("estimated", "auc", 0.75, 0.7, 0.8, method="PAPE")),
        (1, Metric("drift", "score", 0.2, high=0.3, of="x")),
        (1, Metric("drift", "missing", 0.0, high=0.1, of="x")),
        (1, Metric("segment", "loss", 0.3, of="x < 1", rows=5)),
    ]


def snapshots(folder: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*/snapshots/*.json"))]


def told(snapshot: dict) -> dict[str, float]:
    return {one["display_name"]: one["value"] for one in snapshot["metric_results"].values()}


def test_each_window_is_a_report_that_says_what_was_measured(tmp_path):
    lake, folder = Lake(str(tmp_path / "lake")), tmp_path / "evidently"
    assert bring(TOY, lake, folder) == 0
    metrics.note(TOY, lake, WEEK, "closed", WEEK.end, found(0.7))
    assert bring(TOY, lake, folder) == 1
    assert bring(TOY, lake, folder) == 0
    (one,) = snapshots(folder)
    assert one["name"] == "toy, version 1, 2013-04-01 00:00 to 2013-04-08 00:00 UTC"
    assert one["timestamp"].startswith("2013-04-08")
    assert told(one) == {
        "auc came true": 0.7,
        "auc promised": 0.8,
        "auc expected (PAPE)": 0.75,
        "predictions": 10,
        "drift of x": 0.2,
    }
    first = [widget["params"]["counters"][0] for widget in one["widgets"]]
    assert {"value": "0.75 (0.7 to 0.8)", "label": "auc expected (PAPE)"} in first
    assert first[-1] == {"value": "0.2 (at most 0.3 before)", "label": "drift of x"}


def test_more_truth_and_what_was_cut_short_make_a_report_anew(tmp_path):
    lake, folder = Lake(str(tmp_path / "lake")), tmp_path / "evidently"
    metrics.note(TOY, lake, WEEK, "closed", WEEK.end, found(0.7))
    bring(TOY, lake, folder)
    metrics.note(
        TOY, lake, WEEK, "by 20", WEEK.end + timedelta(days=1), [(1, Metric("realised", "auc", 0.6))]
    )
    assert bring(TOY, lake, folder) == 1
    (one,) = snapshots(folder)
    assert told(one)["auc came true"] == 0.6
    assert told(one)["predictions"] == 10
    (file,) = folder.glob("*/snapshots/*.json")
    file.write_text(file.read_text()[:100])
    assert bring(TOY, lake, folder) == 1
    assert told(snapshots(folder)[0]) == told(one)


@pytest.mark.parametrize(
    ("problem", "wanted"),
    [
        (TOY.problem, {"auc expected (CBPE)", "auc expected (PAPE)"}),
        (MultiClass(("a", "b", "c")), {"accuracy expected (PAPE)"}),
        (Regression("absolute"), {"mae expected (DLE)", "mae came true"}),
    ],
)
def test_a_dashboard_is_of_the_scores_of_its_problem(tmp_path, problem, wanted):
    spec = replace(TOY, problem=problem, columns=Columns(("<b>kind</b>",), ("x",)))
    bring(spec, Lake(str(tmp_path / "lake")), tmp_path)
    (dashboard,) = tmp_path.glob("*/dashboard.json")
    panels = json.loads(dashboard.read_text())["panels"]
    drawn = {value["metric_labels"]["column"] for panel in panels for value in panel["values"]}
    assert wanted | {"<b>kind</b>", "x", "predictions", *spec.problem.columns} <= drawn


def test_a_dashboard_that_somebody_changed_stays_until_its_pipeline_asks_for_other_columns(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    bring(TOY, lake, tmp_path)
    (dashboard,) = tmp_path.glob("*/dashboard.json")
    dashboard.write_text('{"tabs": [], "panels": []}')
    bring(TOY, lake, tmp_path)
    assert dashboard.read_text() == '{"tabs": [], "panels": []}'
    bring(replace(TOY, columns=Columns((), ("x", "y"))), lake, tmp_path)
    assert '"goes by y"' in dashboard.read_text()


def test_nothing_is_brought_again_while_nothing_is_measured(tmp_path, monkeypatch):
    lake, brought = Lake(str(tmp_path / "lake")), []
    settings = SimpleNamespace(home=tmp_path)
    project = SimpleNamespace(lake=lake, settings=settings, sound_pipelines=lambda: [TOY])
    monkeypatch.setattr(dashboards, "bring", lambda *args: brought.append(args))
    seen = command._bring(project, {})
    assert (seen, len(brought)) == ({"toy": -1}, 1)  # an empty dashboard
    assert command._bring(project, seen) == seen
    assert len(brought) == 1
    metrics.note(TOY, lake, WEEK, "closed", WEEK.end, found(0.7))
    assert command._bring(project, seen) != seen
    assert len(brought) == 2
