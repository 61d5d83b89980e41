"""A version as files of open formats, to be taken anywhere: no headrace is needed to read them."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from headrace import tracking
from headrace.instants import shown
from headrace.release.card import card
from headrace.release.errors import ThereAlready
from headrace.training import dataset

if TYPE_CHECKING:
    from headrace.lake import Lake
    from headrace.ledger import Ledger
    from headrace.pipeline import Pipeline
    from headrace.release.models import About
    from headrace.tracking import MLflow

MODEL, TRAINING, CARD, ABOUT = "model", "training.parquet", "card.md", "about.json"


def export(
    spec: Pipeline, about: About, lake: Lake, mlflow: MLflow, ledger: Ledger, into: Path
) -> dict[str, str]:
    """Write a version to the folder ``into``, whole or not at all; return its files, with what each is.

    Args:
        spec: Its pipeline.
        about: The version.
        lake: Where its training set is.
        mlflow: Where its model is.
        ledger: What was decided of it.
        into: A folder that is not there yet.

    Raises:
        ThereAlready: The folder is.
        DamagedModel: A file of the model is not what was written.
        DamagedTable, VersionGone: Nor is its training set, or it is gone.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if into.exists():
        raise ThereAlready(into)
    release = about.release
    tracking.check_model(mlflow, release.model_uri)
    lake.check(release.training)
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}-") as scratch:
        made = Path(scratch, into.name)
        made.mkdir()
        tracking.copy_package(mlflow, release.model_uri, made / MODEL)
        rows = dataset.read(spec, release.training, lake)
        for name in spec.columns.numeric:  # MLflow takes no whole numbers where its signature has others
            place = rows.schema.get_field_index(name)
            rows = rows.set_column(place, name, rows[name].cast(pa.float64(), safe=False))
        pq.write_table(rows, made / TRAINING, compression="zstd")
        (made / CARD).write_text(card(spec, about, mlflow, ledger))
        facts = {
            "version": about.name,
            "aliases": list(about.aliases),
            "question": spec.about,
            "as_of": shown(release.as_of),
            "candidate": release.candidate,
            "trainer": release.trainer,
            "decided": release.reason,
            "scores": dict(about.scores),
            "params": dict(about.params),
            "data": [{"table": one.table, "version": one.version, "rows": one.rows} for one in about.data],
            "fingerprint": release.training.fingerprint,
            "sha256": tracking.sums(mlflow, release.model_uri),
            "receipt": release.receipt,
        }
        (made / ABOUT).write_text(json.dumps(facts, indent=1, default=str))
        shutil.move(made, into)
    return {
        MODEL: f"an MLflow model: mlflow.pyfunc.load_model, and MLflow's own flavour of {release.trainer}",
        TRAINING: f"the {rows.num_rows:,} rows it was made of; span says what each was for",
        CARD: "what it is for, how good it is for whom, and why it serves",
        ABOUT: "scores, parameters, data, digests",
    }
