"""Training: one module per framework, each with ``fit``, ``predict``, ``save`` and ``load``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from dask.distributed import Client
    from numpy.typing import NDArray

    from headrace.pipeline import Candidate, Columns
    from headrace.training.model import Model


def fit(
    candidate: Candidate, rows: pa.Table, labels: NDArray[np.integer], columns: Columns, client: Client
) -> Model:
    """Train ``candidate`` on the workers of ``client``; same inputs, same workers: same model.

    Args:
        candidate: Which trainer, with which parameters and seed.
        rows: The inputs, holding at least ``columns``, in an order that is part of the inputs.
        labels: True classes, shape ``(n,)``, each 0 or 1, in the order of ``rows``.
        columns: What the model takes.
        client: See ``headrace.cluster``.

    Raises:
        MissingInputs: ``rows`` lacks one of ``columns``.
        ServerUnreachable: ``client`` has no workers.
        TypeError: A parameter the trainer does not take.
    """
    trainer = import_module(f"headrace.training.{candidate.trainer}")
    model: Model = trainer.fit(candidate.params, candidate.seed, rows, labels, columns=columns, client=client)
    return model
