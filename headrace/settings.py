"""Where things live: every ``HEADRACE_*`` variable, with an embedded default for each, and Prefect's address.

Read at the edge (a flow, the CLI, ``features/``) and passed on as values.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    PyprojectTomlConfigSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from headrace.addresses import public, revealed, scrubbed
from headrace.errors import HeadraceError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class BadSetting(HeadraceError):
    """A setting is not what it may be."""

    def __init__(self, name: str, value: object, reason: str) -> None:
        self.name, self.value, self.reason = name, public(value), scrubbed(reason, value)
        variable = name.upper() if name.startswith("prefect") else f"HEADRACE_{name.upper()}"
        super().__init__(
            f"`{variable}` is set to `{self.value}`: {self.reason.removeprefix('Value error, ')}. "
            "Set it to something else, or leave it out for the default."
        )


class UnknownSetting(HeadraceError):
    """A variable looks like a setting, and is none."""

    def __init__(self, variable: str, known: Sequence[str]) -> None:
        self.variable, self.known = variable, tuple(known)
        hint = did_you_mean(variable, known)
        super().__init__(
            f"`{variable}` is set, but there is no such setting.{hint} Correct its name, or unset it; there "
            f"are {', '.join(known)}."
        )


INTERNAL = {"HEADRACE_CHILD", "HEADRACE_FORKSERVER"}
"""Variables that headrace's own processes leave for each other."""


class _Api(BaseModel):
    url: str = ""
    auth_string: SecretStr = SecretStr("")
    key: SecretStr = SecretStr("")


class _Prefect(BaseSettings):
    """What Prefect is set to, found where and in the order in which Prefect itself looks."""

    model_config = SettingsConfigDict(
        env_prefix="PREFECT_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
        env_ignore_empty=True,
        env_file=".env",
        toml_file="prefect.toml",
        pyproject_toml_table_header=("tool", "prefect"),
        extra="ignore",
    )

    api: _Api = _Api()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        files = TomlConfigSettingsSource(settings_cls), PyprojectTomlConfigSettingsSource(settings_cls)
        return env_settings, dotenv_settings, *files


class Settings(BaseSettings):
    """Settings of one headrace home; unset addresses point below ``home``."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", env_ignore_empty=True, frozen=True)

    home: Path = Field(Path(".headrace"), description="Everything embedded lives below it")
    lake: str = Field("", description="Root URI of the Delta lake")
    ledger: SecretStr = Field(SecretStr(""), description="SQLAlchemy URL of the ledger: SQLite or PostgreSQL")
    mlflow: SecretStr = Field(SecretStr(""), description="MLflow tracking URI")
    dask_address: str = Field("", description="A Dask scheduler; empty for one in-process worker")
    dask_workers: int = Field(1, ge=1, description="Local workers; more than one means processes")
    prefect_api_url: str = Field(
        default_factory=lambda: _Prefect().api.url,
        validation_alias="prefect_api_url",  # Prefect's own variable, without HEADRACE_ before it
        description="Prefect's API; on this machine, `headrace up` serves it there",
    )
    prefect_api_auth_string: SecretStr = Field(
        default_factory=lambda: _Prefect().api.auth_string,
        validation_alias="prefect_api_auth_string",
        description="User and password of a Prefect server, `user:password`",
    )
    prefect_api_key: SecretStr = Field(
        default_factory=lambda: _Prefect().api.key,
        validation_alias="prefect_api_key",
        description="Key of Prefect Cloud",
    )
    mlflow_port: int = Field(5000, description="Where `headrace up` serves MLflow")
    docs_port: int = Field(8080, description="Where `headrace up` serves Data Docs")
    feast_port: int = Field(8888, description="Where `headrace up` serves the feature catalog")
    evidently_port: int = Field(8070, description="Where `headrace up` serves Evidently's dashboards")
    serve_host: str = Field(
        "127.0.0.1", description="Where `headrace serve` listens; elsewhere it wants keys"
    )
    serve_port: int = Field(8000, description="Where `headrace serve` listens")
    serve_certificate: Path | None = Field(None, description="TLS certificate of `headrace serve`, PEM")
    serve_certificate_key: Path | None = Field(None, description="The certificate's private key, PEM")
    signing_key: Path | None = Field(None, description="Private key that signs releases, PEM")
    verifying_key: Path | None = Field(None, description="Public key that checks their signatures, PEM")
    notify: SecretStr = Field(
        SecretStr(""),
        description="Who is told of what befell: a webhook's URL, or a Prefect block",
    )
    api_keys: Path | None = Field(None, description="File of API keys; below `home` if it is not set")

    def __init__(self, **given: Any) -> None:
        """Read them.

        Raises:
            BadSetting: One is not what it may be.
            UnknownSetting: A variable begins as ours do, and is none of them.
        """
        known = {f"HEADRACE_{name.upper()}" for name in type(self).model_fields if "prefect" not in name}
        for variable in os.environ:
            if variable.startswith("HEADRACE_") and variable not in known | INTERNAL:
                raise UnknownSetting(variable, sorted(known))
        try:
            super().__init__(**given)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise BadSetting(str(wrong["loc"][0]), wrong["input"], wrong["msg"]) from None

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

    @field_validator("home")
    @classmethod
    def _can_be_made(cls, home: Path) -> Path:
        there = next(place for place in (home, *home.parents) if place.exists())
        if not there.is_dir():
            raise ValueError(f"{there} is not a folder")
        if there != home and not os.access(there, os.W_OK | os.X_OK):
            raise ValueError(f"in {there} this user can make no folder")
        return home

    @field_validator("lake", "ledger", "mlflow", "dask_address", "prefect_api_url")
    @classmethod
    def _has_a_port(cls, address: str | SecretStr) -> str | SecretStr:
        try:
            urlsplit(public(revealed(address))).port  # noqa: B018 - it is read to see whether it is one
        except ValueError as error:
            raise ValueError(str(error)) from None
        return address

    @field_validator("prefect_api_url")
    @classmethod
    def _plain(cls, url: str) -> str:
        return url.rstrip("/") or "http://127.0.0.1:4200/api"

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, public(value) if isinstance(value, str) else value

    @property
    def prefect_page(self) -> str:
        """Where a person looks at Prefect."""
        return public(self.prefect_api_url).removesuffix("/api")

    @property
    def mlflow_page(self) -> str:
        """Where a person looks at MLflow: the tracking server, or what `headrace up` serves."""
        address = public(revealed(self.mlflow))
        return address.rstrip("/") if address.startswith("http") else f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def feast_page(self) -> str:
        """Where a person looks at the features: Feast's own UI, which `headrace up` serves."""
        return f"http://127.0.0.1:{self.feast_port}"

    @property
    def evidently_page(self) -> str:
        """Where a person looks at what was measured over time: Evidently's UI, which `headrace up` serves."""
        return f"http://127.0.0.1:{self.evidently_port}"

    @property
    def serve_page(self) -> str:
        """Where the models are asked, on this machine."""
        scheme = "https" if self.serve_certificate else "http"
        host = "127.0.0.1" if self.serve_host in ("0.0.0.0", "::") else self.serve_host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.serve_port}"

    @property
    def docs_page(self) -> str:
        """Where a person looks at Data Docs: what `headrace up` serves."""
        return f"http://127.0.0.1:{self.docs_port}"
