"""One batch against one suite."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

import great_expectations as gx
from great_expectations.core import ExpectationSuiteValidationResult
from great_expectations.exceptions.exceptions import GreatExpectationsError
from great_expectations.expectations import expectation as kinds
from great_expectations.validator.metrics_calculator import MetricsCalculator
from great_expectations.validator.validation_graph import ValidationGraph
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
    from great_expectations.validator.validator import ValidationDependencies

ONE_AT_A_TIME = Lock()
"""All validations of a process share one DuckDB connection and its views."""
BASIC = {"result_format": "BASIC"}
PLANS: dict[str, tuple[list[_Asked], ValidationGraph]] = {}
"""What the suites of this process need: the same for each of their batches."""


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
    """Count in as few queries as GX bundles, then ask alone about what failed, for examples or its reason.

    Looking for examples of broken rows costs a query per expectation. And an
    error takes its whole bundle with it: only what also fails alone has failed.
    """
    batch = definition.get_batch()
    engine.batch_manager.load_batch_list([batch])
    results = []
    for expectation, counted in zip(expectations, _counted(engine, batch.id, expectations), strict=True):
        clean = counted is not None and counted.success and not counted.result.get("unexpected_count")
        result: Any = counted if clean else batch.validate(expectation, result_format="BASIC")
        result.expectation_config = expectation.configuration
        results.append(result)
    return results


@dataclass(frozen=True)
class _Asked:
    """An expectation of a batch, what GX says it needs, and the metrics' names and ids among that."""

    expectation: Expectation
    needs: ValidationDependencies
    metrics: dict[str, Any]


def _counted(
    engine: DuckDBExecutionEngine, batch: str, expectations: Sequence[Expectation]
) -> list[ExpectationValidationResult | None]:
    """Do for all expectations what GX does for a suite, but look for no examples; None where that fails."""
    suite = repr(expectations)
    asked, graph = PLANS.get(suite) or _planned(engine, batch, expectations)
    if not engine.known:  # else GX looked at the data to plan, and will have to again
        PLANS[suite] = asked, graph
    engine.counting = True
    try:
        known, _ = MetricsCalculator(engine, show_progress_bars=False).resolve_validation_graph(graph, BASIC)
    finally:  # else whoever is asked next would get no examples
        engine.counting = False
    return [_judged(engine, one, known) for one in asked]


def _planned(
    engine: DuckDBExecutionEngine, batch: str, expectations: Sequence[Expectation]
) -> tuple[list[_Asked], ValidationGraph]:
    """Work out which metrics a suite needs, and which those need: for small batches, most of the work."""
    asked, graph = [], ValidationGraph(engine)
    for expectation in expectations:
        bound = expectation.copy(update={"batch_id": batch})
        needs = bound.get_validation_dependencies(engine, BASIC)
        with suppress(GreatExpectationsError):  # there is no such metric: the expectation will lack it
            for metric in needs.get_metric_configurations():
                graph.build_metric_dependency_graph(metric, BASIC)
        ids = {name: metric.id for name, metric in needs.metric_configurations.items()}
        asked.append(_Asked(bound, needs, ids))
    return asked, graph


def _judged(
    engine: DuckDBExecutionEngine, asked: _Asked, known: dict[Any, Any]
) -> ExpectationValidationResult | None:
    if not all(id in known for id in asked.metrics.values()):
        return None
    metrics = {name: known[id] for name, id in asked.metrics.items()}
    try:
        found = asked.expectation._validate(metrics, {"result_format": asked.needs.result_format}, engine)
    except Exception:  # noqa: BLE001  # an expectation may be anybody's; asked alone, GX says what it raises
        return None
    return asked.expectation._build_evr(found)


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
