"""DuckDB for Great Expectations: the data source, engine, dialect and inspector that GX lacks.

Importing this module imports GX and registers ``context.data_sources.add_duckdb``.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import great_expectations as gx
from great_expectations.core.metric_function_types import (
    MetricPartialFunctionTypeSuffixes,
    SummarizationMetricNameSuffixes,
)
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.datasource.fluent.sql_datasource import SQLDatasource
from great_expectations.execution_engine.sqlalchemy_execution_engine import SqlAlchemyExecutionEngine
from great_expectations.expectations.row_conditions import Operator
from sqlalchemy import func, text, true
from sqlalchemy.exc import SQLAlchemyError

from headrace.sql import literal, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from great_expectations.core.batch_definition import BatchDefinition
    from great_expectations.expectations.row_conditions import ComparisonCondition
    from great_expectations.validator.metric_configuration import MetricConfiguration
    from sqlalchemy import Connection

BATCH, NUMBERED, ROW = "batch", "numbered_batch", "headrace_row"
"""The view GX validates; the same rows with their position in the batch; the column that holds it."""
MEMORY = "1GB"
"""What DuckDB may take to validate a batch of any size; beyond it, it spills to disk."""


class DuckDBExecutionEngine(SqlAlchemyExecutionEngine):
    """GX's SQL engine on one DuckDB connection, which computes nothing twice for a batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dialect_module: Any = _Dialect()
        self.known: dict[Any, Any] = {}
        self.counting = False

    def open(self, files: Sequence[Path], columns: Sequence[str] | None) -> tuple[int, list[str]]:
        """Make the rows of Parquet ``files`` the batch, or some ``columns``; return its size and columns.

        What is not a number counts as null, as it does with GX on pandas.
        """
        self.known.clear()
        listed = ", ".join(map(literal, files))
        with self.get_connection() as con:
            rows = f"read_parquet([{listed}])"
            types = {name: kind for name, kind, *_ in con.exec_driver_sql(f"DESCRIBE FROM {rows}")}
            seen = {column: _number_or_null(column, kind) for column, kind in types.items()}
            shown = list(columns or types)
            named = ", ".join(seen[column] for column in shown)
            con.exec_driver_sql(f"CREATE OR REPLACE VIEW {BATCH} AS SELECT {named} FROM {rows}")
            counts = con.exec_driver_sql(f"SELECT num_rows FROM parquet_file_metadata([{listed}])").scalars()
            before = [0]
            for count in counts:
                before.append(before[-1] + int(count))
            con.exec_driver_sql(
                f"CREATE OR REPLACE VIEW {NUMBERED} AS SELECT {', '.join(seen.values())}, "
                f"file_row_number + {before}[file_index::BIGINT + 1] AS {ROW} FROM {rows}"
            )
            con.commit()
        return before[-1], shown

    def get_inspector(self) -> Any:
        """Return what tells GX the names and types of columns."""
        return _Inspector(self)

    @contextmanager
    def get_connection(self) -> Iterator[Connection]:
        """Lend the one connection."""
        # One for good: DuckDB's results, which GX reads afterwards, die with their connection.
        if self._connection is None:
            self._connection = self.engine.connect()
            self._connection.exec_driver_sql("SET TimeZone = 'UTC'")
            self._connection.exec_driver_sql(f"SET memory_limit = '{MEMORY}'")
            # By default it spills to the working folder, where processes would meet.
            spilled = literal(f"{gettempdir()}/headrace-{uuid4().hex}")
            self._connection.exec_driver_sql(f"SET temp_directory = {spilled}")
        try:
            yield self._connection
        except SQLAlchemyError:
            self._connection.rollback()  # DuckDB refuses everything after an error in a transaction
            raise

    def resolve_metrics(
        self,
        metrics_to_resolve: Iterable[MetricConfiguration],
        metrics: dict[Any, Any] | None = None,
        runtime_configuration: dict[str, Any] | None = None,
    ) -> dict[Any, Any]:
        """Resolve what is not known yet; while counting, look for no example of a broken row.

        A row for which a rule is neither true nor false, because a value is
        missing, breaks it, as it does with GX on pandas: GX's SQL would pass it,
        for it looks for rows for which the rule is false.
        """
        wanted = list(metrics_to_resolve)
        examples = f".{SummarizationMetricNameSuffixes.UNEXPECTED_VALUES.value}"
        skipped = [m for m in wanted if self.counting and m.metric_name.endswith(examples)]
        new = [m for m in wanted if m.id not in self.known and m not in skipped]
        if new:
            self.known |= super().resolve_metrics(new, metrics, runtime_configuration)
        for metric in new:
            if metric.metric_name.endswith(f".{MetricPartialFunctionTypeSuffixes.CONDITION.value}"):
                broken, *about = self.known[metric.id]
                self.known[metric.id] = (func.coalesce(broken, true()), *about)
        return {m.id: [] if m in skipped else self.known[m.id] for m in wanted}

    def _comparison_condition_to_filter_clause(self, condition: ComparisonCondition) -> Any:
        """Choose rows without a value too where a ``row_condition`` asks for other values than some."""
        chosen = super()._comparison_condition_to_filter_clause(condition)
        other = condition.operator in (Operator.NOT_EQUAL, Operator.NOT_IN)
        return func.coalesce(chosen, true()) if other else chosen


