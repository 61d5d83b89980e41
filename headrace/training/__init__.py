"""Training: from rows and targets to a model, by whichever framework a candidate names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.training.encoding import Encoder
from headrace.training.errors import GaveUp
from headrace.training.model import Model
from headrace.training.rows import InMemory, Rows
from headrace.training.trainers import hopeless, trainer

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    client: Client | None,
    selection: Rows | None = None,
    give_up: Mapping[int, float] | None = None,
) -> Model:
    """Train ``candidate`` on the workers of ``client``; same inputs, same workers: same model.

    Args:
        candidate: Which trainer, with which parameters and seed.
        rows: The inputs, at least ``columns``, with ``label`` and, if rows count differently, ``row_weight``;
            their order is part of the inputs.
        columns: What the model takes.
        problem: What is asked.
        client: See ``headrace.cluster``; without one it is done by this very thread.
        selection: Rows that come after, by which fitting may see when to stop.
        give_up: By number of rounds, the loss of the selection above which it is not worth going on.

    Raises:
        UnknownTrainer: There is no such trainer.
        MissingInputs: ``rows`` lacks one of ``columns``.
        ServerUnreachable: ``client`` has no workers.
        TypeError: A parameter the trainer does not take.
        GaveUp: The selection lost more than ``give_up`` allows.
    """
    native = trainer(candidate.trainer).fit(
        candidate.params,
        candidate.seed,
        rows if isinstance(rows, Rows) else InMemory(rows),
        columns=columns,
        problem=problem,
        client=client,
        selection=selection,
        give_up=give_up or {},
    )
    if hopeless(history := getattr(native, "history", {}), give_up or {}):
        raise GaveUp(history)
    return Model(candidate.trainer, problem, native)
