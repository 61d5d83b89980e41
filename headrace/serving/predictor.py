"""From a request's rows to predictions: its fields, features from the online store, the model."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

from headrace.errors import HeadraceError, did_you_mean
from headrace.instants import plain
from headrace.lake import AVAILABLE
from headrace.serving.errors import BadRequest, FeaturesMissing
from headrace.serving.ids import signed
from headrace.sources.predictions import log_of
from headrace.sql import among
from headrace.training.trainers import trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa

    from headrace.feature_store.plan import Plan
    from headrace.lake import Lake
    from headrace.pipeline import Pipeline
    from headrace.training.model import Model

    Planned = Callable[[str, Mapping[str, pa.DataType]], Plan]
    """What compiles a feature service, of that name, to be given columns of such types."""

AT = "event_timestamp"
BATCH = 10_000
"""Rows of a batch that are predicted at once."""
EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
LEAST, MOST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
"""Between which instants a request may ask: databases hold these."""


@dataclass(frozen=True)
class Made:
    """Predictions, a list for each of the problem's columns; and what they were made of, likewise.

    ``missing`` has, for each row, the features of which the online store had no row to serve.
    """

    predictions: dict[str, list[Any]]
    inputs: dict[str, list[Any]]
    missing: list[tuple[str, ...]]


class Fields:
    """What a row of a request holds: the columns of the spine that Feast or the model cannot do without.

    ``event_timestamp`` may be left out: it is the instant of the request.
    """

    def __init__(self, spec: Pipeline, spine: pa.Schema, plan: Plan) -> None:
        needed = dict.fromkeys([*spec.keys, *plan.inputs])
        needed |= dict.fromkeys(name for name in spec.columns.names if name not in plan.outputs)
        needed.pop(AT, None)
        self.types = {name: spine.field(name).type for name in needed}
        self._known = {*spine.names}
        self._readers = {name: _reader(kind) for name, kind in self.types.items()}

    def read(self, rows: Any, now: datetime, most: int) -> list[dict[str, Any]]:
        """Return ``rows``, as JSON has them, as Python has their values.

        Raises:
            BadRequest: Something about them is wrong; all of it is told.
        """
        if not isinstance(rows, list) or not 0 < len(rows) <= most:
            raise BadRequest([("/rows", f"must be a list of 1 to {most:,} rows")])
        slips: list[tuple[str, str]] = []
        found = []
        readers = self._readers
        for place, row in enumerate(rows):
            if type(row) is not dict:
                slips.append((f"/rows/{place}", "must be an object"))
                continue
            values = {}
            for name, read in readers.items():
                try:
                    value = row[name]
                    values[name] = None if value is None else read(value)
                except KeyError:
                    slips.append(
                        (f"/rows/{place}/{_pointed(name)}", f"is missing; it is {told(self.types[name])}")
                    )
                except (ValueError, TypeError, OverflowError) as error:
                    slips.append((f"/rows/{place}/{_pointed(name)}", str(error)))
            try:
                at = row.get(AT)
                values[AT] = now if at is None else _instant(at)
            except (ValueError, TypeError, OverflowError) as error:
                slips.append((f"/rows/{place}/{AT}", str(error)))
            if len(row) > len(readers):
                slips += [
                    (
                        f"/rows/{place}/{_pointed(name)}",
                        f"is no field of a row.{did_you_mean(name, list(readers))}",
                    )
                    for name in row
                    if name not in self._known and name not in readers and name != AT
                ]
            found.append(values)
        if slips:
            raise BadRequest(slips)
        return found


class Predictor:
    """One version of a pipeline's model, ready to answer; for one thread at a time."""

    def __init__(self, spec: Pipeline, version: int, model: Model, planned: Planned, lake: Lake) -> None:
        """Make ready: look up what the feature service reads, and what a row of the spine is.

        Raises:
            MissingKeys: The spine lacks what the service must be given.
            NotBuilt: A raw table of the spine does not exist.
        """
        self.spec, self.version, self.model = spec, version, model
        con = lake.connect(among(spec.spine, spec.raw))
        spine = con.sql(f"SELECT * FROM ({spec.spine}) LIMIT 0").to_arrow_table().schema
        self.plan = planned(spec.feature_service, {field.name: field.type for field in spine})
        self.fields = Fields(spec, spine, self.plan)
        self._plain = getattr(trainer(model.trainer), "PLAIN", False)

    @property
    def waits(self) -> bool:
        """Whether it waits for another machine, or may: then it must not do so in an event loop."""
        return self.plan.waits

    @cached_property
    def types(self) -> dict[str, pa.DataType]:
        """The model's inputs."""
        known = self.fields.types | self.plan.outputs
        return {name: known[name] for name in self.spec.columns.names}

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of a logged prediction."""
        import pyarrow as pa

        instant = pa.timestamp("us", "UTC")
        fields = {
            "prediction_id": pa.string(),
            "requested_at": instant,
            **self.fields.types,
            AT: instant,
            **self.types,
            **self.spec.problem.columns,
            "missing": pa.list_(pa.string()),
            "model_version": pa.int64(),
            AVAILABLE: instant,
        }
        return pa.schema(list(fields.items()))

    @cached_property
    def shadow_schema(self) -> pa.Schema:
        """The columns of what is logged of it as a shadow."""
        import pyarrow as pa

        fields = {"prediction_id": pa.string(), "model_version": pa.int64(), **self.spec.problem.columns}
        return pa.schema([*fields.items(), (AVAILABLE, pa.timestamp("us", "UTC"))])

    def warm(self, lake: Lake) -> None:
        """Predict once, so that the first request does not wait for what is made at the first use."""
        with suppress(HeadraceError):
            self.predict(self.fields.read([self.example(lake)], datetime.now(UTC), 1))

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> Made:
        """Predict rows, as :class:`Fields` read them.

        Raises:
            FeaturesMissing: Some are, and the pipeline refuses to do without.
            ServerUnreachable: The online store is gone.
            BadKey: A key is no value of its type.
        """
        inputs, missing = self._inputs(rows, refuses=self.spec.serving.missing == "refuse")
        return Made(self.predicted(inputs), inputs, missing)

    def _inputs(
        self, rows: Sequence[Mapping[str, Any]], *, refuses: bool = False
    ) -> tuple[dict[str, list[Any]], list[tuple[str, ...]]]:
        """Return the model's inputs, and, by row, which of them the online store had no row for."""
        instants = [(row[AT] - EPOCH) // MICROSECOND for row in rows]
        served = self.plan.read(rows, instants)
        if refuses and any(served.missing):
            wrong = enumerate(served.missing)
            raise FeaturesMissing(
                [
                    (f"/rows/{n}", f"has no {', '.join(names)} in the online store")
                    for n, names in wrong
                    if names
                ]
            )
        columns = served.columns
        for name, value in self.spec.serving.defaults.items():
            columns[name] = [value if one is None else one for one in columns[name]]
        inputs = {
            name: columns[name] if name in columns else [row[name] for row in rows]
            for name in self.spec.columns.names
        }
        return inputs, served.missing

    def batch(self, spine: pa.Table, since: datetime) -> pa.Table:
        """Return predictions of rows of the spine, as the log of batches has them, made as requests are.

        But for features that are missing: one row without them keeps no other from being predicted, so where
        a request would be refused the model predicts from nulls; ``missing`` names them. What the model
        learnt was known by ``since`` (UTC).

        Raises:
            ServerUnreachable: The online store is gone.
        """
        import pyarrow as pa

        given = list(dict.fromkeys([*self.spec.keys, AT]))
        parts = []
        for start in range(0, max(spine.num_rows, 1), BATCH):
            rows = spine.slice(start, BATCH)
            instants = rows[AT].cast(pa.timestamp("us", "UTC"), safe=False)
            asked = rows.select([*self.fields.types]).append_column(AT, instants)
            inputs, missing = self._inputs(asked.to_pylist())
            arrays = {
                name: pa.array(values, self.types[name]) if name in self.plan.outputs else rows[name]
                for name, values in inputs.items()
            }
            predictions = self.spec.problem.named(self.model.predict(pa.table(arrays)))
            kept = {name: rows[name] for name in given} | arrays | dict(predictions)
            parts.append(pa.table({**kept, "missing": pa.array(missing, pa.list_(pa.string()))}))
        return signed(pa.concat_tables(parts), self.spec, self.version, since)

    def predicted(self, inputs: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the predictions for the model's inputs, lists by name."""
        problem = self.spec.problem
        predictions = self.model.predict(inputs if self._plain else self._table(inputs))
        return {name: column.to_pylist() for name, column in problem.named(predictions).items()}

    def explained(self, inputs: Mapping[str, list[Any]]) -> tuple[tuple[str, ...], list[Any]] | None:
        """Return what each input adds to predictions, where the trainer can tell; see ``Trainer``."""
        maker = trainer(self.model.trainer)
        if not hasattr(maker, "contributions"):
            return None
        names, found = maker.contributions(self.model.native, self._table(inputs))
        return tuple(names), found.tolist()

    def _table(self, inputs: Mapping[str, list[Any]]) -> pa.Table:
        import pyarrow as pa

        return pa.table({name: pa.array(values, self.types[name]) for name, values in inputs.items()})

    def example(self, lake: Lake) -> dict[str, Any]:
        """Return the last row of the spine that was predicted, as a request has it; else the last one."""
        con, until = lake.connect(among(self.spec.spine, self.spec.raw)), "infinity"
        if (made := lake.table(log_of(self.spec.name))).exists():
            [(last,)] = made.relation(con).max(AT).fetchall()
            until = last.isoformat() if last else until
        found = con.sql(
            f"FROM ({self.spec.spine}) WHERE {AT} <= TIMESTAMPTZ '{until}' ORDER BY {AT} DESC LIMIT 1"
        ).to_arrow_table()
        return next(iter(self.requests(found)), {})

    def requests(self, spine: pa.Table) -> list[dict[str, Any]]:
        """Return rows of the spine as requests have them: as JSON does."""
        rows = spine.select([*self.fields.types, AT]).to_pylist()
        return [{name: _json(value) for name, value in row.items()} for row in rows]


def told(kind: pa.DataType) -> str:
    """Say what a value of that type looks like in JSON."""
    from pyarrow import types

    if types.is_integer(kind):
        return "a whole number"
    if types.is_floating(kind) or types.is_decimal(kind):
        return "a number"
    if types.is_boolean(kind):
        return "true or false"
    if types.is_timestamp(kind):
        return "an instant, such as 2013-04-01T06:00:00Z"
    return "a date, such as 2013-04-01" if types.is_date(kind) else "text"


def _reader(kind: pa.DataType) -> Callable[[Any], Any]:
    """Return what checks a JSON value and makes Python's of it."""
    from pyarrow import types

    if types.is_integer(kind):
        signed = not types.is_unsigned_integer(kind)
        low = -(1 << kind.bit_width - 1) if signed else 0
        high = (1 << (kind.bit_width - 1 if signed else kind.bit_width)) - 1

        def whole(value: Any) -> int:
            if type(value) is float and value.is_integer():
                value = int(value)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"must be a whole number from {low} to {high}")
            return value

        return whole
    if types.is_floating(kind) or types.is_decimal(kind):
        return _number
    if types.is_boolean(kind):
        return _truth
    if types.is_timestamp(kind):
        return _instant
    return _date if types.is_date(kind) else _text


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("must be text")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("must be a number")
    return float(value)


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("must be true or false")
    return value


def _instant(value: Any) -> datetime:
    try:
        found = datetime.fromisoformat(value)
        found = plain(found) if found.tzinfo is not UTC else found
    except (ValueError, TypeError, OverflowError):
        raise ValueError("must be an instant, such as 2013-04-01T06:00:00Z") from None
    if not LEAST <= found <= MOST:
        raise ValueError("must be an instant of the years 1 to 9999")
    return found


def _date(value: Any) -> date:
    try:
        return date.fromisoformat(value)
    except (ValueError, TypeError):
        raise ValueError("must be a date, such as 2013-04-01") from None


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    return value.isoformat() if isinstance(value, date) else value


def _pointed(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
