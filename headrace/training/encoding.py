"""From typed columns to a float matrix, as most trainers take it; the same in training and in serving."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.training.errors import MissingInputs
from headrace.training.rows import WEIGHT, Rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from headrace.pipeline import Columns
    from headrace.problem import Problem

FILE = "encoder.json"


@dataclass(frozen=True)
class Learnt:
    """Rows as numbers: a matrix of shape ``(n, columns)``, targets and, if any, weights of shape ``(n,)``."""

    matrix: NDArray[np.float32]
    targets: NDArray[np.float64]
    weights: NDArray[np.float64] | None


@dataclass(frozen=True)
class Encoder:
    """The categories seen in training, per categorical column, and the numeric columns.

    A column of the matrix is a categorical one's code or a numeric one's value,
    categorical ones first. NaN stands for null, for a category never seen, and for
    a number that 32-bit floats do not hold, such as infinity or 1e300: trainers
    refuse those, and one in a row is no reason to leave the row without a prediction.
    """

    categories: Mapping[str, tuple[str, ...]]
    numeric: tuple[str, ...]

    @classmethod
    def fit(cls, rows: Rows | pa.Table, columns: Columns) -> Encoder:
        """Learn the categories that occur in ``rows``.

        Raises:
            MissingInputs: ``rows`` lacks one of ``columns``.
        """
        import pyarrow.compute as pc

        seen: dict[str, set[str]] = {name: set() for name in columns.categorical}
        for part in rows.parts() if isinstance(rows, Rows) else [rows]:
            _require(part, columns.names)
            for name, values in seen.items():
                values.update(pc.unique(_text(part[name])).drop_null().to_pylist())
        return cls({name: tuple(sorted(values)) for name, values in seen.items()}, columns.numeric)

    @property
    def names(self) -> tuple[str, ...]:
        """The matrix's columns."""
        return (*self.categories, *self.numeric)

    def encode(self, rows: pa.Table | Mapping[str, Sequence[Any]]) -> NDArray[np.float32]:
        """Return ``rows`` as a float32 matrix, shape ``(n, len(names))``; other columns are ignored.

        Of a few rows, lists of Python values by name give the same numbers in a fraction of the time.

        Raises:
            MissingInputs: ``rows`` lacks one of ``names``.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        if isinstance(rows, Mapping):
            return self._encode_lists(rows)
        _require(rows, self.names)
        matrix = np.empty((rows.num_rows, len(self.names)), dtype=np.float32)
        for i, (name, values) in enumerate(self.categories.items()):
            known = pa.array(values, pa.string())
            matrix[:, i] = _floats(pc.index_in(_text(rows[name]), known, skip_nulls=True))
        for i, name in enumerate(self.numeric, len(self.categories)):
            matrix[:, i] = _floats(rows[name])
        return matrix

    @cached_property
    def _codes(self) -> dict[str, dict[Any, float]]:
        return {
            name: {value: float(code) for code, value in enumerate(values)}
            for name, values in self.categories.items()
        }

    def _encode_lists(self, rows: Mapping[str, Sequence[Any]]) -> NDArray[np.float32]:
        if missing := [name for name in self.names if name not in rows]:
            raise MissingInputs(missing, list(rows))
        nan = np.nan
        columns = [
            [codes.get(value if type(value) is str else _as_text(value), nan) for value in rows[name]]
            for name, codes in self._codes.items()
        ]
        columns += [[nan if value is None else value for value in rows[name]] for name in self.numeric]
        doubles = np.array(columns, np.float64).T
        with np.errstate(over="ignore"):
            matrix: NDArray[np.float32] = np.ascontiguousarray(doubles, np.float32)
        matrix[np.isinf(matrix)] = nan
        return matrix

    def learnt(self, rows: Rows, problem: Problem) -> Learnt:
        """Return all of ``rows`` as trainers take them, encoded part by part: only numbers pile up."""
        count = rows.count
        matrix = np.empty((count, len(self.names)), dtype=np.float32)
        targets, weights, at = np.empty(count), None, 0
        for part in rows.parts():
            place = slice(at, at := at + part.num_rows)
            matrix[place] = self.encode(part)
            targets[place] = problem.encode(part["label"])
            if WEIGHT in part.column_names:
                weights = np.empty(count) if weights is None else weights
                weights[place] = part[WEIGHT].to_numpy()
        return Learnt(matrix, targets, weights)

    def save(self, directory: Path) -> None:
        """Write the encoder into ``directory``, as JSON."""
        categories = {name: list(seen) for name, seen in self.categories.items()}
        told = {"categories": categories, "numeric": list(self.numeric)}
        (directory / FILE).write_text(json.dumps(told, indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Encoder:
        """Return what ``save`` wrote."""
        told = json.loads((directory / FILE).read_text())
        categories = {name: tuple(seen) for name, seen in told["categories"].items()}
        return cls(categories, tuple(told["numeric"]))


def unfit(schema: pa.Schema, columns: Columns) -> dict[str, str]:
    """Return those of ``columns`` that are of a type which no model takes, each with that type.

    A number is an integer, a float, a decimal or a boolean; a category is one of these, or text.
    """
    from pyarrow import types

    numbers = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null)
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_dictionary)
    taken = dict.fromkeys(columns.categorical, (*numbers, *texts)) | dict.fromkeys(columns.numeric, numbers)
    kinds = {name: schema.field(name).type for name in columns.names}
    return {name: str(kind) for name, kind in kinds.items() if not any(fits(kind) for fits in taken[name])}


def _as_text(value: Any) -> str | None:
    """Return a value's text as Arrow has it."""
    import pyarrow as pa

    if value is None:
        return None
    if type(value) is int:
        return str(value)
    text: str = pa.scalar(value).cast(pa.string()).as_py()
    return text


def _require(rows: pa.Table, names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in rows.column_names]
    if missing:
        raise MissingInputs(missing, rows.column_names)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    return column.cast(pa.string())


def _floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    import pyarrow as pa
    import pyarrow.compute as pc

    # Not safe: Arrow would refuse integers beyond 2^53, whose last digits a float does not hold.
    doubles = pc.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy()
    with np.errstate(over="ignore"):
        values: NDArray[np.float32] = doubles.astype(np.float32)
    values[np.isinf(values)] = np.nan
    return values
