"""Tracking: what was trained, on which snapshots, how well, and the model itself, in MLflow.

One experiment per pipeline, one run and one logged model per candidate. A run
is written once: a step that was killed and starts again finds the finished run
and returns it, or marks the half-written one as killed and writes anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from headrace.addresses import database, public, revealed
from headrace.errors import DamagedDatabase, ServerUnreachable
from headrace.lake import DatasetRef
from headrace.recipe import FILE as RECIPE
from headrace.recipe import Code, Environment, Recipe, crew_of
from headrace.sources.predictions import told
from headrace.training.errors import DamagedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    import pyarrow as pa
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModel
    from pydantic import SecretStr

    from headrace.cluster import Worker
    from headrace.lake import Lake
    from headrace.pipeline import Candidate, Columns, Pipeline
    from headrace.release.study import Tried
    from headrace.training.model import Model

T = TypeVar("T")
LOADER = "headrace.training.model"
"""The module whose ``_load_pyfunc`` MLflow calls to load our models."""

DIGEST = "headrace.digest"
"""The tag, of run, logged model and version, that says what the model's files were when they were written."""

AT_ONCE = 1000
"""How many metrics MLflow takes at once."""

TICK = 1_000_000_000
"""Nanoseconds that a file's time may be behind."""
INSIDE = "data/model"
"""Where, inside an MLflow model, the directory lies that ``Model.save`` wrote."""
PACKAGE = ("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt")
"""What lies beside it in MLflow's model."""


@dataclass(frozen=True)
class Logged:
    """A candidate as MLflow keeps it; ``model_uri`` is ``models:/<model_id>``."""

    experiment: str
    run_id: str
    model_id: str

    @property
    def page(self) -> str:
        """Where the run is shown, below the address of the MLflow UI."""
        return f"/#/experiments/{self.experiment}/runs/{self.run_id}"

    @property
    def model_uri(self) -> str:
        """The address that ``load_model`` and any MLflow tool take."""
        return f"models:/{self.model_id}"


def artifact_root(home: Path) -> str:
    """Return the URI below which artifacts lie, unless an MLflow server keeps them elsewhere."""
    return (home / "mlflow" / "artifacts").absolute().as_uri()


