"""Drift: has the world that the champion learnt from gone?

reference, current ─▶ how far is each column? ─▶ farther than the reference's own windows? ─▶ drifted or not
                                                                                           └▶ Evidently's page
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.monitoring import shift
from headrace.monitoring.reference import CATEGORICAL, NUMERIC, Reference, distance

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import pandas as pd

    from headrace.monitoring.rule import DriftRule
    from headrace.monitoring.sketch import Sketch
    from headrace.pipeline import Columns

WEEK = timedelta(weeks=1)


@dataclass(frozen=True)
class ColumnDrift:
    """How far one column lies from the reference.

    ``score`` is the Wasserstein distance in standard deviations of the
    reference, or for categories the Jensen-Shannon distance (0 to 0.83), of the values there
    are; 0 where one side has none. ``missing`` is the share of rows without a usable value,
    ``missing_before`` that of the reference, and ``missing_threshold`` how far they may differ.
    ``odd`` says which readings of the window are not usable.
    """

    column: str
    score: float
    threshold: float
    missing: float
    missing_before: float
    missing_threshold: float
    odd: str = ""

    @property
    def drifted(self) -> bool:
        """Whether the values, or the share of rows without one, reach their threshold."""
        return self.excess >= 1

    @property
    def excess(self) -> float:
        """How many times its threshold the farther of the two is."""
        return max(self.score / self.threshold, self.missing_change / self.missing_threshold)

    @property
    def missing_change(self) -> float:
        """By how much the share of rows without a usable value has changed."""
        return abs(self.missing - self.missing_before)

    def __str__(self) -> str:
        said = []
        if self.score >= self.threshold:
            said.append(f"{self.score:.2f} (at most {self.threshold:.2f} before)")
        if self.missing_change >= self.missing_threshold:
            said.append(f"without a value in {self.missing:.0%} of rows ({self.missing_before:.0%} before)")
        return f"{self.column} {' and '.join(said)}"


@dataclass(frozen=True)
class Drift:
    """Whether a window has drifted, and why.

    ``moved`` are the columns that have moved over the last windows by more than chance explains; those that
    the version has ``ignored`` may move.
    """

    drifted: bool
    share: float
    columns: tuple[ColumnDrift, ...]
    reason: str
    moved: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def distances(self) -> dict[tuple[str, str], float]:
        """How far each column lies: its values, and its share of rows without one."""
        scores = {(one.column, "score"): one.score for one in self.columns}
        return scores | {(one.column, "missing"): one.missing_change for one in self.columns}

    def table(self) -> list[dict[str, str | float]]:
        """Return one row per column, the one farthest beyond its threshold first."""
        ranked = sorted(self.columns, key=lambda c: c.excess, reverse=True)
        return [
            {
                "column": c.column,
                "drift": "yes" if c.drifted else "",
                "moved": "yes" if c.column in self.moved else "ignored" if c.column in self.ignored else "",
                "score": round(c.score, 3),
                "threshold": round(c.threshold, 3),
                "without a value": f"{c.missing:.1%} ({c.missing_before:.1%} before)",
                "odd readings": c.odd,
            }
            for c in ranked
        ]


def drift(
    reference: Reference,
    current: Sketch,
    columns: Columns,
    rule: DriftRule,
    earlier: Sequence[Mapping[tuple[str, str], float]] = (),
    ignored: Collection[str] = (),
) -> Drift:
    """Compare one window with the rows its champion was trained and proven on.

    Args:
        reference: A summary of those rows.
        current: A sketch of the window's ``columns``, within the reference's limits.
        columns: What is watched: the inputs, and what was predicted of them.
        rule: When a column, and when the window, counts as drifted.
        earlier: The distances of the windows before that the same version predicted, oldest first.
        ignored: Columns that the version does not go by: they may move.

    Returns:
        The verdict. With too few rows on either side nothing has drifted, and it has no columns.
    """
    whole = reference.whole
    if min(whole.rows, current.rows) < rule.min_rows:
        reason = (
            f"Not enough rows to judge: {current.rows:,} against {whole.rows:,} of the reference; "
            f"both must be {rule.min_rows:,} or more."
        )
        return Drift(False, 0.0, (), reason)
    compared = tuple(_column(reference, current, name, columns, rule) for name in columns.names)
    share = sum(column.drifted for column in compared) / len(compared)
    drifted = share >= rule.share
    found = Drift(drifted, share, compared, "")
    # Of shorter windows there are more in a year, in which as many are to be named by chance.
    risk = rule.risk * min(reference.every / WEEK, 1)
    names = [name for name in columns.names if name not in ignored]
    own = {(name, "score"): reference.own[name] for name in names if name in reference.own}
    own |= {(name, "missing"): reference.missing_own[name] for name in names if name in reference.missing_own}
    things = shift.moved(own, [*earlier[1 - max(shift.SPANS) :], found.distances], risk)
    moved = tuple(dict.fromkeys(name for name, _ in things))
    odd = _left_out(current, "the window") + _left_out(whole, "the reference")
    reason = _reason(compared, drifted, rule) + _moved(moved) + odd
    return replace(found, reason=reason, moved=moved, ignored=tuple(sorted(ignored)))


def _column(
    reference: Reference, current: Sketch, name: str, columns: Columns, rule: DriftRule
) -> ColumnDrift:
    before, now = reference.whole.frame[name], current.frame[name]
    return ColumnDrift(
        name,
        distance(before, now, categorical=name in columns.categorical),
        max(rule.least_score, reference.stray(name)),
        float(now.isna().mean()),
        float(before.isna().mean()),
        max(rule.least_score, reference.missing_stray(name)),
        str(current.odd.get(name, "")),
    )


def draw(
    reference: Reference, current: Sketch, found: Drift, columns: Columns, rule: DriftRule, report: Path
) -> bool:
    """Write Evidently's page of what ``drift`` found to ``report``, unless no column can be compared.

    It is some 5 MB of HTML that need no network, and appears whole or not at all.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its own dependencies deprecate
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

    frames = reference.whole.frame, current.frame
    compared = [c for c in found.columns if not any(frame[c.column].isna().all() for frame in frames)]
    if not compared:
        return False
    names = [column.column for column in compared]
    # Evidently puts names and categories into its pages as they are.
    shown = {name: escape(name, quote=False) for name in names}
    before, now = (_escaped(frame[names], columns).rename(columns=shown) for frame in frames)
    definition = DataDefinition(
        numerical_columns=[shown[name] for name in names if name not in columns.categorical],
        categorical_columns=[shown[name] for name in names if name in columns.categorical],
    )
    preset = DataDriftPreset(
        columns=list(shown.values()),
        drift_share=rule.share,
        num_method=NUMERIC,
        cat_method=CATEGORICAL,
        per_column_threshold={shown[column.column]: column.threshold for column in compared},
    )
    result = Report([preset], include_tests=False).run(
        Dataset.from_pandas(now, definition), Dataset.from_pandas(before, definition)
    )
    report.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=report.parent) as folder:
        page = Path(folder, report.name)
        page.write_text(result.get_html_str(as_iframe=False), encoding="utf-8")
        page.replace(report)
    return True


