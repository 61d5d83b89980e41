"""One batch against one suite."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

import great_expectations as gx
from great_expectations.core import ExpectationSuiteValidationResult
from great_expectations.expectations import expectation as kinds
from great_expectations.validator.validation_statistics import calc_validation_statistics

import headrace.validation.metrics  # noqa: F401  # registers them
from headrace.validation.broken import write_broken
from headrace.validation.duckdb import DuckDBExecutionEngine, connect
from headrace.validation.found import Validation
from headrace.validation.wording import outcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from great_expectations.core import ExpectationValidationResult
    from great_expectations.core.batch_definition import BatchDefinition
    from great_expectations.expectations.expectation import Expectation

ONE_AT_A_TIME = Lock()
"""All validations of a process share one DuckDB connection and its views."""


def run(
    files: Sequence[Path], suite: gx.ExpectationSuite, broken: Path | None, seen: Sequence[str] | None
) -> Validation:
    """See ``headrace.validation.validate``."""
    started = perf_counter()
    with ONE_AT_A_TIME:
        engine, definition = connect()
        rows, columns = engine.open(files, seen)
        results = _ask(engine, definition, suite.expectations)
        outcomes = tuple(
            outcome(expectation, result, rows, columns, _judges_rows(expectation, result))
            for expectation, result in zip(suite.expectations, results, strict=True)
        )
        if broken:
            broken.unlink(missing_ok=True)
            offended = [
                (found.rule, rule)
                for rule, found in zip(suite.expectations, outcomes, strict=True)
                if found.row_rule and found.unexpected and found.severity == "critical"
            ]
            if offended:
                write_broken(engine, offended, broken)
    success = all(found.success or found.severity != "critical" for found in outcomes)
    plain = _plain(suite.name, results)
    return Validation(suite.name, success, rows, outcomes, perf_counter() - started, plain)


def _ask(
    engine: DuckDBExecutionEngine, definition: BatchDefinition, expectations: Sequence[Expectation]
) -> list[ExpectationValidationResult]:
    """Ask everything in as few queries as GX bundles, then about what failed again, for its reason.

    Looking for examples of broken rows costs a query per expectation, so rows
    are only counted first. And an error takes its whole bundle with it: only
    what also fails alone has failed.
    """
    batch = definition.get_batch()
    # GX returns results sorted by column: the place says whose they are.
    numbered = [e.copy(update={"meta": {"place": place}}) for place, e in enumerate(expectations)]
    engine.counting = True
    answer = batch.validate(gx.ExpectationSuite("batch", numbered), result_format="BASIC")
    engine.counting = False
    found: list[Any] = answer.results
    results = {result.expectation_config.meta["place"]: result for result in found}
    for place, expectation in enumerate(expectations):
        first = results[place]
        if first.result.get("unexpected_count") or not first.success:
            results[place] = batch.validate(expectation, result_format="BASIC")
        results[place].expectation_config = expectation.configuration
    return [results[place] for place in range(len(expectations))]


def _judges_rows(expectation: Expectation, result: ExpectationValidationResult) -> bool:
    """Say whether it is known which rows broke the rule; types are those of whole columns in SQL."""
    by_row = (kinds.ColumnMapExpectation, kinds.ColumnPairMapExpectation, kinds.MulticolumnMapExpectation)
    return isinstance(expectation, by_row) and "unexpected_count" in result.result


def _plain(suite: str, results: list[ExpectationValidationResult]) -> dict[str, Any]:
    statistics = calc_validation_statistics(results)._asdict()
    answer = ExpectationSuiteValidationResult(
        success=statistics.pop("success"),
        results=results,
        suite_name=suite,
        statistics=statistics,
        meta={
            "great_expectations_version": gx.__version__,
            "validation_time": datetime.now(UTC).isoformat(),
        },
    )
    plain: dict[str, Any] = json.loads(json.dumps(answer.to_json_dict(), default=_number))
    return plain


def _number(value: Any) -> Any:
    """Return numpy's numbers, which GX leaves in results, as Python's."""
    return value.item()
