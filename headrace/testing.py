"""Tests to run on trainers of one's own: subclass ``TrainerTests``, name the trainer, and let pytest find it.

    from headrace.testing import TrainerTests

    class TestLightGBM(TrainerTests):
        trainer = "trainers.lightgbm"

They need ``pytest``, which is not among headrace's own requirements.
"""

from __future__ import annotations

import io
import zipfile
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from headrace import tracking, training
from headrace.cluster import cluster
from headrace.lake import DatasetRef, Lake
from headrace.pipeline import Candidate, Columns, Pipeline
from headrace.problem import Binary, MultiClass, Problem, Regression, guess
from headrace.training.model import Model, digest, load
from headrace.training.trainers import trainer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa

COLUMNS = Columns(("port", "never"), ("wind", "gust", "nothing"))
ROWS = 800
START = datetime(2024, 1, 1, tzinfo=UTC)


def rows(problem: Problem) -> pa.Table:
    """Return rows with nulls, a column of nothing else, and labels that can be learnt from them."""
    import pyarrow as pa

    draw = np.random.default_rng(0)
    port, wind = draw.integers(0, 3, ROWS), draw.normal(10, 3, ROWS)
    known = port + wind / 3 + draw.normal(0, 0.5, ROWS)
    if isinstance(problem, Regression):
        labels: list[Any] = np.maximum(known, 0).round(3).tolist()
    else:
        classes = (
            [problem.negative, problem.positive]
            if isinstance(problem, Binary)
            else list(getattr(problem, "classes", ()))
        )
        edges = np.quantile(known, np.linspace(0, 1, len(classes) + 1)[1:-1])
        labels = [classes[place] for place in np.searchsorted(edges, known)]
    return pa.table(
        {
            "port": pa.array([f"port {n}" for n in port], mask=draw.random(ROWS) < 0.1),
            "never": pa.nulls(ROWS, pa.string()),
            "wind": pa.array(wind, mask=draw.random(ROWS) < 0.1),
            "gust": pa.array(draw.normal(size=ROWS)),
            "nothing": pa.nulls(ROWS, pa.float64()),
            "event_timestamp": pa.array(
                [START + timedelta(minutes=n) for n in range(ROWS)], pa.timestamp("us", "UTC")
            ),
            "label": pa.array(labels, problem.label_type),
        }
    )


