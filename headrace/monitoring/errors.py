"""What may be wrong with windows that are watched."""

from __future__ import annotations

from headrace.errors import HeadraceError


class NothingPredicted(HeadraceError):
    """No predictions were made in a window that is to be drawn, or none was judged yet."""

    def __init__(self, pipeline: str, window: str) -> None:
        self.pipeline, self.window = pipeline, window
        super().__init__(
            f"Pipeline `{pipeline}` made no predictions in {window}, so there is nothing to draw. "
            "`score` makes them, from the first release on; name another window with `--at`."
        )


class NotTakenUp(HeadraceError):
    """A drift event started no retraining."""

    def __init__(self, pipeline: str, cause: str) -> None:
        self.pipeline, self.cause = pipeline, cause
        super().__init__(
            f"No run took up the retraining of `{pipeline}` because of {cause}. Is a worker running "
            "(`make up`), and is `train` deployed with its trigger (`headrace deploy`)?"
        )
