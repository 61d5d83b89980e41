"""Which of these is it? Of two classes, a prediction is the probability of one; of more, of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.problem import figures
from headrace.problem.base import EDGE, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from headrace.problem.base import Floats

Label = str | int | bool


@dataclass(frozen=True)
class Binary(Problem):
    """Does it happen? A prediction is the ``probability`` of the ``positive`` label.

    Labels may be numbers, booleans or text; 1 is true, and 0 false.

    >>> Binary().scores([0, 1, 1, 0], [0.2, 0.8, 0.4, 0.4])["auc"]
    0.875
    """

    positive: Label = 1
    negative: Label = 0

    @property
    def objective(self) -> str:
        """A binary one."""
        return "binary"

    @property
    def loss_unit(self) -> str:
        """Log-loss to the base of e."""
        return "nats"

    @property
    def expected(self) -> str:
        """One of the two."""
        return f"{self.negative!r} or {self.positive!r}"

    @property
    def label_type(self) -> pa.DataType:
        """That of the two."""
        return _type(self._classes)

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """One probability."""
        import pyarrow as pa

        return {"probability": pa.float64()}

    @property
    def bounds(self) -> dict[str, tuple[float | None, float | None]]:
        """Those of a probability."""
        return {"probability": (0, 1)}

    @property
    def shown(self) -> dict[str, str]:
        """Ranking, cost, calibration."""
        return {"auc": "AUC", "log_loss": "log-loss", "brier": "Brier"}

    @property
    def labels(self) -> tuple[Any, ...]:
        """The two classes."""
        return self._classes

    @property
    def _classes(self) -> tuple[Label, Label]:
        return self.negative, self.positive

    def unfit(self, labels: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return labels that are neither."""
        return _others(self._classes, labels)

    def encode(self, labels: pa.ChunkedArray) -> Floats:
        """Return 1 where it happened, and 0 where not."""
        return _places(self._classes, labels).to_numpy().astype(np.float64)

    def checked(self, raw: ArrayLike) -> Floats:
        """Return probabilities strictly inside (0, 1)."""
        return np.clip(self._checked_shape(raw), EDGE, 1 - EDGE)

    def named(self, predictions: Floats) -> dict[str, pa.Array]:
        """Return the column of probabilities."""
        import pyarrow as pa

        return {"probability": pa.array(predictions, pa.float64())}

    def predicted(self, rows: pa.Table) -> Floats:
        """Return the column of probabilities."""
        return rows["probability"].to_numpy()

    def losses(self, targets: ArrayLike, predictions: ArrayLike) -> Floats:
        """Return each row's log-loss.

        >>> Binary().losses([1, 0], [0.5, 0.2]).round(3)
        array([0.693, 0.223])
        """
        y, p = self._same_rows(targets, predictions)
        if not np.isin(y, (0, 1)).all():
            raise ValueError("Targets must be 0 or 1.")
        if not ((p > 0) & (p < 1)).all():
            raise ValueError("Probabilities must be inside (0, 1).")
        return -np.log(np.where(y == 1, p, 1 - p))

    def constant(self, targets: Floats) -> Floats:
        """Return the base rate."""
        return np.clip(np.atleast_1d(targets.mean()), EDGE, 1 - EDGE)

    def _scores(self, targets: Floats, predictions: Floats) -> Iterator[tuple[str, float]]:
        yield "auc", _auc(targets, 1 - targets, predictions)
        yield "log_loss", float(self.losses(targets, predictions).mean())
        yield "brier", float(((predictions - targets) ** 2).mean())
        yield "positives", float(targets.sum())

    def chances(self, predictions: Floats) -> Floats:
        """Return the probabilities of both."""
        return np.stack([1 - predictions, predictions], axis=1)

    def expected_scores(self, outlook: Floats, predictions: Floats, weights: Floats) -> dict[str, float]:
        """Return the scores that are to be expected."""
        p = self.chances(predictions)
        weighed = outlook * weights[:, None]
        found = {"auc": _auc(weighed[:, 1], weighed[:, 0], predictions)}
        found["brier"] = float((weighed * (1 - p) ** 2).sum() / weights.sum())
        return _kept(found | _expected(weighed, p))

    def miscalibration(self, targets: Floats, predictions: Floats) -> float:
        """Return the expected calibration error."""
        return figures.calibration_error(targets == 1, predictions)

    def draw(self, left: Axes, right: Axes, targets: Floats, predictions: Floats) -> None:
        """Draw ROC and calibration."""
        figures.roc(left, {str(self.positive): (targets == 1, predictions)})
        figures.calibration(right, targets == 1, predictions)

    def slips(self) -> Iterator[str]:
        """Yield what is wrong with the two labels."""
        return _slips(self._classes, least=2)


