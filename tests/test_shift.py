"""Columns that have moved by more than chance explains, over one, two or four windows."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.lake import Window
from headrace.monitoring import shift
from headrace.monitoring.drift import Drift, drift
from headrace.monitoring.reference import ABOUT, Reference
from headrace.monitoring.rule import DriftRule
from headrace.monitoring.sketch import sketch
from tests.conftest import utc
from tests.test_monitoring import COLUMNS, WEEK, changed, weather, winter  # noqa: F401

RISK = DriftRule().risk


def strays(rng, windows: int, columns: int) -> np.ndarray:
    """Distances as windows of one world have them: each day's weather moves all columns a little."""
    together = rng.normal(0, 0.2, (windows, 1))
    return 0.1 * np.exp(together + rng.normal(0, 0.3, (windows, columns)))


def named(own, lately) -> set[str]:
    things = [(f"c{n}", "score") for n in range(own.shape[1])]
    found = shift.moved(
        dict(zip(things, own.T.tolist(), strict=True)),
        [dict(zip(things, each.tolist(), strict=True)) for each in lately],
        RISK,
    )
    return {name for name, _ in found}


def test_where_nothing_has_moved_hardly_anything_is_named():
    rng = np.random.default_rng(0)
    said = [bool(named(strays(rng, 13, 25), strays(rng, 4, 25))) for _ in range(2_000)]
    assert np.mean(said) <= RISK


def test_one_column_of_many_is_named_alone():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(50):
        lately = strays(rng, 1, 25)
        lately[-1, 7] *= 12
        found.append(named(strays(rng, 13, 25), lately))
    assert sum("c7" in one for one in found) >= 45
    assert sum(len(one) for one in found) <= 50 + 50 * RISK


def test_what_is_small_is_seen_once_it_lasts():
    rng = np.random.default_rng(2)
    seen = {1: 0, 4: 0}
    for _ in range(100):
        own, lately = strays(rng, 13, 25), strays(rng, 4, 25)
        lately[:, 3] *= 3.5
        for span in seen:
            seen[span] += "c3" in named(own, lately[-span:])
    assert seen[4] > 2 * seen[1]
    assert seen[4] > 60


def test_a_summary_of_an_earlier_release_has_its_thresholds_and_names_nothing(winter):  # noqa: F811
    reference = Reference.of(winter, COLUMNS)
    table = pq.read_table(io.BytesIO(reference.dump()))
    about = json.loads(table.schema.metadata[ABOUT])
    for before, now in (("strays", "own"), ("missing_strays", "missing_own")):
        about[before] = {name: max(of) for name, of in about.pop(now).items()}
    pq.write_table(table.replace_schema_metadata({ABOUT: json.dumps(about)}), file := io.BytesIO())
    older = Reference.load(file.getvalue())
    assert older.fits(COLUMNS, WEEK)
    moved = sketch(changed(winter, pressure="pressure + 60"), COLUMNS, limits=reference.whole.limits)
    found, as_now = (drift(one, moved, COLUMNS, DriftRule()) for one in (older, reference))
    assert (found.columns, found.drifted) == (as_now.columns, as_now.drifted)
    assert (found.moved, as_now.moved) == ((), ("pressure",))


@pytest.mark.parametrize("own", [[], [0.1, 0.2, 0.1]])
def test_of_few_windows_nothing_is_said(own):
    assert shift.moved({("x", "score"): own}, [{("x", "score"): 9.0}], RISK) == []


def test_a_column_of_which_a_window_is_not_known_is_left_out_there():
    own = {("x", "score"): [0.1] * 8, ("y", "score"): [0.1] * 8}
    lately = [{("x", "score"): 5.0}, {("x", "score"): 5.0, ("y", "score"): 0.1}]
    assert shift.moved(own, lately, RISK) == [("x", "score")]
    assert shift.moved(own, [*lately, {}], RISK) == []


def test_a_window_names_what_has_moved_and_the_reason_says_so(weather, winter):  # noqa: F811
    reference = Reference.of(winter, COLUMNS)
    week = Window(utc(2013, 2, 11), utc(2013, 2, 18)).predicate("event_timestamp")
    mild = weather.filter(week).to_arrow_table()

    def judged(rows: pa.Table, reference: Reference = reference) -> Drift:
        now = sketch(rows, COLUMNS, limits=reference.whole.limits)
        return drift(reference, now, COLUMNS, DriftRule())

    assert judged(mild).moved == ()
    gone = "IF(hash(event_timestamp) % 3 = 0, NULL, dewp)"
    for name, sql in {"pressure": "pressure + 60", "dewp": gone}.items():
        found = judged(changed(mild, **{name: sql}))
        assert found.moved == (name,)
        assert not found.drifted
        assert f"More than chance over the last windows: {name}." in found.reason
        assert [row["column"] for row in found.table() if row["moved"]] == [name]
    # Of shorter windows there are more in a year, and each may be wrong as much less often.
    assert judged(changed(mild, pressure="pressure + 60"), replace(reference, every=WEEK / 100)).moved == ()
