"""Dashboards: what was measured, in Evidently's own workspace, for its own UI to show over time.

table of metrics ─▶ a project per pipeline, a snapshot per window and version ─▶ Evidently's UI

The workspace is made of the table of metrics alone, when somebody looks: if it is lost, it is made again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, UUID, uuid5

from headrace.legible import legible
from headrace.monitoring import metrics
from headrace.monitoring.reference import CATEGORICAL, NUMERIC

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from evidently.core.serialization import SnapshotModel
    from evidently.sdk.models import DashboardModel

    from headrace.lake import Lake
    from headrace.pipeline import Pipeline

Line = dict[str, Any]
KINDS = {"realised": "came true", "estimated": "expected", "promised": "promised"}


def bring(spec: Pipeline, lake: Lake, folder: Path) -> int:
    """Bring the workspace in ``folder`` up to date with a pipeline's metrics; return how many were written.

    A snapshot that says what the table does is left; one of which more is known by now is written anew. So is
    a dashboard whose pipeline asks for other columns or scores than when it was made; else it is left.
    """
    from evidently.sdk.models import ProjectModel
    from evidently.ui.storage.local.base import LocalState

    known = metrics.latest(spec, lake)
    windows: dict[tuple[Any, int], list[Line]] = defaultdict(list)
    for line in known.to_pylist() if known else ():
        if line["model_version"] is not None:
            windows[line["window_end"], line["model_version"]].append(line)
    state, project = LocalState(str(folder)), uuid5(NAMESPACE_URL, f"headrace/{spec.name}")
    dashboard, declared = _dashboard(spec), folder / str(project) / "declared"
    drawn = repr([(panel.title, [value.dict() for value in panel.values]) for panel in dashboard.panels])
    if not declared.exists() or declared.read_text() != drawn:  # else it is as somebody left it
        state.write_project(ProjectModel(id=project, name=spec.name, description=spec.about))
        state.write_dashboard(project, dashboard)
        declared.write_text(drawn)
    written = 0
    for (end, version), lines in windows.items():
        id = uuid5(project, f"{end.isoformat()}/{version}")
        looked = max(line["as_of"] for line in lines).isoformat()
        if _looked(folder, project, id) != looked:
            state.write_snapshot(project, id, _snapshot(spec, lines, version, looked))
            written += 1
    return written


def serve(folder: Path, host: str, port: int) -> None:
    """Serve Evidently's UI of a workspace until it is told to end."""
    from evidently.cli.ui import get_config
    from evidently.ui.service.app import run

    run(get_config(host=host, port=port, workspace=str(folder), secret=None))


def _looked(folder: Path, project: UUID, id: UUID) -> str:
    """Return when what a snapshot has was looked at; empty if there is none, or none that is whole."""
    try:
        read = json.loads((folder / str(project) / "snapshots" / f"{id}.json").read_text())
        return str(read["metadata"]["as_of"])
    except (OSError, ValueError, KeyError):
        return ""


def _snapshot(spec: Pipeline, lines: Sequence[Line], version: int, looked: str) -> SnapshotModel:
    from evidently.core.serialization import SnapshotModel

    results, widgets = {}, []
    for name, metric, line in _numbers(spec, lines):
        id, params = metric.metric_id, {k: v for k, v in metric.dict().items() if v is not None}
        results[id] = {
            "type": "evidently:metric_result_v2:SingleValue",
            "display_name": name,
            "metric_value_location": {"metric": {"metric_id": id, "params": params}, "param": {}},
            "value": line["value"],
        }
        counter = {"value": f"{line['value']:.4g}{_beside(line)}", "label": legible(name)}
        widgets.append(
            {"type": "counter", "title": "", "size": 1, "id": id, "params": {"counters": [counter]}}
        )
    found: SnapshotModel = SnapshotModel.parse_obj(
        {
            "report": {"items": []},
            "name": f"{spec.name}, version {version}, {_window(lines[0])}",
            "timestamp": lines[0]["window_end"].astimezone(UTC).replace(tzinfo=None),
            "metadata": {"as_of": looked, "version": str(version)},
            "tags": [],
            "metric_results": results,
            "top_level_metrics": [*results],
            "widgets": widgets,
            "tests_widgets": [],
        }
    )
    return found


def _window(line: Line) -> str:
    return f"{line['window_start']:%Y-%m-%d %H:%M} to {line['window_end']:%Y-%m-%d %H:%M} UTC"


def _beside(line: Line) -> str:
    if line["kind"] == "drift":
        return f" (at most {line['high']:.4g} before)"
    if line["kind"] == "contribution":
        return f" ({line['high']:.4g} where it was proven)"
    return f" ({line['low']:.4g} to {line['high']:.4g})" if line["low"] is not None else ""


def _numbers(spec: Pipeline, lines: Sequence[Line]) -> Iterator[tuple[str, Any, Line]]:
    """Yield what each line is called, Evidently's metric for it, and the line itself."""
    from evidently.metrics import MeanValue, ValueDrift

    order = [*KINDS, "data", "drift", "contribution", "segment"]
    for line in sorted(lines, key=lambda line: order.index(line["kind"])):
        if line["kind"] == "drift" and line["metric"] == "score":
            method = CATEGORICAL if line["of"] in spec.watched.categorical else NUMERIC
            yield f"drift of {line['of']}", ValueDrift(column=line["of"], method=method), line
        elif line["kind"] == "contribution" and line["of"]:
            name = f"goes by {line['of']}"
            yield name, MeanValue(column=name), line
        elif line["kind"] in KINDS:
            name = _called(line["metric"], line["kind"], line["method"])
            yield name, MeanValue(column=name), line
        elif line["kind"] == "data":
            yield line["metric"], MeanValue(column=line["metric"]), line


def _called(score: str, kind: str, method: str = "") -> str:
    return f"{score} {KINDS[kind]}{f' ({method})' if method else ''}"


def _dashboard(spec: Pipeline) -> DashboardModel:
    """Return a dashboard: each score over time, then each column's drift, then volumes."""
    from evidently.sdk.models import DashboardModel, DashboardTabModel, PanelMetric
    from evidently.sdk.panels import line_plot_panel

    def line(metric: str, column: str, legend: str = "") -> PanelMetric:
        return PanelMetric(metric=metric, metric_labels={"column": column}, legend=legend or column)

    methods: Mapping[str, tuple[str, ...]] = {
        "realised": ("",),
        "estimated": ("CBPE", "PAPE") if spec.problem.labels else ("DLE",),
        "promised": ("",),
    }
    scores = {**spec.problem.shown, "skill": "skill"}
    panels = [
        line_plot_panel(
            title,
            [
                line("MeanValue", name, name.removeprefix(f"{score} "))
                for kind, of in methods.items()
                for name in (_called(score, kind, method) for method in of)
            ],
            size="half",
        )
        for score, title in scores.items()
    ]
    drift = line_plot_panel(
        "Drift of each column: how far it lies from what the version learnt from",
        [line("ValueDrift", name) for name in spec.watched.names],
        size="full",
    )
    by = line_plot_panel(
        "What the model goes by: each input's share of the mean absolute SHAP value",
        [line("MeanValue", f"goes by {name}", name) for name in spec.columns.names],
        size="full",
    )
    volumes = line_plot_panel(
        "Predictions, and those of which the truth is known",
        [line("MeanValue", name) for name in ("predictions", "outcomes")],
        size="full",
    )
    all_of = [*panels, drift, by, volumes]
    return DashboardModel(
        tabs=[DashboardTabModel(title="What was measured", panels=[panel.id for panel in all_of])],
        panels=all_of,
    )
