"""Keys of any name and type, from the table they land in to the prediction log."""

from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from headrace import ingest, quarantine, spine
from headrace.lake import Lake, Window, duckdb_connection
from headrace.ledger import Ledger
from headrace.pipeline import Columns, Pipeline, Source
from headrace.problem import Binary
from headrace.serving import log
from headrace.sources import Files
from headrace.sql import quoted
from headrace.training import dataset
from tests.conftest import ROOT, utc

WEEK = Window(utc(2024, 1, 1), utc(2024, 1, 8))
STAMP = pa.timestamp("us", "UTC")
KEYS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "text": (pa.string(), ["é", "a\\b", "ключ", "鍵", "🔑", "", "'", '"', "a\nb"]),
    "bytes": (pa.binary(), [b"", b"\x00", b"\xff\xfe", b"\\x41"]),
    "booleans": (pa.bool_(), [True, False]),
    "integers": (pa.int64(), [-(2**63), -1, 0, 2**53 + 1, 2**63 - 1]),
    "huge": (pa.decimal128(38, 0), [Decimal(-(10**37)), Decimal(2**64 + 1), Decimal(2**64)]),
    "instants": (STAMP, [datetime(1969, 12, 31, 23, 59, 59, 5, UTC), utc(2024)]),
    "days": (pa.date32(), [date(1, 1, 1), date(2024, 1, 1)]),
}
NAMES = ["order", 'an "odd" key', "select"]


@pytest.fixture(autouse=True)
def suites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the suites of ``tests/validations`` be found beside the project's."""
    import validations

    monkeypatch.setattr(validations, "__path__", [*validations.__path__, str(ROOT / "tests" / "validations")])


class Half:
    """A model that cannot tell."""

    problem = Binary()

    def predict(self, rows: pa.Table) -> NDArray[np.float64]:
        return np.full(rows.num_rows, 0.5)


def orders(keys: list[tuple[str, pa.DataType]], values: list[tuple[Any, ...]]) -> pa.Table:
    """Return a row for each of ``values``, ordered on Monday and known at once."""
    rows = [dict(zip([name for name, _ in keys], key, strict=True)) for key in values]
    table = pa.Table.from_pylist(rows, pa.schema(keys))
    for column in ("event_timestamp", "available_at"):
        table = table.append_column(column, pa.array([WEEK.start] * len(rows), STAMP))
    return table.append_column("x", pa.array(range(len(rows)))).append_column(
        "label", pa.array([1] * len(rows))
    )


def pipeline(names: list[str]) -> Pipeline:
    return Pipeline(
        name="orders", about="", owner="", start=WEEK.start,
        sources=(Source("orders", Files({}), time="available_at", suite=""),), feature_tables=(),
        feature_service="", keys=tuple(names),
        spine=f"SELECT {quoted(*names)}, event_timestamp, x FROM orders",
        label=f"SELECT {quoted(*names)}, label, available_at FROM orders", columns=Columns((), ("x",)),
        candidates=(),
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kinds", [*zip(KEYS), ("text", "booleans"), ("bytes", "huge", "instants")])
def test_what_is_keyed_by_it_is_trained_on_and_predicted_once(tmp_path, name, kinds):
    columns = [(f"{name} {kind}" if n else name, KEYS[kind][0]) for n, kind in enumerate(kinds)]
    length = min(len(KEYS[kind][1]) for kind in kinds)
    values = list(zip(*(KEYS[kind][1][:length] for kind in kinds), strict=True))
    lake, spec = Lake(str(tmp_path)), pipeline([column for column, _ in columns])
    lake.table("raw/orders").append(orders(columns, values[:1]), "first")

    assert (
        log.score(spec, lake, WEEK, partial(log.predicted, spec, model=Half(), version=1, since=WEEK.start))
        == 1
    )
    lake.table("raw/orders").append(orders(columns, values[1:]), "rest")
    assert log.pending(spec, lake, WEEK.start, WEEK.end) == [WEEK]
    assert (
        log.score(spec, lake, WEEK, partial(log.predicted, spec, model=Half(), version=2, since=WEEK.start))
        == len(values) - 1
    )
    assert log.pending(spec, lake, WEEK.start, WEEK.end) == []

    learnt = spine.labelled(spec, lake, WEEK, WEEK.end)
    table = lake.table("training/orders")
    version = table.replace(learnt.append_column("span", pa.array(["train"] * learnt.num_rows)))
    for found in (
        log.read(spec, lake, WEEK), log.outcomes(spec, lake, WEEK, WEEK.end), learnt,
        dataset.read(spec, table.snapshot(version), lake), spine.rows(spec, lake, WEEK),
    ):  # fmt: skip
        assert [found.schema.field(column).type for column, _ in columns] == [kind for _, kind in columns]
        assert set(zip(*(found[column].to_pylist() for column, _ in columns), strict=True)) == set(values)
        assert found.num_rows == len(values)
    assert spine.rows(spec, lake, WEEK, 1).num_rows == 1


@pytest.mark.parametrize("kind", KEYS)
def test_what_is_keyed_by_it_is_held_as_it_is(tmp_path, kind):
    lake, (form, values) = Lake(str(tmp_path)), KEYS[kind]
    rows = orders([("order", form)], [(value,) for value in values])
    rows = rows.append_column("row", pa.array(["a", *["b"] * (len(values) - 1)]))
    passed = quarantine.guard(rows, "readings.odd", lake, "orders", "predictions/orders", WEEK)
    (entry,) = quarantine.entries(lake, "predictions/orders")
    held = lake.table(entry.held.table).relation(duckdb_connection()).to_arrow_table()
    assert passed == rows[:1]
    assert held.schema.field("order").type == form
    assert sorted(held["order"].to_pylist()) == sorted(values[1:])


@pytest.mark.parametrize("kind", [*KEYS, "uuids"])
def test_a_late_row_of_a_key_that_landed_is_set_aside(tmp_path, kind):
    uuids = {"uuids": (pa.uuid(), [UUID(int=number) for number in (1, 2**127)])}
    file, (form, values) = tmp_path / "orders.parquet", (KEYS | uuids)[kind]
    source = Source(
        "orders", Files({"orders": file}), time="event_timestamp", suite="readings.lenient", keys=("order",)
    )
    spec = dataclasses.replace(pipeline(["order"]), sources=(source,))
    lake, ledger = Lake(f"{tmp_path}/lake"), Ledger(f"sqlite:///{tmp_path}/ledger.db")
    for day, known in ((8, values[:1]), (9, values)):
        rows = orders([("order", form)], [(value,) for value in known]).drop_columns(["available_at"])
        pq.write_table(rows.append_column("day", pa.array([day] * len(known))), file)
        with ingest.workspace(tmp_path) as folder:
            staged = ingest.stage(spec, source, utc(2024, 1, day), lake, ledger, folder)
            for batch in staged.batches:
                ingest.settle(batch, source, lake, utc(2024, 1, day))
    if kind == "uuids":  # which a Delta table holds as text
        values = [str(value) for value in values]
    landed = lake.connect({"t": source.table}).sql('SELECT "order", day FROM t').fetchall()
    assert sorted(landed) == sorted([(values[0], 8), *((value, 9) for value in values[1:])])
    (entry,) = quarantine.entries(lake, source.table)
    assert entry.reasons[0].startswith("`order` must not have landed before, but 1 of ")
