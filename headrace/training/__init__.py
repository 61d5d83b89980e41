"""Training: from rows and targets to a model, by whichever framework a candidate names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.training.encoding import Encoder
from headrace.training.model import Model
from headrace.training.rows import InMemory, Rows
from headrace.training.trainers import trainer

if TYPE_CHECKING:
    import pyarrow as pa
    from dask.distributed import Client

    from headrace.pipeline import Candidate, Columns
    from headrace.problem import Problem

__all__ = ["Encoder", "Model", "Rows", "fit"]


def fit(
    candidate: Candidate,
    rows: Rows | pa.Table,
    columns: Columns,
    problem: Problem,
    client: Client,
    selection: Rows | None = None,
) -> Model:
    """Train ``candidate`` on the workers of ``client``; same inputs, same workers: same model.

    Args:
        candidate: Which trainer, with which parameters and seed.
        rows: The inputs, at least ``columns``, with ``label`` and, if rows count differently, ``row_weight``;
            their order is part of the inputs.
        columns: What the model takes.
        problem: What is asked.
        client: See ``headrace.cluster``.
        selection: Rows that come after, by which fitting may see when to stop.

    Raises:
        UnknownTrainer: There is no such trainer.
        MissingInputs: ``rows`` lacks one of ``columns``.
        ServerUnreachable: ``client`` has no workers.
        TypeError: A parameter the trainer does not take.
    """
    native = trainer(candidate.trainer).fit(
        candidate.params,
        candidate.seed,
        rows if isinstance(rows, Rows) else InMemory(rows),
        columns=columns,
        problem=problem,
        client=client,
        selection=selection,
    )
    return Model(candidate.trainer, problem, native)
