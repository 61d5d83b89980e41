"""A verdict as a page: what was gained, what was guarded, and what would have been needed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from headrace.gate import lower_bound
from headrace.legible import markdown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headrace.gate import Gain, Gate, Guarded, Verdict

MANY = 10_000
"""More groups than these nobody waits for."""


def page(verdict: Verdict, gate: Gate, unit: str) -> str:
    """Return the page, in Markdown; ``unit`` is that of the losses."""
    lines = [f"**{verdict.decision.capitalize()}.** {markdown(verdict.reason)}"]
    if verdict.gain:
        lines += ["", "### Gain", "", *_gain(verdict.gain, gate, unit)]
    if verdict.bounds:
        rows = ((_held(b.held), b.name, f"{b.value:.4g}", f"{b.limit:.4g}", b.about) for b in verdict.bounds)
        lines += ["", "### Bounds", "", *table(("", "", "is", "may be", ""), rows)]
    if verdict.guards:
        lines += ["", "### Guards", "", *_guards(verdict, unit)]
    return "\n".join(lines) + "\n"


def _guards(verdict: Verdict, unit: str) -> list[str]:
    margin = next((one.margin for one in verdict.guards if one.kind != "score"), None)
    than = "" if margin is None else f" by more than {margin:.4f} {unit} per row"
    head = ("", "", "p", f"gain ({unit} per row)", "rows", "groups")
    ordered = sorted(verdict.guards, key=lambda one: (one.p, one.gain))
    return [
        f"The challenger must not be worse{than} in any of {verdict.looked_at} segments, slices and scores; "
        "slices are where the two models differ most. `p` is the chance that anything at all would look "
        "that bad if nothing were worse.",
        "",
        *table(head, map(_row, ordered)),
    ]


def table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a table, in Markdown."""
    head = [f"| {' | '.join(map(str, columns))} |", f"|{'---|' * len(columns)}"]
    return head + [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]


def needed(gain: Gain, gate: Gate) -> str:
    """Say what would have been enough for a gain's lower bound to lie above the gate's least gain."""
    if not gain.df:
        return ""
    mean = gate.min_gain + gain.mean - lower_bound(gain, gate.risk)
    told = f"On these rows, a gain above {mean:+.4f} would have been enough"
    groups = _groups(gain, gate)
    return f"{told}; this one, in about {groups:,} such groups." if groups else f"{told}."


def _gain(gain: Gain, gate: Gate, unit: str) -> list[str]:
    floor = lower_bound(gain, gate.risk)
    rows = [
        ("gain", f"{gain.mean:+.4f} ± {gain.stderr:.4f} {unit} per row"),
        (f"interval of {1 - 2 * gate.risk:.0%}", f"{floor:+.4f} to {2 * gain.mean - floor:+.4f}"),
        ("least gain that is asked for", f"{gate.min_gain:+.4f}, at a risk of {gate.risk:.0%}"),
        ("rows", f"{gain.rows:,} in {gain.groups:,} groups"),
    ]
    lines = table(("", ""), rows)
    return [*lines, "", needed(gain, gate)] if floor <= gate.min_gain else lines


def _groups(gain: Gain, gate: Gate) -> int | None:
    """Return in how many groups like these a gain would be proven; None if in no number that matters."""
    from scipy.stats import t

    over, one = gain.mean - gate.min_gain, gain.stderr * math.sqrt(gain.df + 1)
    if over <= 0:
        return None
    least, count = max(gain.groups, gate.least_groups), (float(t.ppf(1 - gate.risk, MANY)) * one / over) ** 2
    for groups in range(max(least, math.floor(count)), MANY):
        if over > float(t.ppf(1 - gate.risk, groups - 1)) * one / math.sqrt(groups):
            return groups
    return None


def _row(one: Guarded) -> tuple[object, ...]:
    gain = f"{one.gain:+.4f} ± {one.stderr:.4f}"
    return _held(one.held), f"{one.kind}: {one.name}", f"{one.p:.3f}", gain, f"{one.rows:,}", one.groups


def _held(held: bool) -> str:
    return "held" if held else "**broken**"


def _cell(value: object) -> str:
    return "" if value is None else str(value) if value == "**broken**" else markdown(str(value))
