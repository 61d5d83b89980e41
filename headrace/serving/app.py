"""The service's pages: what is asked over HTTP, and how it is answered."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from headrace.errors import HeadraceError
from headrace.serving import documented, metrics, telemetry, v2
from headrace.serving.admission import Admission
from headrace.serving.errors import BadRequest
from headrace.serving.http import JSON, MANY, TIMEOUT, Refused, problem, raw_body, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.types import ASGIApp

    from headrace.serving.endpoint import Answer, Endpoint
    from headrace.serving.keys import Keys
    from headrace.serving.service import Service


def application(service: Service, keys: Keys) -> ASGIApp:
    """Return the service as an ASGI application; it starts and stops ``service`` with itself."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, service.start)
        try:
            yield
        finally:
            await loop.run_in_executor(None, service.stop)
            await loop.run_in_executor(None, untraced)

    app = FastAPIOffline(
        title="headrace",
        description=documented.ABOUT,
        lifespan=lifespan,
        exception_handlers={
            Exception: _failed,
            HeadraceError: _problem,
            Refused: _refused,
            HTTPException: _no_page,
            RequestValidationError: _invalid,
        },
    )
    measured, untraced = metrics.Metrics(service), telemetry.traced(app)

    for name, endpoint in service.endpoints.items():
        _add(app, name, endpoint, keys, measured)

    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        return RedirectResponse("/docs")

    @app.get("/v1", tags=["models"], summary="What serves", openapi_extra=documented.LISTING)
    async def listing() -> Response:
        found = {
            name: {
                "about": service.pipelines[name].about,
                "version": endpoint.predictor and endpoint.predictor.version,
                "canary": endpoint.canary
                and {"version": endpoint.canary.version, "share": endpoint.canary.share},
                "trouble": service.troubles.get(name) or service.notices.get(name) or None,
            }
            for name, endpoint in service.endpoints.items()
        }
        return _json(found)

    @app.get("/healthz", tags=["operations"], summary="Whether the process lives")
    async def healthz() -> Response:
        return _json({"status": "alive"})

    @app.get(
        "/readyz",
        tags=["operations"],
        summary="Whether a champion answers",
        responses={503: {"description": "None does"}},
    )
    async def readyz() -> Response:
        return _json({"status": "ready" if service.ready else "no champion"}, 200 if service.ready else 503)

    @app.get("/metrics", tags=["operations"], summary="Prometheus metrics", openapi_extra=documented.METRICS)
    async def exposed() -> Response:
        return Response(measured.exposed(), media_type=metrics.TYPE)

    app.include_router(v2.routes(service, keys, measured))
    app.openapi = partial(documented.openapi, app, service, keys)  # type: ignore[method-assign]
    door = Admission(app)
    measured.refused = lambda: door.refused
    return door


def _add(app: FastAPI, name: str, endpoint: Endpoint, keys: Keys, measured: metrics.Metrics) -> None:
    """Add a pipeline's pages."""
    timer = measured.of(name)

    @contextmanager
    def timed(good: int) -> Iterator[None]:
        """Count what the block does by how it ends: with a good answer, or with what is wrong."""
        start, status = time.perf_counter(), 500
        try:
            yield
            status = good
        except Refused as error:
            status = error.status
            raise
        except HeadraceError as error:
            status = status_of(error)[0]
            raise
        finally:
            timer(status, time.perf_counter() - start)

    async def asked(request: Request, explain: bool) -> Response:
        with timed(200):
            keys.check(request.headers, name, "predict")
            body = await _body(request)
            now = datetime.now(UTC)
            rows = endpoint.serving().fields.read(_rows_of(body), now, MANY)
            loop = asyncio.get_running_loop()
            try:
                answer = await asyncio.wait_for(endpoint.ask(rows, now, loop, explain=explain), TIMEOUT)
            except TimeoutError:
                told = f"There was none within {TIMEOUT:.0f} s."
                raise Refused(503, "No answer in time", told) from None
            telemetry.note(name, answer)
            return Response(_told(name, answer), media_type=JSON)

    @app.post(
        f"/v1/{name}/predict",
        tags=[name],
        summary="Predict",
        operation_id=f"predict_{name}",
        openapi_extra={"x-headrace": [name, "predict"]},
    )
    async def predict(request: Request) -> Response:
        return await asked(request, False)

    @app.post(
        f"/v1/{name}/feedback",
        tags=[name],
        summary="Tell what came true",
        operation_id=f"feedback_{name}",
        status_code=202,
        openapi_extra={"x-headrace": [name, "feedback"]},
    )
    async def feedback(request: Request) -> Response:
        with timed(202):
            keys.check(request.headers, name, "feedback")
            endpoint.told(await _body(request), datetime.now(UTC), MANY)
            return _json({"logged": True}, 202)

    @app.post(
        f"/v1/{name}/explain",
        tags=[name],
        summary="Predict, and say what each input adds",
        operation_id=f"explain_{name}",
        openapi_extra={"x-headrace": [name, "explain"]},
    )
    async def explain(request: Request) -> Response:
        return await asked(request, True)


async def _body(request: Request) -> Any:
    try:
        return orjson.loads(await raw_body(request))
    except orjson.JSONDecodeError as error:
        raise Refused(400, "The request is no JSON", str(error)) from None


def _rows_of(body: Any) -> Any:
    if not isinstance(body, dict):
        raise BadRequest([("", "must be an object with `rows`")])
    if strange := sorted(body.keys() - {"rows"}):
        raise BadRequest([(f"/{name}", "is nothing that is asked for; `rows` are") for name in strange])
    return body.get("rows")


def _told(name: str, answer: Answer) -> bytes:
    """Return an answer as JSON."""
    made, found = answer.made, []
    for place, prediction_id in enumerate(answer.ids, answer.start):
        one: dict[str, Any] = {"id": prediction_id}
        for column, values in made.predictions.items():
            one[column] = values[place]
        one["missing"] = made.missing[place]
        if place in answer.others:
            one["version"] = answer.others[place]
        if answer.explained:
            names, of = answer.explained
            one["contributions"] = _by_name(names, of[place])
        found.append(one)
    return orjson.dumps({"model": name, "version": answer.version, "predictions": found})


def _by_name(names: tuple[str, ...], of: Any) -> Any:
    """Return contributions by input; of several outputs, a list of such."""
    if of and isinstance(of[0], list):
        return [_by_name(names, each) for each in of]
    return dict(zip(names, of, strict=True))


def _json(told: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(told), status, media_type=JSON)


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HeadraceError)
    status, title = status_of(error)
    more: dict[str, Any] = {}
    if isinstance(error, BadRequest):
        more["errors"] = [{"pointer": pointer, "detail": slip} for pointer, slip in error.slips[:100]]
    return problem(status, title, str(error), **more)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return problem(error.status, error.title, error.detail, error.headers)


async def _no_page(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), "/docs shows what there is.", error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    return problem(422, "The request is not what it may be", str(error))


async def _failed(_: Request, error: Exception) -> Response:
    return problem(500, "It failed", "The service's log says why.")
