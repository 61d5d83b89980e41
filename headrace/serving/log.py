"""The prediction log: every prediction with its inputs, the model that made it and, later, the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lake import Lake, Window, windows

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    import pyarrow as pa

    from headrace.pipeline import Pipeline
    from headrace.training.model import Model


def pending(spec: Pipeline, lake: Lake, since: datetime, as_of: datetime) -> list[Window]:
    """Return the windows between ``since`` and ``as_of`` (UTC) that are closed and not scored yet."""
    due = windows(since, as_of, spec.window)
    scored = lake.table(_name(spec)).held([str(window) for window in due])
    return [window for window in due if str(window) not in scored]


def score(
    spec: Pipeline,
    lake: Lake,
    window: Window,
    online: Callable[[pa.Table], pa.Table],
    model: Model,
    version: int,
) -> int:
    """Make the predictions due within ``window`` and log them; return how many.

    ``online`` adds to a spine the features as the online store serves them.
    Scoring again replaces the window's rows.
    """
    import pyarrow as pa

    spine = (
        lake.connect(spec.raw)
        .execute(
            f"FROM ({spec.spine}) WHERE {window.predicate('event_timestamp')} "
            f"ORDER BY event_timestamp, {', '.join(spec.keys)}"
        )
        .to_arrow_table()
    )
    rows = online(spine)
    wanted = list(dict.fromkeys([*spec.keys, "event_timestamp", *spec.columns.names]))
    predictions = (
        rows.select(wanted)
        .append_column("probability", pa.array(model.predict(rows)))
        .append_column("model_version", pa.array([version] * rows.num_rows, pa.int64()))
    )
    lake.table(_name(spec)).overwrite(predictions, window, "event_timestamp")
    return predictions.num_rows


def read(spec: Pipeline, lake: Lake, window: Window) -> pa.Table:
    """Return the predictions made within ``window``, with their inputs."""
    con = lake.connect({"predictions": _name(spec)})
    return con.execute(
        f"FROM predictions WHERE {window.predicate('event_timestamp')} "
        f"ORDER BY event_timestamp, {', '.join(spec.keys)}"
    ).to_arrow_table()


def outcomes(spec: Pipeline, lake: Lake, window: Window, as_of: datetime) -> pa.Table:
    """Return the window's predictions whose truth was known by ``as_of`` (UTC), with their ``label``."""
    con = lake.connect(spec.raw | {"predictions": _name(spec)})
    return con.execute(
        f"""
        SELECT predictions.*, label FROM predictions JOIN ({spec.label}) label USING ({", ".join(spec.keys)})
        WHERE {window.predicate("event_timestamp")} AND label.available_at < $as_of
        """,
        {"as_of": as_of},
    ).to_arrow_table()


def _name(spec: Pipeline) -> str:
    return f"predictions/{spec.name}"
