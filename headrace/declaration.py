"""What is wrong with a declaration, said before anything is done by it: types, names, references.

A check reads fields whose types are right, so that one slip hides no other.
"""

from __future__ import annotations

import re
from collections import Counter, abc
from dataclasses import fields, is_dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_type_hints

from headrace.monitoring.rule import KINDS
from headrace.problem.base import FALLING, RISING
from headrace.training.trainers import missing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headrace.pipeline import Pipeline

SERVED = ("prediction_id", "requested_at", "missing")
ITS_OWN = ("label", "available_at", "span", "model_version", "row_weight", *SERVED)
"""Columns that headrace puts beside a model's inputs."""


def slips(spec: Pipeline) -> list[str]:
    """Return one sentence for each thing that is wrong with ``spec``; it may hold anything."""
    wrong = dict(_mistyped(spec))
    found = [f"`{place}` {reason}" for place, reason in wrong.items()]
    unsound = {re.split(r"\W", place)[0] for place in wrong}
    for needs, check in CHECKS:
        if not unsound & set(needs):
            found += check(spec)
    return found


def _mistyped(value: Any, within: str = "") -> Iterator[tuple[str, str]]:
    """Yield where a dataclass, or one inside it, holds another type than it declares, and what it must."""
    import pyarrow as pa
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    from headrace.lake import Window
    from headrace.sources import Call, Feedback, Files, Predictions, Query

    named = {"pa": pa, "Window": Window, "Call": Call, "Files": Files, "Query": Query}
    named |= {"Predictions": Predictions, "Feedback": Feedback}
    declared = get_type_hints(type(value), localns={**vars(abc), **named})
    for field in fields(value):
        held, place = getattr(value, field.name), within + field.name
        try:
            check_type(
                held, declared[field.name], collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS
            )
        except TypeCheckError as error:
            said = re.sub(r"\s*\n\s*", " ", str(error))
            one = str(field.type).startswith("tuple[") and not isinstance(held, tuple)
            comma = "; a tuple of one is written `(it,)`, with a comma" if one else ""
            yield place, f"must be {field.type}, but {said}{comma}"
            continue
        parts = enumerate(held) if isinstance(held, tuple) else [(None, held)]
        for number, part in parts:
            if is_dataclass(part):
                yield from _mistyped(part, f"{place}." if number is None else f"{place}[{number}].")


def _names(spec: Pipeline) -> Iterator[str]:
    for what, of in (("sources", spec.sources), ("feature_tables", spec.feature_tables)):
        yield from _doubled(f"`{what}`", [one.name for one in of])
        for one in of:
            if not re.fullmatch(r"\w[\w.-]*", one.name):
                yield f"`{what}` names `{one.name}`: a table's name is letters, digits, `_`, `-` and `.`"
    yield from _doubled("`candidates`", [candidate.name for candidate in spec.candidates])
    yield from _doubled("`keys`", spec.keys)
    for what in ("sources", "keys", "candidates"):
        if not getattr(spec, what):
            yield f"`{what}` names none"


def _columns(spec: Pipeline) -> Iterator[str]:
    if not spec.columns.names:
        yield "`columns` names none"
    yield from _doubled("`columns`", spec.columns.names)
    own = {*ITS_OWN} if any(spec.problem.slips()) else {*ITS_OWN, *spec.problem.columns}
    for name in spec.columns.names:
        if name in own:
            yield f"`columns` names `{name}`, which headrace keeps for itself: give the input another name"


def _spans(spec: Pipeline) -> Iterator[str]:
    spans = {"window": spec.window, "holdout": spec.holdout}
    spans |= {f"sources[{i}].window": source.window for i, source in enumerate(spec.sources)}
    spans |= {f"feature_tables[{i}].window": table.window for i, table in enumerate(spec.feature_tables)}
    yield from (f"`{place}` must be longer than 0" for place, span in spans.items() if span <= timedelta(0))
    pauses = {f"feature_tables[{i}].lookback": table.lookback for i, table in enumerate(spec.feature_tables)}
    for i, source in enumerate(spec.sources):
        pauses |= {f"sources[{i}].late": source.late, f"sources[{i}].deadline": source.deadline}
    yield from (f"`{place}` must not be below 0" for place, span in pauses.items() if span < timedelta(0))


def _problem(spec: Pipeline) -> Iterator[str]:
    yield from (f"`problem` {slip}" for slip in spec.problem.slips())
    if (naive := spec.problem.naive) and not timedelta(0) < naive.span <= naive.season:
        yield "`problem.naive.span` must be longer than 0, and no longer than its `season`"


def _weights(spec: Pipeline) -> Iterator[str]:
    if not spec.weights:
        return
    if spec.weights.half_life is not None and spec.weights.half_life <= timedelta(0):
        yield "`weights.half_life` must be longer than 0"
    labels = spec.problem.labels
    for label, share in spec.weights.keep.items():
        if label not in labels:
            known = f"has {', '.join(map(repr, labels))}" if labels else "has no classes"
            yield f"`weights.keep` names the label {label!r}, but the problem {known}"
        if not 0 < share <= 1:
            yield f"`weights.keep` must keep a share above 0, and up to 1, of {label!r}, but has {share}"