@dataclass(frozen=True)
class MultiClass(Problem):
    """Which of the ``classes`` is it? A prediction is a probability of each, and the likeliest class.

    Its columns are ``probability_<class>``, in the order of ``classes``, and ``prediction``.
    """

    classes: tuple[str, ...] | tuple[int, ...]

    @property
    def labels(self) -> tuple[Any, ...]:
        """The classes."""
        return self.classes

    @property
    def objective(self) -> str:
        """One of classes."""
        return "classes"

    @property
    def loss_unit(self) -> str:
        """Log-loss to the base of e."""
        return "nats"

    @property
    def expected(self) -> str:
        """One of the classes."""
        return f"one of {', '.join(map(repr, self.classes))}"

    @property
    def label_type(self) -> pa.DataType:
        """That of the classes."""
        return _type(self.classes)

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """A probability for each class, and a class."""
        import pyarrow as pa

        return {f"probability_{label}": pa.float64() for label in self.classes} | {
            "prediction": self.label_type
        }

    @property
    def bounds(self) -> dict[str, tuple[float | None, float | None]]:
        """Those of probabilities."""
        return dict.fromkeys((f"probability_{label}" for label in self.classes), (0, 1))

    @property
    def values(self) -> dict[str, tuple[Any, ...]]:
        """The classes."""
        return {"prediction": self.classes}

    @property
    def shown(self) -> dict[str, str]:
        """Ranking (the mean over the classes, each against the others), cost, hits."""
        return {"auc": "AUC", "log_loss": "log-loss", "accuracy": "accuracy"}

    @property
    def width(self) -> int:
        """One for each class."""
        return len(self.classes)

    def unfit(self, labels: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return labels that are no class."""
        return _others(self.classes, labels)

    def encode(self, labels: pa.ChunkedArray) -> Floats:
        """Return each label's place among the classes."""
        return _places(self.classes, labels).to_numpy().astype(np.float64)

    def checked(self, raw: ArrayLike) -> Floats:
        """Return probabilities strictly inside (0, 1) that add up to 1."""
        inside = np.clip(self._checked_shape(raw), EDGE, 1 - EDGE)
        return inside / inside.sum(axis=1, keepdims=True)

    def named(self, predictions: Floats) -> dict[str, pa.Array]:
        """Return a column for each class, and the likeliest; of equals the first."""
        import pyarrow as pa

        each = {
            f"probability_{label}": pa.array(predictions[:, place], pa.float64())
            for place, label in enumerate(self.classes)
        }
        likeliest = pa.array(predictions.argmax(axis=1) if len(predictions) else [], pa.int64())
        return each | {"prediction": pa.array(self.classes, self.label_type).take(likeliest)}

    def predicted(self, rows: pa.Table) -> Floats:
        """Return the columns of the classes."""
        return np.column_stack([rows[f"probability_{label}"].to_numpy() for label in self.classes])

    def losses(self, targets: ArrayLike, predictions: ArrayLike) -> Floats:
        """Return each row's log-loss."""
        y, p = self._same_rows(targets, predictions)
        if not np.isin(y, np.arange(self.width)).all():
            raise ValueError(f"Targets must be whole numbers below {self.width}.")
        if not ((p > 0) & (p < 1)).all():
            raise ValueError("Probabilities must be inside (0, 1).")
        return -np.log(p[np.arange(y.size), y.astype(int)])

    def constant(self, targets: Floats) -> Floats:
        """Return each class's share."""
        shares = np.bincount(targets.astype(int), minlength=self.width) / max(targets.size, 1)
        inside = np.clip(shares, EDGE, 1 - EDGE)
        return inside / inside.sum()

    def _scores(self, targets: Floats, predictions: Floats) -> Iterator[tuple[str, float]]:
        yield "auc", self._auc(np.equal.outer(targets, np.arange(self.width)).astype(np.float64), predictions)
        yield "log_loss", float(self.losses(targets, predictions).mean())
        yield "accuracy", float((predictions.argmax(axis=1) == targets).mean())
        hits = np.arange(self.width) == targets[:, None]
        yield "brier", float(((predictions - hits) ** 2).sum(axis=1).mean())

    def _auc(self, hits: Floats, predictions: Floats) -> float:
        """Return the mean area of the classes, each against the others; ``hits`` are weights."""
        others = hits.sum(axis=1, keepdims=True) - hits
        each = [_auc(*column) for column in zip(hits.T, others.T, predictions.T, strict=True)]
        return float(np.nanmean(each)) if not np.isnan(each).all() else np.nan

    def chances(self, predictions: Floats) -> Floats:
        """Return the probabilities of all."""
        return predictions

    def expected_scores(self, outlook: Floats, predictions: Floats, weights: Floats) -> dict[str, float]:
        """Return the scores that are to be expected."""
        weighed, p = outlook * weights[:, None], predictions
        squares = (p**2).sum(axis=1, keepdims=True) - 2 * p + 1
        hits = weighed[np.arange(len(p)), p.argmax(axis=1)]
        found = {
            "auc": self._auc(weighed, p),
            "accuracy": float(hits.sum() / weights.sum()),
            "brier": float((weighed * squares).sum() / weights.sum()),
        }
        return _kept(found | _expected(weighed, p))

    def miscalibration(self, targets: Floats, predictions: Floats) -> float:
        """Return the mean of the classes' expected calibration errors."""
        each = enumerate(predictions.T)
        return float(np.mean([figures.calibration_error(targets == place, one) for place, one in each]))

    def draw(self, left: Axes, right: Axes, targets: Floats, predictions: Floats) -> None:
        """Draw confusion, and a ROC for each class against the others."""
        truth = targets.astype(np.int64)
        figures.confusion(left, truth, predictions.argmax(axis=1), self.classes)
        named = enumerate(self.classes)
        figures.roc(right, {str(name): (truth == place, predictions[:, place]) for place, name in named})

    def slips(self) -> Iterator[str]:
        """Yield what is wrong with the classes."""
        return _slips(self.classes, least=3)


def _slips(classes: Sequence[Label], least: int) -> Iterator[str]:
    if len(classes) < least:
        yield f"names {len(classes)} classes, but it takes {least} or more" + (
            "; of two, one asks `Binary(positive=…, negative=…)`" if len(classes) == 2 else ""
        )
    if len({type(label) for label in classes}) > 1:
        yield "names classes of several types"
    yield from (f"names the class {label!r} twice" for label, n in Counter(classes).items() if n > 1)


def _type(classes: Sequence[Label]) -> pa.DataType:
    import pyarrow as pa

    if isinstance(classes[0], bool):
        return pa.bool_()
    if isinstance(classes[0], str):
        return pa.string()
    return pa.int32() if all(-(2**31) <= int(label) < 2**31 for label in classes) else pa.int64()


def _places(classes: Sequence[Label], labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the place of each label among ``classes``, null for one that is none of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = labels.type
    if isinstance(classes[0], str):
        texts = (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_dictionary,
        )
        if not any(fits(kind) for fits in texts):
            return pa.chunked_array([pa.nulls(len(labels), pa.int32())])
        return pc.index_in(labels.cast(pa.string()), pa.array(classes, pa.string()), skip_nulls=True)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        number = pa.int64()
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        number = pa.float64()
    else:
        return pa.chunked_array([pa.nulls(len(labels), pa.int32())])
    known = pa.array([int(label) for label in classes]).cast(number)
    return pc.index_in(labels.cast(number, safe=False), known, skip_nulls=True)


def _others(classes: Sequence[Label], labels: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    return labels.filter(pc.is_null(_places(classes, labels)))


def _expected(weighed: Floats, p: Floats) -> dict[str, float]:
    """Return the loss to be expected, and the share saved over who knows how often each class comes."""
    shares = weighed.sum(axis=0)
    loss = -float((weighed * np.log(p)).sum() / shares.sum())
    of_constant = -float(shares @ np.log(np.clip(shares / shares.sum(), EDGE, 1)) / shares.sum())
    return {"log_loss": loss, "skill": 1 - loss / of_constant if of_constant > EDGE else np.nan}


def _kept(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _auc(positive: Floats, negative: Floats, p: Floats) -> float:
    """Return the area under the ROC curve; NaN where there is nothing to rank.

    ``positive`` and ``negative`` are how much each row counts as one and as the other, shape ``(n,)``.

    Source:
        Hanley and McNeil (1982), "The meaning and use of the area under a ROC curve", Radiology 143(1).
    """
    _, place = np.unique(p, return_inverse=True)
    ones, others = np.bincount(place, positive), np.bincount(place, negative)
    if not (pairs := ones.sum() * others.sum()) > 0:
        return float("nan")
    # Of ties half would be ordered right by chance.
    return float(ones @ (np.cumsum(others) - others / 2) / pairs)
