"""Bytes that are not what was written: found on demand, and where they are relied on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace import integrity
from headrace.errors import DamagedDatabase
from headrace.feature_store.feast import writers
from headrace.lake import DamagedFile, DamagedTable, Lake, Window, damage_explained, duckdb_connection
from headrace.monitoring.watch import judge
from headrace.outages import outages
from headrace.tracking import MLflow
from tests.conftest import utc
from tests.test_monitoring import TOY, predicted, toy_release

FLIPS = 200


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, MLflow, int]:
    home = tmp_path_factory.mktemp("lived")
    mlflow, lake = MLflow(f"sqlite:///{home}/mlflow/mlflow.db", home), Lake(f"{home}/lake")
    return lake, mlflow, toy_release(lake, mlflow, 0.0)


def wrong(lake: Lake, mlflow: MLflow) -> dict[str, str]:
    return {checked.what: checked.wrong for checked in integrity.check("toy", lake, mlflow)}


def read(lake: Lake) -> list[tuple]:
    return lake.connect({"t": "training/toy"}).sql("FROM t ORDER BY id").fetchall()


def test_what_is_as_it_was_written_passes(lived: tuple[Lake, MLflow, int]) -> None:
    assert wrong(*lived[:2]) == {"model": "", "training/toy@v1": ""}


def test_no_flipped_bit_of_a_training_set_is_read_as_another_row_in_silence(
    lived: tuple[Lake, MLflow, int],
) -> None:
    lake, mlflow, _ = lived
    (file,) = (mlflow.home / "lake/training/toy").glob("*.parquet")
    whole, rows = file.read_bytes(), read(lake)
    draw, silent, found = np.random.default_rng(0), 0, 0
    try:
        for at in draw.integers(0, len(whole), FLIPS):
            spoilt = bytearray(whole)
            spoilt[at] ^= 1 << int(draw.integers(8))
            file.write_bytes(spoilt)
            if said := wrong(lake, mlflow)["training/toy@v1"]:
                assert "Table `training/toy` is damaged: " in said
                found += 1
                continue
            silent += read(lake) != rows
    finally:
        file.write_bytes(whole)
    assert silent == 0
    assert found > FLIPS / 2


def test_a_damaged_model_and_a_lost_training_set_are_named(lived: tuple[Lake, MLflow, int]) -> None:
    lake, mlflow, _ = lived
    (model,) = mlflow.home.glob("mlflow/artifacts/**/model.ubj")
    (rows,) = (mlflow.home / "lake/training/toy").glob("*.parquet")
    whole = {file: file.read_bytes() for file in (model, rows)}
    model.write_bytes(whole[model][:-1] + b"?")
    rows.unlink()
    try:
        found = wrong(lake, mlflow)
        assert "`model.ubj` is not as it was written" in found["model"]
        assert f"{rows.name} is missing" in found["training/toy@v1"]
    finally:
        for file, data in whole.items():
            file.write_bytes(data)


def test_a_reference_is_not_made_of_other_rows_than_were_learnt_from(lived: tuple[Lake, MLflow, int]) -> None:
    lake, mlflow, version = lived
    week = Window(utc(2013, 4, 1), utc(2013, 4, 8))
    lake.table("predictions/toy").overwrite(predicted(week, version), week, "event_timestamp")
    (file,) = (mlflow.home / "lake/training/toy").glob("*.parquet")
    whole, table = file.read_bytes(), pq.read_table(file)
    changed = table["x"].to_numpy().copy()
    changed[7] += 1e-9
    pq.write_table(table.set_column(table.schema.get_field_index("x"), "x", [changed]), file)
    try:
        with pytest.raises(DamagedTable, match="version 1 has other rows than were written"):
            judge(TOY, lake, mlflow, week, week.end, mlflow.home / "reports")
    finally:
        file.write_bytes(whole)
    assert judge(TOY, lake, mlflow, week, week.end, mlflow.home / "reports")


def test_a_page_that_cannot_be_read_is_told_with_its_table(tmp_path: Path) -> None:
    table = Lake(f"{tmp_path}/lake").table("raw/things")
    table.append(pa.table({"words": ["one", "two", "three"] * 5_000}), "some")
    (file,) = (tmp_path / "lake/raw/things").glob("*.parquet")
    whole, told = file.read_bytes(), Counter[str]()
    for at in range(4, 400):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            with damage_explained():
                table.relation(duckdb_connection()).to_arrow_table()
        except (DamagedTable, DamagedFile, duckdb.Error) as error:
            told[type(error).__name__] += 1
            assert not isinstance(error, DamagedTable) or "`raw/things` is damaged: " in str(error)
    assert told["DamagedTable"] > 100, told
    assert told["DamagedTable"] + told["DamagedFile"] > 0.95 * told.total(), told


def test_mlflow_and_an_online_store_that_are_no_databases_are_told(tmp_path: Path) -> None:
    for file in (tmp_path / "mlflow.db", tmp_path / "online.db"):
        file.write_bytes(b"not a database, but as long as its header is " * 9)
    with pytest.raises(DamagedDatabase, match=r"MLflow's database at .*mlflow\.db is damaged: file is not"):
        _ = MLflow(f"sqlite:///{tmp_path}/mlflow.db", tmp_path).client
    file = str(tmp_path / "online.db")
    told = pytest.raises(DamagedDatabase, match=r"Feast's online store at .*`materialize` fills it again")
    with told, outages("Feast's online store", file):
        writers.Sqlite(file, "t").noted()
