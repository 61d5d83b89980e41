"""What every trainer returns: a model that takes typed rows, saved in files that run no code when loaded."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from headrace.training.encoding import Encoder

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

Framework = Literal["xgboost", "torch", "sklearn"]

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
        """Write ``model.json`` and the framework's own file into ``directory``, made if need be."""
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


def load(directory: Path) -> Model:
    """Return the model that ``Model.save`` wrote; only its own framework is imported."""
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