@dataclass(frozen=True)
class MLflow:
    """An MLflow: ``http(s)://`` of a server, or the URL of a database; no process is pointed at it.

    Below ``home`` lie its artifacts, unless a server keeps them elsewhere, and a lock on which processes
    that make one embedded database queue.
    """

    address: str | SecretStr
    home: Path

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's own client; connected when it is first asked for, and a database is made then.

        Raises:
            ServerUnreachable: The server does not answer within seconds, or is not MLflow.
            DamagedDatabase: The file is no database.
        """
        # MLflow's own: seven retries of up to 120 s each, and the lock file of whatever
        # project is the working directory copied into every model.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # of one small file
        uri = self.uri
        if self.served:
            _reach(uri)
            self._log_in()
        from filelock import FileLock
        from mlflow import MlflowClient, MlflowException

        lock = self.home / "mlflow" / "init.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            try:
                client = MlflowClient(uri, uri)
                client.search_experiments(max_results=1)
            except Exception as error:
                if spoilt := DamagedDatabase.says(error):
                    raise DamagedDatabase("MLflow's database", uri, spoilt) from None
                if not (self.served and isinstance(error, MlflowException)):
                    raise
                said = str(error).splitlines()[0]
                raise ServerUnreachable(
                    "MLflow", uri, f"it answers, but not as MLflow does ({said})"
                ) from None
        return client

    @property
    def uri(self) -> str:
        """The address without a login: what MLflow is given, it repeats in its errors."""
        address = revealed(self.address)
        return public(address) if self.served else address

    def _log_in(self) -> None:
        """Leave user and password of the address where MLflow looks for them, at every request."""
        given = urlsplit(revealed(self.address))
        for name, value in (("USERNAME", given.username), ("PASSWORD", given.password)):
            if value:
                os.environ[f"MLFLOW_TRACKING_{name}"] = unquote(value)

    @property
    def served(self) -> bool:
        """Whether a server keeps it."""
        return revealed(self.address).startswith("http")

    def stamp(self) -> tuple[int, ...] | None:
        """Return what stays the same for as long as nobody writes, if that can be told by looking at a file.

        A file's time has ticks: what was written just now may be followed, within one, by something else.
        """
        try:
            url = database(revealed(self.address))
            if url.get_backend_name() != "sqlite" or not url.database:
                return None
            files = [Path(url.database), Path(f"{url.database}-wal")]
            stats = [file.stat() for file in files if file.exists()]
        except (ValueError, OSError):
            return None
        if not stats or time.time_ns() - max(stat.st_mtime_ns for stat in stats) < TICK:
            return None
        return tuple(number for stat in stats for number in (stat.st_mtime_ns, stat.st_size, stat.st_ino))

    def source(self, logged: Logged) -> str:
        """Return the address that a version of a logged model is made from.

        A database's own code would look up ``models:/`` wherever the process points.
        """
        if self.served:
            return logged.model_uri
        return str(self.client.get_logged_model(logged.model_id).artifact_location)


def _reach(uri: str) -> None:
    import httpx

    try:
        httpx.get(f"{uri.rstrip('/')}/health", timeout=5)  # any answer will do: a proxy may want a login
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ServerUnreachable("MLflow", uri, str(error)) from None


def log_candidate(
    mlflow: MLflow,
    pipeline: Pipeline,
    candidate: Candidate,
    model: Model,
    metrics: Mapping[str, float],
    *,
    training: DatasetRef,
    sources: Sequence[DatasetRef] = (),
    lake: Lake,
    cause: str,
    as_of: datetime,
    workers: Sequence[Worker] = (),
    without_gpu: str = "",
    folder: Path | None = None,
    page: str = "",
    history: Mapping[str, Sequence[float]] | None = None,
    spans: Sequence[str] = (),
    role: Literal["candidate", "challenger"] = "candidate",
) -> Logged:
    """Write one fitted candidate as an MLflow run with a logged model; once per piece of work.

    A finished run for the same pipeline, candidate with its parameters, cause,
    ``as_of``, training rows and ``spans`` is returned as it is. Unfinished ones are marked
    as killed: the caller holds the claim on this work, so nobody else writes them.

    Args:
        mlflow: Where.
        pipeline: Its name is the experiment, its columns the model's inputs.
        candidate: What was fitted; its parameters and seed become the run's.
        model: The fitted model.
        metrics: Scores on held-out rows; linked to the logged model.
        training: The training set's snapshot, an input of context ``training``.
        sources: The snapshots it was made from, inputs of context ``source``.
        lake: Where those tables lie.
        cause: Why this was trained; part of the key.
        as_of: The instant the flow believed in, UTC.
        workers: On which of Dask's it was fitted.
        without_gpu: Why they did without one, if one was there or asked for.
        folder: Where the project's code lies, if not in the working folder.
        page: Where the flow run is shown that fitted it, if one did.
        history: What each round of fitting came to, by name: MLflow draws it.
        spans: Those of the training set that it learnt from.
        role: Whether it is one of several to choose from, or asks to be released.
    """
    from mlflow.entities import LoggedModelOutput, Metric, Param

    from headrace.training.model import digest

    client, experiment = mlflow.client, _experiment(mlflow, pipeline.name)
    made_by = {name: value for name, value in asdict(candidate).items() if name != "search"}
    key = _key(pipeline.name, made_by, cause, as_of.isoformat(), training.fingerprint, role, *spans)
    if done := _finished(client, experiment, key):
        return done

    place = folder or Path.cwd()
    recipe = Recipe(
        pipeline.name,
        made_by,
        list(pipeline.columns.names),
        list(spans),
        asdict(training),
        as_of.isoformat(),
        cause,
        crew_of(workers),
        Code.of(place),
        Environment.here(place),
    )
    params = {name: str(value) for name, value in {**candidate.params, "seed": candidate.seed}.items()}
    tags = {
        "headrace.pipeline": pipeline.name,
        "headrace.candidate": candidate.name,
        "headrace.trainer": model.trainer,
        "headrace.role": role,
        "headrace.learnt": ", ".join(spans),
        "headrace.cause": cause,
        "headrace.as_of": as_of.isoformat(),
        "headrace.training": f"{training.table}@v{training.version}",
        "headrace.rows": str(training.rows),
        "headrace.fingerprint": training.fingerprint,
        **({"headrace.fed_on": told(training.fed_on)} if training.fed_on else {}),
        **({"headrace.flow_run": page} if page else {}),
        **({"headrace.without_gpu": without_gpu} if without_gpu else {}),
        **({"mlflow.source.git.commit": recipe.code.commit} if recipe.code.commit else {}),
        **({"headrace.code": "changed since the commit"} if recipe.code.changes else {}),
    }
    name = f"{candidate.name}-{as_of:%Y%m%dT%H%M%SZ}" + ("-challenger" if role == "challenger" else "")
    run_id = client.create_run(experiment, tags={**tags, "headrace.key": key}, run_name=name).info.run_id
    logged = client.create_logged_model(
        experiment, name, source_run_id=run_id, tags=tags, params=params, model_type=model.trainer
    )
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    inputs = [_input(training, lake, "training"), *(_input(source, lake, "source") for source in sources)]
    _note_inputs(client, run_id, inputs)
    now = time.time_ns() // 1_000_000
    client.log_batch(
        run_id,
        metrics=[
            Metric(metric, float(value), now, step=0, model_id=logged.model_id, run_id=run_id)
            for metric, value in metrics.items()
        ],
        params=[Param(param, value) for param, value in params.items()],
    )
    rounds = [
        Metric(name, value, now, step)
        for name, values in (history or {}).items()
        for step, value in enumerate(values, 1)
    ]
    for start in range(0, len(rounds), AT_ONCE):
        client.log_batch(run_id, metrics=rounds[start : start + AT_ONCE])
    with tempfile.TemporaryDirectory() as scratch:
        package = _package(model, pipeline.columns, Path(scratch), logged)
        client.log_model_artifacts(logged.model_id, str(package))
        written = digest(package / INSIDE)
    client.set_logged_model_tags(logged.model_id, {DIGEST: written})
    client.set_tag(run_id, DIGEST, written)
    keep(mlflow, run_id, RECIPE, recipe.dump())
    client.finalize_logged_model(logged.model_id, "READY")
    client.set_terminated(run_id, "FINISHED")  # last: a finished run is a whole one
    return Logged(experiment, run_id, logged.model_id)


def digest_of(mlflow: MLflow, run_id: str) -> str:
    """Return the digest of a run's model, as it was noted when it was written; empty of older ones."""
    return str(mlflow.client.get_run(run_id).data.tags.get(DIGEST, ""))


