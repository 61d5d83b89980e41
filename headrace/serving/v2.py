"""The Open Inference Protocol, version 2: ready inputs as tensors, one for each column the model takes.

As KServe and Triton have it, with the extension for binary data, so that their clients ask headrace
unchanged: https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import asyncio
import math
import struct
import time
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response

from headrace.addresses import scrubbed
from headrace.errors import HeadraceError
from headrace.serving import telemetry
from headrace.serving.http import JSON, MANY, TIMEOUT, Refused, raw_body, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

    from headrace.serving.endpoint import Endpoint
    from headrace.serving.keys import Keys
    from headrace.serving.metrics import Metrics
    from headrace.serving.predictor import Predictor
    from headrace.serving.service import Service

LENGTH = "inference-header-content-length"
NUMPY = {
    "BOOL": "?",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}


class Unfit(ValueError):
    """A request is not as the protocol has it, or not what the model takes."""


def routes(service: Service, keys: Keys, measured: Metrics) -> APIRouter:
    """Return the protocol's pages."""
    wrong = {"description": "`error` says what", "content": {JSON: {}}}
    statuses: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 403, 404, 413, 429, 503), wrong)
    router = APIRouter(prefix="/v2", tags=["open inference protocol"], responses=statuses)

    def served(name: str, number: str) -> tuple[Endpoint, Predictor]:
        if name not in service.endpoints:
            raise Unfit(f"There is no model {name!r}: there are {', '.join(service.endpoints)}")
        endpoint = service.endpoints[name]
        predictor = endpoint.serving()
        if number and number != str(predictor.version):
            raise Unfit(f"Version {number} of {name!r} does not serve; version {predictor.version} does")
        return endpoint, predictor

    @router.get("")
    async def server() -> Response:
        told = {"name": "headrace", "version": version("headrace"), "extensions": ["binary_tensor_data"]}
        return Response(orjson.dumps(told), media_type=JSON)

    @router.get("/health/live")
    async def live() -> Response:
        return Response(b'{"live":true}', media_type=JSON)

    @router.get("/health/ready")
    async def ready() -> Response:
        told = {"ready": service.ready}
        return Response(orjson.dumps(told), 200 if service.ready else 503, media_type=JSON)

    @router.get("/models/{name}")
    @router.get("/models/{name}/versions/{number}")
    async def model(name: str, number: str = "") -> Response:
        try:
            _, predictor = served(name, number)
        except (Unfit, HeadraceError) as error:
            return _wrong(error)
        outputs = predictor.spec.problem.columns
        told = {
            "name": name,
            "versions": [str(predictor.version)],
            "platform": f"headrace_{predictor.model.trainer}",
            "inputs": [_tensor(column, kind) for column, kind in predictor.types.items()],
            "outputs": [_tensor(column, kind) for column, kind in outputs.items()],
        }
        return Response(orjson.dumps(told), media_type=JSON)

    @router.get("/models/{name}/ready")
    @router.get("/models/{name}/versions/{number}/ready")
    async def model_ready(name: str, number: str = "") -> Response:
        try:
            served(name, number)
        except (Unfit, HeadraceError) as error:
            return _wrong(error)
        return Response(orjson.dumps({"name": name, "ready": True}), media_type=JSON)

    @router.post("/models/{name}/infer")
    @router.post("/models/{name}/versions/{number}/infer")
    async def infer(request: Request, name: str, number: str = "") -> Response:
        start, status = time.perf_counter(), 500
        try:
            endpoint, predictor = served(name, number)
            keys.check(request.headers, name, "predict")
            head, tail = _split(request.headers, await raw_body(request))
            inputs = _inputs(head, tail, predictor.types)
            rows = [dict(zip(inputs, values, strict=True)) for values in zip(*inputs.values(), strict=True)]
            asked = endpoint.ask(rows, datetime.now(UTC), asyncio.get_running_loop(), ready=True)
            answer = await asyncio.wait_for(asked, TIMEOUT)
            status = 200
            telemetry.note(name, answer)
            told = {"model_name": name, "model_version": str(answer.version), "id": head.get("id", "")}
            told["parameters"] = {"prediction_ids": answer.ids}
            return _answered(told, head, answer.predictions, predictor.spec.problem.columns)
        except (Unfit, HeadraceError, TimeoutError, Refused) as error:
            wrong = _wrong(error)
            status = wrong.status_code
            return wrong
        finally:
            if name in service.endpoints:
                measured.of(name)(status, time.perf_counter() - start)

    return router


def _wrong(error: Exception) -> Response:
    """Return an error as the protocol has it."""
    if isinstance(error, Unfit):
        status, told = (404 if "There is no model" in str(error) else 400), str(error)
    elif isinstance(error, Refused):
        status, told = error.status, f"{error.title}. {error.detail}"
    elif isinstance(error, HeadraceError):
        status, told = status_of(error)[0], str(error)
    else:
        status, told = 503, f"There was no answer within {TIMEOUT:.0f} s"
    return Response(orjson.dumps({"error": scrubbed(told)}), status, media_type=JSON)


def _tensor(name: str, kind: pa.DataType) -> dict[str, Any]:
    return {"name": name, "datatype": _datatype(kind), "shape": [-1]}


def _datatype(kind: pa.DataType) -> str:
    from pyarrow import types

    if types.is_boolean(kind):
        return "BOOL"
    if types.is_integer(kind):
        return f"{'U' * types.is_unsigned_integer(kind)}INT{kind.bit_width}"
    if types.is_float32(kind) or types.is_float16(kind):
        return f"FP{kind.bit_width}"
    return "FP64" if types.is_float64(kind) or types.is_decimal(kind) else "BYTES"


