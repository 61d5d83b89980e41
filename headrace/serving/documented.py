"""The OpenAPI description: each pipeline's own fields and columns, with an example that works."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from headrace.serving.predictor import AT, told

if TYPE_CHECKING:
    import pyarrow as pa
    from fastapi import FastAPI

    from headrace.pipeline import Pipeline
    from headrace.serving.keys import Keys
    from headrace.serving.predictor import Predictor
    from headrace.serving.service import Service

ABOUT = """
Asks each pipeline's champion. A row of a request is what the pipeline's spine selects: its keys, and what is
known when it is asked; features come from the online store. Every answer is in the prediction log before
it is given, under its `id`.
"""
METRICS = {"responses": {"200": {"description": "Metrics", "content": {"text/plain": {}}}}}
LISTING = {"responses": {"200": {"description": "By pipeline", "content": {"application/json": {}}}}}
PROBLEM = {
    "type": "object",
    "required": ["title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}
PROBLEMS = {
    "400": "No JSON",
    "401": "No key",
    "403": "Not with this key",
    "413": "Too large",
    "422": "Something about the rows is wrong: `errors` says what, and where",
    "424": "Features are missing that the pipeline does not do without",
    "429": "Too much is asked: try again after `Retry-After` seconds",
    "503": "Nothing serves, the online store is gone, or the log cannot be written",
}
logger = logging.getLogger(__name__)


def openapi(app: FastAPI, service: Service, keys: Keys) -> dict[str, Any]:
    """Return the description as it is now, of the versions that serve; where it takes keys, without data."""
    found = get_openapi(title=app.title, version="1", description=app.description, routes=app.routes)
    found.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM
    found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path in found["paths"].values():
        for operation in path.values():
            if "x-headrace" in operation:
                name, what = operation.pop("x-headrace")
                if what == "feedback":
                    operation.update(_told(service.pipelines[name]))
                elif predictor := service.endpoints[name].predictor:
                    operation.update(_operation(service, predictor, what, shown=not keys.all()))
                good = {status: of for status, of in operation["responses"].items() if status < "300"}
                operation["responses"] = good | _problems()
                operation["security"] = [{}, {"key": []}]
    return found


def _told(spec: Pipeline) -> dict[str, Any]:
    label = _type(spec.problem.label_type) | {"description": spec.problem.expected}
    label["type"] = label["type"][0]
    if spec.problem.labels:
        label["enum"] = list(spec.problem.labels)
    one = {
        "type": "object",
        "required": ["id", "label"],
        "properties": {"id": {"type": "string", "format": "uuid"}, "label": label},
        "additionalProperties": False,
    }
    every = {"type": "array", "minItems": 1, "maxItems": 1000, "items": one}
    asked: dict[str, Any] = {"type": "object", "required": ["feedback"], "properties": {"feedback": every}}
    asked["additionalProperties"] = False
    return {
        "description": "What came true, by the ids of answers; the last that is told of one counts.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": asked}}},
        "responses": {"202": {"description": "On disk", "content": {"application/json": {}}}},
    }


def _problems() -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": about, "content": content} for status, about in PROBLEMS.items()}


def _operation(service: Service, predictor: Predictor, what: str, *, shown: bool) -> dict[str, Any]:
    fields = {
        name: _type(kind) | {"description": told(kind)} for name, kind in predictor.fields.types.items()
    }
    instant = {"type": ["string", "null"], "format": "date-time"}
    fields[AT] = instant | {"description": "The instant to predict at; the present, if it is left out"}
    row = {"type": "object", "required": [*predictor.fields.types], "properties": fields}
    rows = {"type": "array", "minItems": 1, "maxItems": 1000, "items": row}
    asked: dict[str, Any] = {
        "schema": {
            "type": "object",
            "required": ["rows"],
            "properties": {"rows": rows},
            "additionalProperties": False,
        }
    }
    try:
        if shown:
            asked["example"] = {"rows": [predictor.example(service.lake)]}
    except Exception as error:  # noqa: BLE001  # a page without an example is better than none
        logger.warning("There is no example for %s: %s", predictor.spec.name, error)
    columns = {name: _type(kind) for name, kind in predictor.spec.problem.columns.items()}
    prediction: dict[str, Any] = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "format": "uuid"},
            **columns,
            "missing": {"type": "array", "items": {"type": "string"}},
            "version": {"type": "integer", "description": "Who made it, if it was a canary"},
        },
    }
    if what == "explain":
        prediction["properties"]["contributions"] = {
            "description": "What each input adds, before the link: nats of odds, for a probability"
        }
    answer = {
        "type": "object",
        "properties": {
            "model": {"type": "string"},
            "version": {"type": "integer"},
            "predictions": {"type": "array", "items": prediction},
        },
    }
    return {
        "description": predictor.spec.about,
        "requestBody": {"required": True, "content": {"application/json": asked}},
        "responses": {
            "200": {"description": "Predictions", "content": {"application/json": {"schema": answer}}}
        },
    }


def _type(kind: pa.DataType) -> dict[str, Any]:
    from pyarrow import types

    if types.is_integer(kind):
        signed = not types.is_unsigned_integer(kind)
        low, high = (-(2 ** (kind.bit_width - 1)) if signed else 0), 2 ** (kind.bit_width - signed) - 1
        return {"type": ["integer", "null"], "minimum": low, "maximum": high}
    if types.is_floating(kind) or types.is_decimal(kind):
        return {"type": ["number", "null"]}
    if types.is_boolean(kind):
        return {"type": ["boolean", "null"]}
    if types.is_timestamp(kind):
        return {"type": ["string", "null"], "format": "date-time"}
    return {"type": ["string", "null"]} | ({"format": "date"} if types.is_date(kind) else {})