def run_page(mlflow: MLflow, run_id: str) -> str:
    """Return where a run is shown, below the address of the MLflow UI."""
    return f"/#/experiments/{mlflow.client.get_run(run_id).info.experiment_id}/runs/{run_id}"


def keep(mlflow: MLflow, run_id: str, name: str, data: bytes) -> None:
    """Keep a small file with a run; that it is whole and whose bytes it has is noted last."""
    client = mlflow.client
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, name)
        file.write_bytes(data)
        client.log_artifact(run_id, str(file))
    client.set_tag(run_id, f"headrace.sha256.{name}", hashlib.sha256(data).hexdigest())


def kept(mlflow: MLflow, run_id: str, name: str) -> bytes | None:
    """Return what was kept with a run; None if nothing was, it is gone, or it is not what was written."""
    client = mlflow.client
    noted = client.get_run(run_id).data.tags.get(f"headrace.sha256.{name}")
    if not noted or name not in {file.path for file in client.list_artifacts(run_id)}:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(client.download_artifacts(run_id, name, scratch)).read_bytes()
    return data if hashlib.sha256(data).hexdigest() == noted else None


def log_trial(
    mlflow: MLflow,
    pipeline: Pipeline,
    candidate: Candidate,
    study: str,
    tried: Tried,
    training: DatasetRef,
    as_of: datetime,
) -> str:
    """Write one trial of a study as a run nested in the study's, once; return the study's own run."""
    from mlflow.entities import Metric, Param
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    client, experiment = mlflow.client, _experiment(mlflow, pipeline.name)
    tags = {
        "headrace.pipeline": pipeline.name,
        "headrace.candidate": candidate.name,
        "headrace.trainer": candidate.trainer,
        "headrace.as_of": as_of.isoformat(),
        "headrace.training": f"{training.table}@v{training.version}",
        "headrace.study": study,
    }

    def run(role: str, name: str, key: str, **more: str) -> str:
        if known := client.search_runs([experiment], f"tags.`headrace.key` = '{key}'", max_results=1):
            return str(known[0].info.run_id)
        own = tags | {"headrace.role": role, "headrace.key": key} | more
        return str(client.create_run(experiment, tags=own, run_name=name).info.run_id)

    parent = run("study", f"tune {candidate.name}-{as_of:%Y%m%dT%H%M%SZ}", _key(study))
    own = run("trial", f"trial {tried.number}", _key(study, tried.number), **{MLFLOW_PARENT_RUN_ID: parent})
    now = time.time_ns() // 1_000_000
    metrics = [Metric("seconds", tried.seconds, now, 0)]
    metrics += [Metric("loss", tried.loss, now, 0)] if tried.loss is not None else []
    for name, values in tried.history.items():
        metrics += [Metric(name, value, now, step) for step, value in enumerate(values, 1)]
    params = [Param(name, str(value)) for name, value in {**candidate.params, **tried.params}.items()]
    client.log_batch(own, metrics=metrics[:AT_ONCE], params=params)
    for start in range(AT_ONCE, len(metrics), AT_ONCE):
        client.log_batch(own, metrics=metrics[start : start + AT_ONCE])
    if tried.failed:
        client.set_tag(own, "headrace.failed", tried.failed[:500])
    client.set_terminated(own, "FAILED" if tried.failed else "KILLED" if tried.loss is None else "FINISHED")
    return parent


