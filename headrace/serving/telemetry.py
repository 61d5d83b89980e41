"""Traces of requests by OpenTelemetry, where its own variables name somebody who takes them."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

    from headrace.serving.endpoint import Answer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's own: either turns it on. So do all others of it what they do elsewhere."""
QUIET = "healthz,readyz,metrics"
"""Pages that machines ask for every few seconds."""
logger = logging.getLogger(__name__)


def traced(app: FastAPI) -> Callable[[], None]:
    """Let each request be a span of its caller's trace, if somebody takes them; return what sends the last.

    Nothing waits for whoever takes them; if they are gone, spans are lost, and no answer is.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.error("Requests are not traced: %s. `pip install 'headrace[telemetry]'` brings it.", error)
        return lambda: None
    about = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME") or "headrace"})
    provider = TracerProvider(resource=about)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=provider, excluded_urls=QUIET, exclude_spans=["receive", "send"]
    )
    return provider.shutdown


def note(pipeline: str, answer: Answer) -> None:
    """Note with the request's span, if there is one, who answered, and an id to ``headrace trace``."""
    from opentelemetry.trace import get_current_span

    span = get_current_span()
    if span.is_recording():
        ids = answer.ids
        span.set_attributes(
            {
                "headrace.pipeline": pipeline,
                "headrace.version": answer.version,
                "headrace.rows": len(ids),
                "headrace.prediction.id": ids[0],
            }
        )