def preset(reference: pd.DataFrame, current: pd.DataFrame, columns: Columns) -> bool:
    """Say whether Evidently calls ``current`` drifted at its defaults, as its preset does, without plots."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import DriftedColumnsCount

        names = [n for n in columns.names if not (reference[n].isna().all() or current[n].isna().all())]
        if not names:
            return False
        definition = DataDefinition(
            numerical_columns=[name for name in names if name not in columns.categorical],
            categorical_columns=[name for name in names if name in columns.categorical],
        )
        before, now = (Dataset.from_pandas(frame[names], definition) for frame in (reference, current))
        counted = DriftedColumnsCount()
        (found,) = Report([counted], include_tests=False).run(now, before).dict()["metrics"]
    return float(found["value"]["share"]) >= counted.drift_share


def _escaped(frame: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    texts = [name for name in frame.columns if name in columns.categorical]
    return frame.assign(
        **{name: frame[name].map(partial(escape, quote=False), na_action="ignore") for name in texts}
    )


def _reason(columns: Sequence[ColumnDrift], drifted: bool, rule: DriftRule) -> str:
    far = sorted((c for c in columns if c.drifted), key=lambda c: c.excess, reverse=True)
    named = ", ".join(map(str, far[:5]))
    more = f" and {len(far) - 5} more" if len(far) > 5 else ""
    return (
        f"{len(far)} of {len(columns)} columns lie farther from the reference than any of its own windows; "
        f"{'that reaches' if drifted else 'it takes'} {rule.share:.0%} of them for the window to drift."
        + (f" Farthest: {named}{more}." if far else "")
    )


def _moved(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
    return f" More than chance over the last windows: {', '.join(columns[:5])}{more}." if columns else ""


def _left_out(drawn: Sketch, where: str) -> str:
    said = "; ".join(f"`{name}` has {odd}" for name, odd in drawn.odd.items())
    return f" Readings of {where} that are left out: {said}." if said else ""