def end_study(mlflow: MLflow, pipeline: str, study: str, found: Mapping[str, Any], loss: float) -> str:
    """Note in a study's run what was best; return the run."""
    client, experiment = mlflow.client, _experiment(mlflow, pipeline)
    (run,) = client.search_runs([experiment], f"tags.`headrace.key` = '{_key(study)}'", max_results=1)
    run_id = str(run.info.run_id)
    for name, value in found.items():
        client.set_tag(run_id, f"best {name}", str(value))
    client.log_metric(run_id, "loss", loss)
    client.set_terminated(run_id, "FINISHED")
    return run_id


def scores(mlflow: MLflow, run_id: str) -> dict[str, float]:
    """Return how a candidate scored; what its rounds came to is not among it."""
    metrics = mlflow.client.get_run(run_id).data.metrics
    return {name: float(value) for name, value in metrics.items() if "/" not in name}


def recipe(mlflow: MLflow, run_id: str) -> Recipe | None:
    """Return how a candidate was made; None if it was not noted, or is no longer as it was."""
    data = kept(mlflow, run_id, RECIPE)
    return Recipe.load(data) if data else None


def log_watch(
    mlflow: MLflow,
    pipeline: str,
    name: str,
    metrics: Mapping[str, float],
    report: str,
    *,
    as_of: datetime,
    step: int = 0,
) -> str:
    """Write what the monitor saw in one window as an MLflow run; once per ``name``.

    ``report`` is the file of Evidently's page, to be kept with it; empty if there is none.
    Metrics carry ``as_of`` (UTC) as their time, so that MLflow plots them over it; what was seen of the same
    window later carries a later ``step``.

    Returns:
        Where the run, or else its page, is shown below the address of the MLflow UI.
    """
    from mlflow.entities import Metric

    client, experiment = mlflow.client, _experiment(mlflow, f"{pipeline}-monitoring")
    key = _key(pipeline, name, as_of.isoformat())
    known = client.search_runs([experiment], f"tags.`headrace.key` = '{key}'", max_results=1)
    run = known[0] if known else client.create_run(experiment, tags={"headrace.key": key}, run_name=name)
    at = int(as_of.timestamp() * 1000)
    client.log_batch(
        run.info.run_id, metrics=[Metric(metric, value, at, step=step) for metric, value in metrics.items()]
    )
    if report:
        client.log_artifact(run.info.run_id, report)
    client.set_terminated(run.info.run_id, "FINISHED")
    page = f"/#/experiments/{experiment}/runs/{run.info.run_id}"
    return f"{page}/artifacts/{Path(report).name}" if report else page


