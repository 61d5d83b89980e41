"""Any estimator of scikit-learn's kind, on one-hot and scaled columns; by default a simple one."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from io import BytesIO
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile, ZipInfo

from headrace.cluster import crew, on_each
from headrace.imports import lean
from headrace.training.encoding import Encoder
from headrace.training.errors import UnknownTrainer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from dask.distributed import Client
    from numpy.typing import NDArray
    from sklearn.pipeline import Pipeline

    from headrace.pipeline import Columns
    from headrace.problem import Problem
    from headrace.training.rows import Rows

PACKAGES = ("scikit-learn", "skops")
PLAIN = True
FILE, SHAPE = "model.skops", "classes.json"
USUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "binary": ("sklearn.linear_model.LogisticRegression", {"max_iter": 300}),
    "classes": ("sklearn.linear_model.LogisticRegression", {"max_iter": 300}),
    "squared": ("sklearn.linear_model.Ridge", {}),
    # without its margin the loss of a support vector machine is the absolute one
    "absolute": ("sklearn.linear_model.SGDRegressor", {"loss": "epsilon_insensitive", "epsilon": 0.0}),
    "poisson": ("sklearn.linear_model.PoissonRegressor", {"max_iter": 300}),
    # the linear one solves a linear program as large as the rows are many
    "quantile": ("sklearn.ensemble.HistGradientBoostingRegressor", {"loss": "quantile"}),
}
"""The estimator for each objective, with parameters that a candidate's come after."""


@dataclass(frozen=True)
class Estimated:
    """Fitted pipelines, one per quantile or else a single one, with their encoder.

    ``classes`` are those that occurred, of ``width``; without any, what is predicted are numbers.
    """

    encoder: Encoder
    pipelines: Sequence[Pipeline]
    classes: tuple[int, ...]
    width: int


def fit(
    params: Mapping[str, Any],
    seed: int,
    rows: Rows,
    *,
    columns: Columns,
    problem: Problem,
    client: Client | None,
    selection: Rows | None,  # estimators stop by themselves
    give_up: Mapping[int, float],
) -> Estimated:
    """Fit ``params["estimator"]``, a dotted path, with all other ``params``, on the first worker.

    It is seeded if it takes a ``random_state``, and fitted once for each quantile, which it must take.

    Raises:
        UnknownTrainer: There is no such class, or it cannot answer such a problem, or takes no weights.
    """
    encoder = Encoder.fit(rows, columns)
    path, own = USUAL[problem.objective]
    given = dict(params)
    if "estimator" in given:
        path, own = given.pop("estimator"), {}
    whole = problem.objective in ("binary", "classes")
    job = (path, {**own, **given}, seed, problem, encoder, rows)
    (pipelines,) = on_each(client, crew(client)[:1], _fit, [job])
    classes = tuple(int(label) for label in pipelines[0].classes_) if whole else ()
    return Estimated(encoder, pipelines, classes, 2 if problem.objective == "binary" else problem.width)


def _fit(
    path: str,
    params: dict[str, Any],
    seed: int,
    problem: Problem,
    encoder: Encoder,
    rows: Rows,
) -> list[Pipeline]:
    import numpy as np
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from sklearn.utils import get_tags
    from sklearn.utils.validation import has_fit_parameter
    from threadpoolctl import threadpool_limits

    estimator, levels, codes = _estimator(path), problem.levels, len(encoder.categories)
    learnt = encoder.learnt(rows, problem)
    matrix = learnt.matrix.astype(np.float64)  # 32 bits overflow in great sums
    targets: NDArray[Any] = learnt.targets
    if problem.objective in ("binary", "classes"):
        targets = targets.astype(int)
    taken = inspect.signature(estimator).parameters
    if levels and "quantile" not in taken:
        raise UnknownTrainer(path, "it takes no `quantile`, which the problem asks for")
    if "random_state" in taken:
        params = {"random_state": seed, **params}
    each = [params | {"quantile": level} for level in levels] or [params]
    fitted = []
    for own in each:
        final = estimator(**own)
        sparse = hasattr(final, "__sklearn_tags__") and get_tags(final).input_tags.sparse
        numbers = make_pipeline(
            SimpleImputer(strategy="mean", keep_empty_features=True, add_indicator=True), StandardScaler()
        )
        parts = [
            ("codes", OneHotEncoder(handle_unknown="ignore", sparse_output=sparse), range(codes)),
            ("numbers", numbers, range(codes, matrix.shape[1])),
        ]
        # Neither takes a matrix without columns.
        inputs = ColumnTransformer([(name, part, list(places)) for name, part, places in parts if places])
        model = make_pipeline(inputs, final)
        weights = {} if learnt.weights is None else {f"{model.steps[-1][0]}__sample_weight": learnt.weights}
        if weights and not has_fit_parameter(final, "sample_weight"):
            raise UnknownTrainer(path, "it takes no `sample_weight`, and rows count differently")
        # Sums then never depend on the number of cores, and the small products of L-BFGS are thrice as fast.
        with threadpool_limits(1):
            fitted.append(model.fit(matrix, targets, **weights))
        if targets.dtype.kind == "i" and not hasattr(model, "predict_proba"):
            raise UnknownTrainer(path, "it has no `predict_proba`, and the problem asks for probabilities")
    return fitted


def _estimator(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ModuleNotFoundError, AttributeError, ValueError):
        raise UnknownTrainer(path, "`estimator` must be the dotted path of a class") from None


def predict(native: Estimated, rows: pa.Table | Mapping[str, Sequence[Any]]) -> NDArray[np.float64]:
    """Return the probability of each class, of the second of two, or the values."""
    import numpy as np

    matrix = native.encoder.encode(rows).astype(np.float64)
    if not native.classes:
        return np.column_stack([pipeline.predict(matrix) for pipeline in native.pipelines])
    shares = np.zeros((len(matrix), native.width))
    shares[:, list(native.classes)] = native.pipelines[0].predict_proba(matrix)
    return shares[:, 1] if native.width == 2 else shares


def save(native: Estimated, directory: Path) -> None:
    """Write the pipelines with skops, equal models as equal files."""
    with lean():
        import skops.io

    native.encoder.save(directory)
    told = {"classes": list(native.classes), "width": native.width}
    (directory / SHAPE).write_text(json.dumps(told, indent=1) + "\n")
    whole = native.pipelines[0] if len(native.pipelines) == 1 else list(native.pipelines)
    # skops names parts by their place in memory and stamps them with the time: count them instead.
    packed = ZipFile(BytesIO(skops.io.dumps(whole)))
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


def load(directory: Path) -> Estimated:
    """Read what ``save`` wrote; skops refuses any type but its own list and these."""
    with lean():
        import skops.io

    file = directory / FILE
    # Not on skops's list, but classes of scikit-learn all the same: what its trees and losses are made of.
    others = [name for name in skops.io.get_untrusted_types(file=file) if name.startswith("sklearn.")]
    whole = skops.io.load(file, trusted=["numpy.dtype", *others])
    told = json.loads((directory / SHAPE).read_text())
    pipelines = whole if isinstance(whole, list) else [whole]
    return Estimated(Encoder.load(directory), pipelines, tuple(told["classes"]), told["width"])


def flavour(directory: str) -> tuple[str, dict[str, Any]]:
    """Return under which name, and with what, MLflow finds the pipeline that lies in ``directory``."""
    return "sklearn", {
        "pickled_model": f"{directory}/{FILE}",  # MLflow's name for the file, whatever its format
        "serialization_format": "skops",
        "skops_trusted_types": ["numpy.dtype"],
        "sklearn_version": version("scikit-learn"),
    }
