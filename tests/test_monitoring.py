"""Drift and performance on New York's weather of 2013, compared week by week."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace import registry, tracking
from headrace.instants import stamp
from headrace.lake import Lake, Window, duckdb_connection
from headrace.ledger import Ledger
from headrace.monitoring import judgements
from headrace.monitoring.drift import Drift, draw, drift
from headrace.monitoring.matured import judge_again
from headrace.monitoring.performance import performance
from headrace.monitoring.reference import CATEGORICAL, NUMERIC, Reference
from headrace.monitoring.rule import DriftRule
from headrace.monitoring.sketch import sketch, sketch_windows
from headrace.monitoring.watch import judge
from headrace.pipeline import Candidate, Columns, Pipeline
from headrace.problem import Binary, MultiClass, Regression
from headrace.project import Project
from headrace.sql import quoted
from headrace.tracking import MLflow
from headrace.training import dataset
from headrace.training.encoding import Encoder
from headrace.training.model import Model
from headrace.training.xgboost import Boosted
from pipelines import _nycflights13 as nyc
from tests.conftest import utc

WEEK = timedelta(weeks=1)
WINTER = Window(utc(2013, 1, 7), utc(2013, 3, 25))
COLUMNS = Columns(
    ("origin",),
    (
        *("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
        "probability",
    ),
)
LATE = Binary()


@pytest.fixture(scope="module")
def weather() -> duckdb.DuckDBPyRelation:
    con = duckdb_connection()
    con.read_csv(str(nyc.files("weather")["weather"]), na_values=["NA"]).create("weather")
    return con.sql("""
        SELECT origin, temp, dewp, humid, wind_dir, wind_speed, wind_gust, precip, pressure, visib,
               0.9 / (1 + exp((temp - 55) / 20)) + 0.05 AS probability, time_hour AS event_timestamp
        FROM weather WHERE wind_speed IS NULL OR wind_speed < 100  -- once, an anemometer read 1,048 mph
    """)


@pytest.fixture(scope="module")
def winter(weather: duckdb.DuckDBPyRelation) -> pa.Table:
    return weather.filter(WINTER.predicate("event_timestamp")).to_arrow_table()


def changed(table: pa.Table, **columns: str) -> pa.Table:
    new = ", ".join(f"{sql} AS {name}" for name, sql in columns.items())
    return duckdb_connection().from_arrow(table).project(f"* REPLACE ({new})").to_arrow_table()


def judged(
    reference: pa.Table, current: pa.Table, columns: Columns = COLUMNS, rule: DriftRule | None = None
) -> Drift:
    known = Reference.of(reference, columns)
    now = sketch(current, columns, limits=known.whole.limits)
    return drift(known, now, columns, rule or DriftRule())


def test_a_sketch_scores_as_all_rows_do(weather, winter):
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    spring = weather.filter(Window(utc(2013, 3, 25), utc(2013, 7, 1)).predicate("event_timestamp"))
    names = COLUMNS.names
    kinds = {name: CATEGORICAL if name in COLUMNS.categorical else NUMERIC for name in names}
    definition = DataDefinition(
        categorical_columns=list(COLUMNS.categorical), numerical_columns=[*COLUMNS.numeric]
    )

    def scores(reference, current):
        metrics = [ValueDrift(column=name, method=kind, threshold=0.1) for name, kind in kinds.items()]
        a, b = (Dataset.from_pandas(frame[list(names)], definition) for frame in (current, reference))
        return [metric["value"] for metric in Report(metrics).run(a, b).dict()["metrics"]]

    sketched = scores(sketch(winter, COLUMNS).frame, sketch(spring, COLUMNS).frame)
    assert sketched == pytest.approx(scores(winter.to_pandas(), spring.df()), abs=0.01)
    assert max(sketched) > 1


def test_a_sketch_keeps_nulls_and_categories_in_proportion_and_forgets_order(winter):
    backwards = winter.take(np.arange(winter.num_rows)[::-1])

    drawn = sketch(winter, COLUMNS, size=1000)

    assert drawn.rows == winter.num_rows
    assert drawn.frame.equals(sketch(backwards, COLUMNS, size=1000).frame)
    for name in ("wind_gust", "wind_dir"):
        assert winter[name].null_count > 50
        assert drawn.frame[name].isna().mean() == pytest.approx(
            winter[name].null_count / winter.num_rows, abs=1e-3
        )
    counts = winter.to_pandas()["origin"].value_counts(normalize=True)
    assert drawn.frame["origin"].value_counts(normalize=True).to_dict() == pytest.approx(
        counts.to_dict(), abs=2e-3
    )


def test_columns_may_be_called_like_anything_that_a_query_of_ours_could_name(winter):
    names = ("slot", "value", "seen", "rows", "sketched", "count", "wanted")
    columns = Columns(("origin",), ("temp",))
    wanted, weeks = sketch_windows(winter, columns, WEEK)
    for text, number in pairwise(names):
        renamed = winter.select(["origin", "temp", "event_timestamp"])
        renamed = renamed.rename_columns([text, number, "event_timestamp"])
        whole, parts = sketch_windows(renamed, Columns((text,), (number,)), WEEK)
        for one, other in zip((whole, *parts), (wanted, *weeks), strict=True):
            assert one.rows == other.rows
            assert one.frame.set_axis(["origin", "temp"], axis=1).equals(other.frame)


def test_windows_share_out_the_rows_of_the_whole(winter):
    whole, weeks = sketch_windows(winter, COLUMNS, WEEK)

    assert len(weeks) == 11
    assert sum(week.rows for week in weeks) == whole.rows == winter.num_rows
    assert weeks[2].frame["temp"].mean() == pytest.approx(
        np.mean(
            [
                row["temp"]
                for row in winter.select(["temp", "event_timestamp"]).to_pylist()
                if utc(2013, 1, 21) <= row["event_timestamp"] < utc(2013, 1, 28)
            ]
        ),
        abs=0.05,
    )


def test_two_halves_of_one_shuffled_sample_do_not_drift(winter):
    order = np.random.default_rng(0).permutation(winter.num_rows)
    one, other = np.array_split(order, 2)

    found = judged(winter.take(one), winter.take(other), COLUMNS)

    assert not found.drifted
    assert not any(column.drifted for column in found.columns)


def test_weeks_of_a_winter_do_not_drift_from_it_and_a_summer_week_does(weather, winter):
    cold, mild, hot = (
        weather.filter(Window(at, at + WEEK).predicate("event_timestamp"))
        for at in (utc(2013, 1, 21), utc(2013, 2, 11), utc(2013, 7, 15))
    )

    verdicts = [judged(winter, week, COLUMNS) for week in (cold, mild, hot)]

    assert [verdict.drifted for verdict in verdicts] == [False, False, True]
    # What a fixed threshold of 0.1 would have said of the coldest week of that same winter:
    assert sum(column.score >= 0.1 for column in verdicts[0].columns) > 5
    assert "temp" in verdicts[2].reason


def test_a_shifted_column_is_found_and_named(winter):
    rule = DriftRule(share=1 / 11)

    found = judged(winter, changed(winter, pressure="pressure + 60"), COLUMNS, rule)

    assert found.drifted
    assert [column.column for column in found.columns if column.drifted] == ["pressure"]
    assert found.table()[0]["column"] == "pressure"
    assert "pressure" in found.reason


def test_a_column_that_vanished_drifts_and_empty_or_constant_ones_do_not(winter):
    known = changed(winter, wind_dir="NULL::DOUBLE", visib="10.0")
    current = changed(known, dewp="'nan'::DOUBLE")

    found = judged(known, current, COLUMNS)

    assert [(column.column, column.missing) for column in found.columns if column.drifted] == [("dewp", 1.0)]
    assert not found.drifted


MANY = {
    "numeric nulls": ("temp", "IF(event_timestamp::VARCHAR > '2013-02-01', NULL, temp)"),
    "nulls of categories": ("origin", "IF(hash(event_timestamp) % 10 < 3, NULL, origin)"),
    "not-a-numbers": ("temp", "IF(hash(event_timestamp) % 10 < 3, 'nan', temp)"),
    "infinities": ("temp", "IF(hash(event_timestamp) % 10 < 2, '-inf', temp)"),
    "far readings": ("temp", "IF(hash(event_timestamp) % 10 < 2, -9999, temp)"),
}


@pytest.mark.parametrize(("column", "sql"), MANY.values(), ids=MANY)
def test_the_share_of_rows_without_a_value_counts_beside_the_shape(winter, column, sql):
    spoilt = changed(winter, **{column: sql})

    found = judged(winter, spoilt, COLUMNS)

    assert [c.column for c in found.columns if c.drifted] == [column]
    assert re.search(rf"{column} .*without a value in \d\d% of rows \(0% before\)", found.reason)
    assert found.table()[0]["column"] == column


def test_a_share_of_nulls_that_windows_of_the_reference_have_had_is_none(winter):
    some = changed(winter, temp="IF(event_timestamp::DATE BETWEEN '2013-01-14' AND '2013-01-20', NULL, temp)")
    week = changed(winter, temp="IF(hash(event_timestamp) % 10 < 8, NULL, temp)")

    found = judged(some, week, COLUMNS)

    assert not any(c.drifted for c in found.columns)


@pytest.mark.parametrize("reading", ["1048", "'inf'", "-1e30"])
def test_one_absurd_reading_is_told_and_decides_nothing(winter, reading):
    one = f"IF(origin = 'EWR' AND event_timestamp = '2013-02-14 08:00:00Z', {reading}, wind_speed)"
    spoilt = changed(winter, wind_speed=one)
    calm = judged(winter, winter, COLUMNS)
    shifted = changed(winter, wind_speed="wind_speed + 30")

    in_window = judged(winter, spoilt, COLUMNS)
    in_reference = judged(spoilt, shifted, COLUMNS)

    named = "`wind_speed` has 1 (infinite|far from all others, such as)"
    assert "left out" not in calm.reason
    assert re.search(f"Readings of the window that are left out: {named}", in_window.reason)
    assert re.search(f"Readings of the reference that are left out: {named}", in_reference.reason)
    assert not any(column.drifted for column in in_window.columns)
    assert [column.column for column in in_reference.columns if column.drifted] == ["wind_speed"]


@pytest.mark.filterwarnings("error", "ignore::pytest.PytestUnraisableExceptionWarning")  # of other tests
@pytest.mark.parametrize("strange", ["'inf'::DOUBLE", "'-inf'::DOUBLE", "1e300"])
def test_numbers_that_no_float_holds_are_as_missing_as_the_model_finds_them(winter, strange):
    current, missing = (
        changed(winter, temp=f"if(epoch(event_timestamp)::BIGINT // 3600 % 10 = 0, {value}, temp)")
        for value in (strange, "NULL")
    )

    found, wanted = (judged(winter, rows, COLUMNS).columns for rows in (current, missing))

    assert [replace(column, odd="") for column in found] == list(wanted)


@pytest.mark.parametrize(
    "kind", ["BOOLEAN", "BIGINT", "DECIMAL(38, 0)", "VARCHAR"], ids=lambda kind: kind.split("(")[0]
)
def test_a_column_may_be_of_any_type_that_models_take_and_of_any_name(winter, kind):
    name = 'a "quoted" [0] < 1; b'
    value = "temp > 50" if kind == "BOOLEAN" else "(temp * 100)::BIGINT * 10000000000000"
    odd = duckdb_connection().from_arrow(winter)
    odd = odd.project(f"*, ({value})::{kind} AS {quoted(name)}").to_arrow_table()
    columns = Columns((name,), ()) if kind == "VARCHAR" else Columns((), (name,))

    found = judged(odd, odd, columns)

    assert [(column.column, column.score) for column in found.columns] == [(name, 0)]


@pytest.mark.parametrize("rows", [0, 199])
def test_too_few_rows_are_not_judged(winter, rows):
    shifted = changed(winter, temp="temp + 60").slice(0, rows)

    found = judged(winter, shifted, COLUMNS)

    assert not found.drifted
    assert "Not enough rows" in found.reason


def test_a_verdict_has_the_scores_of_evidentlys_own_report(winter):
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    week = changed(winter, temp="temp + 9", origin="IF(origin = 'EWR', 'JFK', origin)")
    found, names = judged(winter, week), COLUMNS.names
    kinds = {name: CATEGORICAL if name in COLUMNS.categorical else NUMERIC for name in names}
    definition = DataDefinition(
        categorical_columns=list(COLUMNS.categorical), numerical_columns=[*COLUMNS.numeric]
    )
    metrics = [ValueDrift(column=name, method=kind, threshold=0.1) for name, kind in kinds.items()]
    before = sketch(winter, COLUMNS)
    frames = sketch(week, COLUMNS, limits=before.limits).frame, before.frame
    now, then = (Dataset.from_pandas(frame[list(names)], definition) for frame in frames)
    scores = {m["config"]["column"]: m["value"] for m in Report(metrics).run(now, then).dict()["metrics"]}

    assert {column.column: column.score for column in found.columns} == pytest.approx(scores)
    assert scores["origin"] > 0.1


def test_a_reference_comes_back_as_it_was_kept(winter):
    odd = changed(winter, wind_dir="NULL", origin="NULL", temp="IF(temp > 60, 'inf', temp)")
    for rows in (winter, odd):
        made = Reference.of(rows, COLUMNS)

        again = Reference.load(made.dump())

        assert again.whole.frame.equals(made.whole.frame)
        assert replace(again, whole=made.whole) == made
        assert replace(again.whole, frame=made.whole.frame) == made.whole
        assert again.fits(COLUMNS, WEEK)
        assert not again.fits(COLUMNS, WEEK / 7)
        assert not again.fits(Columns(("temp",), ()), WEEK)  # a number then, a category now
        assert not again.fits(replace(COLUMNS, numeric=(*COLUMNS.numeric, "snow")), WEEK)


def drawn_page(reference: pa.Table, current: pa.Table, columns: Columns, report: Path) -> str:
    known = Reference.of(reference, columns)
    now = sketch(current, columns, limits=known.whole.limits)
    assert draw(known, now, drift(known, now, columns, DriftRule()), columns, DriftRule(), report)
    return report.read_text(encoding="utf-8")


def test_the_page_is_one_html_file_that_loads_nothing(winter, tmp_path):
    report = tmp_path / "reports" / "2013-03.html"

    drawn = drawn_page(winter, changed(winter, wind_dir="NULL"), COLUMNS, report)

    assert list(report.parent.iterdir()) == [report]
    assert all(name in drawn for name in COLUMNS.names if name != "wind_dir")
    loads = r"<(?:script|img|iframe|link)[^>]*\s(?:src|href)=|@import\s+url|url\(.?https?:"
    assert not re.findall(loads, drawn)


def test_nothing_that_comes_from_data_runs_in_the_page(winter, tmp_path, page):
    hostile = "</script><script>document.title = 'ran'</script><img src=x onerror=\"document.title='ran'\">"
    spoilt = duckdb_connection().from_arrow(changed(winter, origin=f"$${hostile}$$ || origin"))
    spoilt = spoilt.project(f"*, wind_speed AS {quoted(hostile)}").to_arrow_table()
    columns = Columns(("origin",), ("temp", hostile))
    report = tmp_path / "page.html"

    drawn_page(spoilt, spoilt, columns, report)

    page.goto(report.as_uri())
    page.get_by_text("Dataset Drift").first.wait_for()
    for row in page.locator("tbody tr button").all():
        row.click()
    page.wait_for_timeout(1000)
    assert page.title() != "ran"


def test_performance_is_judged_by_skill_not_by_how_hard_the_week_was():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000)

    def predictions(base: float) -> tuple[np.ndarray, np.ndarray]:
        p = 1 / (1 + np.exp(-(logits + base)))
        return (rng.random(p.size) < p).astype(int), p

    quiet, stormy = predictions(-2.5), predictions(-0.5)
    expected = LATE.scores(*quiet)

    harder = performance(LATE, *stormy, expected, DriftRule())
    blind = performance(LATE, stormy[0], np.full(20_000, 0.4), expected, DriftRule())

    assert harder.scores["log_loss"] > 1.5 * expected["log_loss"]
    assert not harder.worse
    assert blind.worse
    assert "worse" in blind.reason


def test_performance_before_any_outcome_is_known_is_not_judged():
    expected = LATE.scores([0, 1], [0.2, 0.8])

    found = performance(LATE, [], [], expected, DriftRule())

    assert (found.scores, found.worse, found.reason) == ({}, False, "No outcome is known yet.")


def test_performance_of_one_class_is_not_judged():
    expected = LATE.scores([0, 1] * 200, [0.2, 0.8] * 200)

    found = performance(LATE, np.zeros(400), np.full(400, 0.9), expected, DriftRule())

    assert not found.worse
    assert math.isnan(found.skill)
    assert "all 400 outcomes that are known are the same" in found.reason


@pytest.mark.parametrize("problem", [Regression("absolute"), MultiClass((0, 1, 2))], ids=repr)
def test_performance_is_judged_for_every_kind_of_problem(problem):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 1000).astype(float)
    right = truth + rng.normal(0, 0.3, 1000)
    if isinstance(problem, MultiClass):
        right = np.eye(3)[truth.astype(int)] * 0.5 + 0.2
    expected = problem.scores(truth, good := problem.checked(right))

    assert not performance(problem, truth, good, expected, DriftRule()).worse
    assert performance(problem, rng.permutation(truth), good, expected, DriftRule()).worse


TOY = Pipeline(
    *("toy", "", "", utc(2013, 1, 7), (), (), "", ("id",)),
    spine="",
    label="SELECT range AS id, (range % 2)::INTEGER AS label, TIMESTAMPTZ '2013-01-01' AS available_at "
    "FROM range(10_000)",
    columns=Columns((), ("x",)),
    candidates=(Candidate("small", "xgboost"),),
)


def toy_rows(window: Window, first: int, count: int, around: float) -> pa.Table:
    ids = np.arange(first, first + count)
    return pa.table(
        {
            "id": ids,
            "event_timestamp": pa.array([window.start] * count, pa.timestamp("us", "UTC")),
            "x": np.random.default_rng(first).normal(around, 1, count) + ids % 2,
        }
    )


def toy_release(lake: Lake, mlflow: MLflow, around: float) -> int:
    """Release a model that learnt from readings around some value; return its version."""
    import xgboost

    rows = toy_rows(WINTER, 0, 600, around).append_column("label", [np.arange(600) % 2])
    spans = pa.array(["train"] * 400 + ["holdout"] * 200)
    version = lake.table("training/toy").replace(rows.append_column("span", spans))
    encoder = Encoder.fit(rows, TOY.columns)
    data = xgboost.DMatrix(encoder.encode(rows), np.arange(600) % 2)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 2}, data, 3)
    model = Model("xgboost", LATE, Boosted(encoder, booster))
    logged = tracking.log_candidate(
        *(mlflow, TOY, TOY.candidates[0], model, LATE.scores(np.arange(600) % 2, model.predict(rows))),
        training=lake.table("training/toy").snapshot(version),
        lake=lake,
        cause=f"around {around}",
        as_of=utc(2013, 3, 25),
    )
    return registry.register(mlflow, "toy", logged)


def predicted(week: Window, version: int) -> pa.Table:
    rows = toy_rows(week, 1000, 300, 0.0)
    made = {"probability": np.linspace(0.1, 0.9, 300), "model_version": np.full(300, version)}
    return pa.table({**{name: rows[name] for name in rows.column_names}, **made})


def test_a_window_is_judged_by_each_version_on_the_rows_that_it_predicted(tmp_path):
    mlflow = MLflow(f"sqlite:///{tmp_path}/mlflow/mlflow.db", tmp_path)
    lake, week = Lake(str(tmp_path / "lake")), Window(utc(2013, 4, 1), utc(2013, 4, 8))
    old, new = (toy_release(lake, mlflow, around) for around in (0.0, 50.0))
    made = []
    for version, first, count, around in ((old, 1000, 300, 0.0), (new, 2000, 500, 50.0)):
        rows = toy_rows(week, first, count, around)
        scores = tracking.load_model(mlflow, registry.version(mlflow, "toy", version).model_uri).predict(rows)
        columns = {"probability": scores, "model_version": np.full(count, version)}
        made.append(pa.table({**{name: rows[name] for name in rows.column_names}, **columns}))
    lake.table("predictions/toy").overwrite(pa.concat_tables(made), week, "event_timestamp")

    late, first = judge(TOY, lake, mlflow, week, utc(2013, 4, 8), tmp_path / "reports")

    assert [(f.release.version, f.rows) for f in (late, first)] == [(new, 500), (old, 300)]
    assert not late.drift.drifted
    assert not first.drift.drifted
    assert [f.performance.scores["rows"] for f in (late, first)] == [500, 300]
    assert not (late.performance.worse or first.performance.worse)
    assert [f.name for f in (late, first)] == ["toy-2013-04-08T000000Z", f"toy-2013-04-08T000000Z-v{old}"]
    assert [f.report for f in (late, first)] == ["", ""]
    next_week = Window(week.end, week.end + WEEK)
    assert judge(TOY, lake, mlflow, next_week, utc(2013, 4, 15), tmp_path / "reports") == []

    drawn = judge(TOY, lake, mlflow, week, utc(2013, 4, 8), tmp_path / "reports", draw=True)
    assert [Path(f.report).name for f in drawn] == [f"{f.name}.html" for f in (late, first)]
    assert [f.drift for f in drawn] == [late.drift, first.drift]


def test_a_window_is_judged_again_by_truth_that_came_later_and_both_are_kept(tmp_path):
    """Of half its rows when it closes, of two thirds a day later, and of all a week later."""
    mlflow = MLflow(f"sqlite:///{tmp_path}/mlflow/mlflow.db", tmp_path)
    lake, ledger = Lake(str(tmp_path / "lake")), Ledger(f"sqlite:///{tmp_path}/ledger.db")
    week = Window(utc(2013, 4, 1), utc(2013, 4, 8))
    version = toy_release(lake, mlflow, 0.0)
    rows = toy_rows(week, 1000, 300, 0.0)
    scores = tracking.load_model(mlflow, registry.version(mlflow, "toy", version).model_uri).predict(rows)
    columns = {"probability": scores, "model_version": np.full(300, version)}
    made = pa.table({**{name: rows[name] for name in rows.column_names}, **columns})
    lake.table("predictions/toy").overwrite(made, week, "event_timestamp")
    halves = utc(2013, 4, 9), utc(2013, 4, 16)
    label = (
        "SELECT id, label, CASE WHEN id < 1150 THEN available_at WHEN id < 1200 "
        f"THEN TIMESTAMPTZ '{halves[0]}' ELSE TIMESTAMPTZ '{halves[1]}' END AS available_at "
        f"FROM ({TOY.label})"
    )
    spec = replace(TOY, label=label)

    def look(at: datetime) -> list[tuple[int, int]]:
        grown = judgements.maturing(spec, lake, ledger, at)
        found = judge_again(spec, grown, lake, mlflow, ledger, at, "a test")
        return [(one.before, one.outcomes) for one in found]

    assert look(week.end) == []  # nothing was judged yet
    (first,) = judge(spec, lake, mlflow, week, week.end, tmp_path / "reports")
    known = int(first.performance.scores["rows"])
    assert known == 150
    counts = {"predictions": 300, "outcomes": known, "skill": first.performance.skill}
    detail = {"drifted": False, "cause": "", "end": stamp(week.end), **counts}
    ledger.finish("toy", judgements.KIND, str(week), holder="a test", **detail)
    tracking.log_watch(mlflow, "toy", first.name, {"skill": first.performance.skill}, "", as_of=week.end)

    assert look(week.end) == []
    later, last = (at + timedelta(hours=1) for at in halves)
    assert look(later) == [(known, known + 50)]
    assert look(later) == []
    assert look(last) == [(known + 50, 300)]
    assert look(last + timedelta(weeks=60)) == []
    noted = ledger.entries("toy", judgements.AGAIN)
    assert [one.detail["outcomes"] for one in noted] == [known + 50, 300]
    assert judgements.of(spec, ledger, week)["outcomes"] == known
    whole = performance(
        spec.problem,
        np.arange(1000, 1300) % 2,
        scores,
        tracking.scores(mlflow, registry.version(mlflow, "toy", version).run_id),
        spec.drift,
    )
    assert noted[-1].detail["skill"] == pytest.approx(whole.skill)
    (experiment,) = mlflow.client.search_experiments(filter_string="name = 'toy-monitoring'")
    (run,) = mlflow.client.search_runs([experiment.experiment_id])
    kept = mlflow.client.get_metric_history(run.info.run_id, "skill")
    assert [one.step for one in kept] == [0, 1, 2]
    assert run.data.metrics["skill"] == pytest.approx(whole.skill)


def test_drift_that_no_training_has_answered_is_known(tmp_path):
    ledger, week = Ledger(f"sqlite:///{tmp_path}/ledger.db"), Window(utc(2013, 4, 1), utc(2013, 4, 8))
    later = Window(week.end, week.end + WEEK)
    assert (judgements.of(TOY, ledger, week), judgements.unanswered(TOY, ledger)) == (None, None)

    def note(window: Window, *, drifted: bool) -> None:
        detail = {"drifted": drifted, "cause": f"drift/{stamp(window.end)}", "end": stamp(window.end)}
        ledger.finish("toy", judgements.KIND, str(window), holder="a test", **detail)

    note(week, drifted=False)
    assert judgements.unanswered(TOY, ledger) is None
    note(later, drifted=True)
    assert judgements.of(TOY, ledger, week)["drifted"] is False
    assert judgements.unanswered(TOY, ledger)["cause"] == "drift/2013-04-15T00:00:00Z"
    ledger.claim("toy", "training", "drift/2013-04-15T00:00:00Z", holder="a run", lease=WEEK)
    assert judgements.unanswered(TOY, ledger) is None


def test_what_a_version_learnt_from_is_summarised_once_and_again_if_that_is_damaged(
    tmp_path, monkeypatch, capfd
):
    mlflow = MLflow(f"sqlite:///{tmp_path}/mlflow/mlflow.db", tmp_path)
    lake, week = Lake(str(tmp_path / "lake")), Window(utc(2013, 4, 1), utc(2013, 4, 8))
    version = toy_release(lake, mlflow, 0.0)
    lake.table("predictions/toy").overwrite(predicted(week, version), week, "event_timestamp")
    reads = []
    read = dataset.read
    monkeypatch.setattr(dataset, "read", lambda *args: reads.append(args) or read(*args))

    def look() -> Drift:
        (found,) = judge(TOY, lake, mlflow, week, utc(2013, 4, 8), tmp_path / "reports")
        return found.drift

    first = look()
    assert look() == first
    assert len(reads) == 1
    assert "Downloading" not in capfd.readouterr().err
    (kept,) = tmp_path.rglob("reference.parquet")
    kept.write_bytes(kept.read_bytes()[:-1])
    assert look() == first
    assert len(reads) == 2
    kept.unlink()
    assert look() == first
    assert len(reads) == 3


def test_of_a_version_of_an_earlier_release_what_it_was_proven_on_is_made_and_its_summary_stays(
    tmp_path, monkeypatch
):
    mlflow = MLflow(f"sqlite:///{tmp_path}/mlflow/mlflow.db", tmp_path)
    lake, week = Lake(str(tmp_path / "lake")), Window(utc(2013, 4, 1), utc(2013, 4, 8))
    version = toy_release(lake, mlflow, 0.0)
    lake.table("predictions/toy").overwrite(predicted(week, version), week, "event_timestamp")
    (first,) = judge(TOY, lake, mlflow, week, utc(2013, 4, 8), tmp_path / "reports")
    (summary,), (proven,) = (list(tmp_path.rglob(f"{name}.parquet")) for name in ("reference", "proven"))
    was, rows = summary.read_bytes(), pq.read_table(proven)
    assert set(rows["span"].to_pylist()) == {"holdout"}
    proven.unlink()
    spans, read = [], dataset.read
    monkeypatch.setattr(dataset, "read", lambda *args: spans.append(args[3]) or read(*args))
    (again,) = judge(TOY, lake, mlflow, week, utc(2013, 4, 8), tmp_path / "reports")
    assert again.drift == first.drift
    assert spans == [["holdout"]]
    assert summary.read_bytes() == was
    assert pq.read_table(proven).equals(rows)


def test_a_model_that_fails_is_said_to_fail_wherever_it_is_told(tmp_path, monkeypatch):
    from flows.lifecycle import _line
    from flows.steps import monitoring

    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    told, warned = {}, []
    for kind in ("create_markdown_artifact", "create_table_artifact"):
        monkeypatch.setattr(monitoring, kind, lambda key, **said: told.update({key: said}))
    monkeypatch.setattr(monitoring.freshness, "measure", lambda *_: [])
    monkeypatch.setattr(
        monitoring, "logger", lambda: SimpleNamespace(warning=lambda *said: warned.append(said))
    )
    project = Project.here()
    mlflow = project.mlflow
    lake, week = project.lake, Window(utc(2013, 4, 1), utc(2013, 4, 8))
    version = toy_release(lake, mlflow, 0.0)
    lines = []
    for wrong in (False, True):
        rows = toy_rows(week, 1000, 300, 0.0)
        scores = tracking.load_model(mlflow, registry.version(mlflow, "toy", version).model_uri).predict(rows)
        columns = {"probability": 1 - scores if wrong else scores, "model_version": np.full(300, version)}
        made = pa.table({**{name: rows[name] for name in rows.column_names}, **columns})
        lake.table("predictions/toy").overwrite(made, week, "event_timestamp")
        finding = monitoring.watch.fn(project, TOY, week, week.end)
        assert finding["worse"] is wrong
        for artifact, place in (("monitor-toy", "markdown"), ("drift-toy", "description")):
            assert ("and worse than promised" in told[artifact][place]) is wrong
            assert "Skill is" in told[artifact][place]
        lines.append(_line({"as_of": week.end, "landed": 1, "scored": 300, **finding}))
    assert "promised" not in lines[0]
    assert re.search(r"AUC 0\.\d+ \(skill -\d\.\d+, 0\.\d+ was promised: worse\)", lines[1])
    assert len(warned) == 1
