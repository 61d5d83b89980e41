"""What may be wrong with releases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class NoChampion(HeadraceError):
    """Scoring or monitoring was asked for before a model was released."""

    def __init__(self, pipeline: str) -> None:
        self.pipeline = pipeline
        super().__init__(
            f"Pipeline `{pipeline}` has no champion yet. Run the `train` flow: what it trains is released "
            "if it beats a guess from the past alone."
        )


class NotReproducible(HeadraceError):
    """A release cannot be made again, for something that made it is not there."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"This release cannot be made again: {reason}.")


class UnknownRelease(HeadraceError):
    """No version of a pipeline's model is called so."""

    def __init__(self, pipeline: str, wanted: str, known: Sequence[str]) -> None:
        self.pipeline, self.wanted, self.known = pipeline, wanted, tuple(known)
        super().__init__(
            f"`{pipeline}` has no version or alias `{wanted}`: there are {', '.join(known) or 'none yet'}. "
            f"Name one as `{pipeline}@champion` or `{pipeline}@1`; `headrace models list` shows them."
        )


class NothingFound(HeadraceError):
    """No trial of a study has come to its end."""

    def __init__(self, study: str) -> None:
        self.study = study
        super().__init__(
            f"No trial of study `{study}` could be fitted. Its runs in MLflow say why, in `headrace.failed`. "
            "Correct `search` or `params` of the candidate."
        )


class NothingToTune(HeadraceError):
    """No candidate of a pipeline has parameters to look for."""

    def __init__(self, pipeline: str) -> None:
        self.pipeline = pipeline
        super().__init__(
            f"No candidate of pipeline `{pipeline}` says what to look for. Give one a `search` in "
            f'`pipelines/{pipeline}.py`, such as `search={{"eta": Float(0.01, 0.3, log=True)}}`.'
        )


class BadSearch(HeadraceError):
    """What is searched for is no bound."""

    def __init__(self, told: str) -> None:
        self.told = told
        super().__init__(f"`{told}` is no bound on a score: write it as 'auc > 0.7', with <, <=, >, >= or =.")


class NotReleased(HeadraceError):
    """There is no champion yet, and what was trained to be the first is not good enough."""

    def __init__(self, pipeline: str, reason: str) -> None:
        self.pipeline, self.reason = pipeline, reason
        super().__init__(
            f"The first model of pipeline `{pipeline}` is not released, so there is nothing to predict with: "
            f"{reason} It stays registered, with its scores. Give it more to learn from (a later `--start`, "
            f"other `columns` or `candidates` in `pipelines/{pipeline}.py`), and begin again."
        )


class NothingBefore(HeadraceError):
    """There is no champion to go back to."""

    def __init__(self, pipeline: str) -> None:
        self.pipeline = pipeline
        super().__init__(
            f"`{pipeline}` had no champion before this one that the ledger knows of. Nothing was changed. "
            f"`headrace models promote {pipeline}@VERSION` makes any version champion."
        )


class Unproven(HeadraceError):
    """What a version was released by cannot be shown."""

    def __init__(self, pipeline: str, version: int, reason: str) -> None:
        self.pipeline, self.version, self.reason = pipeline, version, reason
        super().__init__(
            f"Version {version} of `{pipeline}` is not proven: {reason}. Do not rely on it before you know "
            f"why: `headrace models settle {pipeline}` lists every change of champion, and `headrace "
            "reproduce` makes a release again."
        )


class UnknownPrediction(HeadraceError):
    """No prediction of that id was logged."""

    def __init__(self, id: str, reason: str) -> None:
        self.id, self.reason = id, reason
        super().__init__(
            f"No prediction `{id}` is logged: {reason}. One that another machine answered comes "
            "into the lake within half a minute."
        )


class NothingServed(HeadraceError):
    """Nothing was asked of a pipeline's champion."""

    def __init__(self, pipeline: str, window: str) -> None:
        self.pipeline, self.window = pipeline, window
        super().__init__(
            f"The lake has nothing that was asked of `{pipeline}` within {window}. What `headrace serve` "
            "answers comes there within half a minute; name another span with `--since` and `--until`."
        )


class NothingShadowed(HeadraceError):
    """There is no request, of known truth, that both a shadow and the champion predicted."""

    def __init__(self, pipeline: str, version: int, champion: int) -> None:
        self.pipeline, self.version, self.champion = pipeline, version, champion
        super().__init__(
            f"Nothing is known of version {version} of `{pipeline}` beside the champion, version {champion}: "
            "no request that both predicted has a truth yet, of a day that ended a window ago. "
            f"`headrace models shadow {pipeline}@{version}` lets it predict what `headrace serve` is asked."
        )


class ThereAlready(HeadraceError):
    """A version was to be written where something is."""

    def __init__(self, place: Path) -> None:
        self.place = place
        super().__init__(
            f"`{place}` is there already. Nothing was written. Name a folder that is not there yet."
        )
