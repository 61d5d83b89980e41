import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from itertools import product
from threading import Timer

import numpy as np
import pyarrow as pa
import pytest
from dask import config

from headrace import training as trainings
from headrace.cluster import WorkerLost, cluster, crew, listen, on_each
from headrace.lake import duckdb_connection
from headrace.pipeline import Candidate, Columns
from headrace.problem import EDGE, Binary
from headrace.training import torch as torch_trainer
from headrace.training.encoding import Encoder
from headrace.training.errors import DamagedModel, MissingInputs, OlderModel
from headrace.training.model import SUMS, _load_pyfunc, digest, load
from headrace.training.rows import InMemory
from headrace.training.xgboost import booster_params, feature_types
from pipelines import _nycflights13 as nyc

COLUMNS = Columns(
    ("carrier", "origin", "dest"), ("hour", "minute", "weekday", "distance", "wind_gust", "visib")
)
CANDIDATES = (
    Candidate(
        "xgboost", "xgboost", {"rounds": 30, "max_depth": 4, "subsample": 0.8, "colsample_bytree": 0.5}
    ),
    Candidate("torch", "torch", {"hidden": (16,), "epochs": 2, "lr": 5e-3, "batch": 512}),
    Candidate("baseline", "sklearn", {"C": 1.0}),
)
LATE = Binary()
every_candidate = pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.name)


ROUNDS = {"xgboost": "rounds", "torch": "epochs"}


@pytest.fixture(scope="module")
def flights(tmp_path_factory):
    """January's flights, in order of departure: inputs with real nulls, and whether each was late."""
    con = duckdb_connection()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HOME", str(tmp_path_factory.mktemp("home")))
        for name, file in nyc.files("flights", "airports", "weather").items():
            parquet = file.suffix == ".parquet"
            table = con.read_parquet(str(file)) if parquet else con.read_csv(str(file), na_values=["NA", ""])
            table.create_view(name)
    con.sql(nyc.FLIGHTS).create_view("landed")
    con.sql(nyc.SCHEDULES).create_view("schedules")
    return con.sql("""
        SELECT schedules.*, wind_gust, visib, (arr_delay >= 15)::INTEGER AS label
        FROM schedules JOIN landed USING (carrier, flight, origin, sched_dep)
        LEFT JOIN weather ON weather.origin = schedules.origin
            AND weather.time_hour = date_trunc('hour', sched_dep - INTERVAL 2 HOUR)
        WHERE arr_delay IS NOT NULL AND sched_dep < TIMESTAMPTZ '2013-02-01 05:00:00+00'
        ORDER BY sched_dep, carrier, flight, origin
    """).to_arrow_table()


@pytest.fixture(scope="module")
def training(flights):
    rows = flights.slice(0, 20_000)
    return rows, rows["label"].to_numpy()


@pytest.fixture(scope="module")
def holdout(flights):
    return flights.slice(20_000)


@pytest.fixture(scope="module")
def one():
    with cluster() as client:
        yield client


@pytest.fixture(scope="module")
def two():
    with cluster(workers=2) as client:
        yield client


def fit(candidate, rows, labels, columns, client):
    rows = rows.drop_columns([name for name in ("label",) if name in rows.column_names])
    return trainings.fit(candidate, rows.append_column("label", pa.array(labels)), columns, LATE, client)


def auc(labels, probabilities):
    return LATE.scores(labels, probabilities)["auc"]


def saved(model, directory):
    """The model's files, as bytes."""
    model.save(directory)
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_an_encoder_turns_nulls_and_strangers_into_nan_and_the_rest_into_codes_and_values():
    seen = pa.table({"port": ["JFK", None, "EWR"], "gate": [7, 7, 3], "wind": [1, None, 3]})
    encoder = Encoder.fit(seen, Columns(("port", "gate"), ("wind",)))

    rows = pa.table(
        {"wind": [None, 2.5, 4], "gate": [3, 7, 9], "port": ["EWR", "JFK", None], "spare": [1, 2, 3]}
    )

    np.testing.assert_array_equal(
        encoder.encode(rows), np.array([[0, 0, np.nan], [1, 1, 2.5], [np.nan, np.nan, 4]], dtype=np.float32)
    )


