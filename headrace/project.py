"""The project: the folder that a team owns, what is set for it, and what both open.

Made once, where a run or a command begins, and handed down; nothing below looks for a setting.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import BrokenDeclaration
from headrace.lake import Lake
from headrace.ledger import Ledger
from headrace.pipeline import declared, load
from headrace.settings import Settings
from headrace.tracking import MLflow
from headrace.validation.errors import BrokenSuite

if TYPE_CHECKING:
    from feast import FeatureStore

    from headrace.pipeline import Pipeline


@dataclass(frozen=True)
class Project:
    """A ``folder`` with flows/, features/, validations/ and pipelines/, and its settings.

    What it opens is opened when it is first asked for, and then kept.
    """

    folder: Path
    settings: Settings

    @classmethod
    def here(cls) -> Project:
        """Return the project whose ``pipelines`` this process imports, as its environment sets it.

        Raises:
            BadSetting: A setting is not what it may be.
            UnknownSetting: A variable begins as ours do, and is none of them.
        """
        return cls(Path(next(iter(import_module("pipelines").__path__))).parent, Settings())

    @cached_property
    def lake(self) -> Lake:
        """Its Delta tables."""
        return Lake(self.settings.lake)

    @cached_property
    def ledger(self) -> Ledger:
        """Its claims and results."""
        return Ledger(self.settings.ledger)

    @cached_property
    def mlflow(self) -> MLflow:
        """Its runs, models and releases."""
        return MLflow(self.settings.mlflow, self.settings.home)

    @cached_property
    def store(self) -> FeatureStore:
        """Its Feast repository."""
        from headrace.feature_store.store import open_store

        return open_store(self.folder / "features", self.settings)

    def pipeline(self, name: str) -> Pipeline:
        """Return one that it declares; see ``headrace.pipeline.load`` for what is refused."""
        return load(name)

    def pipelines(self) -> list[Pipeline]:
        """Return all that it declares."""
        return [load(name) for name in declared()]

    def sound_pipelines(self) -> list[Pipeline]:
        """Return those that can be loaded: for what another one that is broken must not stop."""
        found = []
        for name in declared():
            with suppress(BrokenDeclaration, BrokenSuite):
                found.append(load(name))
        return found
