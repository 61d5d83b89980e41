"""Status: four questions about a pipeline, answered from records alone.

Which model serves? How well does it do? What has changed? What was decided, and why?
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections import defaultdict
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any

from headrace import quarantine, registry
from headrace.instants import read, shown
from headrace.lake import Window
from headrace.ledger import DONE
from headrace.legible import markdown
from headrace.monitoring import judgements, metrics, policy
from headrace.problem.base import RISING
from headrace.release import promotion
from headrace.release.page import table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from headrace.lake import Lake
    from headrace.ledger import Ledger
    from headrace.pipeline import Pipeline
    from headrace.registry import Release
    from headrace.tracking import MLflow

HEAD = ("from", "by", "rows", "known", "expected", "came true", "promised", "found")
WINDOWS, LINES = 12, 8
"""How many windows are shown, and how many changes and decisions."""
WHY = {"drift": "drift", "age": "old data", "estimate": "worse performance expected"}
"""What a policy's causes are called."""


@dataclass(frozen=True)
class Seen:
    """A window that was judged: of its first score what was expected, between what, and what came true.

    Numbers are None where they are not known. ``notes`` say what was found.
    """

    window: str
    end: datetime
    version: int
    predictions: int
    outcomes: int
    expected: float | None
    low: float | None
    high: float | None
    realised: float | None
    promised: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Decided:
    """What was decided, or done, ``at`` an instant (UTC), by the clock; of what was known ``as_of``."""

    at: datetime
    as_of: str
    what: str
    why: str


