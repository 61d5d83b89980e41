"""Orders of five shops that name themselves in five scripts; made up, so that names and types are awkward.

The key is called `order`, as SQL's word, and is larger than 2^53; of each week one order names no shop.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from headrace.lake import Window
from headrace.pipeline import Candidate, Columns, FeatureTable, Pipeline, Source
from headrace.sources import Call

START, WEEK = datetime(2024, 1, 1, tzinfo=UTC), timedelta(weeks=1)
SHOPS = ("Café \\ d'Été", "Καφενείο", "Чайная", "مقهى", "喫茶店")
FIRST = 2**60


def rows(span: Window) -> pa.Table:
    """Return an order every ten minutes of ``span``; what an order is depends on its number alone."""
    ends = [(at - START) // timedelta(minutes=10) for at in (max(span.start, START), span.end)]
    number = np.arange(*ends, dtype=np.int64)
    rng = np.random.default_rng(1).normal(size=(2, 10_000))[:, : ends[1]]
    items, luck = 3 + rng[0, ends[0] :], rng[1, ends[0] :]
    shop = number % 5
    waited = 20 + 3 * shop + 2 * items + 2 * luck
    return pa.table(
        {
            "order": FIRST + number,
            "shop": [None if n % 1008 == 7 else SHOPS[s] for n, s in zip(number, shop, strict=True)],
            "items": items,
            "waited": waited,
            "placed_at": pa.array(
                [START + int(n) * timedelta(minutes=10) for n in number], pa.timestamp("us", "UTC")
            ),
        }
    )


def placed(span: Window) -> pa.Table:
    return rows(span).drop_columns(["waited"])


def served(span: Window) -> pa.Table:
    return rows(span).drop_columns(["items"])


PIPELINE = Pipeline(
    name="orders",
    about="Will whoever placed this order wait for more than half an hour?",
    owner="tests",
    start=START,
    sources=(
        Source("placed", Call(placed), "placed_at", "orders.orders", keys=("order",)),
        Source("served", Call(served), "placed_at", "orders.orders", keys=("order",)),
    ),
    feature_tables=(
        FeatureTable(
            "shop_pace",
            Path(__file__).parent.parent / "features/sql/shop_pace.sql",
            lookback=timedelta(0),
        ),
    ),
    feature_service="order_wait",
    keys=("order", "shop"),
    spine="""
        SELECT "order", shop, items, placed_at AS event_timestamp,
               epoch(date_trunc('week', placed_at))::BIGINT AS week
        FROM placed
    """,
    label='SELECT "order", shop, (waited > 30)::INTEGER AS label, available_at FROM served',
    columns=Columns(categorical=("shop",), numeric=("items", "mean_wait")),
    candidates=(
        Candidate("trees", "xgboost", {"max_depth": 3, "rounds": 30}),
        Candidate("linear", "sklearn", {}),
    ),
    holdout=WEEK,
)
