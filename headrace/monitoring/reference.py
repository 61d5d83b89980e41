"""What a window is compared with: a summary of the rows that a version learnt from, kept with the version.

rows ─▶ sketch, and one per window ─▶ how far its own windows stray ─▶ one small file
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING

from headrace.monitoring.sketch import Odd, Sketch, sketch_windows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import duckdb
    import pandas as pd
    import pyarrow as pa

    from headrace.pipeline import Columns

# One method per kind of column, whatever the number of rows: Evidently's own
# choice changes with it, and then scores of two windows cannot be compared.
NUMERIC, CATEGORICAL = "wasserstein", "jensenshannon"
ABOUT = b"headrace.reference"


@dataclass(frozen=True)
class Reference:
    """The sketch of all rows, and how far each of its windows, ``every`` long, lies from it.

    ``own`` is told by column in drift scores, ``missing_own`` in shares of rows without a value.
    """

    whole: Sketch
    every: timedelta
    own: Mapping[str, Sequence[float]]
    missing_own: Mapping[str, Sequence[float]]

    @classmethod
    def of(
        cls,
        rows: duckdb.DuckDBPyRelation | pa.Table,
        columns: Columns,
        every: timedelta = timedelta(weeks=1),
    ) -> Reference:
        """Summarise the ``columns`` of ``rows``, which have an ``event_timestamp`` (UTC) each."""
        whole, windows = sketch_windows(rows, columns, every)
        names = list(whole.frame.columns)
        missing = whole.frame.isna().mean()
        own: dict[str, list[float]] = {name: [] for name in names}
        missing_own: dict[str, list[float]] = {name: [] for name in names}
        # A window of its grid that the rows hold only partly strays for that reason alone.
        full = [part for part in windows if part.rows * 2 >= median(w.rows for w in windows)]
        for part in full if len(full) > 1 else ():
            # It is part of the whole, which pulls the whole towards it by its share.
            pull = 1 - part.rows / whole.rows
            for name in names:
                far = distance(whole.frame[name], part.frame[name], categorical=name in columns.categorical)
                own[name].append(far / pull)
                gone = abs(float(part.frame[name].isna().mean() - missing[name]))
                missing_own[name].append(gone / pull)
        return cls(whole, every, own, missing_own)

    def stray(self, column: str) -> float:
        """Return the farthest that any window lies."""
        return max(self.own[column], default=0.0)

    def missing_stray(self, column: str) -> float:
        """Return the farthest that any window's share of rows without a value lies."""
        return max(self.missing_own[column], default=0.0)

    def fits(self, columns: Columns, every: timedelta) -> bool:
        """Say whether it is a summary of those columns, each of its kind, in windows of that length."""
        numbers = {*self.whole.limits}
        texts = {*self.whole.frame.columns} - numbers
        return {*columns.numeric} <= numbers and {*columns.categorical} <= texts and self.every == every

    def dump(self) -> bytes:
        """Return the summary as a Parquet file: the sketch's columns; the rest in its metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        about = {
            "rows": self.whole.rows,
            "limits": {name: list(ends) for name, ends in self.whole.limits.items()},
            "odd": {name: asdict(odd) for name, odd in self.whole.odd.items()},
            "every": self.every.total_seconds(),
            "own": {name: list(of) for name, of in self.own.items()},
            "missing_own": {name: list(of) for name, of in self.missing_own.items()},
        }
        table = pa.Table.from_pandas(self.whole.frame, preserve_index=False)
        file = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({ABOUT: json.dumps(about)}), file, compression="zstd")
        return file.getvalue()

    @classmethod
    def load(cls, data: bytes) -> Reference:
        """Return what ``dump`` wrote."""
        import numpy as np
        import pyarrow.parquet as pq

        table = pq.read_table(io.BytesIO(data))
        about = json.loads(table.schema.metadata[ABOUT])
        frame = table.replace_schema_metadata(None).to_pandas()
        # An all-null column of categories comes back as one of numbers, and the other way round.
        for name in frame.columns:
            frame[name] = frame[name].astype(np.float64 if name in about["limits"] else object)
        whole = Sketch(
            about["rows"],
            frame,
            {name: (low, high) for name, (low, high) in about["limits"].items()},
            {name: Odd(**odd) for name, odd in about["odd"].items()},
        )
        every = timedelta(seconds=about["every"])
        if "own" not in about:  # of an earlier release, which kept the farthest alone
            of_farthest = (about["strays"], about["missing_strays"])
            own, missing = ({name: [far] for name, far in each.items()} for each in of_farthest)
            return cls(whole, every, own, missing)
        return cls(whole, every, about["own"], about["missing_own"])


def distance(reference: pd.Series, current: pd.Series, *, categorical: bool) -> float:
    """Return Evidently's drift score of one column of a sketch; 0 where either has no value.

    Its methods ``NUMERIC`` and ``CATEGORICAL`` are these functions of SciPy's; Evidently itself is
    imported for what it draws.
    """
    import pandas as pd
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import wasserstein_distance

    before, now = reference.dropna(), current.dropna()
    if before.empty or now.empty:
        return 0.0
    if categorical:
        shares = pd.concat([each.value_counts(normalize=True) for each in (before, now)], axis=1)
        return float(jensenshannon(*shares.fillna(0).to_numpy().T))
    return float(wasserstein_distance(before, now)) / max(float(before.std(ddof=0)), 0.001)
