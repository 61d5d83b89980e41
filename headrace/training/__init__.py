"""Training: from rows and targets to a model, by whichever framework a candidate names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.training.encoding import Encoder
from headrace.training.model import Model
from headrace.training.trainers import trainer

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from dask.distributed import Client
    from numpy.typing import NDArray

    from headrace.pipeline import Candidate, Columns
    from headrace.problem import Problem

__all__ = ["Encoder", "Model", "fit"]


def fit(
    candidate: Candidate,
    rows: pa.Table,
    targets: NDArray[np.float64],
    columns: Columns,
    problem: Problem,
    client: Client,
) -> Model:
    """Train ``candidate`` on the workers of ``client``; same inputs, same workers: same model.

    Args:
        candidate: Which trainer, with which parameters and seed.
        rows: The inputs, holding at least ``columns``, in an order that is part of the inputs.
        targets: What ``problem`` makes of the labels, shape ``(n,)``, in the order of ``rows``.
        columns: What the model takes.
        problem: What is asked.
        client: See ``headrace.cluster``.

    Raises:
        UnknownTrainer: There is no such trainer.
        MissingInputs: ``rows`` lacks one of ``columns``.
        ServerUnreachable: ``client`` has no workers.
        TypeError: A parameter the trainer does not take.
    """
    native = trainer(candidate.trainer).fit(
        candidate.params, candidate.seed, rows, targets, columns=columns, problem=problem, client=client
    )
    return Model(candidate.trainer, problem, native)
