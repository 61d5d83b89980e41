"""Freshness: how old the newest row of each feature view is, beside how old it may be."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from headrace.feature_store.feast import brought
from headrace.feature_store.store import NOBODY, inputs, lookup, stored_views
from headrace.instants import plain
from headrace.lake import NotBuilt, duckdb_connection
from headrace.sql import quoted

if TYPE_CHECKING:
    import duckdb
    from feast import FeatureStore, FeatureView


@dataclass(frozen=True)
class Freshness:
    """A view at ``as_of``: event times (UTC) of the ``newest`` row of its table, and of those ``online``.

    None stands for no row at all. A ``ttl`` of zero is for ever.
    """

    view: str
    ttl: timedelta
    newest: datetime | None
    online: datetime | None
    as_of: datetime

    @property
    def age(self) -> timedelta | None:
        """How old the newest row is that is served."""
        return self.as_of - self.online if self.online else None

    @property
    def overdue(self) -> bool:
        """Whether no row that is served is young enough to be joined at ``as_of``."""
        return bool(self.ttl) and (self.age is None or self.age > self.ttl)

    def line(self) -> dict[str, str]:
        """Return it as a line of a table for people."""
        newest, online = (f"{at:%Y-%m-%d %H:%M}" if at else "none" for at in (self.newest, self.online))
        return {
            "feature view": self.view,
            "newest row (UTC)": newest,
            "newest online (UTC)": online,
            "age": "" if self.age is None else str(self.age),
            "ttl": str(self.ttl) if self.ttl else "for ever",
            "overdue": "overdue" if self.overdue else "",
        }


def measure(store: FeatureStore, service: str, as_of: datetime) -> list[Freshness]:
    """Return how fresh each stored view of ``service`` is at ``as_of`` (UTC); later rows do not count."""
    return [of(store, view, as_of) for view in stored_views(store, service)]


def of(store: FeatureStore, view: FeatureView, as_of: datetime) -> Freshness:
    """Return how fresh one view is at ``as_of`` (UTC).

    Of the rows that were brought online, as Feast's registry has it, the newest is
    asked of the online store: what it has under that key is what counts.
    """
    con = duckdb_connection()
    newest, _ = _newest(con, store, view, as_of)
    reached, online = brought.reached(view), None
    if newest and reached and view.online:
        at, key = _newest(con, store, view, min(as_of, reached))
        held = _held(store, view, key) if at else None
        online = min(at, held) if at and held else None
    return Freshness(view.name, view.ttl or timedelta(0), newest, online, as_of)


def _newest(
    con: duckdb.DuckDBPyConnection, store: FeatureStore, view: FeatureView, at: datetime
) -> tuple[datetime | None, dict[str, Any]]:
    """Return event time and key of the newest row known ``at`` that instant; None if there is none."""
    from headrace.feature_store.feast import sources

    source = sources.batch_source(view)
    try:
        sources.view_rows(con, store.config, source, until=at).create_view("rows", replace=True)
    except NotBuilt:
        return None, {}
    names = sorted(inputs(store, view.name))
    time, *keys = map(quoted, [source.timestamp_field, *names])
    known = quoted(source.created_timestamp_column or source.timestamp_field)
    where = [f"greatest({time}, {known}) <= $at", *(f"{key} IS NOT NULL" for key in keys)]
    columns = ", ".join([f"{time}::TIMESTAMPTZ", *keys])
    query = f"SELECT {columns} FROM rows WHERE {' AND '.join(where)} ORDER BY {time} DESC LIMIT 1"
    newest, *values = con.execute(query, {"at": at}).fetchone() or (None,)
    return newest and plain(newest), dict(zip(names, values, strict=False))


def _held(store: FeatureStore, view: FeatureView, key: dict[str, Any]) -> datetime | None:
    """Return the event time of what the online store has under ``key``; None if it has nothing."""
    asked = {name: [value] for name, value in key.items()} or NOBODY
    feature = view.features[0].name
    (found,) = lookup(store, [f"{view.name}:{feature}"], asked)[feature]
    return None if found.at is None else datetime.fromtimestamp(found.at / 1_000_000, UTC)
