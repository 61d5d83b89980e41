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

from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
from feast.infra.registry.file import FileRegistryStore
from pydantic import Field

from headrace.feature_store import brought
from headrace.settings import Settings

if TYPE_CHECKING:
    from feast import RepoConfig
    from feast.protos.feast.core.Registry_pb2 import Registry
    from feast.repo_config import RegistryConfig


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
    """As Feast's own, with another type and place."""

    # Feast asks for a type of the store's own class name
    type: Literal["headrace.feature_store.embedded.HomeSqliteOnlineStore"] = Field(  # type: ignore[assignment]
        "headrace.feature_store.embedded.HomeSqliteOnlineStore"
    )
    path: str = "feast/online.db"


class HomeSqliteOnlineStore(SqliteOnlineStore):
    """Feast's SQLite online store; only where its file lies differs."""

    @staticmethod
    def _get_db_path(config: RepoConfig) -> str:
        return str(below_home(config.online_store.path, config.repo_path))
