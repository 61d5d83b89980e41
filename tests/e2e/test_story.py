"""The default pipeline's story: what the flights of 2013 must show, on the real data."""

from __future__ import annotations

from datetime import datetime

import pytest

from headrace import ingest, spine, training
from headrace.cluster import cluster
from headrace.feature_store import store as feature_store
from headrace.feature_store import tables
from headrace.lake import Lake, Window, windows
from headrace.ledger import Ledger
from headrace.pipeline import load
from headrace.settings import Settings
from tests.conftest import ROOT, utc

SPEC = load("flights")
YEAR_TO = utc(2013, 8, 12)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> object:
    """All flights until August with their point-in-time features and labels."""
    home = tmp_path_factory.mktemp("story")
    patch = pytest.MonkeyPatch()
    patch.setenv("HEADRACE_HOME", str(home))
    settings = Settings()
    lake = Lake(settings.lake)
    for source in SPEC.sources:
        for batch in ingest.stage(SPEC, source, YEAR_TO, lake, Ledger(settings.ledger), home).batches:
            ingest.settle(batch, source, lake, YEAR_TO)
    for table in SPEC.feature_tables:
        for window in windows(SPEC.start, YEAR_TO, table.window):
            tables.build(table, SPEC.raw, window, lake)
    store = feature_store.open_store(ROOT / "features", settings)
    feature_store.apply(store, "features.flights")
    asked = spine.labelled(SPEC, lake, Window(SPEC.start, utc(2013, 8, 1)), YEAR_TO)
    yield feature_store.historical(store, SPEC.feature_service, asked)
    patch.undo()


def auc_on_july(rows: object, until: datetime) -> float:
    """Train the declared XGBoost candidate on flights predicted before ``until``; score July's."""
    import pyarrow.compute as pc

    candidate = SPEC.candidates[0]
    assert candidate.trainer == "xgboost"
    assert candidate.params["max_depth"] == 6
    assert candidate.params["rounds"] == 200
    at = rows["event_timestamp"]  # type: ignore[index]
    train = rows.filter(pc.less(at, until))  # type: ignore[attr-defined]
    july = rows.filter(pc.greater_equal(at, utc(2013, 7, 1)))  # type: ignore[attr-defined]
    with cluster() as client:
        model = training.fit(candidate, train, SPEC.columns, SPEC.problem, client)
    return SPEC.problem.scores(july["label"].to_numpy(), model.predict(july))["auc"]


def test_july_drifts_away_from_winter_and_a_model_that_saw_june_wins(labelled: object) -> None:
    winter, half_year = auc_on_july(labelled, utc(2013, 4, 1)), auc_on_july(labelled, utc(2013, 7, 1))
    print(f"AUC on July: trained January-March {winter:.4f}, January-June {half_year:.4f}")
    assert winter >= 0.718
    assert half_year >= 0.755
    assert half_year > winter + 0.02