@pytest.mark.parametrize(
    ("values", "kind", "encoded"),
    [
        (
            [1.5, float("inf"), float("-inf"), 1e300, 1e-300, None],
            pa.float64(),
            [1.5, *[np.nan] * 3, 0, np.nan],
        ),
        ([2**53 + 1, -(2**63), None], pa.int64(), [2**53, -(2**63), np.nan]),
        ([Decimal(10**37), None], pa.decimal128(38, 0), [1e37, np.nan]),
        ([Decimal("1.25")], pa.decimal128(5, 2), [1.25]),
        ([True, False, None], pa.bool_(), [1, 0, np.nan]),
        ([None], pa.null(), [np.nan]),
    ],
    ids=lambda value: str(value) if isinstance(value, pa.DataType) else "",
)
def test_a_number_is_encoded_as_near_as_floats_come_and_is_missing_where_they_hold_none(
    values, kind, encoded
):
    rows = pa.table({"n": pa.array(values, kind)})

    matrix = Encoder.fit(rows, Columns((), ("n",))).encode(rows)

    np.testing.assert_array_equal(matrix[:, 0], np.array(encoded, dtype=np.float32))


ODD = 'a "quoted" [0] < 1; b'


@every_candidate
@pytest.mark.filterwarnings("error", "ignore::pytest.PytestUnraisableExceptionWarning")  # of other tests
def test_values_and_names_that_people_have_are_learnt_from_and_predicted(candidate, one, tmp_path):
    draw = np.random.default_rng(0)
    x = draw.normal(size=600)
    labels = (x > 0).astype(np.int32)
    strange = np.r_[np.inf, -np.inf, 1e300, np.full(60, 3e38), x[63:]]
    rows = pa.table(
        {
            ODD: strange,
            "huge": pa.array([2**62 + int(v * 2**60) for v in x]),
            "exact": pa.array([Decimal(int(v * 10**6)) * 10**20 for v in x], pa.decimal128(38, 0)),
            "flag": x > 1,
            "code": draw.integers(2**60, 2**60 + 3, 600),
            "fee": pa.array([Decimal("1.25"), Decimal("2.50")] * 300),
            "sure": draw.random(600) < 0.5,
        }
    )
    columns = Columns(("code", "fee", "sure"), (ODD, "huge", "exact", "flag"))

    model = fit(candidate, rows, labels, columns, one)
    model.save(tmp_path)

    known = model.predict(rows)
    assert ((known > 0) & (known < 1)).all()
    assert auc(labels, known) > 0.65
    np.testing.assert_array_equal(load(tmp_path).predict(rows), known)
    missing = rows.set_column(0, ODD, pa.array(x, mask=np.abs(strange) > 3.5e38))
    np.testing.assert_array_equal(model.predict(missing)[:3], known[:3])


def test_an_encoder_is_loaded_as_it_was_saved(training, tmp_path):
    rows, _ = training
    encoder = Encoder.fit(rows, COLUMNS)
    encoder.save(tmp_path)

    again = Encoder.load(tmp_path)

    assert again == encoder
    np.testing.assert_array_equal(again.encode(rows), encoder.encode(rows))


def test_rows_without_a_column_are_refused_by_its_name(training):
    rows, _ = training
    encoder = Encoder.fit(rows, COLUMNS)

    with pytest.raises(MissingInputs, match="`dest`, `visib`") as refused:
        encoder.encode(rows.drop_columns(["dest", "visib"]))

    assert refused.value.missing == ("dest", "visib")


def test_one_worker_makes_the_bytes_of_plain_xgboost(training, one):
    import xgboost

    rows, labels = training
    candidate = CANDIDATES[0]
    encoder = Encoder.fit(rows, COLUMNS)
    data = xgboost.DMatrix(
        encoder.encode(rows),
        labels,
        feature_names=list(encoder.names),
        feature_types=feature_types(encoder),
        enable_categorical=True,
    )
    threads = {"nthread": crew(one)[0].threads}
    plain = xgboost.train(
        booster_params(candidate.params, 0, "cpu", LATE) | threads, data, num_boost_round=30
    )

    model = fit(candidate, rows, labels, COLUMNS, one)

    assert model.native.booster.save_raw() == plain.save_raw()
    assert model.native.booster.num_boosted_rounds() == 30