@dataclass(frozen=True)
class Status:
    """A pipeline as its records have it; ``title`` is that of the score that says most.

    ``serves`` says how its champion came to serve; ``beside`` which other versions see its traffic.
    ``changed`` is what lies farthest from what the champion knows, in the last window; ``pending`` what
    somebody is at work on, or should be. Windows are in order of time, decisions newest first.
    """

    pipeline: str
    about: str
    title: str
    rising: bool
    champion: Release | None
    serves: str
    beside: tuple[str, ...]
    windows: tuple[Seen, ...]
    changed: tuple[str, ...]
    decided: tuple[Decided, ...]
    pending: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values, for programs; times are UTC."""
        champion = self.champion and {
            "version": self.champion.version,
            "candidate": self.champion.candidate,
            "as_of": self.champion.as_of,
        }
        lists = {
            "windows": [vars(one) for one in self.windows],
            "decided": [vars(one) for one in self.decided],
        }
        return {**vars(self), **lists, "champion": champion}


def of(spec: Pipeline, lake: Lake, mlflow: MLflow, ledger: Ledger) -> Status:
    """Return how a pipeline is, by what lake, registry and ledger have of it."""
    score, title = next(iter(spec.problem.shown.items()))
    champion, aliases = registry.champion(mlflow, spec.name), registry.aliases(mlflow, spec.name)
    changes = promotion.changes(spec, ledger)
    stray = promotion.strayed(spec, mlflow, ledger)
    serves = promotion.told(changes[-1]) if changes else "Nothing was released yet; `train` makes a release."
    beside = [f"version {n} is a shadow" for n in registry.shadows(aliases)]
    if canary := registry.canary(mlflow, spec.name):
        beside.append(f"version {canary[0]} answers {canary[1]:.0%} as a canary")
    judged = [one.detail for one in ledger.entries(spec.name, judgements.KIND) if one.state == DONE]
    judged = judged[-WINDOWS:]
    measured = _measured(spec, lake, read(judged[0]["end"]) - spec.window) if judged else {}
    later = {one.detail["window"]: one.detail for one in ledger.entries(spec.name, judgements.AGAIN)}
    windows = [_seen(one, later.get(one["window"], {}), measured, score) for one in judged]
    running = [one for one in ledger.running() if one.pipeline == spec.name]
    pending = [f"{one.kind} of {one.key}: {one.holder} is at work" for one in running]
    if call := judgements.unanswered(spec, ledger):
        pending.append(f"{_why(call)} in {call['window']}: no training has taken it up yet")
    for entry in quarantine.waiting(lake, ledger, spec):
        pending.append(
            f"{entry.id}: {entry.held.rows:,} rows are held, `headrace quarantine show {entry.id}`"
        )
    return Status(
        spec.name,
        spec.about,
        title,
        score in RISING,
        champion,
        serves,
        (*beside, *([str(stray)] if stray else [])),
        tuple(windows),
        tuple(_changed({**judged[-1], **later.get(judged[-1]["window"], {})}, measured)) if judged else (),
        tuple(_decided(spec, ledger))[:LINES],
        tuple(pending),
    )


def picture(status: Status) -> bytes:
    """Return a PNG of what was promised, expected and came true of its first score, window by window."""
    from matplotlib.dates import date2num
    from matplotlib.figure import Figure

    ends = date2num([one.end for one in status.windows])
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()

    def of(name: str) -> list[float]:
        return [nan if (value := getattr(one, name)) is None else value for one in status.windows]

    axes.fill_between(ends, of("low"), of("high"), alpha=0.2, label="expected, 95 %")
    axes.plot(ends, of("expected"), "--", label="expected")
    axes.plot(ends, of("realised"), "o-", label="came true")
    axes.plot(ends, of("promised"), ":", color="grey", label="promised")
    for end, one in zip(ends, status.windows, strict=True):
        if "drift" in one.notes:
            axes.axvline(end, color="tab:red", alpha=0.4, label="drift")
    axes.xaxis_date()
    named = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(named.values(), named.keys(), loc="outside right upper", fontsize="small")
    axes.set(ylabel=status.title)
    axes.tick_params(axis="x", labelrotation=30)
    figure.savefig(file := io.BytesIO(), format="png", dpi=80)
    return file.getvalue()


def page(status: Status, mlflow_page: str = "", drawn: bytes = b"") -> str:
    """Return it as a page, in Markdown; links lead below ``mlflow_page``; ``drawn`` is its picture, a PNG."""
    champion = status.champion
    lines = [f"# {status.pipeline}", "", markdown(status.about), "", "## Which model serves?", ""]
    if champion:
        link = f"{mlflow_page}/#/models/{status.pipeline}/versions/{champion.version}"
        named = f"version {champion.version}"
        lines.append(
            f"**{f'[{named}]({link})' if mlflow_page else named}**, {markdown(champion.candidate)}, of what "
            f"was known on {shown(champion.as_of)} UTC. {markdown(status.serves)}"
        )
    else:
        lines.append(markdown(status.serves))
    lines += ["", *(f"- {markdown(one)}" for one in status.beside)]
    lines += ["", "## How well does it do?", ""]
    if status.windows:
        better = "more is better" if status.rising else "less is better"
        lines += [f"{status.title}, of which {better}:", ""]
        if drawn:
            lines += [f"![{status.title}](data:image/png;base64,{b64encode(drawn).decode()})", ""]
        lines += table(HEAD, (row(one) for one in reversed(status.windows)))
    else:
        lines.append("No window was judged yet; `monitor` does that.")
    for title, said in (("What has changed?", status.changed), ("What is pending?", status.pending)):
        lines += ["", f"## {title}", "", *(f"- {markdown(one)}" for one in said or ("Nothing.",))]
    lines += ["", "## What was decided, and why?", ""]
    for one in status.decided:
        when = f"{shown(one.at.replace(microsecond=0))} UTC, as of {one.as_of}"
        lines.append(f"- {when}: **{markdown(one.what)}**. {markdown(one.why)}")
    lines += [] if status.decided else ["- Nothing yet."]
    return "\n".join(lines) + "\n"


def row(one: Seen) -> tuple[str, ...]:
    """Return a window as cells below ``HEAD``: in it what was known is of the rows that were predicted."""
    between = "" if one.low is None else f" ({one.low:.3g}, {one.high:.3g})"
    known = f"{one.outcomes / one.predictions:.0%}" if one.predictions else ""
    return (
        one.window.partition("/")[0].replace("T00:00Z", "").replace("T", " "),
        f"v{one.version}" if one.version else "",
        f"{one.predictions:,}",
        known,
        _number(one.expected) + between,
        _number(one.realised),
        _number(one.promised),
        "; ".join(one.notes),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _measured(spec: Pipeline, lake: Lake, since: datetime) -> dict[str, list[dict[str, Any]]]:
    """Return what was measured of windows that end after ``since``, by window."""
    found = defaultdict(list)
    known = metrics.latest(spec, lake, since)
    for line in known.to_pylist() if known else ():
        found[str(Window(line["window_start"], line["window_end"]))].append(line)
    return found


def _seen(
    judged: Mapping[str, Any],
    later: Mapping[str, Any],
    measured: Mapping[str, Sequence[Mapping[str, Any]]],
    score: str,
) -> Seen:
    version = judged.get("champion", 0)
    of = [one for one in measured.get(judged["window"], ()) if one["model_version"] == version]
    of = [one for one in of if one["metric"] == score]
    estimated = {one["method"]: one for one in of if one["kind"] == "estimated"}
    best: Mapping[str, Any] = next((estimated[name] for name in policy.PREFERRED if name in estimated), {})
    values = {one["kind"]: one["value"] for one in of}
    worse, hurt = later.get("worse", judged.get("worse")), later.get("hurt", judged.get("hurt", ()))
    notes = [*(["drift"] if judged.get("drifted") else []), *(["worse than promised"] if worse else [])]
    came, low, high = values.get("realised"), best.get("low"), best.get("high")
    if came is not None and low is not None and high is not None and not low <= came <= high:
        notes.append("not as expected")
    notes += [f"worse where {name}" for name in hurt[:2]]
    return Seen(
        judged["window"],
        read(judged["end"]),
        version,
        judged.get("predictions", 0),
        later.get("outcomes", judged.get("outcomes", 0)),
        best.get("value"),
        low,
        high,
        came,
        values.get("promised"),
        tuple(notes),
    )


def _changed(judged: Mapping[str, Any], measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Yield what lies beyond its threshold in a window, the farthest first, and who is hurt in it."""
    version = judged.get("champion")
    of = [one for one in measured.get(judged["window"], ()) if one["model_version"] == version]
    of = [one for one in of if one["high"] is not None]
    by = {one["of"]: one["value"] for one in of if one["kind"] == "contribution"}
    far = [one for one in of if one["kind"] == "drift" and one["value"] >= one["high"] > 0]
    for one in sorted(far, key=lambda one: -one["value"] / one["high"])[:LINES]:
        what = "lies" if one["metric"] == "score" else "is missing from a share of rows that lies"
        far_from = f"{one['value']:.2f} from what the champion knows (at most {one['high']:.2f} before)"
        matters = f", and is {by[one['of']]:.0%} of what it goes by" if one["of"] in by else ""
        yield f"`{one['of']}` {what} {far_from}{matters}"
    worse = [one for one in of if one["kind"] == "segment" and one["metric"] == "change"]
    for one in sorted(worse, key=lambda one: one["high"])[:LINES]:
        if one["of"] in judged.get("hurt", ()):
            yield (
                f"where {one['of']} the champion costs {one['value']:+.3f} per row more than expected "
                f"({one['rows']:,} rows, p {one['high']:.3f})"
            )


def _why(judged: Mapping[str, Any]) -> str:
    kind = judged["cause"].partition("/")[0]
    return WHY.get(kind, kind)


def _decided(spec: Pipeline, ledger: Ledger) -> list[Decided]:
    """Return what was decided, newest first."""
    found = []
    for one in ledger.entries(spec.name):
        detail, as_of = one.detail, one.detail.get("as_of", one.detail.get("end", ""))
        as_of = shown(read(as_of)) if as_of else ""
        if one.kind == judgements.KIND and one.state == DONE and judgements.calls(detail):
            found.append(Decided(one.at, as_of, f"{_why(detail)}, so train", detail["reason"]))
        elif one.kind == "training" and one.state == DONE and detail.get("challenger"):
            what = f"version {detail['challenger']} {detail['decision']} ({one.key})"
            found.append(Decided(one.at, as_of, what, detail["reason"]))
        elif one.kind == promotion.MOVE and one.state == DONE:
            found.append(Decided(one.at, as_of, promotion.told(one).partition(": ")[2], ""))
    return found[::-1]
