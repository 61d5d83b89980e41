"""What every trainer returns: a model that takes typed rows, saved in files that run no code when loaded."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace import problem as problems
from headrace.training.errors import BadOutputs, DamagedModel, OlderModel
from headrace.training.trainers import trainer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from headrace.problem import Problem

SUMS = "SHA256SUMS"
"""The file of checksums, as ``sha256sum --check`` reads it."""


@dataclass(frozen=True)
class Model:
    """A fitted model: what its trainer made, and the problem that says what its numbers mean."""

    trainer: str
    problem: Problem
    native: Any

    def predict(self, rows: pa.Table | Mapping[str, Sequence[Any]]) -> NDArray[np.float64]:
        """Return the predictions for ``rows``, as the problem has them; of lists if the trainer is ``PLAIN``.

        Raises:
            MissingInputs: ``rows`` lacks a column the model takes.
            BadOutputs: What the trainer predicts is no prediction.
        """
        raw = trainer(self.trainer).predict(self.native, rows)
        try:
            return self.problem.checked(raw)
        except ValueError as error:
            raise BadOutputs(self.trainer, str(error)) from None

    def save(self, directory: Path) -> None:
        """Write ``model.json``, the trainer's own files and their checksums into ``directory``."""
        directory.mkdir(parents=True, exist_ok=True)
        maker = trainer(self.trainer)
        maker.save(self.native, directory)
        about = {
            "trainer": self.trainer,
            "problem": self.problem.to_json(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("headrace", *maker.PACKAGES)},
        }
        (directory / "model.json").write_text(json.dumps(about, indent=1) + "\n")
        files = sorted(file for file in directory.iterdir() if file.name != SUMS)
        (directory / SUMS).write_text("".join(f"{_sum(file)}  {file.name}\n" for file in files))


def digest(directory: Path) -> str:
    """Return a digest of all files that ``Model.save`` wrote: equal ones are equal models, byte for byte."""
    return _sum(directory / SUMS)


def sums(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that ``Model.save`` wrote, by name."""
    lines = (directory / SUMS).read_text(errors="replace").rstrip("\n").split("\n")
    return {name: told for told, _, name in (line.partition("  ") for line in lines)}


def check(directory: Path, digest: str = "") -> None:
    """Compare the files in ``directory`` with what was written, before anything reads them.

    A model that was saved before there were checksums, and has no ``digest`` either, passes.

    Raises:
        DamagedModel: A file differs or is gone; or it is another model than that of the ``digest``.
    """
    file = directory / SUMS
    if not file.exists():
        wrong = {SUMS: "is missing"} if digest or not (directory / "model.json").exists() else {}
    elif digest and _sum(file) != digest:
        wrong = {SUMS: "is not as it was written"}
    else:
        noted = sums(directory)
        wrong = {name: state for name, told in noted.items() if (state := _state(directory / name, told))}
        if "model.json" not in noted:
            wrong[SUMS] = "is not as it was written"
    if wrong:
        raise DamagedModel(str(directory), wrong)


def _state(file: Path, told: str) -> str:
    if not file.is_file():
        return "is missing"
    return "" if _sum(file) == told else "is not as it was written"


def _sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load(directory: Path, digest: str = "") -> Model:
    """Return the model that ``Model.save`` wrote; only its own framework is imported.

    Raises:
        DamagedModel: As of :func:`check`, which comes first: what parses models may crash on damaged ones.
        OlderModel: It is of a release whose models are not read any more.
        UnknownTrainer: Its trainer is not here.
    """
    check(directory, digest)
    about = json.loads((directory / "model.json").read_text())
    if "trainer" not in about:
        raise OlderModel(str(directory))
    native = trainer(about["trainer"]).load(directory)
    return Model(about["trainer"], problems.read(about["problem"]), native)


@dataclass(frozen=True)
class Served:
    """A model behind MLflow's pyfunc: pandas in, and pandas out: a column for each of the problem's."""

    model: Model

    def predict(self, frame: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return the predictions for a pandas frame; ``params`` are ignored."""
        import pyarrow as pa

        predictions = self.model.predict(pa.Table.from_pandas(frame, preserve_index=False))
        return pa.table(self.model.problem.named(predictions)).to_pandas()


def _load_pyfunc(data_path: str) -> Served:
    """Be MLflow's ``loader_module``: the name and signature are MLflow's."""
    return Served(load(Path(data_path)))
