"""What every trainer returns: a model that takes typed rows, saved in files that run no code when loaded."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from headrace.errors import DamagedModel
from headrace.training.encoding import Encoder

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

Framework = Literal["xgboost", "torch", "sklearn"]

SUMS = "SHA256SUMS"
"""The file of checksums, as ``sha256sum --check`` reads it."""

EDGE = 1e-6
"""How far probabilities stay from 0 and 1, so that every log-loss is finite."""


@dataclass(frozen=True)
class Model:
    """A fitted model of one framework, with the encoder it was fitted through."""

    framework: Framework
    encoder: Encoder
    native: Any

    def predict(self, rows: pa.Table) -> NDArray[np.float64]:
        """Return the probability of class 1, shape ``(n,)``, strictly inside (0, 1).

        Raises:
            MissingInputs: ``rows`` lacks a column the model takes.
        """
        raw = _trainer(self.framework).predict(self.native, self.encoder.encode(rows))
        return np.clip(np.asarray(raw, dtype=np.float64), EDGE, 1 - EDGE)

    def save(self, directory: Path) -> None:
        """Write ``model.json``, the framework's own file and their checksums into ``directory``."""
        directory.mkdir(parents=True, exist_ok=True)
        trainer = _trainer(self.framework)
        about = {
            "framework": self.framework,
            "architecture": trainer.save(self.native, directory),
            "encoder": self.encoder.to_json(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("headrace", trainer.DISTRIBUTION)},
        }
        (directory / "model.json").write_text(json.dumps(about, indent=1) + "\n")
        files = sorted(file for file in directory.iterdir() if file.name != SUMS)
        (directory / SUMS).write_text("".join(f"{_sum(file)}  {file.name}\n" for file in files))


def digest(directory: Path) -> str:
    """Return a digest of all files that ``Model.save`` wrote: equal ones are equal models, byte for byte."""
    return _sum(directory / SUMS)


def check(directory: Path, digest: str = "") -> None:
    """Compare the files in ``directory`` with what was written, before anything reads them.

    A model that was saved before there were checksums, and has no ``digest`` either, passes.

    Raises:
        DamagedModel: A file differs or is gone; or it is another model than that of the ``digest``.
    """
    sums = directory / SUMS
    if not sums.exists():
        wrong = {SUMS: "is missing"} if digest or not (directory / "model.json").exists() else {}
    elif digest and _sum(sums) != digest:
        wrong = {SUMS: "is not as it was written"}
    else:
        lines = sums.read_text(errors="replace").splitlines()
        noted = {name: told for told, _, name in (line.partition("  ") for line in lines)}
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
    """
    check(directory, digest)
    about = json.loads((directory / "model.json").read_text())
    native = _trainer(about["framework"]).load(directory, about["architecture"])
    return Model(about["framework"], Encoder.from_json(about["encoder"]), native)


@dataclass(frozen=True)
class Served:
    """A model behind MLflow's pyfunc: pandas in, probabilities out."""

    model: Model

    def predict(self, frame: pd.DataFrame, params: dict[str, Any] | None = None) -> NDArray[np.float64]:
        """Return what ``Model.predict`` does, for a pandas frame; ``params`` are ignored."""
        import pyarrow as pa

        return self.model.predict(pa.Table.from_pandas(frame, preserve_index=False))


def _load_pyfunc(data_path: str) -> Served:
    """Be MLflow's ``loader_module``: the name and signature are MLflow's."""
    return Served(load(Path(data_path)))


def _trainer(framework: Framework) -> Any:
    return import_module(f"headrace.training.{framework}")
