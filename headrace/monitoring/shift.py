"""Shift: which columns have moved by more than their own windows stray, over one, two or four windows.

distances of the reference's own windows ─▶ how far a mean of some windows strays ─▶ p ─▶ columns named
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Thing = tuple[str, str]

SPANS = (1, 2, 4)
"""Of how many windows, the last ones, means are looked at: what is small is told from chance later."""
LEAST = {"score": (0.03, 0.3), "missing": (0.15, 0.2)}
"""From about where on ratios of distances count, and by how much of one windows stray at least."""
TAILS = 6
"""Degrees of freedom at most: now and then a day is farther off than any normal distribution allows."""
FEW = 4
"""Windows of the reference without which nothing is known of how they stray."""


def moved(
    own: Mapping[Thing, Sequence[float]], lately: Sequence[Mapping[Thing, float]], risk: float
) -> list[Thing]:
    """Return what lies farther from the reference, on the mean of last windows, than chance explains.

    False discoveries are controlled over all columns and spans. Distances stray alike by ratios, whatever the
    column, and so it is their logarithms that are tested.

    Args:
        own: How far each of the reference's own windows lies from it, of each column and kind of distance.
        lately: The same of the last windows that the version has predicted, oldest first.
        risk: The share of what is named that may be so by chance.

    Source:
        A t-test of a mean of windows to come; Benjamini and Hochberg (1995), "Controlling the false discovery
        rate", JRSS B 57(1).

    >>> calm = {("x", "score"): [0.1, 0.12, 0.08, 0.11, 0.09], ("y", "score"): [0.2, 0.1, 0.15, 0.1, 0.2]}
    >>> moved(calm, [{("x", "score"): 0.9, ("y", "score"): 0.2}], risk=0.1)
    [('x', 'score')]
    """
    known = [thing for thing in own if len(own[thing]) >= FEW and thing in lately[-1]]
    if not known:
        return []
    p = chances(
        np.array([own[thing] for thing in known]).T,
        np.array([[each.get(thing, np.nan) for thing in known] for each in lately]),
        np.array([LEAST[kind] for _, kind in known]).T,
    )
    return [known[place] for place in discovered(p, risk)]


def discovered(p: Floats, risk: float) -> NDArray[np.int64]:
    """Return the places of what is no chance, least likely first, so that a share ``risk`` of them is."""
    order = np.argsort(p, kind="stable")
    passed = np.flatnonzero(p[order] <= risk * np.arange(1, p.size + 1) / p.size)
    return order[: passed[-1] + 1 if passed.size else 0]


def chances(own: Floats, lately: Floats, least: Floats) -> Floats:
    """Return how likely chance makes the last windows lie as far, over whichever span, shape ``(m,)``.

    Args:
        own: Distances of the reference's own windows, shape ``(n, m)``.
        lately: Those of the last windows, the last one last, shape ``(w, m)``; NaN where it is not known.
        least: What is added before ratios are taken, and by how much these stray at least, shape ``(2, m)``.
    """
    from scipy.stats import t

    before, now = (np.log(np.maximum(of, 0) + least[0]) for of in (own, lately))
    count, mean = len(before), before.mean(axis=0)
    strays, found = np.maximum(before.std(axis=0, ddof=1), least[1]), np.ones(own.shape[1])
    spans = [span for span in SPANS if span <= len(now)]
    for span in spans:
        far = (now[-span:].mean(axis=0) - mean) / (strays * np.sqrt(1 / span + 1 / count))
        found = np.fmin(found, t.sf(far, min(count - 1, TAILS)))
    return np.minimum(found * len(spans), 1)