def _split(headers: Mapping[str, str], raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Return a request's JSON, and the binary data behind it."""
    length = headers.get(LENGTH)
    if length is not None and not (length.isdecimal() and int(length) <= len(raw)):
        raise Unfit(f"{LENGTH} is {length}, but there are {len(raw)} bytes")
    end = len(raw) if length is None else int(length)
    try:
        head = orjson.loads(raw[:end])
    except orjson.JSONDecodeError as error:
        raise Unfit(f"The request is no JSON: {error}") from None
    if not isinstance(head, dict) or not isinstance(head.get("inputs"), list):
        raise Unfit("The request must be an object with a list of inputs")
    return head, raw[end:]


def _inputs(head: Mapping[str, Any], tail: bytes, types: Mapping[str, pa.DataType]) -> dict[str, list[Any]]:
    """Return the inputs as columns of Python's values, in the model's order; NaN is null."""
    found: dict[str, list[Any]] = {}
    for given in head["inputs"]:
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            raise Unfit("Each input must be an object with a name")
        name = given["name"]
        if name not in types:
            raise Unfit(f"{name!r} is no input of the model: it takes {', '.join(types)}")
        if name in found:
            raise Unfit(f"Input {name!r} comes twice")
        size = (given.get("parameters") or {}).get("binary_data_size")
        if size is None:
            values = list(_flat(given.get("data")))
        else:
            if type(size) is not int or not 0 <= size <= len(tail):
                raise Unfit(f"Input {name!r} is said to have {size} bytes, of {len(tail)}")
            values, tail = _read(name, given.get("datatype"), tail[:size]), tail[size:]
        shape = given.get("shape")
        if not isinstance(shape, list) or math.prod(shape) != len(values) or shape[1:] not in ([], [1]):
            raise Unfit(
                f"Input {name!r} has shape {shape}, but {len(values)} values; it must be [n] or [n, 1]"
            )
        found[name] = [_checked(name, value, types[name]) for value in values]
    if missing := [name for name in types if name not in found]:
        raise Unfit(f"There is no input {', '.join(missing)}")
    if len(lengths := {len(values) for values in found.values()}) != 1:
        raise Unfit(f"Inputs have different numbers of rows: {sorted(lengths)}")
    if not 0 < (rows := lengths.pop()) <= MANY:
        raise Unfit(f"There must be 1 to {MANY:,} rows, and there are {rows:,}")
    return {name: found[name] for name in types}


def _flat(data: Any) -> Iterator[Any]:
    if not isinstance(data, list):
        raise Unfit("The data of an input must be a list")
    for value in data:
        if isinstance(value, list):
            yield from value
        else:
            yield value


def _read(name: str, datatype: Any, raw: bytes) -> list[Any]:
    """Return the values of binary data."""
    if datatype == "BYTES":
        values, at = [], 0
        while at < len(raw):
            if at + 4 > len(raw) or at + 4 + (size := struct.unpack_from("<I", raw, at)[0]) > len(raw):
                raise Unfit(f"The data of input {name!r} is cut short")
            values.append(raw[at + 4 : (at := at + 4 + size)])
        return values
    if datatype not in NUMPY or len(raw) % np.dtype(NUMPY[datatype]).itemsize:
        raise Unfit(f"Input {name!r} has datatype {datatype}, which is unknown or does not fit its data")
    return np.frombuffer(raw, NUMPY[datatype]).tolist()


def _checked(name: str, value: Any, kind: pa.DataType) -> Any:
    """Return one value as Python has those of its column."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    wanted = _datatype(kind)
    if wanted == "BYTES":
        try:
            value = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError:
            raise Unfit(f"A value of input {name!r} is no UTF-8") from None
        if isinstance(value, str):
            return value
    elif wanted == "BOOL" and isinstance(value, bool):
        return value
    elif "INT" in wanted and isinstance(value, int | float) and not isinstance(value, bool):
        info = np.iinfo(np.dtype(NUMPY[wanted]))
        if float(value).is_integer() and info.min <= value <= info.max:
            return int(value)
    elif wanted.startswith("FP") and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise Unfit(f"Input {name!r} takes {wanted}, and {value!r} is none")


def _answered(
    told: dict[str, Any],
    head: Mapping[str, Any],
    predictions: Mapping[str, list[Any]],
    kinds: Mapping[str, Any],
) -> Response:
    """Return predictions as output tensors, binary where that is asked for."""
    every = bool((head.get("parameters") or {}).get("binary_data_output"))
    asked = dict.fromkeys(kinds, every)
    if isinstance(outputs := head.get("outputs"), list) and outputs:
        asked = {}
        for output in outputs:
            name = str(output.get("name")) if isinstance(output, dict) else ""
            if name not in kinds:
                raise Unfit(f"{name!r} is no output of the model: it has {', '.join(kinds)}")
            asked[name] = bool((output.get("parameters") or {}).get("binary_data", every))
    found, tail = [], b""
    for name, binary in asked.items():
        values, datatype = predictions[name], _datatype(kinds[name])
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [len(values)]}
        if binary:
            raw = _written(values, datatype)
            tensor["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            tensor["data"] = values
        found.append(tensor)
    raw = orjson.dumps(told | {"outputs": found})
    if not any(asked.values()):
        return Response(raw, media_type=JSON)
    return Response(raw + tail, headers={LENGTH: str(len(raw))}, media_type="application/octet-stream")


def _written(values: list[Any], datatype: str) -> bytes:
    if datatype != "BYTES":
        return np.array(values, NUMPY[datatype]).tobytes()
    texts = [str(value).encode() for value in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)