@lru_cache(maxsize=8)
def load_model(mlflow: MLflow, uri: str) -> Model:
    """Load the model at ``models:/<name>/<version>`` or ``models:/<model_id>``, once per process.

    Its files are first compared with the digest that MLflow's database has of them.

    Raises:
        ValueError: The address holds an alias, which may mean another model tomorrow.
        DamagedModel: The files are not those that were logged.
    """
    if "@" in uri:
        raise ValueError(f"Need the address of one fixed version, got {uri}.")
    from headrace.training.model import load

    return _of_model(mlflow, uri, load)


def check_model(mlflow: MLflow, uri: str) -> None:
    """Compare a version's files with what was written; nothing parses them.

    Raises:
        DamagedModel: One differs, or is gone.
    """
    from headrace.training.model import check

    _of_model(mlflow, uri, check)


def copy_model(mlflow: MLflow, uri: str, folder: Path) -> None:
    """Copy a version's files into a new ``folder``, as they are."""
    _of_model(mlflow, uri, lambda place, _: shutil.copytree(place, folder))


def copy_package(mlflow: MLflow, uri: str, folder: Path) -> None:
    """Copy a version as MLflow's own model, which its flavours load, into a new ``folder``."""
    copy_model(mlflow, uri, folder / INSIDE)
    store, _ = _store(mlflow, uri)
    for name in PACKAGE:
        shutil.copy2(store.download_artifacts(name), folder / name)


def sums(mlflow: MLflow, uri: str) -> dict[str, str]:
    """Return the SHA-256 of each file of a model, by name, as they were noted when it was written."""
    from headrace.training.model import sums as noted

    return _of_model(mlflow, uri, lambda folder, _: noted(folder))


def _of_model(mlflow: MLflow, uri: str, use: Callable[[Path, str], T]) -> T:
    """Return what ``use`` makes of a model's own directory and of the digest that MLflow has of it."""
    from mlflow import MlflowException

    store, digest = _store(mlflow, uri)
    try:
        return use(Path(store.download_artifacts(INSIDE)), digest)
    except DamagedModel as error:
        raise DamagedModel(error.place, error.wrong, uri) from None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise DamagedModel("its artifacts", {INSIDE: "is missing"}, uri) from None


def _store(mlflow: MLflow, uri: str) -> tuple[Any, str]:
    """Return where a model's artifacts are, and the digest that MLflow has of it.

    To be asked by name: asked for the whole model, MLflow writes a file into the store.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    name, _, version = uri.removeprefix("models:/").partition("/")
    client, address = mlflow.client, mlflow.uri
    noted: Any = client.get_model_version(name, version) if version else client.get_logged_model(name)
    digest = str(noted.tags.get(DIGEST, ""))  # none of a model that is of before there were any
    where = client.get_model_version_download_uri(name, version) if version else noted.artifact_location
    # Not by its `models:/` address, which MLflow looks up wherever the process points.
    return get_artifact_repository(where, address, address), digest


def inputs(mlflow: MLflow, run_id: str) -> list[DatasetRef]:
    """Return the snapshots that a candidate was made from: its training set, then that one's sources."""
    inputs, found = mlflow.client.get_run(run_id).inputs, list[DatasetRef]()
    for dataset in [given.dataset for given in inputs.dataset_inputs] if inputs else []:
        table, _, version = dataset.name.rpartition("@v")
        rows = json.loads(dataset.profile or "{}").get("num_rows", -1)
        found.append(DatasetRef(table, int(version), rows, dataset.digest))
    return sorted(found, key=lambda ref: (not ref.table.startswith("training/"), ref.table))