@every_candidate
def test_a_model_ranks_flights_it_has_not_seen(candidate, training, holdout, one):
    model = fit(candidate, *training, COLUMNS, one)

    assert auc(holdout["label"], model.predict(holdout)) > 0.6


@every_candidate
def test_two_runs_on_two_workers_make_the_same_files(candidate, training, two, tmp_path):
    first, second = (fit(candidate, *training, COLUMNS, two) for _ in range(2))

    assert saved(first, tmp_path / "first") == saved(second, tmp_path / "second")


@every_candidate
def test_a_loaded_model_predicts_what_the_saved_one_did(candidate, training, holdout, one, tmp_path):
    model = fit(candidate, *training, COLUMNS, one)
    files = saved(model, tmp_path)

    again = load(tmp_path)

    np.testing.assert_array_equal(again.predict(holdout), model.predict(holdout))
    assert saved(again, tmp_path)["model.json"] == files["model.json"]
    assert not [name for name, content in files.items() if content.startswith(b"\x80\x04")], "a pickle"


@every_candidate
def test_a_damaged_model_is_refused_before_anything_parses_it(candidate, training, one, tmp_path):
    """Parsed, some of them would predict otherwise, and some would end the process."""
    fit(candidate, *training, COLUMNS, one).save(tmp_path)
    whole, rng = digest(tmp_path), np.random.default_rng(0)
    files = {file: file.read_bytes() for file in sorted(tmp_path.iterdir())}
    assert subprocess.run(["sha256sum", "--check", SUMS], cwd=tmp_path, check=False).returncode == 0

    def flipped(content):
        place = rng.integers(len(content))
        return content[:place] + bytes([content[place] ^ 1 << rng.integers(8)]) + content[place + 1 :]

    damages = [flipped] * 80 + [lambda content: content[: rng.integers(len(content))]] * 5 + [None]
    for (file, content), damage in product(files.items(), damages):
        file.write_bytes(damage(content)) if damage else file.unlink()
        for given in (whole, "") if file.name != SUMS or damage is flipped else (whole,):
            named = file.name if file.name != SUMS or given else "is damaged"
            with pytest.raises(DamagedModel, match=named):
                load(tmp_path, given)
        file.write_bytes(content)
    assert load(tmp_path, whole).trainer == candidate.trainer
    with pytest.raises(DamagedModel, match=f"`{SUMS}` is not as it was written"):
        load(tmp_path, "0" * 64)


@every_candidate
def test_mlflow_gets_the_same_probabilities_from_pandas(candidate, training, holdout, one, tmp_path):
    model = fit(candidate, *training, COLUMNS, one)
    model.save(tmp_path)
    few = holdout.slice(0, 50)

    served = _load_pyfunc(str(tmp_path))

    answered = served.predict(few.to_pandas(), params=None)
    assert list(answered.columns) == ["probability"]
    np.testing.assert_array_equal(answered["probability"], model.predict(few))


@every_candidate
@pytest.mark.parametrize(
    "columns",
    [Columns((), COLUMNS.numeric), Columns(COLUMNS.categorical, ())],
    ids=["numbers", "categories"],
)
def test_inputs_may_be_of_one_kind_alone(candidate, columns, training, holdout, one, tmp_path):
    model = fit(candidate, *training, columns, one)
    model.save(tmp_path)
    assert auc(holdout["label"].to_numpy(), load(tmp_path).predict(holdout)) > 0.55


@every_candidate
def test_a_flight_of_which_nothing_is_known_still_gets_a_probability(candidate, training, one):
    model = fit(candidate, *training, COLUMNS, one)
    unknown = pa.table({name: pa.nulls(1) for name in COLUMNS.names})

    (probability,) = model.predict(unknown)

    assert EDGE <= probability <= 1 - EDGE


