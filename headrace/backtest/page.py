"""What came of a backtest, to be looked at: a table, and a picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import Any

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from headrace.backtest.run import Backtest, Outcome

HEAD = (
    *("policy", "retrainings", "promoted", "in vain", "loss per row", "cost"),
    *("over the oracle", "saved, beside what is declared", "without the gate"),
)


def row(found: Backtest, one: Outcome) -> tuple[str, ...]:
    """Return a policy as cells below ``HEAD``."""
    rows, gain = found.history.counts[found.first :].sum(), found.saved(one)
    windows = one.costs.size
    own = one is found.own
    return (
        one.name,
        f"{one.retrainings}",
        f"{one.promoted}",
        f"{one.vain}",
        f"{one.losses.sum() / rows:.5f}",
        f"{one.cost:,.1f}",
        f"{found.regret(one):+.2%}",
        "" if own else f"{gain.mean * windows:+,.1f} ± {gain.stderr * windows:,.1f}",
        "" if one.ungated is None else f"{one.ungated:,.1f}",
    )


def _draw_calls(axes: Axes, ends: NDArray[np.float64], line: int, one: Outcome, colour: Any) -> None:
    for end, lived in zip(ends, one.lived, strict=True):
        if lived.called:
            axes.plot(end, line, "o", color=colour, markerfacecolor=colour if lived.promoted else "none")


def picture(found: Backtest) -> bytes:
    """Return a PNG: by how much each policy's cost runs ahead of the oracle's, and when each retrained."""
    from matplotlib import colormaps
    from matplotlib.dates import date2num
    from matplotlib.figure import Figure

    windows = found.history.windows[found.first :]
    ends = date2num([one.end for one in windows])
    figure = Figure(figsize=(11, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    colours = colormaps["tab20"]
    for place, one in enumerate(found.outcomes):
        ahead, colour = np.cumsum(one.costs - found.oracle.costs), colours(place % 20)
        width, style = (2.5, "-") if one.line else (1, "--")
        above.plot(ends, ahead, label=one.name, color=colour, lw=width, ls=style)
        _draw_calls(below, ends, place, one, colour)
    _draw_calls(below, ends, len(found.outcomes), found.oracle, "black")
    above.axhline(0, color="black", lw=0.8)
    above.set(
        ylabel="cost so far, beyond the oracle's", title=f"{found.history.spec.name}: what each policy cost"
    )
    above.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    names = [one.name for one in (*found.outcomes, found.oracle)]
    below.set_yticks(range(len(names)), names, fontsize="small")
    below.invert_yaxis()
    below.set_xlabel("retrainings: filled where they led to another champion")
    below.grid(axis="y", alpha=0.3)
    below.xaxis_date()
    figure.savefig(file := io.BytesIO(), format="png", dpi=100)
    return file.getvalue()
