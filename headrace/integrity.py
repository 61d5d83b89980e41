"""Integrity: are the rows and files that models were made of, and are, still those that were written?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace import registry, tracking
from headrace.lake import DamagedTable, NotBuilt, VersionGone
from headrace.training.errors import DamagedModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.lake import DatasetRef, Lake
    from headrace.tracking import MLflow


@dataclass(frozen=True)
class Checked:
    """What was compared, for which version of a pipeline's model; ``wrong`` is empty if it is as written."""

    version: int
    what: str
    wrong: str


def check(pipeline: str, lake: Lake, mlflow: MLflow) -> Iterator[Checked]:
    """Compare the files of each version, and each snapshot that it was made from, with what was noted then.

    A snapshot that several versions were made from is read once. All of its rows are read.
    """
    read: dict[DatasetRef, str] = {}
    for release in registry.versions(mlflow, pipeline):
        try:
            tracking.check_model(mlflow, release.model_uri)
            wrong = ""
        except DamagedModel as error:
            wrong = str(error)
        yield Checked(release.version, "model", wrong)
        for ref in tracking.inputs(mlflow, release.run_id):
            if ref not in read:
                read[ref] = _compared(ref, lake)
            yield Checked(release.version, f"{ref.table}@v{ref.version}", read[ref])


def _compared(ref: DatasetRef, lake: Lake) -> str:
    try:
        lake.check(ref)
    except (DamagedTable, VersionGone, NotBuilt) as error:
        return str(error)
    return ""
