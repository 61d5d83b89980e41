"""Which rows of a batch broke which rules, found by GX's own conditions in one query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from great_expectations.expectations.metrics.map_metric_provider.is_sqlalchemy_metric_selectable import (
    _is_sqlalchemy_metric_selectable,
)
from great_expectations.expectations.registry import get_metric_kwargs, get_metric_provider
from great_expectations.validator.metric_configuration import MetricConfiguration
from great_expectations.validator.metrics_calculator import MetricsCalculator

from headrace.validation.duckdb import NUMBERED, ROW, DuckDBExecutionEngine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from great_expectations.expectations.expectation import Expectation


def write_broken(engine: DuckDBExecutionEngine, rules: Sequence[tuple[str, Expectation]], file: Path) -> None:
    """Write ``row BIGINT, rules VARCHAR[]`` for each row of the batch that broke any of the ``rules``.

    ``rules`` are row rules, each with its sentence; they are listed in their
    order, rows in the batch's.
    """
    sentences = [sentence for sentence, _ in rules]
    broken = [sa.column(ROW).in_(_rows(engine, rule)) for _, rule in rules]
    judged = sa.select(sa.column(ROW), sa.func.list_value(*broken).label("broken")).select_from(
        sa.table(NUMBERED)
    )
    query: Any = judged.subquery()
    query = sa.select(
        sa.column(ROW).label("row"),
        sa.func.list_where(sa.func.list_value(*sentences), sa.column("broken")).label("rules"),
    ).select_from(query)
    query = query.where(sa.func.list_contains(sa.column("broken"), sa.true()))
    made = query.compile(dialect=engine.dialect, compile_kwargs={"render_postcompile": True})
    name = str(file).replace("'", "''")
    with engine.get_connection() as con:
        con.exec_driver_sql(
            f"COPY ({made}) TO '{name}' (FORMAT parquet, USE_TMP_FILE)",
            tuple(made.params[key] for key in made.positiontup or ()),
        )


def _rows(engine: DuckDBExecutionEngine, rule: Any) -> Any:
    """Return the query for the positions of rows that broke a rule."""
    name = f"{rule.map_metric}.condition"
    asked = get_metric_kwargs(name, rule.configuration, {})
    condition = MetricConfiguration(
        name, asked["metric_domain_kwargs"] | {"table": NUMBERED}, asked["metric_value_kwargs"]
    )
    unexpected, domain, about = MetricsCalculator(engine).get_metric(condition)
    judged = sa.select(sa.column(ROW), unexpected.label("unexpected"))
    provider: Any = get_metric_provider(name, engine)[0]
    if not _is_sqlalchemy_metric_selectable(provider):  # else the condition brings its own rows
        rows: Any = engine.get_domain_records(domain | about)
        judged = judged.select_from(rows.subquery() if isinstance(rows, sa.Select) else rows)
    # Windows are not allowed in WHERE.
    found = judged.subquery()
    return sa.select(found.c[ROW]).where(found.c.unexpected)
