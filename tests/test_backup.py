"""What a backup copies between kinds of servers; ``tests/e2e/test_new.py`` brings a whole home back."""

from __future__ import annotations

import sqlite3
import threading
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa

from headrace.backup import KeptElsewhere, NotFree, _copy_database, _copy_lake, backup, restore
from headrace.lake import Lake
from headrace.ledger import AlreadyClaimed, Ledger
from headrace.project import Project
from headrace.release import study
from headrace.settings import Settings
from tests.conftest import free_port, utc


def test_a_ledger_is_the_same_in_another_kind_of_database_and_goes_on_there(
    tmp_path: Path, postgres: str
) -> None:
    import optuna

    def work(ledger: Ledger, key: str, *, done: bool) -> None:
        ledger.claim("toy", "training", key, holder="me", lease=timedelta(hours=1))
        if done:
            ledger.finish("toy", "training", key, holder="me", decision="promoted")

    old = Ledger(f"sqlite:///{tmp_path / 'old.db'}")
    work(old, "first", done=True)
    work(old, "second", done=False)
    trials = optuna.create_study(storage=f"sqlite:///{tmp_path / 'old.db'}", study_name="toy/trees")
    trials.optimize(lambda trial: trial.suggest_float("x", 0, 1), 3)

    with sa.create_engine(postgres, isolation_level="AUTOCOMMIT").connect() as con:
        con.execute(sa.text("CREATE DATABASE brought_back"))
    address = sa.engine.make_url(postgres).set(database="brought_back")
    there = Ledger(address.render_as_string(hide_password=False))
    back = Ledger(f"sqlite:///{tmp_path / 'back.db'}")
    for source, target in ((old, there), (there, back)):
        before = source.entries()
        assert target.empty()
        assert (source.copy(target), study.copy(source, target)) == (len(before), 1)
        assert target.entries() == before
        with pytest.raises(AlreadyClaimed):  # what was claimed is
            target.claim("toy", "training", "second", holder="another", lease=timedelta(hours=1))
        work(target, f"of {target is there}", done=True)  # and what is new is written behind it
        assert target.entries()[: len(before)] == before
        assert len(target.entries()) == len(before) + 2
    kept = optuna.load_study(study_name="toy/trees", storage=f"sqlite:///{tmp_path / 'back.db'}")
    assert [one.value for one in kept.trials] == [one.value for one in trials.trials]


def test_a_lake_is_the_same_in_an_object_store_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = pytest.importorskip("moto.server", reason="`moto[server]` is not installed")
    s3fs = pytest.importorskip("s3fs", reason="`s3fs` is not installed")
    monkeypatch.chdir(tmp_path)
    served = server.ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    served.start()
    try:
        host, port = served.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in {"AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}.items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "toy")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("saved")  # of this process, whichever server
        here = Lake(str(tmp_path / "lake"))
        for n in range(3):
            at = pa.array([utc(2024, 1, 2 + n)], pa.timestamp("us", "UTC"))
            here.table("raw/things").append(pa.table({"id": [n], "at": at}), str(n))
        _copy_lake(here.root, "s3://saved/lake")
        _copy_lake("s3://saved/lake", str(tmp_path / "back"))
        back = Lake(str(tmp_path / "back"))
        for version in range(3):
            assert back.table("raw/things").snapshot(version) == here.table("raw/things").snapshot(version)
        there = Lake("s3://saved/lake").table("raw/things")
        assert there.snapshot() == here.table("raw/things").snapshot()
    finally:
        served.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_database_is_copied_as_of_one_instant_while_it_is_written(tmp_path: Path) -> None:
    source = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    source.execute("PRAGMA journal_mode=WAL")
    source.execute("CREATE TABLE t (n INTEGER)")
    source.execute("INSERT INTO t VALUES (1)")
    source.execute("BEGIN")
    source.execute("INSERT INTO t VALUES (2)")  # not committed, and so not there
    _copy_database(tmp_path / "a.db", tmp_path / "b" / "b.db")
    source.execute("COMMIT")
    assert sqlite3.connect(tmp_path / "b" / "b.db").execute("SELECT n FROM t").fetchall() == [(1,)]
    (tmp_path / "registry.db").write_bytes(b"not SQLite")
    _copy_database(tmp_path / "registry.db", tmp_path / "b" / "registry.db")
    assert (tmp_path / "b" / "registry.db").read_bytes() == b"not SQLite"
    _copy_database(tmp_path / "none.db", tmp_path / "b" / "none.db")
    assert not (tmp_path / "b" / "none.db").exists()


def test_what_is_deleted_while_it_is_copied_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a batch is, which has landed."""
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    staging = tmp_path / "home" / "staging"
    ended, made = threading.Event(), 0

    def ingest() -> None:
        nonlocal made
        while not ended.is_set():
            batches = [staging / str(made) / f"{n}.parquet" for n in range(50)]
            batches[0].parent.mkdir(parents=True)
            for batch in batches:
                batch.write_bytes(b"rows")
            for batch in batches:
                batch.unlink()
            made += 1

    (staging / "held").mkdir(parents=True)
    (staging / "held" / "batch.parquet").write_bytes(b"held")
    worker = threading.Thread(target=ingest)
    worker.start()
    try:
        for n in range(20):
            backup(Project(tmp_path, Settings()), tmp_path / f"saved{n}")
            assert (tmp_path / f"saved{n}/staging/held/batch.parquet").read_bytes() == b"held"
    finally:
        ended.set()
        worker.join()
    assert made > 20


def test_what_servers_keep_and_what_would_be_overwritten_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HEADRACE_MLFLOW", "http://127.0.0.1:9")
    with pytest.raises(KeptElsewhere, match="HEADRACE_MLFLOW"):
        backup(Project(tmp_path, Settings()), tmp_path / "saved")
    monkeypatch.delenv("HEADRACE_MLFLOW")
    noted = backup(Project(tmp_path, Settings()), tmp_path / "saved")  # of a home without anything
    assert (noted["entries"], noted["tables"], noted["models"]) == (0, [], {})
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "other"))
    other = Settings()
    Ledger(other.ledger).claim("toy", "training", "first", holder="me", lease=timedelta(hours=1))
    with pytest.raises(NotFree, match="has entries already"):
        list(restore(tmp_path / "saved", other))
