"""Problems: what kind of question a pipeline answers.

All that differs between kinds is here: what a label may be, what a prediction looks like, what
an error costs, and what one says who knows the past alone. The rest of the house asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.problem.base import EDGE, Problem
from headrace.problem.classes import Binary, MultiClass
from headrace.problem.naive import Seasonal, guess
from headrace.problem.regression import Regression

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EDGE", "Binary", "MultiClass", "Problem", "Regression", "Seasonal", "guess", "read"]

KINDS: dict[str, type[Problem]] = {kind.__name__: kind for kind in (Binary, MultiClass, Regression)}


def read(told: Mapping[str, Any]) -> Problem:
    """Return the problem that ``Problem.to_json`` wrote down.

    >>> read(MultiClass(("red", "green")).to_json())
    MultiClass(classes=('red', 'green'))
    """
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    kind: Any = KINDS[str(own.pop("kind"))]
    return kind(**own)  # type: ignore[no-any-return]
