"""The registry: which versions of a pipeline's model there are, and which one serves.

One registered model per pipeline. The alias ``champion`` names the version that
serves, ``challenger`` the one that asked last. Alias writes are last-writer-wins
in MLflow, so each is one small idempotent write; the ledger puts them in order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.instants import read
from headrace.lake import DatasetRef

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from mlflow.entities.model_registry import ModelVersion

    from headrace.gate import Decision
    from headrace.tracking import Logged, MLflow

CHAMPION, CHALLENGER = "champion", "challenger"
CANARY = "canary"
SHADOW = "shadow-"
"""What the alias of a shadow begins with; its version follows."""


@dataclass(frozen=True)
class Release:
    """A registered version, and where it came from; ``training`` names no pins.

    ``as_of`` is UTC. ``verdict`` is empty until the gate has spoken, then
    ``promoted``, ``rejected`` or ``not enough evidence``, and ``reason`` says why. ``receipt`` is the
    SHA-256 of what it was promoted by.
    """

    pipeline: str
    version: int
    run_id: str
    candidate: str
    trainer: str
    training: DatasetRef
    as_of: datetime
    verdict: str = ""
    reason: str = ""
    receipt: str = ""

    @property
    def model_uri(self) -> str:
        """The version's address."""
        return uri(self.pipeline, self.version)


def uri(pipeline: str, version: int) -> str:
    """Return a version's address, for ``tracking.load_model``; it never means another model."""
    return f"models:/{pipeline}/{version}"


def register(mlflow: MLflow, pipeline: str, logged: Logged, tags: Mapping[str, str] | None = None) -> int:
    """Register a logged candidate as the next version; the same run always has the same version.

    Args:
        mlflow: Where.
        pipeline: The registered model's name; created with its first version.
        logged: What ``tracking.log_candidate`` returned.
        tags: More tags for the version, such as the flow run's address.
    """
    from mlflow import MlflowException

    client = mlflow.client
    known = client.search_model_versions(f"name = '{pipeline}' AND run_id = '{logged.run_id}'")
    if known:
        return min(int(known_version.version) for known_version in known)
    try:
        client.create_registered_model(pipeline)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    run = client.get_run(logged.run_id).data
    scores = ", ".join(
        f"{name} {value:.4g}" for name, value in sorted(run.metrics.items()) if "/" not in name
    )
    created = client.create_model_version(
        pipeline,
        source=mlflow.source(logged),
        run_id=logged.run_id,
        model_id=logged.model_id,
        # The run's facts go with the version, so that reading a release is one query.
        tags={k: v for k, v in run.tags.items() if k.startswith("headrace.")} | dict(tags or {}),
        description=f"{run.tags['headrace.candidate']} as of {run.tags['headrace.as_of']}: {scores}",
        await_creation_for=0,
    )
    return int(created.version)


def champion(mlflow: MLflow, pipeline: str) -> Release | None:
    """Return the version that serves, or None before the first promotion."""
    return _by_alias(mlflow, pipeline, CHAMPION)


def challenger(mlflow: MLflow, pipeline: str) -> Release | None:
    """Return the version that waits for a verdict, if there is one."""
    return _by_alias(mlflow, pipeline, CHALLENGER)


def versions(mlflow: MLflow, pipeline: str) -> list[Release]:
    """Return every version that ``register`` made, oldest first."""
    found, token = list[Release](), None
    while token != "":
        page = mlflow.client.search_model_versions(f"name = '{pipeline}'", max_results=1000, page_token=token)
        found += [_release(row) for row in page if "headrace.candidate" in row.tags]
        token = page.token or ""
    return sorted(found, key=lambda release: release.version)


def names(mlflow: MLflow) -> list[str]:
    """Return the names of all registered models, of whatever pipeline."""
    found, token = list[str](), None
    while token != "":
        page = mlflow.client.search_registered_models(max_results=1000, page_token=token)
        found += [model.name for model in page]
        token = page.token or ""
    return found


def aliases(mlflow: MLflow, pipeline: str) -> dict[int, list[str]]:
    """Return the aliases of each version that has any."""
    from mlflow import MlflowException

    try:
        named = mlflow.client.get_registered_model(pipeline).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    found: dict[int, list[str]] = {}
    for alias, number in sorted(named.items()):
        found.setdefault(int(number), []).append(alias)
    return found


def version(mlflow: MLflow, pipeline: str, number: int) -> Release:
    """Return one registered version.

    Raises:
        mlflow.MlflowException: There is none of that number.
    """
    return _release(mlflow.client.get_model_version(pipeline, str(number)))


def shadows(named: Mapping[int, Sequence[str]]) -> list[int]:
    """Return those of some versions, with their aliases, that are shadows."""
    return sorted(number for number, names in named.items() if f"{SHADOW}{number}" in names)


