"""Freshness: how old the newest row of each feature view is, beside how old it may be."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

    from headrace.lake import Lake


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


def measure(store: FeatureStore, service: str, lake: Lake, as_of: datetime) -> list[Freshness]:
    """Return how fresh each stored view of ``service`` is at ``as_of`` (UTC); later rows do not count."""
    used = {view.name for view in store.get_feature_service(service).feature_view_projections}
    return [of(view, lake, as_of) for view in store.list_feature_views() if view.name in used]


def of(view: FeatureView, lake: Lake, as_of: datetime) -> Freshness:
    """Return how fresh one view is at ``as_of`` (UTC)."""
    source, brought = view.batch_source, view.most_recent_end_time
    assert source is not None, f"view {view.name} has no source"
    newest = online = None
    table = lake.table(source.path)  # type: ignore[attr-defined]
    if table.exists():
        con = lake.connect({"rows": table.name})
        time = f'"{source.timestamp_field}"'
        newest, online = con.execute(
            f"SELECT max({time}), max({time}) FILTER ({time} <= $brought) FROM rows WHERE {time} <= $as_of",
            {"as_of": as_of, "brought": brought},
        ).fetchall()[0]
    return Freshness(view.name, view.ttl or timedelta(0), newest, online, as_of)
