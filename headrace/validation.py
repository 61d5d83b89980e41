"""Great Expectations over a staged batch, through GX's own SQL engine on DuckDB.

Suites are plain GX, written in ``validations/``. DuckDB reads the batch's
Parquet files where they lie, so a batch never has to fit in memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from string import Template
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from headrace.errors import UnknownSuite

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from great_expectations import ExpectationSuite
    from great_expectations.core import ExpectationValidationResult
    from great_expectations.core.batch_definition import BatchDefinition
    from great_expectations.datasource.fluent.interfaces import Batch
    from great_expectations.execution_engine.sqlalchemy_execution_engine import SqlAlchemyExecutionEngine
    from great_expectations.expectations.expectation import Expectation
    from sqlalchemy import Connection

RULES = {
    "expect_column_to_exist": "`{column}` must exist",
    "expect_column_type_to_be": "`{column}` must be of type {type_}",
    "expect_column_values_to_not_be_null": "`{column}` must not be null",
    "expect_column_values_to_be_unique": "`{column}` must be unique",
    "expect_column_values_to_be_in_set": "`{column}` must be one of {value_set}",
    "expect_column_values_to_match_regex": "`{column}` must match `{regex}`",
    "expect_column_values_to_be_between": "`{column}` must be {range}",
    "expect_column_pair_values_a_to_be_greater_than_b": "`{column_A}` must be {than} `{column_B}`",
    "expect_compound_columns_to_be_unique": "{column_list} must be unique together",
    "expect_table_columns_to_match_set": "the columns must be {column_set}",
    "expect_table_row_count_to_be_between": "the number of rows must be {range}",
    "unexpected_rows_expectation": "no row may be in `{unexpected_rows_query}`",
}
"""How an expectation reads, unless its ``description`` says so; others read as GX renders them."""

BREACHES = {
    "expect_column_values_to_not_be_null": ("is null", "are null"),
    "expect_column_values_to_be_unique": ("is a repeat", "are repeats"),
    "expect_column_values_to_be_in_set": ("holds another", "hold others"),
    "expect_compound_columns_to_be_unique": ("is a repeat", "are repeats"),
    "unexpected_rows_expectation": ("is", "are"),
}
"""What rows that break a rule do, in singular and plural."""

ONE_AT_A_TIME = Lock()
"""All validations of a process share one DuckDB connection and one view."""


@dataclass(frozen=True)
class Outcome:
    """What one expectation found: ``unexpected`` rows broke it (0 for rules about the whole batch)."""

    expectation: str
    column: str
    success: bool
    observed: str
    unexpected: int
    rule: str


@dataclass(frozen=True)
class Validation:
    """What a suite found in one batch, in the suite's order."""

    success: bool
    rows: int
    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def failures(self) -> list[str]:
        """One sentence for each expectation that failed: what was expected, and what came."""
        return [f"{found.rule}, but {found.observed}" for found in self.outcomes if not found.success]

    def table(self) -> list[dict[str, str]]:
        """Return one row per expectation, for a table in the terminal or the Prefect UI."""
        return [
            {
                "result": "passed" if found.success else "failed",
                "rule": found.rule,
                "observed": found.observed,
                "column": found.column,
                "expectation": found.expectation,
            }
            for found in self.outcomes
        ]


def load_suite(name: str) -> ExpectationSuite:
    """Return the suite ``<module>.<function>``: what that function of ``validations/<module>.py`` returns.

    Raises:
        UnknownSuite: There is no such module or function.
    """
    known = {
        f"{file.stem}.{function}": made
        for place in import_module("validations").__path__
        for file in Path(place).glob("[!_]*.py")
        for function, made in vars(import_module(f"validations.{file.stem}")).items()
        if not function.startswith("_") and getattr(made, "__module__", "") == f"validations.{file.stem}"
    }
    if name not in known:
        raise UnknownSuite(name, sorted(known))
    suite: ExpectationSuite = known[name]()
    return suite