def _number_or_null(column: str, kind: str) -> str:
    name = quoted(column)
    return f"CASE WHEN NOT isnan({name}) THEN {name} END AS {name}" if kind in ("FLOAT", "DOUBLE") else name


class DuckDBDatasource(SQLDatasource):
    """``context.data_sources.add_duckdb(name, connection_string="duckdb:///…")``."""

    type: Literal["duckdb"] = "duckdb"  # type: ignore[assignment]  # as GX's own data sources do

    @property
    def execution_engine_type(self) -> Any:
        """Return what runs the queries."""
        return DuckDBExecutionEngine


@cache
def connect() -> tuple[DuckDBExecutionEngine, BatchDefinition]:
    """Return the process's engine and what fetches its batch: GX keeps its context globally as well."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    # Named, so that GX's other connections see the same database.
    source = context.data_sources.add_duckdb("headrace", connection_string="duckdb:///:memory:headrace")
    engine = source.get_execution_engine()
    with engine.get_connection() as con:
        con.exec_driver_sql(f"CREATE VIEW {BATCH} AS SELECT 1 AS nothing")
        con.commit()
    return engine, source.add_table_asset(BATCH, BATCH).add_batch_definition_whole_table("all")


class _Dialect:
    """What GX asks of a dialect module: how regular expressions are spelled, and the types by name.

    It knows no DuckDB, but Dremio's ``REGEXP_MATCHES`` is DuckDB's. (PostgreSQL's
    ``~`` is not: in DuckDB it matches the whole value, not a part.)
    """

    __name__ = name = "duckdb"
    DremioDialect = True

    def __getattr__(self, name: str) -> type:
        if name.isupper():
            return _type(name)
        raise AttributeError(name)


@cache
def _type(name: str) -> type:
    """Return a class of that name: GX compares the classes of column types, and reports their names."""
    return type(name, (), {})


@dataclass(frozen=True)
class _Inspector:
    """DuckDB's own names and types of columns, in one query instead of three on ``pg_catalog``."""

    engine: SqlAlchemyExecutionEngine

    @property
    def dialect(self) -> Any:
        return self.engine.dialect

    def get_columns(self, table_name: str, schema: str | None = None) -> list[dict[str, Any]]:
        described = self.engine.execute_query(text(f"DESCRIBE {table_name}"))
        return [{"name": row[0], "type": _type(row[1])()} for row in described]

    def get_pk_constraint(self, table_name: str, schema: str | None = None) -> dict[str, Any]:
        return {}