def _trainers(spec: Pipeline) -> Iterator[str]:
    for i, candidate in enumerate(spec.candidates):
        if reason := missing(candidate.trainer):
            yield f"`candidates[{i}].trainer` names `{candidate.trainer}`: {reason}"
        for name, kind in candidate.search.items():
            place, values = f"`candidates[{i}].search` looks for `{name}`", getattr(kind, "values", None)
            low, high = getattr(kind, "low", 0), getattr(kind, "high", 0)
            if values is not None and len(values) < 2:
                yield f"{place} among {len(values)} values: it needs two or more"
            if low > high:
                yield f"{place} from {low} to {high}: `low` must not be above `high`"
            if getattr(kind, "log", False) and low <= 0:
                yield f"{place} by ratios from {low}: with `log`, `low` must be above 0"


def _gate(spec: Pipeline) -> Iterator[str]:
    if isinstance(spec.gate.group, timedelta) and spec.gate.group <= timedelta(0):
        yield "`gate.group` must be longer than 0, or name a column"
    if not 0 < spec.gate.risk < 1:
        yield "`gate.risk` must be between 0 and 1"
    if spec.gate.least_groups < 2:
        yield "`gate.least_groups` must be 2 or more: of a single group, nobody knows how far others stray"
    if spec.gate.approval is not None and spec.gate.approval <= timedelta(0):
        yield "`gate.approval` must be longer than 0, or None if nobody is to be asked"
    if spec.gate.live and spec.gate.approval is not None:
        yield (
            "`gate.live` promotes while nobody looks, but `gate.approval` wants a person asked: give one of "
            "them; `headrace models evidence` shows what a shadow has proven"
        )
    if guards := spec.gate.guards:
        yield from _doubled("`gate.guards.segments`", guards.segments)
        for name in ("slices", "margin", "calibration", "latency_ms", "size_mb"):
            if getattr(guards, name) < 0:
                yield f"`gate.guards.{name}` must not be below 0"
        shown = {} if any(spec.problem.slips()) else spec.problem.shown
        known = [name for name in shown if name in RISING | FALLING]
        for name, margin in guards.scores.items():
            if known and name not in known:
                yield f"`gate.guards.scores` names `{name}`, but what can become worse is {_listed(known)}"
            if margin < 0:
                yield f"`gate.guards.scores` must not be below 0, but has {margin} for `{name}`"


def _policy(spec: Pipeline) -> Iterator[str]:
    policy = spec.policy
    if type(policy) not in KINDS:
        yield f"`policy` must be one of {', '.join(kind.__name__ for kind in KINDS)}"
    windows, of, every = (getattr(policy, name, 1) for name in ("windows", "of", "every"))
    if not 1 <= windows <= of:
        yield "`policy.windows` must be from 1 to `policy.of`: that many of the last so many windows call"
    if isinstance(every, timedelta) and every <= timedelta(0):
        yield "`policy.every` must be longer than 0"
    if policy.limit is not None and (policy.limit < 1 or policy.per <= timedelta(0)):
        yield "`policy.limit` must be 1 or more, within a `policy.per` that is longer than 0"
    for name in ("retraining", "loss"):
        if getattr(spec.costs, name) < 0:
            yield f"`costs.{name}` must not be below 0"


def _suites(spec: Pipeline) -> Iterator[str]:
    from headrace.validation.suites import known

    named = {f"sources[{i}].suite": source.suite for i, source in enumerate(spec.sources)}
    named |= {f"feature_tables[{i}].suite": table.suite for i, table in enumerate(spec.feature_tables)}
    there = known()
    for place, suite in {**named, "suite": spec.suite}.items():
        if suite not in there and (suite or place.startswith("sources")):
            yield f"`{place}` names `{suite}`, but `validations/` has {_listed(there)}"


def _queries(spec: Pipeline) -> Iterator[str]:
    from headrace.sql import reads

    queries = {"`spine`": spec.spine, "`label`": spec.label}
    for i, table in enumerate(spec.feature_tables):
        if table.sql.is_file():
            queries[f"`feature_tables[{i}].sql`, `{table.sql.name}`,"] = table.sql.read_text()
        else:
            yield f"`feature_tables[{i}].sql` names `{table.sql}`, where there is no file"
    sources = {source.name.lower() for source in spec.sources}
    for place, query in queries.items():
        if strangers := sorted(reads(query) - sources):
            yield f"{place} reads {_listed(strangers)}, but the sources are {_listed(sorted(sources))}"


def _doubled(place: str, names: Sequence[str]) -> Iterator[str]:
    yield from (f"{place} names `{name}` twice" for name, count in Counter(names).items() if count > 1)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


CHECKS = (
    (("sources", "feature_tables", "candidates", "keys"), _names),
    (("problem",), _problem),
    (("problem", "weights"), _weights),
    (("columns", "problem"), _columns),
    (("candidates",), _trainers),
    (("sources", "feature_tables", "window", "holdout"), _spans),
    (("gate", "problem"), _gate),
    (("policy", "costs"), _policy),
    (("sources", "feature_tables", "suite"), _suites),
    (("sources", "feature_tables", "spine", "label"), _queries),
)
"""Each check, and the fields that it reads."""
