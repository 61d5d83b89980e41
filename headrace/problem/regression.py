"""How much will it be? A prediction is a number, and an interval where quantiles are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from headrace.problem import figures
from headrace.problem.base import EDGE, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from headrace.problem.base import Floats


@dataclass(frozen=True)
class Regression(Problem):
    """A number, counted in ``unit``, such as minutes.

    ``loss`` says what is to be found, and what an error costs: ``squared`` the mean; ``absolute`` the
    median, where a few values are huge; ``poisson`` the mean of counts, 0 or more (their deviance);
    ``quantile`` the ``quantiles`` (the mean of their pinball losses): one; or three, of which the
    middle one is the ``prediction``, between ``prediction_low`` and ``prediction_high``.
    """

    loss: Literal["squared", "absolute", "poisson", "quantile"] = "squared"
    unit: str = ""
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)

    @property
    def objective(self) -> str:
        """The loss."""
        return self.loss

    @property
    def loss_unit(self) -> str:
        """The unit's, squared if errors are."""
        if self.loss == "poisson":
            return "of deviance"
        if self.loss == "squared":
            return f"{self.unit}²" if self.unit else "of squared error"
        return self.unit or "of error"

    @property
    def expected(self) -> str:
        """A number."""
        return "a number, 0 or more" if self.loss == "poisson" else "a finite number"

    @property
    def label_type(self) -> pa.DataType:
        """A float."""
        import pyarrow as pa

        return pa.float64()

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The number, and the ends of its interval if there is one."""
        import pyarrow as pa

        names = ["prediction", *(["prediction_low", "prediction_high"] if self.width > 1 else [])]
        return dict.fromkeys(names, pa.float64())

    @property
    def bounds(self) -> dict[str, tuple[float | None, float | None]]:
        """None, but of what is counted."""
        return dict.fromkeys(self.columns, (0, None)) if self.loss == "poisson" else {}

    @property
    def shown(self) -> dict[str, str]:
        """What is minimised, and how far predictions are off."""
        off = {"mae": "mean absolute error", "rmse": "root mean squared error", "bias": "bias"}
        if self.loss == "quantile":
            return {"pinball": "pinball loss", "coverage": "coverage", "mae": off["mae"]}
        if self.loss == "poisson":
            return {"poisson_deviance": "Poisson deviance", **off}
        return off if self.loss == "absolute" else {"rmse": off["rmse"], **off}

    @property
    def levels(self) -> tuple[float, ...]:
        """The quantiles, if they are what is minimised."""
        return self.quantiles if self.loss == "quantile" else ()

    @property
    def width(self) -> int:
        """One number, or one for each quantile."""
        return len(self.levels) or 1

    def unfit(self, labels: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return labels that are no numbers, or not finite, or negative where they count."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = labels.type
        numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
        if not any(fits(kind) for fits in numbers):
            return labels
        values = labels.cast(pa.float64(), safe=False)
        fit = pc.is_finite(values)
        if self.loss == "poisson":
            fit = pc.and_(fit, pc.greater_equal(values, 0.0))
        return labels.filter(pc.invert(pc.fill_null(fit, fill_value=False)))

    def encode(self, labels: pa.ChunkedArray) -> Floats:
        """Return the numbers."""
        import pyarrow as pa

        return labels.cast(pa.float64(), safe=False).to_numpy()

    def checked(self, raw: ArrayLike) -> Floats:
        """Return numbers: quantiles in order, counts above 0."""
        found = self._checked_shape(raw)
        if self.loss == "poisson":
            return np.maximum(found, EDGE)
        return np.sort(found, axis=1) if self.width > 1 else found

    def named(self, predictions: Floats) -> dict[str, pa.Array]:
        """Return the column of numbers, and those of the interval's ends."""
        import pyarrow as pa

        if self.width == 1:
            return {"prediction": pa.array(predictions, pa.float64())}
        low, middle, high = (pa.array(predictions[:, place], pa.float64()) for place in range(3))
        return {"prediction": middle, "prediction_low": low, "prediction_high": high}

    def predicted(self, rows: pa.Table) -> Floats:
        """Return the numbers, or quantiles."""
        if self.width == 1:
            return rows["prediction"].to_numpy()
        ordered = ("prediction_low", "prediction", "prediction_high")
        return np.column_stack([rows[name].to_numpy() for name in ordered])

    def losses(self, targets: ArrayLike, predictions: ArrayLike) -> Floats:
        """Return each row's loss.

        >>> Regression("absolute").losses([1.0, 2.0], [3.0, 2.5])
        array([2. , 0.5])
        """
        y, p = self._same_rows(targets, predictions)
        if not (np.isfinite(y).all() and np.isfinite(p).all()):
            raise ValueError("Targets and predictions must be finite.")
        if self.loss == "poisson":
            if (y < 0).any() or (p <= 0).any():
                raise ValueError("Targets must be 0 or more, predictions above 0.")
            return 2 * (np.where(y > 0, y * np.log(np.maximum(y, np.finfo(float).tiny) / p), 0.0) - y + p)
        if self.loss == "quantile":
            off = y[:, None] - p.reshape(y.size, -1)
            levels = np.array(self.levels)
            return np.maximum(levels * off, (levels - 1) * off).mean(axis=1)
        return (y - p) ** 2 if self.loss == "squared" else np.abs(y - p)

    def constant(self, targets: Floats) -> Floats:
        """Return the mean, the median, or the quantiles."""
        if self.loss == "quantile":
            return np.quantile(targets, self.quantiles)
        if self.loss == "absolute":
            return np.atleast_1d(np.median(targets))
        mean = np.atleast_1d(targets.mean())
        return np.maximum(mean, EDGE) if self.loss == "poisson" else mean

    def _scores(self, targets: Floats, predictions: Floats) -> Iterator[tuple[str, float]]:
        several, off = predictions.reshape(targets.size, -1), self._middle(predictions) - targets
        if self.loss in ("poisson", "quantile"):
            name = "pinball" if self.loss == "quantile" else "poisson_deviance"
            yield name, float(self.losses(targets, predictions).mean())
        if self.loss == "quantile":  # of a single one, the share of truths that it is not below
            low = several[:, 0] if self.width > 1 else -np.inf
            yield "coverage", float(((low <= targets) & (targets <= several[:, -1])).mean())
        yield "mae", float(np.abs(off).mean())
        yield "rmse", float(np.sqrt((off**2).mean()))
        yield "bias", float(off.mean())

    def expected_scores(self, outlook: Floats, predictions: Floats, weights: Floats) -> dict[str, float]:
        """Return the score that the mean loss is: of squares its root, in the unit of the truth."""
        mean = max(float(np.average(outlook, weights=weights)), 0.0)
        if self.loss == "squared":
            return {"rmse": float(np.sqrt(mean))}
        names = {"absolute": "mae", "poisson": "poisson_deviance", "quantile": "pinball"}
        return {names[self.loss]: mean}

    def miscalibration(self, targets: Floats, predictions: Floats) -> float:
        """Return the bias as a share of the truth's spread; of quantiles, how far they are off their level.

        That is by how much the share of truths below them is, however those that equal them are counted.
        """
        if self.loss in ("squared", "poisson"):
            return abs(float((predictions - targets).mean())) / max(float(targets.std()), EDGE)
        levels, several = self.levels or (0.5,), predictions.reshape(targets.size, -1)
        below = (several > targets[:, None]).mean(axis=0), (several >= targets[:, None]).mean(axis=0)
        return float(np.maximum(np.maximum(below[0] - levels, levels - below[1]), 0).max())

    def _middle(self, predictions: Floats) -> Floats:
        return predictions[:, predictions.shape[1] // 2] if predictions.ndim > 1 else predictions

    def draw(self, left: Axes, right: Axes, targets: Floats, predictions: Floats) -> None:
        """Draw predictions against the truth, and residuals."""
        figures.against(left, targets, self._middle(predictions), self.unit)
        figures.residuals(right, self._middle(predictions) - targets, self.unit)

    def slips(self) -> Iterator[str]:
        """Yield what is wrong with the quantiles."""
        levels = self.quantiles
        if len(levels) not in (1, 3):
            yield f"names {len(levels)} quantiles, but it takes one, or three for a value and its interval"
        if list(levels) != sorted(set(levels)) or not all(0 < level < 1 for level in levels):
            yield f"names the quantiles {levels}, which must lie between 0 and 1, in rising order"