def test_a_model_of_an_earlier_release_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "model.json").write_text('{"framework": "xgboost", "encoder": {}}')
    with pytest.raises(OlderModel, match=r"alias `champion`.*run the `train` flow"):
        load(tmp_path)


def test_loading_trees_imports_no_other_framework(training, one, tmp_path):
    fit(CANDIDATES[0], *training, COLUMNS, one).save(tmp_path)
    script = (
        "import sys, pathlib; from headrace.training.model import load; load(pathlib.Path(sys.argv[1])); "
        "print(*{'xgboost', 'torch', 'dask', 'skops'} & set(sys.modules))"
    )

    out = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)

    assert out.stdout.split() == ["xgboost"]


@pytest.mark.parametrize("name", ["xgboost", "torch"])
def test_a_worker_that_is_killed_fails_the_fit_at_once_with_its_name_and_the_next_one_is_whole(
    name, training
):
    """Neither framework says so by itself: one would have it cancelled, the other a closed socket."""
    rows, labels = training
    candidate = next(one for one in CANDIDATES if one.name == name)
    endless = replace(candidate, params={**candidate.params, ROUNDS[name]: 50_000})
    with cluster(workers=2) as client:
        whole = fit(candidate, rows, labels, COLUMNS, client)
        victim = client.run(os.getpid)[crew(client)[1].address]
        Timer(3, os.kill, (victim, signal.SIGKILL)).start()
        started = time.monotonic()
        with pytest.raises(WorkerLost, match="died during collective work"):
            fit(endless, rows, labels, COLUMNS, client)
        assert time.monotonic() - started < 40
        client.wait_for_workers(2)
        again = fit(candidate, rows, labels, COLUMNS, client)
    np.testing.assert_array_equal(again.predict(rows), whole.predict(rows))


def stopped(candidate, rows, client, **params):
    """Fit on the first rows, and let the others say when to stop."""
    candidate = replace(candidate, params={**candidate.params, **params})
    learnt, others = rows.slice(0, 12_000), InMemory(rows.slice(12_000))
    return trainings.fit(candidate, learnt, COLUMNS, LATE, client, others)


LONG = {"xgboost": {"rounds": 300, "eta": 0.5}, "torch": {"epochs": 15, "lr": 0.03}}


@pytest.mark.parametrize("workers", ["one", "two"])
@pytest.mark.parametrize("name", LONG)
def test_fitting_stops_when_the_selection_has_lost_nothing_for_long(name, training, workers, request):
    client, rows = request.getfixturevalue(workers), training[0]
    candidate = next(one for one in CANDIDATES if one.name == name)

    long = stopped(candidate, rows, client, **LONG[name])
    early = stopped(candidate, rows, client, **LONG[name], early_stopping_rounds=3)

    losses = next(of for told, of in early.native.history.items() if told.startswith("selection"))
    asked, best = LONG[name][ROUNDS[name]], early.native.settled[ROUNDS[name]]
    assert best == np.argmin(losses) + 1
    assert len(losses) == best + 3 < asked
    assert long.native.settled == {}
    others = rows.slice(12_000)
    ours, theirs = (
        LATE.losses(LATE.encode(others["label"]), model.predict(others)).mean() for model in (early, long)
    )
    assert ours == pytest.approx(min(losses), abs=1e-4)
    assert ours < theirs
    settled = {**LONG[name], **early.native.settled}
    again = trainings.fit(
        replace(candidate, params={**candidate.params, **settled}),
        rows.slice(0, 12_000),
        COLUMNS,
        LATE,
        client,
    )
    np.testing.assert_array_equal(again.predict(others), early.predict(others))


