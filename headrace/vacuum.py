"""Vacuum: files of the lake that no model, pin or reader needs any more are told, and freed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace import registry, tracking

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import timedelta

    from headrace.lake import Lake
    from headrace.tracking import MLflow

FOLDERS = ("raw", "features", "training", "predictions", "out_of_sample")
"""What is in quarantine waits for a decision, and stays."""


@dataclass(frozen=True)
class Freed:
    """What of a table is not needed: ``files`` of ``size`` bytes; ``kept`` are versions before the newest."""

    table: str
    files: int
    size: int
    kept: Sequence[int]


def needed(mlflow: MLflow) -> dict[str, set[int]]:
    """Return, by table, the versions that registered models were made of, promoted or not.

    Those of pipelines that are no longer declared are among them.
    """
    found: dict[str, set[int]] = {}
    for name in registry.names(mlflow):
        for release in registry.versions(mlflow, name):
            refs = [(ref.table, ref.version) for ref in tracking.inputs(mlflow, release.run_id)]
            recipe = tracking.recipe(mlflow, release.run_id)
            pins = (
                [(str(table), int(version)) for table, version in recipe.training["pins"]] if recipe else []
            )
            for table, version in [(release.training.table, release.training.version), *refs, *pins]:
                found.setdefault(table, set()).add(version)
    return found


def vacuum(lake: Lake, keep: Mapping[str, set[int]], older_than: timedelta, *, free: bool) -> Iterator[Freed]:
    """Yield, for each table, what neither its newest version nor one of those to ``keep`` needs.

    Files younger than ``older_than`` stay: somebody may be writing, or reading, them. They are
    deleted if they are to be ``free``; killed on the way, the next run does the rest.
    """
    for name in tables(lake):
        table = lake.table(name)
        opened, kept = table.open(), sorted(filter(table.has, keep.get(name, ())))
        told: dict[str, Any] = {
            "retention_hours": int(older_than.total_seconds() // 3600),
            "enforce_retention_duration": False,
            "full": True,
            "keep_versions": [*kept, opened.version()],
        }
        # Delta names what was deleted before, too.
        sizes = lake.sizes(f"{name}/{file}" for file in opened.vacuum(dry_run=True, **told))
        if sizes and free:
            table.lasting().vacuum(dry_run=False, **told)
        yield Freed(name, len(sizes), sum(sizes), [version for version in kept if version < opened.version()])


def tables(lake: Lake) -> list[str]:
    """Return the names of the lake's tables, but for those in quarantine."""
    return [name for folder in FOLDERS for name in lake.below(folder)]