def set_shadow(mlflow: MLflow, pipeline: str, version: int, *, on: bool) -> None:
    """Let ``version`` be a shadow, or no longer."""
    if on:
        set_alias(mlflow, pipeline, f"{SHADOW}{version}", version)
    else:
        mlflow.client.delete_registered_model_alias(pipeline, f"{SHADOW}{version}")


def canary(mlflow: MLflow, pipeline: str) -> tuple[int, float] | None:
    """Return which version is the canary, and what share of the keys it answers; None if there is none."""
    from mlflow import MlflowException

    try:
        row = mlflow.client.get_model_version_by_alias(pipeline, CANARY)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        return None
    return int(row.version), float(row.tags.get("headrace.canary_share", 0.0))


def set_canary(mlflow: MLflow, pipeline: str, version: int, share: float) -> None:
    """Let ``version`` answer for a ``share`` of the keys, in place of the canary before, if there is one."""
    mlflow.client.set_model_version_tag(pipeline, str(version), "headrace.canary_share", repr(share))
    set_alias(mlflow, pipeline, CANARY, version)


def end_canary(mlflow: MLflow, pipeline: str, version: int, reason: str = "") -> None:
    """Let ``version`` be the canary no longer, if it is; note why."""
    if CANARY in aliases(mlflow, pipeline).get(version, []):
        if reason:
            mlflow.client.set_model_version_tag(pipeline, str(version), "headrace.returned", reason)
        mlflow.client.delete_registered_model_alias(pipeline, CANARY)


def let_go(mlflow: MLflow, pipeline: str, version: int, reason: str = "") -> None:
    """Let ``version`` be neither shadow nor canary; note why with a canary."""
    end_canary(mlflow, pipeline, version, reason)
    if version in shadows(aliases(mlflow, pipeline)):
        set_shadow(mlflow, pipeline, version, on=False)


def set_alias(mlflow: MLflow, pipeline: str, alias: str, version: int) -> None:
    """Let ``alias`` name ``version``, whatever it named before."""
    mlflow.client.set_registered_model_alias(pipeline, alias, str(version))


def promote(
    mlflow: MLflow, pipeline: str, version: int, reason: str, at: datetime, receipt: str = ""
) -> None:
    """Make ``version`` the champion and note why, and its receipt; it stops being the challenger."""
    _note(mlflow, pipeline, version, "promoted", reason, at)
    if receipt:
        mlflow.client.set_model_version_tag(pipeline, str(version), "headrace.receipt", receipt)
    set_alias(mlflow, pipeline, CHAMPION, version)
    _clear_challenger(mlflow, pipeline, version)


def reject(
    mlflow: MLflow, pipeline: str, version: int, reason: str, at: datetime, verdict: Decision = "rejected"
) -> None:
    """Note that ``version`` was refused and why; it stays registered, no longer the challenger."""
    _note(mlflow, pipeline, version, verdict, reason, at)
    _clear_challenger(mlflow, pipeline, version)


def _note(mlflow: MLflow, pipeline: str, version: int, verdict: str, reason: str, at: datetime) -> None:
    for key, value in {"verdict": verdict, "reason": reason, "decided_at": at.isoformat()}.items():
        mlflow.client.set_model_version_tag(pipeline, str(version), f"headrace.{key}", value)


def _clear_challenger(mlflow: MLflow, pipeline: str, version: int) -> None:
    waiting = challenger(mlflow, pipeline)
    if waiting and waiting.version == version:
        mlflow.client.delete_registered_model_alias(pipeline, CHALLENGER)


def _by_alias(mlflow: MLflow, pipeline: str, alias: str) -> Release | None:
    from mlflow import MlflowException

    try:
        return _release(mlflow.client.get_model_version_by_alias(pipeline, alias))
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        return None


def _release(row: ModelVersion) -> Release:
    facts: dict[str, Any] = {k.removeprefix("headrace."): v for k, v in row.tags.items()}
    return Release(
        pipeline=row.name,
        version=int(row.version),
        run_id=str(row.run_id),
        candidate=facts["candidate"],
        trainer=facts.get("trainer") or facts["framework"],  # its name in an earlier headrace
        training=_training(facts),
        as_of=read(facts["as_of"]),
        verdict=facts.get("verdict", ""),
        reason=facts.get("reason", ""),
        receipt=facts.get("receipt", ""),
    )


def _training(facts: Mapping[str, str]) -> DatasetRef:
    if facts["training"].startswith("{"):  # an earlier headrace wrote all of it there
        return DatasetRef.of(json.loads(facts["training"]))
    table, _, version = facts["training"].rpartition("@v")
    return DatasetRef(table, int(version), int(facts["rows"]), facts["fingerprint"])