class TrainerTests:
    """What every trainer must do.

    ``params`` are a candidate's; ``problems`` those that the trainer can answer; ``workers`` are Dask's:
    one lives inside this process.
    """

    trainer: ClassVar[str] = ""
    params: ClassVar[Mapping[str, Any]] = {}
    workers: ClassVar[int] = 1
    problems: ClassVar[tuple[Problem, ...]] = (
        Binary(),
        MultiClass(("calm", "windy", "stormy")),
        Regression(),
        Regression("absolute"),
        Regression("poisson"),
        Regression("quantile"),
    )

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Let each test be run for each of the class's problems."""
        if "problem" in metafunc.fixturenames:
            named = [f"{type(each).__name__}-{each.objective}" for each in self.problems]
            metafunc.parametrize("problem", self.problems, ids=named)

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls) -> Iterator[Any]:
        """Dask's client."""
        with cluster(workers=cls.workers) as client:
            yield client

    @pytest.fixture(scope="class")
    @classmethod
    def models(cls) -> dict[Problem, Model]:
        """Models that were fitted on all rows: once for each problem."""
        return {}

    @pytest.fixture
    def model(self, problem: Problem, client: Any, models: dict[Problem, Model]) -> Model:
        """A model that was fitted on all rows."""
        if problem not in models:
            models[problem] = self.fitted(problem, client, rows(problem))
        return models[problem]

    @pytest.fixture(scope="class")
    @classmethod
    def home(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder with an MLflow."""
        return tmp_path_factory.mktemp("mlflow")

    def fitted(self, problem: Problem, client: Any, learnt: pa.Table) -> Model:
        """Fit a model on ``learnt``."""
        candidate = Candidate("tried", self.trainer, self.params)
        return training.fit(candidate, learnt, COLUMNS, problem, client)

    def test_it_learns_more_than_the_past_alone_says(self, problem: Problem, client: Any) -> None:
        """Of rows that it has not seen it must tell more than the best constant does."""
        learnt, others = rows(problem).slice(0, 600), rows(problem).slice(600)
        targets, model = problem.encode(others["label"]), self.fitted(problem, client, learnt)
        ours, naive = (
            problem.losses(targets, predicted).mean()
            for predicted in (model.predict(others), guess(problem, learnt, others))
        )
        assert ours < 0.9 * naive

    def test_rows_that_count_nothing_teach_nothing(self, problem: Problem, client: Any) -> None:
        """Half of the rows have the labels of others, and a weight of almost nothing."""
        import pyarrow as pa

        learnt, others = rows(problem).slice(0, 600), rows(problem).slice(600)
        turned = np.arange(600) % 2 == 1
        labels, place = learnt["label"].to_pylist(), learnt.schema.get_field_index("label")
        strange = sorted(labels, key=str) if problem.width > 1 else [labels[-1 - n] for n in range(600)]
        given = [other if turned[n] else labels[n] for n, other in enumerate(strange)]
        learnt = learnt.set_column(place, "label", pa.array(given, problem.label_type))
        targets, lost = problem.encode(others["label"]), []
        for weights in (np.where(turned, 1e-6, 1.0), np.where(turned, 1.0, 1e-6)):
            model = self.fitted(problem, client, learnt.append_column("row_weight", pa.array(weights)))
            lost.append(problem.losses(targets, model.predict(others)).mean())
        assert lost[0] < 0.95 * lost[1]

    def test_the_same_rows_give_the_same_files(self, problem: Problem, client: Any, tmp_path: Path) -> None:
        """Rebuilding a model gives its bytes."""
        for name in ("one", "two"):
            self.fitted(problem, client, rows(problem)).save(tmp_path / name)
        assert digest(tmp_path / "one") == digest(tmp_path / "two")

    def test_a_loaded_model_predicts_the_same(
        self, problem: Problem, model: Model, home: Path, tmp_path: Path
    ) -> None:
        """And so does MLflow, from pandas."""
        import mlflow

        asked = rows(problem).slice(0, 50)
        model.save(tmp_path / "model")
        np.testing.assert_array_equal(load(tmp_path / "model").predict(asked), model.predict(asked))

        uri = f"sqlite:///{home}/mlflow.db"
        candidate = Candidate("tried", self.trainer, self.params)
        spec = Pipeline(
            "tried", "", "", START, (), (), "", (), "", "", COLUMNS, (candidate,), problem=problem
        )
        logged = tracking.log_candidate(
            tracking.MLflow(uri, home),
            spec,
            candidate,
            model,
            {},
            training=DatasetRef("training/tried", 0, ROWS, "0"),
            lake=Lake(str(tmp_path / "lake")),
            cause=repr(problem),
            as_of=START,
        )
        frame = asked.select(COLUMNS.names).to_pandas()
        mlflow.set_tracking_uri(uri)
        answered = mlflow.pyfunc.load_model(logged.model_uri).predict(frame)
        told = problem.named(model.predict(asked))
        assert list(answered.columns) == list(told)
        for name, values in told.items():
            assert answered[name].tolist() == values.to_pylist()

    def test_a_request_is_told_what_a_batch_is(self, problem: Problem, model: Model) -> None:
        """As lists to the bit, if it takes them; and row by row to what a float can hold."""
        asked = rows(problem).slice(0, 50).select(COLUMNS.names)
        told = model.predict(asked)
        plain = getattr(trainer(self.trainer), "PLAIN", False)
        if plain:
            np.testing.assert_array_equal(model.predict(asked.to_pydict()), told)
        for place in range(10):
            one = asked.slice(place, 1)
            alone = model.predict(one.to_pydict() if plain else one)
            np.testing.assert_allclose(alone, told[place : place + 1], rtol=1e-4, atol=1e-6)

    def test_its_files_hold_no_pickle(self, model: Model, tmp_path: Path) -> None:
        """A pickle runs whatever code it holds when it is loaded."""
        model.save(tmp_path)
        for file in tmp_path.iterdir():
            content = file.read_bytes()
            parts = [content]
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(io.BytesIO(content)) as packed:
                    parts = [packed.read(name) for name in packed.namelist()]
            assert not any(part[:1] == b"\x80" and part[1:2] in b"\x02\x03\x04\x05" for part in parts), file

    def test_nulls_and_strangers_get_a_prediction(self, problem: Problem, model: Model) -> None:
        """A category never seen, or a row of which nothing is known, is no reason to give none."""
        import pyarrow as pa

        unknown = pa.table({name: pa.nulls(2) for name in COLUMNS.names})
        strange = rows(problem).slice(0, 2).set_column(0, "port", pa.array(["elsewhere", "nowhere"]))
        for asked in (unknown, strange):
            predicted = model.predict(asked)
            assert len(predicted) == 2
            assert np.isfinite(predicted).all()
