"""From typed columns to the float matrix every trainer takes; the same in training and in serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import MissingInputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from numpy.typing import NDArray

    from headrace.pipeline import Columns


@dataclass(frozen=True)
class Encoder:
    """The categories seen in training, per categorical column, and the numeric columns.

    A column of the matrix is a categorical one's code or a numeric one's value,
    categorical ones first; NaN stands for null, and for a category never seen.
    """

    categories: Mapping[str, tuple[str, ...]]
    numeric: tuple[str, ...]

    @classmethod
    def fit(cls, rows: pa.Table, columns: Columns) -> Encoder:
        """Learn the categories that occur in ``rows``.

        Raises:
            MissingInputs: ``rows`` lacks one of ``columns``.
        """
        import pyarrow.compute as pc

        _require(rows, columns.names)
        seen = {name: pc.unique(_text(rows[name])).drop_null().to_pylist() for name in columns.categorical}
        return cls({name: tuple(sorted(values)) for name, values in seen.items()}, columns.numeric)

    @property
    def names(self) -> tuple[str, ...]:
        """The matrix's columns."""
        return (*self.categories, *self.numeric)

    def encode(self, rows: pa.Table) -> NDArray[np.float32]:
        """Return ``rows`` as a float32 matrix, shape ``(n, len(names))``; other columns are ignored.

        Raises:
            MissingInputs: ``rows`` lacks one of ``names``.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        _require(rows, self.names)
        matrix = np.empty((rows.num_rows, len(self.names)), dtype=np.float32)
        for i, (name, values) in enumerate(self.categories.items()):
            known = pa.array(values, pa.string())
            matrix[:, i] = _floats(pc.index_in(_text(rows[name]), known, skip_nulls=True))
        for i, name in enumerate(self.numeric, len(self.categories)):
            matrix[:, i] = _floats(rows[name])
        return matrix

    def to_json(self) -> dict[str, Any]:
        """Return the encoder as plain JSON values."""
        return {"categories": {k: list(v) for k, v in self.categories.items()}, "numeric": list(self.numeric)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Encoder:
        """Return the encoder that ``to_json`` wrote down."""
        return cls({k: tuple(v) for k, v in data["categories"].items()}, tuple(data["numeric"]))


def _require(rows: pa.Table, names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in rows.column_names]
    if missing:
        raise MissingInputs(missing, rows.column_names)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    return column.cast(pa.string())


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    import pyarrow as pa
    import pyarrow.compute as pc

    values: NDArray[np.float64] = pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()
    return values
