"""Feast's embedded state, a registry file and a SQLite online store, below the headrace home.

Feast expands ``$VARIABLES`` in its YAML but knows no default for one that is
unset, and takes relative paths from the repository. Here they are taken from
``HEADRACE_HOME`` or, without it, from ``.headrace`` beside the repository, so
that Feast's own command line, started anywhere, finds what the flows use.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
from feast.infra.registry.file import FileRegistryStore
from pydantic import Field

from headrace.feature_store.feast import brought
from headrace.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast import FeatureView, RepoConfig
    from feast.protos.feast.core.Registry_pb2 import Registry
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.repo_config import RegistryConfig

    Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]


def settings_beside(repo: Path | None) -> Settings:
    """Return the settings as they are for Feast's own command line, which may run in any directory."""
    beside = Path(repo or ".").absolute().parent / ".headrace"
    return Settings() if os.environ.get("HEADRACE_HOME") else Settings(home=beside)


def below_home(path: str, repo: Path | None) -> Path:
    """Return ``path`` below the headrace home, unless it is absolute; its folder exists afterwards."""
    place = settings_beside(repo).home / path
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


class HomeRegistryStore(FileRegistryStore):
    """Feast's registry file, replaced as a whole: a process killed while writing leaves the old one.

    Intervals that meet are kept as one, so that the file does not grow with each materialisation.
    """

    def __init__(self, registry_config: RegistryConfig, repo_path: Path) -> None:
        self._filepath = below_home(registry_config.path, repo_path)

    def _write_registry(self, registry_proto: Registry) -> None:
        for view in [*registry_proto.feature_views, *registry_proto.stream_feature_views]:
            _join(view.meta)
        registry_proto.version_id = str(uuid4())
        registry_proto.last_updated.FromDatetime(datetime.now(UTC))
        with TemporaryDirectory(dir=self._filepath.parent) as scratch:
            whole = Path(scratch) / "registry.db"
            with whole.open("wb") as file:
                file.write(registry_proto.SerializeToString())
                file.flush()
                os.fsync(file.fileno())
            whole.replace(self._filepath)


def _join(meta: Any) -> None:
    intervals = meta.materialization_intervals
    noted = [(each.start_time.ToDatetime(UTC), each.end_time.ToDatetime(UTC)) for each in intervals]
    del intervals[:]
    for begin, end in brought.joined(noted):
        interval = intervals.add()
        interval.start_time.FromDatetime(begin)
        interval.end_time.FromDatetime(end)


class HomeSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):
    """As Feast's own, with another type and place; and rows may expire."""

    # Feast asks for a type of the store's own class name
    type: Literal["headrace.feature_store.feast.embedded.HomeSqliteOnlineStore"] = Field(  # type: ignore[assignment]
        "headrace.feature_store.feast.embedded.HomeSqliteOnlineStore"
    )
    path: str = "feast/online.db"
    expires: bool = Field(True, description="Answer with nothing once a row is older than its view's ttl")


class HomeSqliteOnlineStore(SqliteOnlineStore):
    """Feast's SQLite online store, in the home, serving what the join would give at the present.

    A row that comes late never replaces a newer one, and with ``expires`` one that
    is older than its view's ttl is not served.
    """

    @staticmethod
    def _get_db_path(config: RepoConfig) -> str:
        return str(below_home(config.online_store.path, config.repo_path))

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write what is pushed, or transformed by Feast's own engine, as :mod:`writers` do."""
        from headrace.feature_store.feast.writers import Sqlite, writer

        place = writer(config, self, table)
        if not isinstance(place, Sqlite):  # vectors, and what else is not of the plain layout
            super().online_write_batch(config, table, data, progress)
            return
        version = config.entity_key_serialization_version
        place.put((serialize_entity_key(key, version), row, at, created) for key, row, at, created in data)
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Return event time (UTC) and features of each key; None and None where there is no row to serve."""
        from headrace.feature_store.feast.asof import earliest

        found = super().online_read(config, table, entity_keys, requested_features)
        ttl = getattr(table, "ttl", None)
        oldest = earliest(datetime.now(UTC), ttl) if ttl and config.online_store.expires else None
        if not oldest:
            return found
        return [row if row[0] and row[0] >= oldest else (None, None) for row in found]
