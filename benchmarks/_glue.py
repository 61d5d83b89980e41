"""What people write instead: the libraries glued in one script, each as its own documentation shows.

Great Expectations validates a pandas frame; Feast reads Parquet files, joins by its default offline
store, and materialises by its own engine into SQLite; each model is fitted and logged by its MLflow
flavour; Evidently compares all rows. There is no flow, no retry, no window, no registry of what was
done: killed anywhere, it begins anew.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd
    from feast import FeatureStore, FeatureView

    from headrace.training import Model


def glued(
    release: datetime, end: datetime, watched: datetime, held: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Name each stage as it ends, and what it did; see ``benchmarks.lifecycle``."""
    from headrace.lake import windows
    from headrace.pipeline import WEEK, load
    from headrace.settings import Settings

    spec, home = load("flights"), Settings().home
    landed = {source.name: _landed(source, home, held.get(source.name, "")) for source in spec.sources}
    yield "ingest", f"{sum(map(len, landed.values())):,} rows"

    store = _store(home, end)
    store.materialize(release - timedelta(hours=1), end)
    yield "materialize", ""

    spine, truth = _asked(home)
    labelled = spine.merge(truth, on=list(spec.keys))
    labelled = labelled[labelled["known_at"] < release]
    learnt = _joined(store, labelled)
    model, told = _trained(learnt, release)
    yield "train", told

    rows = _joined(store, spine[spine["event_timestamp"] >= release])
    rows["probability"] = _predict(model, rows)
    rows.to_parquet(home / "predictions.parquet")
    yield "score", f"{len(rows):,} predictions, mean {rows['probability'].mean():.6f}"

    reference, at = learnt.assign(probability=_predict(model, learnt)), rows["event_timestamp"]
    weeks = windows(release, watched, WEEK)
    for week in weeks:
        part = rows[(at >= week.start) & (at < week.end)]
        _watched(part, reference, home / f"{week.label}.html")
    yield "monitor", f"{len(weeks)} weeks"


def _landed(source: Any, home: Path, where: str) -> pd.DataFrame:
    """Read a source, validate it, and keep it as Parquet."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    from benchmarks.data import open_files
    from headrace.lake import duckdb_connection
    from headrace.validation import load_suite

    con = duckdb_connection()
    open_files(con, "flights", "airports", "planes", "weather")
    frame = con.sql(f"SELECT *, {source.time} AS available_at FROM ({source.origin.select}) {where}").df()
    # Without types, which pandas names otherwise.
    rules = [
        rule
        for rule in load_suite(source.suite).expectations
        if "type" not in rule.expectation_type and "match_set" not in rule.expectation_type
    ]
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("pandas").add_dataframe_asset(source.name)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    found = batch.validate(gx.ExpectationSuite(source.suite, rules))
    assert found.success, found
    frame.to_parquet(home / f"{source.name}.parquet", index=False)
    return frame


def _store(home: Path, end: datetime) -> FeatureStore:
    """Compute the features, and declare the project's own views on the files, with Feast's own stores."""
    from feast import Entity, FeatureStore, FeatureView, FileSource, RepoConfig

    import features.flights as declared
    from headrace.lake import duckdb_connection
    from headrace.pipeline import load

    spec, con = load("flights"), duckdb_connection()
    for source in spec.sources:
        con.read_parquet(str(home / f"{source.name}.parquet")).create_view(source.name)
    for table in spec.feature_tables:
        span = {"start": spec.start, "end": end}
        con.execute(f"COPY ({table.sql.read_text()}) TO '{home}/features_{table.name}.parquet'", span)
    store = FeatureStore(
        config=RepoConfig(
            project="glued",
            provider="local",
            registry=str(home / "registry.db"),
            online_store={"type": "sqlite", "path": str(home / "online.db")},
            offline_store={"type": "dask"},
            entity_key_serialization_version=3,
        )
    )

    def on_files(view: FeatureView) -> FeatureView:
        source = FileSource(
            name=view.name,
            path=str(home / f"features_{view.name}.parquet"),
            timestamp_field="event_timestamp",
            created_timestamp_column="available_at",
        )
        entities = [getattr(declared, name) for name in view.entities]
        return FeatureView(name=view.name, entities=entities, ttl=view.ttl, schema=view.schema, source=source)

    views = {name: on_files(thing) for name, thing in vars(declared).items() if type(thing) is FeatureView}
    entities = [thing for thing in vars(declared).values() if isinstance(thing, Entity)]
    store.apply([*entities, *views.values()])
    return store


def _asked(home: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the predictions to make, and their truth."""
    from headrace.lake import duckdb_connection
    from headrace.pipeline import load

    spec, con = load("flights"), duckdb_connection()
    for source in spec.sources:
        con.read_parquet(str(home / f"{source.name}.parquet")).create_view(source.name)
    return con.sql(spec.spine).df(), con.sql(spec.label).df().rename(columns={"available_at": "known_at"})


