"""DuckDB's SQL for what GX computes in pandas only, otherwise than in pandas, or by joining every row.

Importing this module registers these metrics with GX, for the DuckDB engine alone.
Names, and what counts as unexpected, are those of GX's own metrics.
"""

from __future__ import annotations

import operator
from itertools import combinations
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from great_expectations.core.metric_domain_types import MetricDomainTypes
from great_expectations.core.metric_function_types import MetricPartialFunctionTypes
from great_expectations.expectations.metrics.column_aggregate_metric_provider import (
    ColumnAggregateMetricProvider,
)
from great_expectations.expectations.metrics.column_aggregate_metrics.column_outlier_statistics import (
    IQR_METHOD,
    OutlierStatistics,
)
from great_expectations.expectations.metrics.map_metric_provider.column_condition_partial import (
    column_condition_partial,
)
from great_expectations.expectations.metrics.map_metric_provider.column_function_partial import (
    column_function_partial,
)
from great_expectations.expectations.metrics.map_metric_provider.column_map_metric_provider import (
    ColumnMapMetricProvider,
)
from great_expectations.expectations.metrics.map_metric_provider.column_pair_condition_partial import (
    column_pair_condition_partial,
)
from great_expectations.expectations.metrics.map_metric_provider.column_pair_map_metric_provider import (
    ColumnPairMapMetricProvider,
)
from great_expectations.expectations.metrics.map_metric_provider.multicolumn_condition_partial import (
    multicolumn_condition_partial,
)
from great_expectations.expectations.metrics.map_metric_provider.multicolumn_function_partial import (
    multicolumn_function_partial,
)
from great_expectations.expectations.metrics.map_metric_provider.multicolumn_map_metric_provider import (
    MulticolumnMapMetricProvider,
)
from great_expectations.expectations.metrics.metric_provider import metric_partial, metric_value

from headrace.validation.duckdb import NUMBERED, ROW, DuckDBExecutionEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

REPEATS = "_num_rows"
"""GX's name for the column that counts how often a row's key occurs."""


class JsonParseable(ColumnMapMetricProvider):
    """Text that is JSON."""

    condition_metric_name = "column_values.json_parseable"

    @column_condition_partial(engine=DuckDBExecutionEngine)
    def _duckdb(cls, column: Any, **kwargs: Any) -> Any:
        return sa.func.json_valid(column)


class MatchesStrftimeFormat(ColumnMapMetricProvider):
    """Text that a ``strftime`` format reads; DuckDB's formats are Python's."""

    condition_metric_name = "column_values.match_strftime_format"
    condition_value_keys = ("strftime_format",)

    @column_condition_partial(engine=DuckDBExecutionEngine)
    def _duckdb(cls, column: Any, strftime_format: str, **kwargs: Any) -> Any:
        return sa.func.try_strptime(column, strftime_format).is_not(None)


class NotInSet(ColumnMapMetricProvider):
    """Values other than some; a null among these is equal to no value."""

    condition_metric_name = "column_values.not_in_set"
    condition_value_keys = ("value_set",)

    @column_condition_partial(engine=DuckDBExecutionEngine)
    def _duckdb(cls, column: Any, value_set: Sequence[Any] | None, **kwargs: Any) -> Any:
        return column.not_in([value for value in value_set or () if value is not None])


class Increasing(ColumnMapMetricProvider):
    """Values not below the last one before them, in the order of the files, nulls left out."""

    condition_metric_name = "column_values.increasing"
    condition_value_keys = ("strictly",)
    default_kwarg_values = {"strictly": False}  # noqa: RUF012  # as GX declares it

    @metric_partial(
        engine=DuckDBExecutionEngine,
        partial_fn_type=MetricPartialFunctionTypes.MAP_CONDITION_FN,
        domain_type=MetricDomainTypes.COLUMN,
    )
    def _duckdb(
        cls,
        execution_engine: DuckDBExecutionEngine,
        metric_domain_kwargs: dict[str, Any],
        metric_value_kwargs: Mapping[str, Any],
        **kwargs: Any,
    ) -> Any:
        wrong = operator.le if metric_value_kwargs["strictly"] else operator.lt
        return _after_their_last(wrong, execution_engine, metric_domain_kwargs)


class Decreasing(ColumnMapMetricProvider):
    """Values not above the last one before them, in the order of the files, nulls left out."""

    condition_metric_name = "column_values.decreasing"
    condition_value_keys = ("strictly",)
    default_kwarg_values = {"strictly": False}  # noqa: RUF012  # as GX declares it

    @metric_partial(
        engine=DuckDBExecutionEngine,
        partial_fn_type=MetricPartialFunctionTypes.MAP_CONDITION_FN,
        domain_type=MetricDomainTypes.COLUMN,
    )
    def _duckdb(
        cls,
        execution_engine: DuckDBExecutionEngine,
        metric_domain_kwargs: dict[str, Any],
        metric_value_kwargs: Mapping[str, Any],
        **kwargs: Any,
    ) -> Any:
        wrong = operator.ge if metric_value_kwargs["strictly"] else operator.gt
        return _after_their_last(wrong, execution_engine, metric_domain_kwargs)