def test_trees_grow_the_same_from_parts_and_from_disk(training, holdout, one, monkeypatch):
    rows, labels = training
    params = {"rounds": 30, "max_depth": 4}
    whole = fit(Candidate("whole", "xgboost", params), rows, labels, COLUMNS, one)
    monkeypatch.setattr("headrace.training.rows.PART", 3_000)
    disk = fit(Candidate("disk", "xgboost", {**params, "external_memory": True}), rows, labels, COLUMNS, one)
    monkeypatch.setattr("headrace.training.xgboost.WHOLE", 1)
    parts = fit(Candidate("parts", "xgboost", params), rows, labels, COLUMNS, one)
    again = fit(Candidate("again", "xgboost", params), rows, labels, COLUMNS, one)

    assert parts.native.booster.save_raw() == again.native.booster.save_raw()
    asked = holdout["label"], whole.predict(holdout)
    for other in (parts, disk):  # bins are cut a little elsewhere
        assert auc(holdout["label"], other.predict(holdout)) == pytest.approx(auc(*asked), abs=0.01)


def test_constraints_reach_the_trees(training, one):
    rows, labels = training
    bound = {"monotone_constraints": {"wind_gust": 1}, "interaction_constraints": [["hour", "origin"]]}
    candidate = replace(CANDIDATES[0], params=CANDIDATES[0].params | bound)

    model = fit(candidate, rows, labels, COLUMNS, one)

    asked = rows.slice(0, 500)
    stormy = asked.set_column(asked.schema.get_field_index("wind_gust"), "wind_gust", pa.array([60.0] * 500))
    calm = asked.set_column(asked.schema.get_field_index("wind_gust"), "wind_gust", pa.array([12.0] * 500))
    assert (model.predict(stormy) >= model.predict(calm)).all()
    paths = model.native.booster.trees_to_dataframe()
    used = paths[paths["Feature"] != "Leaf"].groupby("Tree")["Feature"].agg(set)
    assert all(names <= {"hour", "origin"} or len(names) == 1 for names in used)


@pytest.mark.parametrize("params", [{"blocks": 2}, {"precision": "bf16"}], ids=["blocks", "bf16"])
def test_deeper_and_coarser_networks_learn_and_repeat(params, training, holdout, one, tmp_path):
    candidate = replace(CANDIDATES[1], params=CANDIDATES[1].params | params)
    first, second = (fit(candidate, *training, COLUMNS, one) for _ in range(2))
    assert saved(first, tmp_path / "first") == saved(second, tmp_path / "second")
    assert auc(holdout["label"], load(tmp_path / "first").predict(holdout)) > 0.6


def test_trainings_at_once_in_one_process_leave_dask_as_it_was(training):
    def train(_):
        with cluster() as client:
            return fit(CANDIDATES[0], *training, COLUMNS, client).native.booster.save_raw()

    before = config.get("scheduler", None)
    with ThreadPoolExecutor(3) as threads:
        models = list(threads.map(train, range(3)))

    assert config.get("scheduler", None) == before
    assert models[0] == models[1] == models[2]


def test_torch_leaves_the_process_as_it_was(training, one):
    import torch

    torch.manual_seed(7)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()

    fit(CANDIDATES[1], *training, COLUMNS, one)

    after = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    assert after[:2] == before[:2]
    assert torch.equal(after[2], before[2])


def test_an_unknown_torch_parameter_is_refused(training, one):
    with pytest.raises(TypeError, match="hiden"):
        fit(Candidate("typo", "torch", {"hiden": (4,)}), *training, COLUMNS, one)


def test_a_failing_torch_worker_fails_the_others_at_once(training, two):
    rows, labels = training
    workers, encoder = crew(two), Encoder.fit(rows, COLUMNS)
    shape = torch_trainer.Architecture([len(seen) for seen in encoder.categories.values()], 6, (16,))
    numbers = np.zeros(6, np.float32), np.ones(6, np.float32)
    job = torch_trainer.Job(
        torch_trainer.Options(), shape, encoder, LATE, None, rows.num_rows, 1.0, *numbers, seed=0
    )
    place = listen(two, workers[0])
    work = [
        (job, InMemory(share), torch_trainer.Place(rank, 2, False, *place))
        for rank, share in enumerate((rows, rows.drop_columns(["visib"])))
    ]
    started = time.monotonic()

    with pytest.raises((RuntimeError, MissingInputs)):
        on_each(two, workers, torch_trainer._train, work)

    fit(CANDIDATES[1], rows, labels, COLUMNS, two)
    assert time.monotonic() - started < 20