def validate(files: Sequence[Path], suite: ExpectationSuite) -> Validation:
    """Run ``suite`` over the rows of ``files``: Parquet of one schema, together one batch.

    An expectation that cannot be evaluated, because a column is gone or has
    another type, fails with that reason.
    """
    started = perf_counter()
    with ONE_AT_A_TIME:
        engine, definition = _duckdb()
        with engine.get_connection() as con:
            listed = ", ".join("'{}'".format(str(file).replace("'", "''")) for file in files)
            con.exec_driver_sql(f"CREATE OR REPLACE VIEW batch AS FROM read_parquet([{listed}])")
            con.commit()
            rows = int(con.exec_driver_sql("SELECT count(*) FROM batch").scalar_one())
            columns = [row[0] for row in con.exec_driver_sql("DESCRIBE batch")]
        results = _ask(definition.get_batch(), suite.expectations)
    outcomes = tuple(
        _outcome(expectation, result, rows, columns)
        for expectation, result in zip(suite.expectations, results, strict=True)
    )
    return Validation(all(found.success for found in outcomes), rows, outcomes, perf_counter() - started)


def _ask(batch: Batch, expectations: Sequence[Expectation]) -> list[ExpectationValidationResult]:
    """Ask everything in as few queries as GX bundles; ask what failed again, alone, for details.

    Looking for an example of a broken row costs a query per expectation, so rows
    are only counted first. And an error takes its whole bundle with it: only
    what also fails alone has failed.
    """
    from great_expectations import ExpectationSuite
    from great_expectations.expectations import expectation as kinds

    by_row = (kinds.ColumnMapExpectation, kinds.ColumnPairMapExpectation, kinds.MulticolumnMapExpectation)
    details = {"result_format": "BASIC", "partial_unexpected_count": 1}
    counted: list[Expectation] = []
    described: list[Expectation] = []
    for place, expectation in enumerate(expectations):
        # GX returns results sorted by column: the place says whose they are.
        numbered = expectation.copy(update={"meta": {"place": place}})
        all_or_nothing = isinstance(expectation, by_row) and expectation.mostly == 1
        (counted if all_or_nothing else described).append(numbered)
    results: dict[int, Any] = {}
    for asked, form in ((counted, {"result_format": "BOOLEAN_ONLY"}), (described, details)):
        answer = batch.validate(ExpectationSuite("batch", asked), result_format=form)
        found: list[Any] = answer.results
        results |= {result.expectation_config.meta["place"]: result for result in found}
    return [
        results[place] if results[place].success else batch.validate(expectation, result_format=details)
        for place, expectation in enumerate(expectations)
    ]


def _outcome(
    expectation: Expectation, result: ExpectationValidationResult, rows: int, columns: Sequence[str]
) -> Outcome:
    kind, kwargs = expectation.expectation_type, expectation.configuration.kwargs
    about = [kwargs[key] for key in ("column", "column_A", "column_B") if key in kwargs]
    about += kwargs.get("column_list", [])
    missing = [column for column in about if column not in columns]
    detail: Mapping[str, Any] = result.result
    if kind == "unexpected_rows_expectation":
        detail = {"unexpected_count": detail.get("observed_value")}
    value = detail.get("observed_value")
    unexpected = int(detail.get("unexpected_count") or 0)
    if missing and not result.success:
        observed = f"the batch has no column {_listed(missing, '`')}"
    elif error := _error(result.exception_info):
        observed = f"that cannot be evaluated: {error}"
    elif unexpected:
        one, many = BREACHES.get("" if expectation.description else kind, ("breaks this", "break this"))
        examples = [_shown(held) for held in detail.get("partial_unexpected_list", []) if held is not None]
        first = f" (first: {examples[0]})" if examples else ""
        observed = f"{unexpected:,} of {rows:,} rows {one if unexpected == 1 else many}{first}"
    elif isinstance(odd := detail.get("details", {}).get("mismatched"), Mapping):
        told = [("no", odd.get("missing")), ("also", odd.get("unexpected"))]
        observed = " and ".join(f"there is {how} {_listed(names, '`')}" for how, names in told if names)
    elif value is not None:
        shown = _shown(round(value, 4) if isinstance(value, float) else value, quote="")
        observed = f"{'found' if isinstance(value, list) else 'it is'} {shown}"
    else:
        observed = f"true of all {rows:,} rows" if result.success else "that is not so"
    return Outcome(kind, ", ".join(about), bool(result.success), observed, unexpected, _rule(expectation))


