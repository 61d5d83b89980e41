"""What predictions must be like, whoever makes them: as the problem has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.validation.suites import load_suite

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from great_expectations import ExpectationSuite
    from great_expectations.expectations.expectation import Expectation

    from headrace.problem import Problem


def of_predictions(problem: Problem, keys: Sequence[str], named: str = "") -> ExpectationSuite:
    """Return what ``problem`` demands of predictions with those ``keys``, and the suite ``named`` beside it.

    Raises:
        UnknownSuite, BrokenSuite, EmptySuite, UnsupportedExpectation: As of ``load_suite``.
    """
    from great_expectations import ExpectationSuite

    own = load_suite(named).expectations if named else []
    said = [(e.expectation_type, e.configuration.kwargs) for e in own]
    theirs = [e for e in _demanded(problem, keys) if (e.expectation_type, e.configuration.kwargs) not in said]
    return ExpectationSuite(named or "predictions", [*theirs, *own])


def _demanded(problem: Problem, keys: Sequence[str]) -> Iterator[Expectation]:
    """Expect one prediction for each key and instant, whole, and within what the problem knows."""
    from great_expectations import expectations as gxe

    yield gxe.ExpectCompoundColumnsToBeUnique(column_list=[*dict.fromkeys([*keys, "event_timestamp"])])
    for column in problem.columns:
        yield gxe.ExpectColumnValuesToNotBeNull(column=column)
    for column, (least, most) in problem.bounds.items():
        yield gxe.ExpectColumnValuesToBeBetween(column=column, min_value=least, max_value=most)
    for column, values in problem.values.items():
        yield gxe.ExpectColumnValuesToBeInSet(column=column, value_set=list(values))
