"""Segments: the rows of one value, and slices: rows of one or two, in which two things differ most."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]
    Ints = NDArray[np.int64]

LARGEST = 20
"""Values of a column that are looked at one by one."""
SEARCHED, WIDE = 50_000, 40
"""Rows that slices are looked for in, and inputs of which pairs are looked at."""
LEAST = 0.01
"""The least share of the rows that is a slice."""
OTHERS = "any other"


def segments(rows: pa.Table, columns: Sequence[str]) -> Iterator[tuple[str, Bools]]:
    """Yield, for each value of each of ``columns``, which rows have it; numbers by quarters."""
    for column in columns:
        codes, names = _coded(rows[column])
        for code, name in enumerate(names):
            if (chosen := codes == code).any():
                yield f"{column} {name}", chosen


def slices(
    rows: pa.Table, columns: Sequence[str], differs: ArrayLike, most: int
) -> Iterator[tuple[str, Bools]]:
    """Yield the slices, of one or two of ``columns``, in which two models differ most.

    Which of the two is better there the search does not see: ``differs``, shape ``(n,)``, is without sign. So
    the same rows may judge.

    Source:
        Sagadeeva and Boehm (2021), "SliceLine: fast, linear-algebra-based slice finding for ML model
        debugging", SIGMOD.
    """
    from sliceline.slicefinder import Slicefinder

    if not most:
        return
    coded = [_coded(rows[column]) for column in columns]
    inputs, errors = np.column_stack([codes for codes, _ in coded]), np.asarray(differs, np.float64)
    chosen = np.random.default_rng(0).permutation(len(errors))[:SEARCHED]
    finder = Slicefinder(
        alpha=0.99,
        k=most,
        max_l=2 if len(columns) <= WIDE else 1,
        min_sup=max(int(LEAST * len(chosen)), 1),
        verbose=False,
    )
    finder.fit(inputs[chosen], errors[chosen])
    for found in finder.top_slices_[:most]:
        within, names = np.ones(len(errors), bool), []
        for place, code in enumerate(found):
            if code is not None:
                within &= inputs[:, place] == int(code)
                names.append(f"{columns[place]} {coded[place][1][int(code)]}")
        yield " and ".join(names), within


def _coded(column: pa.ChunkedArray) -> tuple[Ints, list[str]]:
    """Return the part of its column that each value belongs to, and what the parts are called."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, gone = column.type, column.is_null().to_numpy()
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        values = column.cast(pa.float64(), safe=False).to_numpy()
        gone = gone | ~np.isfinite(values)
        if distinct := len(np.unique(values[~gone])):
            if distinct <= LARGEST:
                return _named(values, gone, [f"= {value:g}" for value in np.unique(values[~gone])])
            cuts = np.unique(np.quantile(values[~gone], (0.25, 0.5, 0.75)))
            codes = np.where(gone, cuts.size + 1, np.searchsorted(cuts, values, side="right"))
            ends = ["", *(f"{cut:.4g}" for cut in cuts), ""]
            names = [
                f"from {a} to {b}" if a and b else f"from {a}" if a else f"below {b}"
                for a, b in pairwise(ends)
            ]
            return codes.astype(np.int64), [*names, "is null"]
        return np.zeros(len(column), np.int64), ["is null"]
    texts = column.cast(pa.string())
    counts = pc.value_counts(texts.drop_null()).to_pylist()
    counts.sort(key=lambda one: (-one["counts"], one["values"]))
    known = [one["values"] for one in counts[:LARGEST]]
    places = pc.index_in(texts, pa.array(known, pa.string()), skip_nulls=True)
    codes = pc.fill_null(places, len(known)).to_numpy().astype(np.int64)
    codes[gone] = len(known) + 1
    return codes, [*(f"= {value}" for value in known), f"is {OTHERS}", "is null"]


def _named(values: Floats, gone: Bools, names: list[str]) -> tuple[Ints, list[str]]:
    distinct = np.unique(values[~gone])
    codes = np.where(gone, distinct.size, np.searchsorted(distinct, values))
    return codes.astype(np.int64), [*names, "is null"]
