"""What may be wrong with releases."""

from __future__ import annotations

from headrace.errors import HeadraceError


class NoChampion(HeadraceError):
    """Scoring or monitoring was asked for before a model was released."""

    def __init__(self, pipeline: str) -> None:
        self.pipeline = pipeline
        super().__init__(
            f"Pipeline `{pipeline}` has no champion yet. Run the `train` flow: what it trains is released "
            "if it beats a guess from the past alone."
        )


class NotReleased(HeadraceError):
    """There is no champion yet, and what was trained to be the first is not good enough."""

    def __init__(self, pipeline: str, reason: str) -> None:
        self.pipeline, self.reason = pipeline, reason
        super().__init__(
            f"The first model of pipeline `{pipeline}` is not released, so there is nothing to predict with: "
            f"{reason} It stays registered, with its scores. Give it more to learn from (a later `--start`, "
            f"other `columns` or `candidates` in `pipelines/{pipeline}.py`), and begin again."
        )
