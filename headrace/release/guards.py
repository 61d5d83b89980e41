"""Guards: whom, and in what, a challenger serves worse than the champion, though it be better on the whole.

Segments, slices and scores are all looked at together, so that the more there are the less any one of them
proves: what is called worse by chance, anything at all, is the gate's ``risk``.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.gate import Bound, Guarded, familywise, paired_gain
from headrace.problem.base import RISING
from headrace.segments import segments, slices

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import pyarrow as pa
    from numpy.typing import ArrayLike, NDArray

    from headrace.gate import Gate
    from headrace.pipeline import Columns
    from headrace.problem import Problem

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]
    Ints = NDArray[np.int64]

BLOCKS = 60
"""Groups beyond these are taken together."""
EXACT = 12
"""Of up to so many groups every assignment of signs is looked at, of more ``FLIPS``."""
FLIPS = 4_096
MANY = 5
"""How many slices are found for each that is looked at.

The others are there in too few groups to be told from chance.
"""


def look(
    rule: Gate,
    problem: Problem,
    columns: Columns,
    rows: pa.Table,
    targets: Floats,
    champion: Floats,
    challenger: Floats,
    groups: NDArray[Any],
) -> list[Guarded]:
    """Return how a challenger does in all that it must not be worse in, as the gate's guards say.

    Args:
        rule: The gate.
        problem: What is asked.
        columns: The inputs, of which slices are made.
        rows: What was held out, with inputs and segments, n rows.
        targets: The truth of these, shape ``(n,)``.
        champion: Its predictions of them.
        challenger: Its own.
        groups: What each row belongs to, shape ``(n,)``.
    """
    guards = rule.guards
    if guards is None:
        return []
    old, new = problem.losses(targets, champion), problem.losses(targets, challenger)
    margin = guards.margin * float(old.mean())
    saved, blocks = old - new, _blocks(groups)
    count, differs = int(blocks.max()) + 1, np.abs(saved + margin)
    parts = [("segment", name, of) for name, of in segments(rows, guards.segments)]
    found = slices(rows, columns.names, differs, MANY * guards.slices)
    told = [one for one in found if np.unique(blocks[one[1]]).size >= -np.log2(rule.risk)]
    parts += [("slice", name, of) for name, of in told[: guards.slices]]
    sums = [np.bincount(blocks[of], saved[of] + margin, count).astype(np.float64) for _, _, of in parts]
    scored = dict(_scored(problem, guards.scores, targets, champion, challenger, blocks))
    sums += [each + guards.scores[name] for name, each in scored.items()]
    if not sums:
        return []
    chances, risk, looked = iter(chance_of_worse(np.stack(sums))), rule.risk, list[Guarded]()
    for kind, name, of in parts:
        gain, p = paired_gain(old[of], new[of], groups[of]), next(chances)
        stderr = gain.stderr if np.isfinite(gain.stderr) else 0.0
        looked.append(
            Guarded(kind, name, gain.mean, stderr, gain.rows, gain.groups, margin, p, held=p > risk)
        )
    for name, each in scored.items():
        p, mean, stderr = next(chances), float(each.mean()), float(each.std(ddof=1) / np.sqrt(count))
        allowed = guards.scores[name]
        looked.append(Guarded("score", name, mean, stderr, targets.size, count, allowed, p, held=p > risk))
    return looked


def bounds(
    rule: Gate,
    problem: Problem,
    targets: Floats,
    champion: Floats | None,
    challenger: Floats,
    costs: Mapping[str, float],
) -> list[Bound]:
    """Return what a challenger has, and may have, of calibration error, latency and size."""
    guards = rule.guards
    if guards is None:
        return []
    off = problem.miscalibration(targets, challenger)
    before = 0.0 if champion is None else problem.miscalibration(targets, champion)
    named = {"latency_ms": ("latency in ms", guards.latency_ms), "size_mb": ("size in MB", guards.size_mb)}
    return [
        Bound("calibration error", off, max(guards.calibration, before)),
        *(Bound(named[name][0], cost, named[name][1]) for name, cost in costs.items()),
    ]


def chance_of_worse(sums: ArrayLike) -> list[float]:
    """Return for each of ``m`` sums, by how likely chance alone makes any as low, whether it is below 0.

    If nothing is worse, what a group came to might as well have come with the other sign, for all that is
    looked at in it at once. So how low the lowest would be by chance is seen by changing the signs of
    groups: in every way there is, or in ``FLIPS`` ways. However many things are looked at, and however
    alike they are, the share of times at which any is called worse that is not is what ``p`` is held
    against; that of false ones among those called so, with it.

    Args:
        sums: What each of ``m`` things gained in each of ``g`` groups, shape ``(m, g)``.

    Source:
        Canay, Romano and Shaikh (2017), "Randomization tests under an approximate symmetry assumption",
        Econometrica 85(3); step-down by Romano and Wolf (2005), "Exact and approximate stepdown methods for
        multiple hypothesis testing", JASA 100(469).

    >>> chance_of_worse([[-1.0, -1.1, -0.9, -1.0, -1.0, -1.0], [0.3, -0.2, 0.1, 0.0, 0.2, -0.1]])
    [0.015625, 0.8125]
    """
    values = np.asarray(sums, np.float64)
    groups = values.shape[1]
    if groups <= EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=groups)))
    else:
        drawn = np.random.default_rng(0).choice((1.0, -1.0), (FLIPS - 1, groups))
        signs = np.vstack([np.ones(groups), drawn])
    scale = np.sqrt((values**2).sum(axis=1))
    scaled = values / np.where(scale > 0, scale, 1)[:, None]
    return familywise(-scaled.sum(axis=1), -signs @ scaled.T)


def _blocks(groups: NDArray[np.generic]) -> Ints:
    """Return to which of up to ``BLOCKS`` blocks of groups each row belongs, shape ``(n,)``."""
    _, place = np.unique(groups, return_inverse=True)
    return place.astype(np.int64) % BLOCKS


def _scored(
    problem: Problem,
    names: Collection[str],
    targets: Floats,
    champion: Floats,
    challenger: Floats,
    blocks: Ints,
) -> Iterator[tuple[str, Floats]]:
    """Yield how much better a challenger's score is, as a mean of blocks' shares in it, shape ``(g,)``.

    A block's share is what changes without it (Tukey's pseudo-values). Scores that such rows do not have are
    left out.
    """

    def better(of: Bools) -> dict[str, float]:
        ours, theirs = (problem.scores(targets[of], found[of]) for found in (challenger, champion))
        return {
            name: (1 if name in RISING else -1) * (ours.get(name, np.nan) - theirs.get(name, np.nan))
            for name in names
        }

    count = int(blocks.max()) + 1
    if count == 1 or not names:
        return
    whole, without = better(blocks >= 0), [better(blocks != block) for block in range(count)]
    for name in names:
        each = np.array([count * whole[name] - (count - 1) * other[name] for other in without])
        if np.isfinite(each).all():
            yield name, each
