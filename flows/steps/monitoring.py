"""Prediction log ▶ drift and performance ▶ event; and what a replay waits for and compares."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from math import isnan
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.steps.common import announce, finish, holder, logger, progress, slug, step
from flows.steps.scoring import released
from headrace import tracking
from headrace.feature_store import freshness
from headrace.instants import shown, stamp
from headrace.lake import Window
from headrace.ledger import CLAIMED, DONE
from headrace.legible import markdown
from headrace.monitoring import judgements
from headrace.monitoring.errors import NotTakenUp
from headrace.pipeline import Pipeline
from headrace.project import Project
from headrace.release import compare
from headrace.release.errors import NoChampion

if TYPE_CHECKING:
    from headrace.monitoring.watch import Finding


@step("find windows to judge")
def unjudged(project: Project, spec: Pipeline, at: datetime) -> list[Window]:
    """Return, in order, the windows not judged yet that are predicted, up to the first that is not.

    Raises:
        NoChampion: The ledger knows of no release.
    """
    since = released(project, spec)
    if since is None:
        raise NoChampion(spec.name)
    complete = progress(project, spec, at)
    return judgements.due(spec, project.lake, project.ledger, since, complete)


def note_judgement(
    project: Project, spec: Pipeline, window: Window, finding: Mapping[str, Any]
) -> dict[str, Any]:
    """Write down what was found in a window; the first finding stands, and is returned."""
    return finish(project, spec, judgements.KIND, str(window), end=stamp(window.end), **finding).detail


def judgement(project: Project, spec: Pipeline, window: Window) -> dict[str, Any] | None:
    """Return what was found in a window; None if it was not judged."""
    return judgements.of(spec, project.ledger, window)


def unanswered(project: Project, spec: Pipeline) -> dict[str, Any] | None:
    """Return the last judgement if it calls for a training and none has begun: its event may be lost."""
    return judgements.unanswered(spec, project.ledger)


@step("judge {window}")
def watch(project: Project, spec: Pipeline, window: Window, at: datetime) -> dict[str, Any]:
    """Measure drift and performance of a window, estimated and as far as it is known; note them.

    All numbers are in the lake's table of metrics; what a plot over time is made of in MLflow, too, beside
    Evidently's page of a drift.
    """
    from headrace.monitoring import metrics, policy
    from headrace.monitoring.watch import judge

    cause, reports = policy.cause(spec.policy, stamp(window.end)), project.settings.home / "reports"
    findings = judge(spec, project.lake, project.mlflow, window, at, reports)
    if not findings:
        reason = "There was nothing to predict in it."
        return {"window": str(window), "drifted": False, "retrain": False, "cause": cause, "reason": reason}
    views = freshness.measure(project.store, spec.feature_service, at)
    old = {view.view: view.age for view in views if view.age is not None}
    ages = {f"feature_age_h.{view}": age / timedelta(hours=1) for view, age in old.items()}
    drifted = any(finding.drift.drifted for finding in findings)
    measured = [_measured(finding) | ages for finding in findings]
    numbers: list[tuple[int | None, metrics.Metric]] = [
        *((None, one) for one in metrics.of_window(spec, project.lake, window, old)),
        *((f.release.version, one) for f in findings for one in metrics.of_finding(f)),
    ]
    metrics.note(spec, project.lake, window, "closed", at, numbers)
    pages = [
        _page(project, spec, window, finding, metrics)
        for finding, metrics in zip(findings, measured, strict=True)
    ]
    worse = any(finding.performance.worse for finding in findings)
    foreseen = policy.foreseen(findings[0].estimates, findings[0].fared.promised)
    signals = {"drifted": drifted, "moved": [*findings[0].drift.moved], "foreseen": foreseen}
    signals |= {"champion": findings[0].release.version}
    past, trained = policy.known(spec, project.ledger, window.start)
    retrain, why = policy.decide(spec.policy, [*past, {"end": stamp(window.end), **signals}], trained)
    found = f"{'Drift' if drifted else 'No drift'} in {window}{', and worse than promised' * worse}"
    fared = _told(findings, lambda finding: _fared(spec, finding))
    create_markdown_artifact(
        key=slug("monitor", spec.name), markdown="\n\n".join(filter(None, [f"## {found}", why, *pages]))
    )
    texts = ("column", "odd readings")
    rows = [
        {
            **{"version": f.release.version, **row},
            **{name: markdown(row[name]) for name in texts},
            "gone by": _gone_by(f, str(row["column"])),
        }
        for f in findings
        for row in f.drift.table()
    ]
    create_table_artifact(key=slug("drift", spec.name), table=rows, description=f"## {found}\n\n{fared}")
    if worse:
        logger().warning("Worse than promised in %s. %s", window, fared)
    return {
        "window": str(window),
        **signals,
        "retrain": retrain,
        "cause": cause,
        "reason": f"{_told(findings, lambda finding: finding.drift.reason)} {why}".rstrip(),
        "worse": worse,
        "hurt": [one.name for finding in findings for one in finding.fared.hurt],
        "predictions": sum(finding.rows for finding in findings),
        "outcomes": sum(int(finding.performance.scores.get("rows", 0)) for finding in findings),
        "performance": fared,
        "score": spec.problem.told(findings[0].performance.scores, most=1),
        "report": next((finding.report for finding in findings if finding.report), ""),
        **measured[0],
    }


def _gone_by(finding: Finding, column: str) -> str:
    """Return how much a version goes by a column, in words; nothing if that is not known."""
    shares = (f"{one.now:.1%} ({one.before:.1%} before)" for one in finding.gone_by if one.column == column)
    return next(shares, "")


def _measured(finding: Finding) -> dict[str, float]:
    """Return what MLflow keeps of a finding."""
    from headrace.monitoring.contributions import ndcg

    fared = finding.performance
    measured: dict[str, float | None] = {
        "drift_share": finding.drift.share,
        "contributions_ndcg": ndcg([*finding.gone_by]) if finding.gone_by else None,
        "skill": fared.skill,
        "skill_promised": fared.expected_skill,
        "champion_version": finding.release.version,
    }
    measured |= {**fared.scores, "skill": fared.skill}
    for one in finding.estimates:
        name = f"{one.method.lower()}/{one.metric}"
        measured |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    return {name: float(value) for name, value in measured.items() if value is not None and not isnan(value)}


def _page(
    project: Project, spec: Pipeline, window: Window, finding: Finding, metrics: Mapping[str, float]
) -> str:
    """Note a finding in MLflow; return what the artifact says of it."""
    mlflow, serving, fared = project.settings.mlflow_page, finding.release, finding.performance
    scored = f"{told}." if (told := spec.problem.told(fared.scores)) else ""
    noted = mlflow + tracking.log_watch(
        project.mlflow, spec.name, finding.name, metrics, finding.report, as_of=window.end
    )
    if finding.report:
        drawn = f"[Evidently report]({noted}) (served by `make up`)."
    else:
        drawn = (
            f"[Its run in MLflow]({noted}); `headrace report {spec.name} --at {window.label}` draws a page."
        )
    return (
        f"{markdown(finding.drift.reason)}\n\n{markdown(_fared(spec, finding))} {scored}\n\n"
        f"Champion: [version {serving.version}]({mlflow}/#/models/{spec.name}/versions/"
        f"{serving.version}) ({serving.candidate}), as of {shown(serving.as_of)}, "
        f"with {finding.rows:,} predictions. {drawn}"
    )


def _fared(spec: Pipeline, finding: Finding) -> str:
    """Return what is said of performance: by the truth that is known, and as it was to be expected."""
    first = next(iter(spec.problem.shown))
    of = [one for one in finding.estimates if one.metric in (first, "skill")]
    each = ", ".join(f"{spec.problem.shown.get(one.metric, one.metric)} {one} ({one.method})" for one in of)
    return finding.fared.told + (f" To be expected: {each}." if each else "")


def _told(findings: Sequence[Finding], say: Callable[[Finding], str]) -> str:
    """Return what is said of a window; of each version, if several made predictions in it."""
    if len(findings) == 1:
        return say(findings[0])
    return " ".join(f"Version {f.release.version} on {f.rows:,} rows: {say(f)}" for f in findings)


def judge_again(project: Project, spec: Pipeline, at: datetime) -> bool:
    """Judge windows by truth that came after they closed, show it, and warn; say if there is any."""
    grown = judgements.maturing(spec, project.lake, project.ledger, at)
    if grown:
        _judge_again(project, spec, grown, at)
    return bool(grown)


@step("judge by truth that came later")
def _judge_again(
    project: Project, spec: Pipeline, grown: Mapping[Window, tuple[int, int]], at: datetime
) -> None:
    from headrace.monitoring import matured

    rooms = (project.lake, project.mlflow, project.ledger)
    found = matured.judge_again(spec, grown, *rooms, at, holder())
    for one in found:
        if one.worse:
            logger().warning("By now, worse than promised in %s. %s", one.window, one.reason)
        if one.worse or any(fared.hurt for _, fared in one.versions):
            announce_worse(spec, str(one.window), one.reason, one.outcomes)
    create_table_artifact(
        key=slug("matured", spec.name),
        table=[
            {
                "window": str(one.window),
                "outcomes": f"{one.outcomes:,} of {one.predictions:,}, {one.before:,} before",
                "skill when it closed": _number(one.skill_closed),
                "skill": _number(one.versions[0][1].performance.skill),
                "promised": _number(one.versions[0][1].performance.expected_skill),
                "worse": "yes" if one.worse else "",
                "run": f"[MLflow]({project.settings.mlflow_page}{one.page})",
            }
            for one in found
        ],
        description=f"## `{spec.name}` by truth that came after its windows closed, as of {shown(at)} UTC",
    )


def _number(value: float | None) -> str:
    return "-" if value is None or isnan(value) else f"{value:.3f}"


@step("show how it is")
def show_status(project: Project, spec: Pipeline) -> None:
    """Show which model serves, how well it does, what has changed, and what was decided and why."""
    from headrace import status

    found = status.of(spec, project.lake, project.mlflow, project.ledger)
    drawn = status.picture(found) if found.windows else b""
    page = status.page(found, project.settings.mlflow_page, drawn)
    create_markdown_artifact(key=slug("status", spec.name), markdown=page)


@step("call for a retraining")
def call_for_training(spec: Pipeline, at: datetime, finding: Mapping[str, Any]) -> None:
    """Emit ``headrace.drift``, or ``headrace.due`` if the policy goes by something else.

    The ledger, not the event, makes sure that one window retrains once.
    """
    cause, reason = finding["cause"], finding["reason"]
    event = "headrace.drift" if cause.startswith("drift/") else "headrace.due"
    announce(event, spec, cause, as_of=at.isoformat(), cause=cause, reason=reason)


def announce_worse(spec: Pipeline, window: str, reason: str, outcomes: int) -> None:
    """Emit ``headrace.worse``: by as many outcomes a version has become worse, on the whole or for some."""
    key, reason = f"worse/{window}/{outcomes}", f"{window}: {reason}"
    announce("headrace.worse", spec, key, window=window, outcomes=outcomes, reason=reason)


@step("wait for the retraining", minutes=30)
def await_retraining(project: Project, spec: Pipeline, cause: str) -> dict[str, Any]:
    """Return the verdict of the retraining that ``cause`` started, once the ledger has it.

    Raises:
        NotTakenUp: After three minutes no run is at work on it.
    """
    ledger, began = project.ledger, time.monotonic()
    while True:
        entries = ledger.entries(spec.name, "training", cause)
        if done := next((e for e in entries if e.state == DONE), None):
            return done.detail
        at_work = bool(entries) and entries[-1].state == CLAIMED
        if not at_work and time.monotonic() - began > 180:
            raise NotTakenUp(spec.name, cause)
        time.sleep(0.25)


@step("compare the releases")
def compare_releases(project: Project, spec: Pipeline, span: Window, at: datetime) -> list[dict[str, Any]]:
    """Set every release beside the first one, on the predictions of ``span`` neither was trained on."""
    return [asdict(each) for each in compare(spec, project.lake, project.mlflow, span, at)]
