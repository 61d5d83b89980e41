"""The baseline: logistic regression on one-hot and scaled columns."""

from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile, ZipInfo

from headrace.cluster import crew, on_each
from headrace.imports import lean
from headrace.training.encoding import Encoder
from headrace.training.model import Model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from dask.distributed import Client
    from numpy.typing import NDArray
    from sklearn.pipeline import Pipeline

    from headrace.pipeline import Columns

DISTRIBUTION = "scikit-learn"
FILE = "model.skops"


def fit(
    params: Mapping[str, Any],
    seed: int,
    rows: pa.Table,
    labels: NDArray[np.integer],
    *,
    columns: Columns,
    client: Client,
) -> Model:
    """Fit ``LogisticRegression(**params)`` on the first worker; nothing is random, so ``seed`` is idle."""
    encoder = Encoder.fit(rows, columns)
    work = (dict(params), len(encoder.categories), encoder.encode(rows), labels)
    (native,) = on_each(client, crew(client)[:1], _fit, [work])
    return Model("sklearn", encoder, native)


def _fit(
    params: dict[str, Any], codes: int, matrix: NDArray[np.float32], labels: NDArray[np.integer]
) -> Pipeline:
    import numpy as np
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from threadpoolctl import threadpool_limits

    numbers = make_pipeline(
        SimpleImputer(strategy="mean", keep_empty_features=True, add_indicator=True), StandardScaler()
    )
    parts = [
        ("codes", OneHotEncoder(handle_unknown="ignore"), range(codes)),
        ("numbers", numbers, range(codes, matrix.shape[1])),
    ]
    # Neither takes a matrix without columns.
    inputs = ColumnTransformer([(name, part, list(places)) for name, part, places in parts if places])
    model = make_pipeline(inputs, LogisticRegression(**{"max_iter": 300, **params}))
    # Sums then never depend on the number of cores, and the small products of L-BFGS are three times as fast.
    with threadpool_limits(1):
        return model.fit(matrix.astype(np.float64), labels)  # in 32 bits, sums of great numbers overflow


def predict(pipeline: Pipeline, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probability of class 1 for each row of the encoded ``matrix``."""
    import numpy as np

    predicted: NDArray[np.float64] = pipeline.predict_proba(matrix.astype(np.float64))[:, 1]
    return predicted


def save(pipeline: Pipeline, directory: Path) -> dict[str, Any]:
    """Write the pipeline with skops, equal models as equal files; there is no architecture beside it."""
    with lean():
        import skops.io

    # skops names parts by their place in memory and stamps them with the time: count them instead.
    packed = ZipFile(BytesIO(skops.io.dumps(pipeline)))
    number: dict[str, str] = {}
    schema = re.sub(
        r'("__id__": |"file": ")(\d+)',
        lambda part: part[1] + number.setdefault(part[2], str(len(number))),
        packed.read("schema.json").decode(),
    )
    with ZipFile(directory / FILE, "w") as out:
        for name in packed.namelist():
            stem, suffix = name.split(".")
            content = schema if stem == "schema" else packed.read(name)
            out.writestr(ZipInfo(f"{number.get(stem, stem)}.{suffix}"), content)
    return {}


def load(directory: Path, architecture: Mapping[str, Any]) -> Pipeline:
    """Read what ``save`` wrote; skops refuses any type but its own list and these."""
    with lean():
        import skops.io

    return skops.io.load(directory / FILE, trusted=["numpy.dtype"])
