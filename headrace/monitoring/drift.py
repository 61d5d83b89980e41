"""Drift: has the world that the champion learnt from gone?

reference ─▶ sketch, and one per window ─▶ how far its own windows stray
current   ─▶ sketch ─▶ Evidently: how far is this one? ─▶ drifted columns ─▶ drifted or not
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from headrace.monitoring.sketch import PREDICTION, Sketch, sketch, sketch_windows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import duckdb
    import pyarrow as pa

    from headrace.monitoring.rule import DriftRule
    from headrace.pipeline import Columns

# One method per kind of column, whatever the number of rows: Evidently's own
# choice changes with it, and then scores of two windows cannot be compared.
NUMERIC, CATEGORICAL = "wasserstein", "jensenshannon"


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
    """Whether a window has drifted, and why; ``report`` is the HTML file, empty if there is none."""

    drifted: bool
    share: float
    columns: tuple[ColumnDrift, ...]
    reason: str
    report: str

    def table(self) -> list[dict[str, str | float]]:
        """Return one row per column, the one farthest beyond its threshold first."""
        ranked = sorted(self.columns, key=lambda c: c.excess, reverse=True)
        return [
            {
                "column": c.column,
                "drift": "yes" if c.drifted else "",
                "score": round(c.score, 3),
                "threshold": round(c.threshold, 3),
                "without a value": f"{c.missing:.1%} ({c.missing_before:.1%} before)",
                "odd readings": c.odd,
            }
            for c in ranked
        ]


def drift(
    reference: duckdb.DuckDBPyRelation | pa.Table,
    current: duckdb.DuckDBPyRelation | pa.Table,
    columns: Columns,
    rule: DriftRule,
    report: Path,
    *,
    every: timedelta = timedelta(weeks=1),
) -> Drift:
    """Compare one window with the rows its champion was trained and proven on.

    Args:
        reference: The champion's training and held-out rows: inputs, its
            ``probability`` for each, and ``event_timestamp`` (UTC).
        current: Inputs and ``probability`` of one window.
        columns: The inputs.
        rule: When a column, and when the window, counts as drifted.
        report: Where to write Evidently's report: about 5 MB of HTML that
            needs no network; the file appears whole or not at all.
        every: The length of a window, by which the reference is cut too.

    Returns:
        The verdict. With too few rows on either side nothing has drifted and
        no report is written.
    """
    whole, windows = sketch_windows(reference, columns, every)
    now = sketch(current, columns, limits=whole.limits)
    if min(whole.rows, now.rows) < rule.min_rows:
        reason = (
            f"Not enough rows to judge: {now.rows:,} against {whole.rows:,} of the reference; "
            f"both must be {rule.min_rows:,} or more."
        )
        return Drift(False, 0.0, (), reason, "")

    names = (*columns.names, PREDICTION)
    missing, missing_now = whole.frame.isna().mean(), now.frame.isna().mean()
    filled = [name for name in names if max(missing[name], missing_now[name]) < 1]
    kinds = {name: CATEGORICAL if name in columns.categorical else NUMERIC for name in filled}
    # A window of its grid that the reference holds only partly strays for that reason alone.
    full = [part for part in windows if part.rows * 2 >= median(w.rows for w in windows)]
    thresholds = _thresholds(whole, full, kinds, rule)
    scores = _evidently(whole, now, kinds, thresholds, share=rule.share, report=report) if filled else {}
    missing_thresholds = _missing_thresholds(whole, full, rule)
    compared = tuple(
        ColumnDrift(
            name,
            scores.get(name, 0.0),
            thresholds.get(name, rule.least_score),
            float(missing_now[name]),
            float(missing[name]),
            missing_thresholds[name],
            str(now.odd.get(name, "")),
        )
        for name in names
    )
    share = sum(column.drifted for column in compared) / len(compared)
    drifted = share >= rule.share
    odd = _left_out(now, "the window") + _left_out(whole, "the reference")
    reason = _reason(compared, drifted, rule) + odd
    return Drift(drifted, share, compared, reason, str(report) if filled else "")


def _thresholds(
    whole: Sketch, windows: Sequence[Sketch], kinds: Mapping[str, str], rule: DriftRule
) -> dict[str, float]:
    """Return the farthest that any of the reference's own windows strays from the others, per column."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its own dependencies deprecate
        from evidently.legacy.calculations.stattests import get_stattest
        from evidently.legacy.core import ColumnType

    found = dict.fromkeys(kinds, rule.least_score)
    for name, method in kinds.items():
        kind = ColumnType.Numerical if method == NUMERIC else ColumnType.Categorical
        all_rows = whole.frame[name].dropna()
        for window in windows if len(windows) > 1 else ():
            rows = window.frame[name].dropna()
            if rows.empty:
                continue
            score = get_stattest(all_rows, rows, kind, method)(all_rows, rows, kind, 0.0).drift_score
            # The window is part of the whole, which pulls the whole towards it by its share.
            found[name] = max(found[name], float(score) / (1 - window.rows / whole.rows))
    return found


def _missing_thresholds(whole: Sketch, windows: Sequence[Sketch], rule: DriftRule) -> dict[str, float]:
    """Return the farthest that the share of rows without a value strays in any window, per column."""
    missing = whole.frame.isna().mean()
    found = dict.fromkeys(map(str, missing.index), rule.least_score)
    for window in windows if len(windows) > 1 else ():
        strays = (window.frame.isna().mean() - missing).abs() / (1 - window.rows / whole.rows)
        found = {name: max(least, float(strays[name])) for name, least in found.items()}
    return found


def _evidently(
    whole: Sketch,
    now: Sketch,
    kinds: Mapping[str, str],
    thresholds: Mapping[str, float],
    *,
    share: float,
    report: Path,
) -> dict[str, float]:
    """Return the drift score of each column, and write the report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its own dependencies deprecate
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

    definition = DataDefinition(
        numerical_columns=[name for name, method in kinds.items() if method == NUMERIC],
        categorical_columns=[name for name, method in kinds.items() if method == CATEGORICAL],
    )
    preset = DataDriftPreset(
        columns=list(kinds),
        drift_share=share,
        num_method=NUMERIC,
        cat_method=CATEGORICAL,
        per_column_threshold=dict(thresholds),
    )
    result = Report([preset], include_tests=False).run(
        Dataset.from_pandas(now.frame[list(kinds)], definition),
        Dataset.from_pandas(whole.frame[list(kinds)], definition),
    )
    report.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=report.parent) as folder:
        page = Path(folder, report.name)
        page.write_text(result.get_html_str(as_iframe=False), encoding="utf-8")
        page.replace(report)
    metrics = result.dict()["metrics"]
    return {m["config"]["column"]: float(m["value"]) for m in metrics if "column" in m["config"]}


def _reason(columns: Sequence[ColumnDrift], drifted: bool, rule: DriftRule) -> str:
    far = sorted((c for c in columns if c.drifted), key=lambda c: c.excess, reverse=True)
    named = ", ".join(map(str, far[:5]))
    more = f" and {len(far) - 5} more" if len(far) > 5 else ""
    return (
        f"{len(far)} of {len(columns)} columns lie farther from the reference than any of its own windows; "
        f"{'that reaches' if drifted else 'it takes'} {rule.share:.0%} of them to call for retraining."
        + (f" Farthest: {named}{more}." if far else "")
    )


def _left_out(drawn: Sketch, where: str) -> str:
    said = "; ".join(f"`{name}` has {odd}" for name, odd in drawn.odd.items())
    return f" Readings of {where} that are left out: {said}." if said else ""
