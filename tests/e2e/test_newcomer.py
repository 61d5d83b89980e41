"""A first pipeline, with the mistakes that a newcomer makes: each is told, with what to do."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from headrace import services
from headrace.settings import Settings
from tests.conftest import free_port
from tests.e2e import projects
from tests.flows.conftest import flows

CUSTOMERS, OLD, ORDERS = 100, 60, 3_000
PIPELINE = """
from datetime import UTC, datetime, timedelta
import re
from pathlib import Path
from headrace.pipeline import Candidate, Columns, FeatureTable, Pipeline, Source
from headrace.sources import Files

PIPELINE = Pipeline(
    name="shop", about="Will it come back?", owner="tests", start=datetime(2024, 1, 1, tzinfo=UTC),
    sources=(
        Source("orders", Files({"orders": "orders.csv"}), "placed_at", "shop.rows"),
        Source("returns", Files({"returns": "returns.csv"}), "known_at", "shop.rows"),
        Source("customers", Files({"customers": "customers.csv"}), "since", "shop.rows"),
    ),
    feature_tables=(
        FeatureTable("buyers", Path("features/buyers.sql"), lookback=timedelta(days=1)),
    ),
    feature_service="shop", keys=("order_id", "customer"),
    spine="SELECT order_id, customer, price, placed_at, placed_at AS event_timestamp FROM orders",
    label="SELECT order_id, customer, came_back AS label, available_at FROM returns",
    columns=Columns(categorical=("segment",), numeric=("price", "bought")),
    candidates=(Candidate("trees", "xgboost", {"max_depth": 3, "rounds": 20}),),
)
"""
SQL = """
SELECT customer, placed_at, segment, count(*) OVER (PARTITION BY customer ORDER BY placed_at) AS bought,
       placed_at AS event_timestamp, placed_at AS available_at
FROM orders LEFT JOIN customers USING (customer) WHERE placed_at >= $start AND placed_at < $end
"""
VIEW = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.types import Int64, String, UnixTimestamp

customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.INT64)
placed_at = Entity(name="placed_at", join_keys=["placed_at"], value_type=ValueType.UNIX_TIMESTAMP)
buyers = FeatureView(
    name="buyers", entities=[customer{more}], ttl=timedelta(weeks=4),
    schema=[
        Field(name="customer", dtype=Int64), {field}
        Field(name="segment", dtype=String), Field(name="bought", dtype=Int64),
    ],
    source=FileSource(
        name="buyers", path="features/buyers", file_format=DeltaFormat(),
        timestamp_field="event_timestamp", created_timestamp_column="available_at",
    ),
)
service = FeatureService(name="shop", features=[buyers])
"""
INSTANT = 'Field(name="placed_at", dtype=UnixTimestamp),'
SUITE = """
import great_expectations as gx
from great_expectations import expectations as gxe

def rows() -> gx.ExpectationSuite:
    return gx.ExpectationSuite("rows", [gxe.ExpectTableRowCountToBeBetween(min_value=1)])
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    projects.lay("orders", tmp_path)
    for part, name, text in (
        ("pipelines", "shop.py", PIPELINE),
        ("features", "shop.py", VIEW.format(more="", field="")),
        ("validations", "shop.py", SUITE),
        ("features", "buyers.sql", SQL),
    ):
        (tmp_path / part / name).write_text(text)
    rng, start = np.random.default_rng(0), np.datetime64("2024-01-01T00:00:00")
    since = [*(start - np.timedelta64(d + 1, "D") for d in range(OLD)), *[start] * (CUSTOMERS - OLD)]
    lines = [f"{n},{'ab'[n % 2]},{at}Z" for n, at in enumerate(since)]
    (tmp_path / "customers.csv").write_text("customer,segment,since\n" + "\n".join(lines) + "\n")
    placed = start + np.sort(rng.choice(28 * 86_400, ORDERS, replace=False)).astype("timedelta64[s]")
    customer, price = rng.integers(0, CUSTOMERS, ORDERS), rng.uniform(1, 9, ORDERS)
    came_back = price + rng.normal(size=ORDERS) > 5
    orders = [f"{n},{customer[n]},{price[n]:.2f},{placed[n]}Z" for n in range(ORDERS)]
    (tmp_path / "orders.csv").write_text("order_id,customer,price,placed_at\n" + "\n".join(orders) + "\n")
    returns = [f"{n},{customer[n]},{int(came_back[n])},{placed[n]}Z" for n in range(ORDERS)]
    (tmp_path / "returns.csv").write_text(
        "order_id,customer,came_back,known_at\n" + "\n".join(returns) + "\n"
    )
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    monkeypatch.chdir(tmp_path)
    return Settings()


def test_what_a_newcomer_leaves_out_is_said_before_anything_is_released(
    settings: Settings, tmp_path: Path
) -> None:
    def run(flow: str) -> tuple[int, str]:
        done = flows(settings, flow, "shop", "--as-of", "2024-01-29", cwd=tmp_path)
        assert "Traceback" not in done.stdout + done.stderr
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    with services.running([services.prefect_server(settings)], settings):
        code, said = run("ingest")
        assert code == 0, said
        assert f"customers: {OLD} rows became known before `start`, 2024-01-01 UTC, and are left out" in said

        code, said = run("materialize")
        assert "buyers: 3 windows, from 2024-01-08, see no row of customers" in said
        assert (code, "`buyers` of `shop` changes while a window is open" in said) == (1, True), said
        assert "put the instant into its keys" in said

        (tmp_path / "features/shop.py").write_text(VIEW.format(more=", placed_at", field=INSTANT))
        code, said = run("materialize")
        assert code == 0, said
        code, said = run("train")
        assert code == 0, said
        assert re.search(r"Null in the 3,000 rows of the training set: segment 9\d\.\d%", said), said
        assert "got rank" not in said
        assert "released" in said
