"""The policies that a pipeline can declare, as a history is lived by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from headrace.instants import stamp
from headrace.monitoring import policy as policies
from headrace.monitoring.rule import Never, OnDrift, OnEstimate, OnShift, Periodic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.backtest.history import History
    from headrace.monitoring.rule import Policy

MONTH, QUARTER = 4, 13
"""Windows after which a periodic policy retrains, beside one that does after each."""


@dataclass(frozen=True)
class Lived:
    """A window that a policy has lived through: who served, if it called for a retraining, and what came."""

    window: int
    serving: int
    called: bool = False
    promoted: bool = False


Calls = Callable[[list[Lived], Lived], bool]
"""Given the windows before, and the one that has just ended: whether a retraining is called for."""


@dataclass(frozen=True)
class Contestant:
    """A policy by name; ``line`` is what declares it in a pipeline, empty if nothing does."""

    name: str
    calls: Calls
    line: str = ""


def since(past: list[Lived]) -> list[Lived]:
    """Return the windows since the last call."""
    return past[max((n + 1 for n, one in enumerate(past) if one.called), default=0) :]


def every(history: History) -> Iterator[Contestant]:
    """Yield the policies that any pipeline can declare, and the one that this one declares."""
    length = history.windows[0].end - history.windows[0].start
    named: dict[str, Policy] = {
        "never": Never(),
        "after each window": Periodic(every=length),
        f"after {MONTH} windows": Periodic(every=MONTH * length),
        f"after {QUARTER} windows": Periodic(every=QUARTER * length),
        "on shift": OnShift(),
        "on drift": OnDrift(),
        "on estimated performance": OnEstimate(),
    }
    own = history.spec.policy
    if own not in named.values():
        named["as declared"] = own
    for name, policy in named.items():
        yield declared(name + ", as declared" * (policy == own and name != "as declared"), policy, history)


def declared(name: str, policy: Policy, history: History) -> Contestant:
    """Return a policy of ``headrace.monitoring.rule`` as ``monitor`` goes by it."""

    def found(one: Lived) -> dict[str, object]:
        told: dict[str, object] = {"end": stamp(history.windows[one.window].end), "retrain": one.called}
        told["champion"] = one.serving
        if isinstance(policy, OnDrift):
            told["drifted"] = history.drifted(one.serving, one.window)
        if isinstance(policy, OnShift):
            told["moved"] = history.moved(one.serving, one.window)
        if isinstance(policy, OnEstimate):
            told["foreseen"] = history.foreseen(one.serving, one.window)
        return told

    def calls(past: list[Lived], last: Lived) -> bool:
        lived = [*past, last]
        trained = [policies.Trained(history.windows[lived[0].window].start, "first release", promoted=True)]
        for one in past:
            if one.called:
                end = history.windows[one.window].end
                trained.append(policies.Trained(end, policies.cause(policy, stamp(end)), one.promoted))
        return policies.decide(policy, [found(one) for one in lived], trained)[0]

    return Contestant(name, calls, declaration(policy))


def declaration(policy: Policy) -> str:
    """Return the line that declares a policy in a pipeline.

    >>> declaration(Periodic(every=timedelta(weeks=4))), declaration(OnDrift(windows=1, of=1, limit=2))
    ('policy=Periodic(every=timedelta(days=28))', 'policy=OnDrift(limit=2, windows=1, of=1)')
    """
    plain, shown = type(policy)(), []
    for name, value in vars(policy).items():
        if name == "every" or value != getattr(plain, name):
            span = isinstance(value, timedelta)
            shown.append(f"{name}={f'timedelta(days={value / timedelta(days=1):g})' if span else value}")
    return f"policy={type(policy).__name__}({', '.join(shown)})"
