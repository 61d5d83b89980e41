"""Each kind of problem: its truths, predictions, losses, scores, and what the past alone says."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.declaration import slips
from headrace.problem import Binary, MultiClass, Problem, Regression, Seasonal, guess, read
from headrace.problem.figures import picture
from headrace.validation import of_predictions, validate
from pipelines.flights import PIPELINE
from tests.conftest import ROOT, utc

DRAW = np.random.default_rng(0)
COLOURS = MultiClass(("red", "green", "blue"))
KINDS = [
    Binary(),
    Binary(positive="late", negative="on time"),
    COLOURS,
    MultiClass((3, 5, 9)),
    Regression(),
    Regression("absolute", "minutes"),
    Regression("poisson"),
    Regression("quantile"),
    Regression("quantile", quantiles=(0.9,)),
]
every_kind = pytest.mark.parametrize("problem", KINDS, ids=repr)


def labels_of(problem, count=500):
    """Labels that occur, as a query gives them."""
    if isinstance(problem, Binary):
        classes = [problem.negative, problem.positive]
    elif isinstance(problem, MultiClass):
        classes = list(problem.classes)
    else:
        return pa.chunked_array([pa.array(DRAW.poisson(4, count).astype(float))])
    return pa.chunked_array([pa.array([classes[i] for i in DRAW.integers(0, len(classes), count)])])


def raw_of(problem, count=500):
    """Numbers that a trainer may predict."""
    raw = DRAW.uniform(0.1, 0.9, (count, problem.width))
    return raw[:, 0] if problem.width == 1 else raw


@every_kind
def test_a_prediction_is_told_in_columns_and_read_back_from_them(problem):
    predictions = problem.checked(raw_of(problem))
    table = pa.table(problem.named(predictions))

    assert {name: table.schema.field(name).type for name in problem.columns} == problem.columns
    np.testing.assert_array_equal(problem.predicted(table), predictions)
    assert read(problem.to_json()) == problem


@every_kind
def test_the_best_constant_costs_least_and_has_no_skill(problem):
    targets = problem.encode(labels_of(problem))
    constant = problem.constant(targets)

    def cost(of):
        return problem.losses(targets, problem.checked(problem.shaped(np.tile(of, (targets.size, 1))))).mean()

    for away in (0.9, 1.1):
        assert cost(constant) <= cost(constant * away) + 1e-12
    flat = problem.checked(problem.shaped(np.tile(constant, (targets.size, 1))))
    assert problem.scores(targets, flat)["skill"] == pytest.approx(0, abs=1e-6)


def test_scores_of_classes_agree_with_scikit_learn_ties_included():
    from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

    targets = DRAW.integers(0, 2, 5000)
    probabilities = np.round(DRAW.uniform(0.05, 0.95, 5000) * 0.7 + targets * 0.1, 2)
    scores = Binary().scores(targets, probabilities)
    assert scores["auc"] == pytest.approx(roc_auc_score(targets, probabilities))
    assert scores["log_loss"] == pytest.approx(log_loss(targets, probabilities))
    assert scores["brier"] == pytest.approx(brier_score_loss(targets, probabilities))
    assert (scores["rows"], scores["positives"]) == (5000, targets.sum())

    several = DRAW.integers(0, 3, 5000)
    shares = COLOURS.checked(np.round(DRAW.uniform(0.1, 0.9, (5000, 3)), 1) + np.eye(3)[several] * 0.2)
    scores = COLOURS.scores(several, shares)
    assert scores["auc"] == pytest.approx(roc_auc_score(several, shares, multi_class="ovr"))
    assert scores["log_loss"] == pytest.approx(log_loss(several, shares))
    assert scores["accuracy"] == pytest.approx(accuracy_score(several, shares.argmax(axis=1)))


def test_scores_of_numbers_agree_with_scikit_learn():
    from sklearn.metrics import (
        mean_absolute_error,
        mean_pinball_loss,
        mean_poisson_deviance,
        r2_score,
        root_mean_squared_error,
    )

    truth = DRAW.poisson(3, 2000).astype(float)
    predicted = np.maximum(truth + DRAW.normal(0, 2, 2000), 0.1)
    scores = Regression().scores(truth, predicted)
    assert scores["mae"] == pytest.approx(mean_absolute_error(truth, predicted))
    assert scores["rmse"] == pytest.approx(root_mean_squared_error(truth, predicted))
    assert scores["skill"] == pytest.approx(r2_score(truth, predicted))
    deviance = Regression("poisson").scores(truth, predicted)["poisson_deviance"]
    assert deviance == pytest.approx(mean_poisson_deviance(truth, predicted))
    three = Regression("quantile")
    interval = three.checked(np.column_stack([predicted - 1, predicted, predicted + 1]))
    pinballs = [mean_pinball_loss(truth, interval[:, i], alpha=q) for i, q in enumerate(three.quantiles)]
    assert three.scores(truth, interval)["pinball"] == pytest.approx(np.mean(pinballs))
    within = ((interval[:, 0] <= truth) & (truth <= interval[:, 2])).mean()
    assert three.scores(truth, interval)["coverage"] == pytest.approx(within)


def test_one_class_or_one_value_alone_has_neither_ranking_nor_skill():
    assert {"auc", "skill"}.isdisjoint(Binary().scores([0, 0], [0.5, 0.5]))
    assert "skill" not in Regression().scores([2.0, 2.0], [1.0, 3.0])
    assert Regression().scores([1e-9, 2e-9], [1e-9, 2e-9])["skill"] == 1
    two_of_three = COLOURS.scores([0, 0, 1], COLOURS.checked(DRAW.uniform(0.1, 1, (3, 3))))
    assert "auc" in two_of_three


@pytest.mark.parametrize(
    ("targets", "predictions", "why"),
    [
        ([0, 1], [0.5], "shapes"),
        ([], [], "n >= 1"),
        ([0, 2], [0.5, 0.5], "0 or 1"),
        ([0, 1], [0.5, np.nan], "inside"),
    ],
)
def test_scores_of_impossible_values_are_refused(targets, predictions, why):
    with pytest.raises(ValueError, match=why):
        Binary().scores(targets, predictions)


@every_kind
@pytest.mark.parametrize("shape", [(5, 7), (5, 1, 1)])
def test_what_has_the_wrong_shape_is_no_prediction(problem, shape):
    with pytest.raises(ValueError, match="shape"):
        problem.checked(np.full(shape, 0.5))


@every_kind
def test_what_is_not_finite_is_no_prediction(problem):
    raw = raw_of(problem, 5)
    raw[2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        problem.checked(raw)


@pytest.mark.parametrize(
    ("problem", "labels", "unfit"),
    [
        (Binary(), pa.array([0, 1, 2, None]), [2, None]),
        (Binary(), pa.array([0.0, 1.0, 0.5, float("nan")]), [0.5, float("nan")]),
        (Binary(), pa.array([True, False, None]), [None]),
        (Binary(), pa.array([Decimal("1.0"), Decimal("0.5")]), [Decimal("0.5")]),
        (Binary(), pa.array(["0", "1"]), ["0", "1"]),
        (Binary(positive="y", negative="n"), pa.array(["y", "n", "Y", None]), ["Y", None]),
        (Binary(positive="y", negative="n"), pa.array([0, 1]), [0, 1]),
        (COLOURS, pa.array(["red", "mauve"]), ["mauve"]),
        (COLOURS, pa.array(["red", "mauve"]).dictionary_encode(), ["mauve"]),
        (MultiClass((1, 2, 3)), pa.array([1, 4, None]), [4, None]),
        (Regression(), pa.array([1.0, float("inf"), float("nan"), None]), [float("inf"), float("nan"), None]),
        (Regression(), pa.array(["1"]), ["1"]),
        (Regression(), pa.array([utc(2024)], pa.timestamp("us", "UTC")), [utc(2024)]),
        (Regression("poisson"), pa.array([0, 3, -1]), [-1]),
    ],
    ids=str,
)
def test_labels_that_cannot_be_the_truth_are_named(problem, labels, unfit):
    found = problem.unfit(pa.chunked_array([labels])).to_pylist()

    assert [str(label) for label in found] == [str(label) for label in unfit]


def test_labels_keep_their_type_and_meaning():
    text = Binary(positive="late", negative="on time")
    np.testing.assert_array_equal(text.encode(pa.chunked_array([["late", "on time"]])), [1, 0])
    assert text.label_type == pa.string()
    flags = MultiClass((3, 5, 9))
    told = flags.named(flags.checked([[0.1, 0.7, 0.2], [0.6, 0.2, 0.2]]))
    assert told["prediction"].to_pylist() == [5, 3]
    assert Binary(positive=False, negative=True).encode(pa.chunked_array([[True, False]])).tolist() == [0, 1]


def rows(start, labels, **more):
    times = [start + timedelta(hours=n) for n in range(len(labels))]
    return pa.table({"event_timestamp": pa.array(times, pa.timestamp("us", "UTC")), "label": labels} | more)


def test_a_guess_is_what_the_past_alone_says():
    past = rows(utc(2024), [0, 0, 0, 1])
    np.testing.assert_allclose(guess(Binary(), past, past.slice(0, 2)), [0.25, 0.25])
    np.testing.assert_allclose(guess(Regression("absolute"), past, past), 0)
    assert guess(Regression("quantile"), past, past).shape == (4, 3)


def test_a_seasonal_guess_is_the_truth_of_the_last_season_that_had_any():
    daily = Regression("absolute", naive=Seasonal(timedelta(days=1), timedelta(hours=1), ("port",)))
    two_days = [float(day * 100 + hour) for day in range(2) for hour in range(24)]
    past = rows(utc(2024), two_days, port=["a"] * 48)
    day = datetime(2024, 1, 3, tzinfo=UTC)
    same, other = (rows(day, [0.0] * 24, port=[port] * 24) for port in ("a", "b"))

    np.testing.assert_array_equal(guess(daily, past, same), [100.0 + hour for hour in range(24)])
    np.testing.assert_array_equal(guess(daily, past, other), np.median(two_days))
    without = past.filter(pa.array([n != 30 for n in range(48)]))  # of 6 o'clock, the day before
    assert guess(daily, without, same)[6] == 6.0


@pytest.mark.parametrize(
    ("problem", "wrong"),
    [
        (MultiClass(("a", "b")), "names 2 classes, but it takes 3 or more; of two, one asks `Binary"),
        (MultiClass(("a", "b", "a")), "names the class 'a' twice"),
        (Binary(positive=1, negative="no"), "names classes of several types"),
        (Binary(positive=1, negative=1), "names the class 1 twice"),
        (Regression("quantile", quantiles=(0.9, 0.5, 0.1)), "in rising order"),
        (Regression("quantile", quantiles=(0.1, 0.9)), "names 2 quantiles"),
        (Regression(naive=Seasonal(timedelta(hours=1), timedelta(days=1))), "no longer than its `season`"),
        (Regression("cubic"), "`problem.loss`"),
        ("binary", "must be Problem"),
    ],
    ids=str,
)
def test_a_problem_that_cannot_be_is_named(problem, wrong):
    from dataclasses import replace

    assert any(wrong in slip for slip in slips(replace(PIPELINE, problem=problem)))


def test_an_input_may_not_be_called_as_a_prediction_is():
    from dataclasses import replace

    columns = replace(PIPELINE.columns, numeric=("prediction",))
    assert slips(replace(PIPELINE, columns=columns)) == []
    assert (
        "`columns` names `prediction`" in slips(replace(PIPELINE, columns=columns, problem=Regression()))[0]
    )


@every_kind
def test_a_picture_is_drawn_of_it(problem):
    targets = problem.encode(labels_of(problem))
    drawn = picture(problem, targets, problem.checked(raw_of(problem)), "$\\frac$ <script>")
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) > 10_000
    same = problem.encode(labels_of(problem).slice(0, 1)).repeat(50)  # one truth alone
    assert picture(problem, same, problem.checked(raw_of(problem, 50))).startswith(b"\x89PNG")


def test_a_class_may_be_called_anything_in_a_picture():
    odd = MultiClass(("$\\x$", "a_b^c", "<b>"))
    assert picture(odd, odd.encode(labels_of(odd)), odd.checked(raw_of(odd))).startswith(b"\x89PNG")


def test_the_page_about_problems_declares_what_can_be_and_names_the_columns_there_are():
    text = (ROOT / "docs/problems.md").read_text()
    known = {"Binary": Binary, "MultiClass": MultiClass, "Regression": Regression, "Seasonal": Seasonal}
    names = known | {"WEEK": timedelta(weeks=1), "HOUR": timedelta(hours=1)}
    for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(program, names)
    declared = [value for value in names.values() if isinstance(value, Problem)]
    assert len(declared) == 7
    for problem in declared:
        assert [*problem.slips()] == []
        for column in problem.columns:
            assert f"`{re.sub('_(on time|late|very late|cancelled)$', '_<class>', column)}`" in text


@pytest.mark.parametrize(
    ("problem", "column", "wrong"),
    [
        (Binary(), "probability", 1.5),
        (Binary(), "probability", None),
        (MultiClass(("a", "b")), "probability_b", -0.5),
        (MultiClass(("a", "b")), "prediction", "c"),
        (Regression(), "prediction", None),
        (Regression("poisson"), "prediction", -1.0),
    ],
)
def test_a_prediction_that_the_problem_does_not_know_breaks_its_suite(
    problem: Problem, column: str, wrong: object, tmp_path: Path
) -> None:
    said = np.array([0.25, 0.75, 0.5])
    made = problem.named(problem.checked(said if problem.width == 1 else np.column_stack([said, 1 - said])))
    rows = pa.table({"id": [1, 2, 3], "event_timestamp": [utc(2024)] * 3, **made})
    suite = of_predictions(problem, ("id",))

    def failures(rows: pa.Table) -> list[str]:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        pq.write_table(rows, file)
        return list(validate([file], suite).failures)

    assert failures(rows) == []
    place, values = rows.schema.get_field_index(column), rows[column].to_pylist()
    spoilt = rows.set_column(place, column, pa.array([wrong, *values[1:]], rows[column].type))
    (failure,) = failures(spoilt)
    assert column in failure
    (failure,) = failures(pa.concat_tables([rows, rows.slice(0, 1)]))
    assert "id" in failure
