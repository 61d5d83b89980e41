"""The door through which frameworks come: what a trainer is, and how a candidate's is found."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from headrace.errors import did_you_mean
from headrace.training.errors import UnknownTrainer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from dask.distributed import Client
    from numpy.typing import ArrayLike

    from headrace.pipeline import Columns
    from headrace.problem import Problem
    from headrace.training.rows import Rows

OURS = ("sklearn", "torch", "xgboost")
GROUP = "headrace.trainers"
"""The entry points by which packages offer trainers."""
NEEDED = ("PACKAGES", "fit", "predict", "save", "load")


class Trainer(Protocol):
    """What makes models of one framework: a module, or an object, with these.

    What ``fit`` returns, a *native* model, is the trainer's own: whatever turns rows into numbers
    belongs to it, such as an ``Encoder``. It may have ``settled``, parameters that the selection settled,
    such as when to stop: the chosen candidate is fitted again with them; and ``history``,
    a list of numbers by name, one for each round. ``contributions(native, rows)``, if there is one, says
    what each input adds to predictions: the inputs, and an array whose last axis they are. ``flavour``, if
    there is one, says under which name and with which data MLflow's own flavour of the framework finds the
    model in what ``save`` wrote. ``PLAIN``, if it is true, says that ``predict`` takes rows as lists of
    Python values by name, too, which is how a service has a few of them.
    """

    PACKAGES: tuple[str, ...]
    """The distributions that a model needs in order to predict."""

    def fit(
        self,
        params: Mapping[str, Any],
        seed: int,
        rows: Rows,
        *,
        columns: Columns,
        problem: Problem,
        client: Client | None,
        selection: Rows | None,
        give_up: Mapping[int, float],
    ) -> Any:
        """Fit a model on Dask's workers, or, without a client, here; the same arguments give the same model.

        Where ``hopeless`` says so of its ``history`` and of ``give_up``, it may end at once.
        """

    def predict(self, native: Any, rows: pa.Table) -> ArrayLike:
        """Return ``problem.width`` numbers for each row, whatever values, or nulls, are in it."""

    def save(self, native: Any, directory: Path) -> None:
        """Write a model into files that run no code when they are loaded."""

    def load(self, directory: Path) -> Any:
        """Return what ``save`` wrote."""


def losses(history: Mapping[str, Sequence[float]]) -> Sequence[float]:
    """Return what the selection lost after each round; nothing if that is not in a model's ``history``."""
    return next((of for name, of in history.items() if name.startswith("selection/")), ())


def hopeless(history: Mapping[str, Sequence[float]], give_up: Mapping[int, float]) -> bool:
    """Say whether the selection has at best lost more than ``give_up`` allows, by a round that it names."""
    lost = losses(history)
    return any(min(lost[:rounds]) > bound for rounds, bound in give_up.items() if rounds <= len(lost))


def trainer(name: str) -> Any:
    """Return the :class:`Trainer` of that name: one of ours, an entry point, or a dotted path.

    Raises:
        UnknownTrainer: There is none, or it lacks a part.
    """
    if name in OURS:
        return import_module(f"headrace.training.{name}")
    if offered := _offered().get(name):
        return _whole(name, offered.load())
    path, _, attribute = name.rpartition(".")
    try:
        return _whole(name, import_module(name))
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and imports what is not
    try:
        found = getattr(import_module(path), attribute) if path else None
    except (ModuleNotFoundError, AttributeError):
        found = None
    if found is None:
        raise UnknownTrainer(name, _unknown(name))
    return _whole(name, found)


def missing(name: str) -> str:
    """Return why there cannot be a trainer of that name, or nothing; it is not imported to see that."""
    if name in OURS or name in _offered():
        return ""
    parts = name.split(".")
    try:
        # A path names a module, or something in one.
        there = any(find_spec(".".join(parts[:end])) for end in (len(parts), len(parts) - 1) if end)
    except (ModuleNotFoundError, ValueError):
        there = False
    return "" if there else _unknown(name)


def _offered() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _unknown(name: str) -> str:
    known = [*OURS, *_offered()]
    return (
        f"there are {', '.join(f'`{one}`' for one in known)}, and what a dotted path leads to, such as "
        f"`trainers.lightgbm` for trainers/lightgbm.py.{did_you_mean(name, known)}"
    )


def _whole(name: str, found: Any) -> Any:
    if lacking := [part for part in NEEDED if not hasattr(found, part)]:
        raise UnknownTrainer(name, f"it has no {', '.join(f'`{part}`' for part in lacking)}")
    return found