def _experiment(mlflow: MLflow, name: str) -> str:
    """Return the id of the experiment of that name, created if need be."""
    from mlflow import MlflowException

    client = mlflow.client
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    where = None if mlflow.served else f"{artifact_root(mlflow.home)}/{name}"
    try:
        return client.create_experiment(name, where)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return _experiment(mlflow, name)  # another process was quicker


def _finished(client: MlflowClient, experiment: str, key: str) -> Logged | None:
    """Return the finished run of this key; mark unfinished ones, and their models, as given up."""
    for run in client.search_runs([experiment], f"tags.`headrace.key` = '{key}'"):
        run_id = run.info.run_id
        models = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
        if run.info.status == "FINISHED":
            return Logged(experiment, run_id, models[0].model_id)
        if run.info.status == "RUNNING":
            for model in models:
                client.finalize_logged_model(model.model_id, "FAILED")
            client.set_terminated(run_id, "KILLED")
    return None


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _note_inputs(client: MlflowClient, run_id: str, inputs: Sequence[DatasetInput]) -> None:
    """Note them: of candidates that note new data sets at once MLflow lets one, and fails the others."""
    from mlflow import MlflowException

    for left in (2, 1, 0):
        try:
            client.log_inputs(run_id, inputs)
        except MlflowException as error:
            if not left or "unique constraint" not in str(error).lower():
                raise
        else:
            return


def _input(ref: DatasetRef, lake: Lake, context: str) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    uri = public(lake.table(ref.table).uri)
    dataset = Dataset(
        # MLflow knows a data set by name and digest: equal rows at two versions would be shown as one.
        name=f"{ref.table}@v{ref.version}",
        digest=ref.fingerprint,
        source_type="delta_table",
        source=json.dumps({"path": uri, "delta_table_version": ref.version}),
        profile=json.dumps({"num_rows": ref.rows}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _package(model: Model, columns: Columns, scratch: Path, logged: LoggedModel) -> Path:
    """Wrap what ``model.save`` writes as an MLflow model below ``scratch``; return its directory."""
    import mlflow.pyfunc
    from mlflow.models import Model as Package
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    from headrace.training.trainers import trainer

    types = [(name, DataType.string) for name in columns.categorical]
    types += [(name, DataType.double) for name in columns.numeric]
    saved, package = scratch / Path(INSIDE).name, scratch / "package"
    model.save(saved)
    described = Package(
        artifact_path=logged.artifact_location,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
        run_id=logged.source_run_id,
        signature=ModelSignature(
            Schema([ColSpec(kind, name, required=False) for name, kind in types]),
            Schema([ColSpec(_mlflow_type(kind), name) for name, kind in model.problem.columns.items()]),
        ),
    )
    if native := getattr(trainer(model.trainer), "flavour", None):
        name, about = native(INSIDE)
        described.add_flavor(name, **about)
    mlflow.pyfunc.save_model(
        package,
        loader_module=LOADER,
        data_path=str(saved),
        mlflow_model=described,
        pip_requirements=requirements(model.trainer),  # left to itself, MLflow infers them for 10 s
    )
    return package


def _mlflow_type(kind: pa.DataType) -> Any:
    import pyarrow as pa
    from mlflow.types import DataType

    known = {pa.float64(): "double", pa.int64(): "long", pa.int32(): "integer", pa.bool_(): "boolean"}
    return DataType[known.get(kind, "string")]


def requirements(name: str) -> list[str]:
    """Return what a model of that trainer was written with, pinned, without local build tags."""
    from headrace.training.trainers import trainer

    names = ("headrace", "mlflow", "numpy", "pandas", "pyarrow", *trainer(name).PACKAGES)
    return [f"{name}=={version(name).split('+')[0]}" for name in names]
