"""Pictures of how predictions lie beside the truth: two panels, whichever the problem."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from headrace.problem.base import Floats, Problem

BINS = 10
"""Parts of equal size that calibration is shown in."""


def picture(problem: Problem, targets: Floats, predictions: Floats, title: str = "") -> bytes:
    """Return a PNG of what ``problem.draw`` draws of its predictions, beside the truth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    problem.draw(left, right, targets, predictions)
    figure.suptitle(plain(title))
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return file.getvalue()


def bars(values: Mapping[str, float], unit: str, title: str = "") -> bytes:
    """Return a PNG of ``values`` by name, the first on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.28 * len(values)), layout="constrained")
    axes = figure.subplots()
    names = [plain(name) for name in values]
    axes.barh(names[::-1], list(values.values())[::-1])
    axes.set(xlabel=plain(unit), title=plain(title))
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return file.getvalue()


def plain(name: object) -> str:
    """Return a name as matplotlib shows it as it is: between dollars it would read formulas."""
    return str(name).replace("$", r"\$")


def roc(axes: Axes, curves: dict[str, tuple[NDArray[np.bool_], Floats]]) -> None:
    """Draw, by name, who is positive against a score."""
    for name, (positive, score) in curves.items():
        order = np.argsort(-score, kind="stable")
        ends = np.r_[np.flatnonzero(np.diff(score[order])), score.size - 1]  # ties are one step
        hits = np.cumsum(positive[order])[ends]
        misses = ends + 1 - hits
        if hits[-1] and misses[-1]:
            axes.plot(np.r_[0, misses / misses[-1]], np.r_[0, hits / hits[-1]], label=plain(name))
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC", aspect="equal")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right")


def calibration_error(positive: NDArray[np.bool_], score: Floats) -> float:
    """Return how far, on average, a probability lies from how often it happened, by tenths.

    Source:
        Naeini et al. (2015), "Obtaining well calibrated probabilities using Bayesian binning", AAAI: the
        expected calibration error, in bins of equal size.
    """
    parts = np.array_split(np.argsort(score, kind="stable"), BINS)
    off = (abs(float(score[part].mean() - positive[part].mean())) * part.size for part in parts if part.size)
    return sum(off) / score.size


def calibration(axes: Axes, positive: NDArray[np.bool_], score: Floats) -> None:
    """Draw how often it happened, of rows with about the same probability."""
    parts = np.array_split(np.argsort(score, kind="stable"), BINS)
    said, came = ([float(values[part].mean()) for part in parts if part.size] for values in (score, positive))
    top = max([*said, *came, 0.01]) * 1.1
    axes.plot([0, top], [0, top], color="grey", linewidth=0.8)
    axes.plot(said, came, marker="o")
    axes.set(xlabel="predicted probability", ylabel="share that happened", title="calibration, by tenths")


def confusion(axes: Axes, truth: NDArray[np.int64], found: NDArray[np.int64], names: Sequence[Any]) -> None:
    """Draw the share of each class's rows that each class is predicted for, and their number."""
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (truth, found), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        dark = shares[row, column] > 0.5
        axes.text(column, row, f"{count:,}", ha="center", va="center", color="white" if dark else "black")
    places = range(len(names))
    axes.set_xticks(places, [plain(name) for name in names])
    axes.set_yticks(places, [plain(name) for name in names])
    axes.set(xlabel="predicted", ylabel="true", title="confusion")


def against(axes: Axes, truth: Floats, value: Floats, unit: str) -> None:
    """Draw predictions against the truth, all but the farthest hundredth of it."""
    low, high = np.quantile(truth, [0.005, 0.995])
    shown = (truth >= low) & (truth <= high)
    axes.hexbin(truth[shown], value[shown], gridsize=40, mincnt=1, cmap="Blues")
    axes.plot([low, high], [low, high], color="grey", linewidth=0.8)
    of = f" ({plain(unit)})" if unit else ""
    axes.set(xlabel=f"true{of}", ylabel=f"predicted{of}", title="predicted against true")


def residuals(axes: Axes, off: Floats, unit: str) -> None:
    """Draw how far predictions are off, all but the farthest hundredth."""
    low, high = np.quantile(off, [0.005, 0.995])
    axes.hist(np.clip(off, low, high), bins=60)
    axes.axvline(0, color="grey", linewidth=0.8)
    of = f" ({plain(unit)})" if unit else ""
    axes.set(xlabel=f"predicted - true{of}", ylabel="rows", title="residuals")