class AGreaterThanB(ColumnPairMapMetricProvider):
    """Pairs of values, the first the greater; a missing value is neither greater than another nor equal."""

    condition_metric_name = "column_pair_values.a_greater_than_b"
    condition_value_keys = ("or_equal",)

    @column_pair_condition_partial(engine=DuckDBExecutionEngine)
    def _duckdb(cls, column_A: Any, column_B: Any, **kwargs: Any) -> Any:
        return column_A >= column_B if kwargs["or_equal"] else column_A > column_B


class UniqueWithinRecord(MulticolumnMapMetricProvider):
    """Rows in which no value occurs twice, not even a missing one."""

    condition_metric_name = "select_column_values.unique.within_record"

    @multicolumn_condition_partial(engine=DuckDBExecutionEngine)
    def _duckdb(cls, column_list: Sequence[Any], **kwargs: Any) -> Any:
        pairs = combinations(column_list, 2)
        return sa.and_(sa.true(), *(a.is_distinct_from(b) for a, b in pairs))


class CountPerValue(ColumnMapMetricProvider):
    """What uniqueness is judged by: the rows whose value occurs more than once."""

    function_metric_name = "column_values.count_per_value"

    @column_function_partial(engine=DuckDBExecutionEngine)  # type: ignore[untyped-decorator]
    def _duckdb(cls, column: Any, _table: Any, **kwargs: Any) -> Any:
        taken = {str(name) for name in kwargs["_metrics"]["table.columns"]}
        label = REPEATS
        while label in taken:  # as GX does, which looks for it under the same name
            label = f"_{label}"
        return _repeated([column], _table, label)


class CountPerKey(MulticolumnMapMetricProvider):
    """What compound uniqueness is judged by: the rows whose key occurs more than once."""

    function_metric_name = "compound_columns.count"

    @multicolumn_function_partial(engine=DuckDBExecutionEngine)  # type: ignore[untyped-decorator]
    def _duckdb(cls, column_list: Sequence[Any], _table: Any, **kwargs: Any) -> Any:
        return _repeated(column_list, _table, REPEATS)


class OutlierStatisticsOnDuckDB(ColumnAggregateMetricProvider):
    """Quartiles, or mean and standard deviation, that outliers are measured from."""

    metric_name = "column.outlier_statistics"
    value_keys = ("method",)

    @metric_value(engine=DuckDBExecutionEngine)
    def _duckdb(
        cls,
        execution_engine: DuckDBExecutionEngine,
        metric_domain_kwargs: dict[str, Any],
        metric_value_kwargs: Mapping[str, Any],
        **kwargs: Any,
    ) -> OutlierStatistics:
        rows, _, about = execution_engine.get_compute_domain(metric_domain_kwargs, MetricDomainTypes.COLUMN)
        column: Any = sa.column(about["column"])
        if metric_value_kwargs["method"] == IQR_METHOD:
            quartiles = [sa.func.quantile_cont(column, sa.literal(share)) for share in (0.25, 0.75)]
            query = sa.select(*quartiles, quartiles[1] - quartiles[0])
        else:
            query = sa.select(sa.func.avg(column), sa.func.avg(column), sa.func.stddev_samp(column))
        lower, upper, spread = execution_engine.execute_query(query.select_from(_from(rows))).one()
        return OutlierStatistics(*(None if x is None else float(x) for x in (lower, upper, spread)))


def _after_their_last(
    wrong: Callable[[Any, Any], Any], engine: DuckDBExecutionEngine, domain_kwargs: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """Return, as GX wants it, the condition that a value is ``wrong`` after the last one before it.

    It is membership in a set of rows, because GX puts conditions where windows are not allowed.
    """
    rows, domain, about = engine.get_compute_domain(
        domain_kwargs | {"table": NUMBERED}, MetricDomainTypes.COLUMN
    )
    value: Any = sa.column(about["column"])
    last = sa.func.lag(value).over(order_by=sa.column(ROW)).label("last")
    pairs = sa.select(sa.column(ROW), value.label("value"), last).where(value.is_not(None))
    found = pairs.select_from(_from(rows)).subquery()
    wrongs = sa.select(found.c[ROW]).where(wrong(found.c.value, found.c.last))
    return sa.column(ROW).in_(wrongs), domain, about


def _repeated(key: Sequence[Any], table: Any, label: str) -> Any:
    """Return the rows of ``table`` whose ``key`` occurs more than once, and how often, as ``label``."""
    rows = _from(table).alias("rows")
    repeated = (
        sa.select(*key, sa.func.count().label(label))
        .select_from(_from(table))
        .group_by(*key)
        .having(sa.func.count() > 1)
        .alias("repeated")
    )
    same = [
        sa.column(column.name, _selectable=rows).is_not_distinct_from(repeated.c[column.name])
        for column in key
    ]
    return (
        sa.select(sa.text("rows.*"), repeated.c[label])
        .select_from(rows.join(repeated, sa.and_(*same)))
        .alias("rows_with_repeated_keys")
    )


def _from(table: Any) -> Any:
    return table.subquery() if isinstance(table, sa.Select) else table