def _joined(store: FeatureStore, rows: pd.DataFrame) -> pd.DataFrame:
    """Join the features of each view, point in time, by Feast's own store.

    View by view, and with each key once: of rows that share all keys and the instant, and of those with a
    null among their keys, it gives back fewer than it was asked for.
    """
    from headrace.pipeline import load

    for view in store.list_feature_views():
        keys = [*view.join_keys, "event_timestamp"]
        wanted = [f"{view.name}:{field.name}" for field in view.features]
        asked = rows[keys].dropna().drop_duplicates()
        rows = rows.merge(store.get_historical_features(asked, wanted).to_df(), on=keys, how="left")
    return rows.sort_values(["event_timestamp", *load("flights").keys]).reset_index(drop=True)


def _predict(model: Model, rows: pd.DataFrame) -> Any:
    import pyarrow as pa

    return model.predict(pa.Table.from_pandas(rows, preserve_index=False))


def _trained(learnt: pd.DataFrame, release: datetime) -> tuple[Model, str]:
    """Fit the candidates as the pipeline does, choose, and log each by its own flavour of MLflow."""
    import mlflow
    import pyarrow as pa

    from headrace import training
    from headrace.cluster import cluster
    from headrace.pipeline import load
    from headrace.settings import Settings

    spec, home = load("flights"), Settings().home
    held_from = release - spec.holdout
    chosen_from = held_from - spec.holdout
    at, known = learnt["event_timestamp"], learnt["known_at"]
    seen = learnt[(at < chosen_from) & (known < chosen_from)]
    choice = learnt[(at >= chosen_from) & (known < held_from)]
    whole, held_out = learnt[known < held_from], learnt[at >= held_from]
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    mlflow.create_experiment("glued", (home / "mlruns").as_uri())
    mlflow.set_experiment("glued")

    def table(rows: pd.DataFrame) -> pa.Table:
        return pa.Table.from_pandas(rows, preserve_index=False)

    def loss(model: Model, rows: pd.DataFrame) -> float:
        targets = spec.problem.encode(table(rows)["label"])
        return float(spec.problem.losses(targets, _predict(model, rows)).mean())

    def fitted(candidate: Any, rows: pd.DataFrame) -> Model:
        model = training.fit(candidate, table(rows), spec.columns, spec.problem, client)
        with mlflow.start_run(run_name=candidate.name):
            mlflow.log_params(dict(candidate.params))
            _log(candidate.trainer, model.native)
        return model

    with cluster() as client:
        tried = [loss(fitted(candidate, seen), choice) for candidate in spec.candidates]
        model = fitted(spec.candidates[tried.index(min(tried))], whole)
    return model, f"log-loss {loss(model, held_out):.6f}"


def _log(trainer: str, native: Any) -> None:
    if trainer == "xgboost":
        import mlflow.xgboost

        mlflow.xgboost.log_model(native.booster, name="model")
    elif trainer == "torch":
        import mlflow.pytorch

        mlflow.pytorch.log_model(native.network, name="model", serialization_format="pickle")
    else:
        import mlflow.sklearn

        mlflow.sklearn.log_model(native.pipelines[0], name="model", skops_trusted_types=["numpy.dtype"])


def _watched(week: pd.DataFrame, learnt: pd.DataFrame, page: Path) -> None:
    """Write Evidently's drift report on all rows of both sides."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    from headrace.pipeline import load

    columns = load("flights").columns
    numbers, words = [*columns.numeric, "probability"], list(columns.categorical)
    kinds = DataDefinition(numerical_columns=numbers, categorical_columns=words)
    sides = (Dataset.from_pandas(rows[[*words, *numbers]], kinds) for rows in (week, learnt))
    Report([DataDriftPreset()]).run(*sides).save_html(str(page))
