"""Where things live: every ``HEADRACE_*`` variable, with an embedded default for each.

Read at the edge (a flow, the CLI, ``features/``) and passed on as values.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of one headrace home; unset addresses point below ``home``."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", frozen=True)

    home: Path = Field(Path(".headrace"), description="Everything embedded lives below it")
    lake: str = Field("", description="Root URI of the Delta lake")
    ledger: str = Field("", description="SQLAlchemy URL of the ledger: SQLite or PostgreSQL")
    mlflow: str = Field("", description="MLflow tracking URI")
    dask_address: str = Field("", description="A Dask scheduler; empty for one in-process worker")
    dask_workers: int = Field(1, ge=1, description="Local workers; more than one means processes")
    prefect_port: int = Field(4200, description="Where `headrace up` serves Prefect")
    mlflow_port: int = Field(5000, description="Where `headrace up` serves MLflow")
    docs_port: int = Field(8080, description="Where `headrace up` serves Data Docs")
    feast_port: int = Field(8888, description="Where `headrace up` serves the feature catalog")

    @model_validator(mode="before")
    @classmethod
    def _below_home(cls, values: dict[str, object]) -> dict[str, object]:
        home = Path(str(values.get("home") or ".headrace")).absolute()
        embedded = {
            "lake": f"{home}/lake",
            "ledger": f"sqlite:///{home}/ledger.db",
            "mlflow": f"sqlite:///{home}/mlflow/mlflow.db",
        }
        return {**values, "home": home} | {k: values.get(k) or v for k, v in embedded.items()}

    @property
    def mlflow_page(self) -> str:
        """Where a person looks at MLflow: the tracking server, or what `headrace up` serves."""
        served = self.mlflow.startswith("http")
        return self.mlflow.rstrip("/") if served else f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def feast_page(self) -> str:
        """Where a person looks at the features: Feast's own UI, which `headrace up` serves."""
        return f"http://127.0.0.1:{self.feast_port}"

    @property
    def docs_page(self) -> str:
        """Where a person looks at Data Docs: what `headrace up` serves."""
        return f"http://127.0.0.1:{self.docs_port}"
