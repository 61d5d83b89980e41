"""What every kind of problem must know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.problem.naive import Seasonal  # noqa: TC001  # the checks of a declaration read the annotations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

EDGE = 1e-6
"""How far probabilities stay from 0 and 1, and rates from 0, so that every loss is finite."""
RISING = frozenset({"auc", "accuracy"})
"""The scores of which more is better."""
FALLING = frozenset({"log_loss", "brier", "mae", "rmse", "pinball", "poisson_deviance"})
"""The scores of which less is better; of others, such as a bias or a coverage, neither is."""


@dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """A kind of question.

    A *label* is the truth as a pipeline's query gives it; a *target* is that as a number, for
    trainers and losses. A prediction is ``width`` numbers: an array of predictions has the shape
    ``(n,)`` where that is one, and else ``(n, width)``.

    ``naive`` is what a first release must beat: without it, the best that the past's labels
    alone let one say of every row; or the truth of a season before.
    """

    naive: Seasonal | None = field(default=None, repr=False)

    @property
    @abstractmethod
    def objective(self) -> str:
        """What trainers minimise: binary, classes, squared, absolute, poisson or quantile."""

    @property
    @abstractmethod
    def loss_unit(self) -> str:
        """What a row's loss is counted in, in words that follow a number."""

    @property
    @abstractmethod
    def expected(self) -> str:
        """What a label must be, in words."""

    @property
    @abstractmethod
    def label_type(self) -> pa.DataType:
        """The type that a training set keeps labels in."""

    @property
    @abstractmethod
    def columns(self) -> dict[str, pa.DataType]:
        """The columns of a prediction, and their types."""

    @property
    @abstractmethod
    def shown(self) -> dict[str, str]:
        """The scores that people look at, each with its title: the one that says most comes first."""

    @property
    def width(self) -> int:
        """How many numbers a trainer predicts for a row."""
        return 1

    @property
    def labels(self) -> tuple[Any, ...]:
        """What a label may be, if that is one of a few."""
        return ()

    @property
    def levels(self) -> tuple[float, ...]:
        """The quantiles that are asked for, if any are."""
        return ()

    @property
    def bounds(self) -> dict[str, tuple[float | None, float | None]]:
        """Between which numbers a column of a prediction lies, ends included."""
        return {}

    @property
    def values(self) -> dict[str, tuple[Any, ...]]:
        """The values that a column of a prediction may have."""
        return {}

    @abstractmethod
    def unfit(self, labels: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return those of ``labels`` that cannot be the truth, such as nulls."""

    @abstractmethod
    def encode(self, labels: pa.ChunkedArray) -> Floats:
        """Return ``labels``, none of them unfit, as targets, shape ``(n,)``."""

    @abstractmethod
    def checked(self, raw: ArrayLike) -> Floats:
        """Return what a trainer predicted as predictions, each such that its loss is finite.

        Raises:
            ValueError: It has another shape than predictions have, or is not finite.
        """

    @abstractmethod
    def named(self, predictions: Floats) -> dict[str, pa.Array]:
        """Return ``predictions`` as ``columns``."""

    @abstractmethod
    def predicted(self, rows: pa.Table) -> Floats:
        """Return the predictions that ``named`` put into ``rows``."""

    @abstractmethod
    def losses(self, targets: ArrayLike, predictions: ArrayLike) -> Floats:
        """Return what each row costs, shape ``(n,)``, in ``loss_unit``.

        Raises:
            ValueError: Shapes do not fit, there are no rows, or a value is out of its range.
        """

    @abstractmethod
    def constant(self, targets: Floats) -> Floats:
        """Return the prediction, shape ``(width,)``, that costs least if made for all of ``targets``."""

    @abstractmethod
    def miscalibration(self, targets: Floats, predictions: Floats) -> float:
        """Return how far what is predicted lies from what comes true, over many rows; 0 is not at all."""

    def chances(self, predictions: Floats) -> Floats:
        """Return what is predicted of each of ``labels``, shape ``(n, labels)``: their probabilities."""
        return np.empty((len(predictions), 0))

    @abstractmethod
    def expected_scores(self, outlook: Floats, predictions: Floats, weights: Floats) -> dict[str, float]:
        """Return the scores that ``predictions`` have on the mean, without any truth.

        Args:
            outlook: How likely each of ``labels`` is, shape ``(n, labels)``; where there are none, what each
                row costs on the mean, shape ``(n,)``.
            predictions: In the same order.
            weights: How much each row counts, shape ``(n,)``.
        """

    @abstractmethod
    def _scores(self, targets: Floats, predictions: Floats) -> Iterator[tuple[str, float]]: ...

    @abstractmethod
    def draw(self, left: Axes, right: Axes, targets: Floats, predictions: Floats) -> None:
        """Draw ``predictions`` beside the truth, on two of matplotlib's axes."""

    @abstractmethod
    def slips(self) -> Iterator[str]:
        """Yield what is wrong with the declaration, in words that follow its place."""

    def shaped(self, constants: Floats) -> Floats:
        """Return predictions of shape ``(n, width)`` as predictions are."""
        return constants[:, 0] if self.width == 1 else constants

    def scores(self, targets: ArrayLike, predictions: ArrayLike) -> dict[str, float]:
        """Score ``predictions``; a score that such rows do not have is left out.

        ``skill`` is the share of loss saved over the best constant for these very rows: 1 is perfect, 0
        no better. So it can be compared between a quiet week and a stormy one, where losses cannot.

        Args:
            targets: Shape ``(n,)``.
            predictions: Shape ``(n,)`` or ``(n, width)``, in the same order.

        Raises:
            ValueError: As of ``losses``.
        """
        losses = self.losses(targets, predictions)
        y, p = np.asarray(targets, np.float64), np.asarray(predictions, np.float64)
        naive = self.shaped(np.tile(self.constant(y), (y.size, 1)))
        of_constant = float(self.losses(y, naive).mean())
        found = dict(self._scores(y, p)) | {"rows": float(y.size)}
        found["calibration_error"] = self.miscalibration(y, p)
        if y.min() < y.max():  # of one class, or of equal values, the constant knows all
            found["skill"] = 1 - float(losses.mean()) / of_constant
        return {name: float(value) for name, value in found.items() if np.isfinite(value)}

    def told(self, scores: Mapping[str, float], most: int | None = None) -> str:
        """Return the scores that people look at, or ``most`` of them, in one line.

        >>> from headrace.problem import Binary
        >>> Binary().told({"auc": 0.7, "log_loss": 0.5, "rows": 10.0})
        'AUC 0.7, log-loss 0.5'
        """
        there = [name for name in self.shown if name in scores][:most]
        return ", ".join(f"{self.shown[name]} {scores[name]:.4g}" for name in there)

    def to_json(self) -> dict[str, Any]:
        """Return the problem as plain JSON values, for a model to be kept with."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "naive"}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
        return {"kind": type(self).__name__, **plain}

    def _checked_shape(self, raw: ArrayLike) -> Floats:
        found = np.asarray(raw, np.float64)
        if self.width == 1 and found.ndim == 2 and found.shape[1] == 1:
            found = found[:, 0]
        wanted = "(n,)" if self.width == 1 else f"(n, {self.width})"
        if found.ndim != (1 if self.width == 1 else 2) or (found.ndim == 2 and found.shape[1] != self.width):
            raise ValueError(f"Need predictions of shape {wanted}; got {found.shape}.")
        if not np.isfinite(found).all():
            raise ValueError(f"{int((~np.isfinite(found)).sum()):,} of the predictions are not finite.")
        return found

    def _same_rows(self, targets: ArrayLike, predictions: ArrayLike) -> tuple[Floats, Floats]:
        y, p = np.asarray(targets, np.float64), np.asarray(predictions, np.float64)
        wanted = (y.size,) if self.width == 1 else (y.size, self.width)
        if y.ndim != 1 or p.shape != wanted or not y.size:
            raise ValueError(f"Need shapes (n,) and {wanted}, n >= 1; got {y.shape} and {p.shape}.")
        return y, p