def _rule(expectation: Expectation) -> str:
    if expectation.description:
        return str(expectation.description).rstrip(".")
    template, kwargs = RULES.get(expectation.expectation_type), expectation.configuration.kwargs
    if template is None or kwargs.get("row_condition") or kwargs.get("exact_match") is False:
        return _as_gx_says(expectation)
    said = {key: _shown(value, quote="") for key, value in kwargs.items()}
    said["column_list"] = _listed(kwargs.get("column_list", ()), "`")
    said["than"] = "at least" if kwargs.get("or_equal") else "greater than"
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    lower = f"{'above' if kwargs.get('strict_min') else 'at least'} {_shown(low)}"
    upper = f"{'below' if kwargs.get('strict_max') else 'at most'} {_shown(high)}"
    said["range"] = " and ".join(end for end, bound in ((lower, low), (upper, high)) if bound is not None)
    some = f" in at least {100 * kwargs['mostly']:g} % of the rows" if kwargs.get("mostly", 1) < 1 else ""
    return template.format_map(said) + some


def _as_gx_says(expectation: Expectation) -> str:
    rendered: Any = expectation.copy()
    rendered.render()
    said = rendered.rendered_content[0].value
    params = {key: _shown(param["value"], quote="") for key, param in (said.params or {}).items()}
    return (
        Template(said.template or expectation.expectation_type.replace("_", " "))
        .safe_substitute(params)
        .rstrip(".")
    )


def _error(info: Mapping[str, Any]) -> str:
    """Return the first line of what was raised, if anything was; GX nests it when a metric failed."""
    raised = [info] if "raised_exception" in info else list(info.values())
    messages = [str(found["exception_message"]) for found in raised if found["raised_exception"]]
    return re.sub(r"^\(\S+\) ", "", messages[0].strip().splitlines()[0]) if messages else ""


def _shown(value: Any, quote: str = '"') -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(held)}" for key, held in value.items())
    if isinstance(value, list | tuple | set):
        return ", ".join(_shown(held, quote) for held in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # GX keeps bounds as floats
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    return "null" if value is None else str(value)


def _listed(names: Iterable[str], quote: str) -> str:
    return ", ".join(f"{quote}{name}{quote}" for name in names)


@cache
def _duckdb() -> tuple[SqlAlchemyExecutionEngine, BatchDefinition]:
    """Teach GX about DuckDB; return an engine and what fetches its view ``batch``.

    Once per process: GX builds its context, and registers its data sources, globally.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.datasource.fluent.sql_datasource import SQLDatasource
    from great_expectations.execution_engine.sqlalchemy_execution_engine import SqlAlchemyExecutionEngine
    from sqlalchemy.exc import SQLAlchemyError

    class DuckDBExecutionEngine(SqlAlchemyExecutionEngine):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.dialect_module: Any = _Dialect()

        def get_inspector(self) -> Any:
            return _Inspector(self)

        @contextmanager
        def get_connection(self) -> Iterator[Connection]:
            # One for good: DuckDB's results, which GX reads afterwards, die with their connection.
            if self._connection is None:
                self._connection = self.engine.connect()
                self._connection.exec_driver_sql("SET TimeZone = 'UTC'")
            try:
                yield self._connection
            except SQLAlchemyError:
                self._connection.rollback()  # DuckDB refuses everything after an error in a transaction
                raise

    class DuckDBDatasource(SQLDatasource):
        type: Literal["duckdb"] = "duckdb"  # type: ignore[assignment]  # as GX's own data sources do

        @property
        def execution_engine_type(self) -> Any:
            return DuckDBExecutionEngine

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    # Named, so that GX's other connections see the same database.
    source = context.data_sources.add_duckdb("headrace", connection_string="duckdb:///:memory:headrace")
    engine = source.get_execution_engine()
    with engine.get_connection() as con:
        con.exec_driver_sql("CREATE VIEW batch AS SELECT 1 AS nothing")
        con.commit()
    return engine, source.add_table_asset("batch", "batch").add_batch_definition_whole_table("all")


class _Dialect:
    """What GX asks of a dialect module: how regular expressions are spelled, and the types by name.

    It knows no DuckDB, but Dremio's ``REGEXP_MATCHES`` is DuckDB's. (PostgreSQL's
    ``~`` is not: in DuckDB it matches the whole value, not a part.)
    """

    __name__ = "duckdb"
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
        from sqlalchemy import text

        described = self.engine.execute_query(text(f"DESCRIBE {table_name}"))
        return [{"name": row[0], "type": _type(row[1])()} for row in described]

    def get_pk_constraint(self, table_name: str, schema: str | None = None) -> dict[str, Any]:
        return {}
