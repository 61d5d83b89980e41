"""A vintage: the model that would have been trained of what was known at an instant; kept in a folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace import spine
from headrace.instants import read, stamp
from headrace.monitoring import contributions
from headrace.monitoring.reference import Reference
from headrace.release.trial import choose, fit, settled
from headrace.training import dataset
from headrace.training.model import load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    import pyarrow as pa
    from numpy.typing import NDArray

    from headrace.lake import DatasetRef, Lake
    from headrace.pipeline import Pipeline
    from headrace.training import Model

ABOUT, REFERENCE, PROVEN, MAKING = "vintage.json", "reference.parquet", "proven.parquet", "making-"


@dataclass(frozen=True)
class Vintage:
    """A model of what was known ``at`` an instant (UTC), with what is to be known of it later."""

    folder: Path

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """Return the candidate that was chosen, its scores on the holdout, and why others failed."""
        found: Mapping[str, Any] = json.loads((self.folder / ABOUT).read_text())
        return found

    @property
    def at(self) -> datetime:
        """Of what was known when (UTC)."""
        return read(self.about["at"])

    @cached_property
    def model(self) -> Model:
        """The model."""
        return load(self.folder / "model")

    @cached_property
    def reference(self) -> Reference:
        """The summary of what it learnt from, and was proven on."""
        return Reference.load((self.folder / REFERENCE).read_bytes())

    @cached_property
    def proven(self) -> pa.Table:
        """The rows that it was proven on, with what it predicted and the truth."""
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / PROVEN)

    @cached_property
    def ignored(self) -> set[str]:
        """The columns that it does not go by."""
        return contributions.ignored(contributions.shares(self.model, self.proven))

    def predicted(self, rows: Path) -> NDArray[np.float64]:
        """Return what it predicts of the rows of a file, as ``Model.predict`` does; once."""
        import pyarrow.parquet as pq

        kept = self.folder / f"predicted-{rows.stem}.npy"
        if not kept.exists():
            asked, problem = pq.read_table(rows), self.model.problem
            nothing = np.empty((0,) if problem.width == 1 else (0, problem.width))
            whole = self.model.predict(asked) if asked.num_rows else nothing
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".npy", delete=False) as file:
                np.save(file, whole)
            Path(file.name).replace(kept)
        found: NDArray[np.float64] = np.load(kept)
        return found


def make(
    spec: Pipeline, data: DatasetRef, lake: Lake, at: datetime, every: timedelta, folder: Path
) -> Vintage:
    """Train as the flow ``train`` does, in one thread; keep the model in ``folder``, whole or not at all.

    A candidate that fails is left out, unless none is left.
    """
    if (folder / ABOUT).exists():
        return Vintage(folder)
    final = not spec.selects
    fitted, failed = [], dict[str, Exception]()
    for candidate in spec.candidates:
        try:
            fitted.append(fit(spec, candidate, data, lake, None, final=final))
        except Exception as error:  # noqa: BLE001 - as of the flow: the others go on
            failed[candidate.name] = error
    if not fitted:
        raise next(iter(failed.values()))
    chosen = choose(spec, fitted)
    if not final:
        chosen = fit(spec, settled(spec, chosen), data, lake, None, final=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=MAKING) as scratch:
        place = Path(scratch, "whole")
        chosen.model.save(place / "model")
        _summarise(spec, chosen.model, data, lake, every, place)
        about = {
            "at": stamp(at),
            "candidate": chosen.candidate,
            "rows": data.rows,
            "fingerprint": data.fingerprint,
            "promised": spec.problem.scores(chosen.truth, chosen.predictions),
            "failed": {name: f"{type(error).__name__}: {error}" for name, error in failed.items()},
        }
        (place / ABOUT).write_text(json.dumps(about, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        place.rename(folder)
    return Vintage(folder)


def _summarise(
    spec: Pipeline, model: Model, data: DatasetRef, lake: Lake, every: timedelta, folder: Path
) -> None:
    """Keep what drift is told by, and the rows that the model was proven on: as ``monitor`` does."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = dataset.read(spec, data, lake)
    seen = with_predictions(spec, rows, model.predict(rows))
    (folder / REFERENCE).write_bytes(Reference.of(seen, spec.watched, every).dump())
    pq.write_table(seen.filter(pc.equal(seen["span"], spine.HOLDOUT)), folder / PROVEN, compression="zstd")


def with_predictions(spec: Pipeline, rows: pa.Table, predicted: NDArray[np.float64]) -> pa.Table:
    """Return ``rows`` with what was ``predicted`` of them, as ``Model.predict`` has it."""
    for name, values in spec.problem.named(predicted).items():
        rows = rows.append_column(name, values)
    return rows


def work(
    spec: Pipeline,
    data: DatasetRef,
    lake: Lake,
    at: datetime,
    every: timedelta,
    folder: Path,
    later: Sequence[Path],
) -> None:
    """Make a vintage, and let it predict the windows ``later``: by one thread of a worker."""
    vintage = make(spec, data, lake, at, every, folder)
    for rows in later:
        vintage.predicted(rows)
