"""What may be wrong with training sets, trainers and models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import HeadraceError
from headrace.instants import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime


class MissingInputs(HeadraceError):
    """Rows lack columns the model takes."""

    def __init__(self, missing: Sequence[str], found: Sequence[str]) -> None:
        self.missing, self.found = tuple(missing), tuple(found)
        super().__init__(
            f"The model takes {', '.join(f'`{c}`' for c in missing)}, but the rows have only "
            f"{', '.join(found) or 'no columns'}. Nothing was computed. Add the columns (null where "
            "unknown), or change `columns` in the pipeline's declaration and train again."
        )


class UnfitInputs(HeadraceError):
    """Inputs of a model are of types that no model takes."""

    def __init__(self, pipeline: str, unfit: Mapping[str, str]) -> None:
        self.pipeline, self.unfit = pipeline, dict(unfit)
        told = ", ".join(f"`{column}` ({kind})" for column, kind in unfit.items())
        super().__init__(
            f"The model of pipeline `{pipeline}` is to take {told}; it takes integers, floats, decimals and "
            "booleans, and text as a category. No training set was written. Compute from it what the model "
            "shall know, such as `hour(at)`, `epoch(at)` or `len(items)`, in the spine or in the features' "
            f"SQL, or take it out of `columns` in `pipelines/{pipeline}.py`."
        )


class NothingToLearn(HeadraceError):
    """What happened is the same in all rows to train on."""

    def __init__(self, pipeline: str, rows: int, label: object, as_of: datetime) -> None:
        self.pipeline, self.rows, self.label, self.as_of = pipeline, rows, label, as_of
        super().__init__(
            f"All {rows:,} rows to train pipeline `{pipeline}` on, as of {shown(as_of)} UTC, have the label "
            f"{label!r}: there is nothing to tell apart. No training set was written. Look at the query "
            f"`label` in `pipelines/{pipeline}.py`, or train later, when something else has happened."
        )


class UnknownTrainer(HeadraceError):
    """What a candidate names as its trainer is none."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"No trainer `{name}`: {reason}")


class BadOutputs(HeadraceError):
    """What a trainer predicts is no prediction of its problem."""

    def __init__(self, trainer: str, reason: str) -> None:
        self.trainer, self.reason = trainer, reason
        super().__init__(
            f"Trainer `{trainer}` does not predict what its pipeline's problem asks for. {reason} Nothing of "
            "it was kept. See `Trainer` in headrace/training/trainers.py for what `predict` returns."
        )


class BadWeights(HeadraceError):
    """Rows cannot count as much as they are declared to."""

    def __init__(self, pipeline: str, column: str, bad: int, rows: int, first: object) -> None:
        self.pipeline, self.column, self.bad, self.rows, self.first = pipeline, column, bad, rows, first
        super().__init__(
            f"`weights.column` of pipeline `{pipeline}` names `{column}`, but {bad:,} of {rows:,} rows "
            f"hold no weight in it (first: {'null' if first is None else first}): a number, 0 or more. "
            f"Nothing was written. Correct the column, or the query in `pipelines/{pipeline}.py`."
        )


class GaveUp(HeadraceError):
    """Fitting was ended early, for others had done better by then; ``history`` is what its rounds came to."""

    def __init__(self, history: Mapping[str, Sequence[float]]) -> None:
        self.history = history
        super().__init__("Fitting was not worth going on with: others had lost less by then.")


class NotEnoughData(HeadraceError):
    """Too few labelled rows to train or to judge."""

    def __init__(self, pipeline: str, part: str, rows: int, least: int, as_of: datetime) -> None:
        self.pipeline, self.part, self.rows, self.least, self.as_of = pipeline, part, rows, least, as_of
        super().__init__(
            f"Pipeline `{pipeline}` has {rows:,} labelled rows {part} as of {as_of:%Y-%m-%d %H:%M} UTC, and "
            f"needs {least:,}. Run `cycle` first, if more is known by now, or train as of a later instant."
        )


class DamagedModel(HeadraceError):
    """The files of a model are not those that were written; nothing of them was read."""

    def __init__(self, place: str, wrong: Mapping[str, str], model: str = "") -> None:
        self.place, self.wrong, self.model = place, dict(wrong), model
        told = ", ".join(f"`{name}` {how}" for name, how in self.wrong.items())
        super().__init__(
            f"The model {model or 'in ' + place} is damaged: {told}{f', in {place}' if model else ''}. "
            "It was not loaded, for its predictions would be others. Restore the files from a backup; or let "
            "the version before serve (in MLflow, give it the alias `champion`); or run `train`, which makes "
            "a new one."
        )


class OlderModel(HeadraceError):
    """A model was written by an earlier headrace, in another form."""

    def __init__(self, place: str) -> None:
        self.place = place
        super().__init__(
            f"The model in {place} was written by an earlier headrace, in a form that is not read any more. "
            "Nothing of it was read. If it serves, take the alias `champion` from it in MLflow; then run the "
            "`train` flow."
        )
