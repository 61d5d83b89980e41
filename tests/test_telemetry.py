"""Requests as spans of OpenTelemetry, sent to whoever its own variables name."""

from __future__ import annotations

import gzip
import logging
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.test_serving import ROW, Toy, ask, toy  # noqa: F401  # a fixture

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What a collector was sent."""
    found: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            sent = ExportTraceServiceRequest.FromString(body)
            found.extend(
                (of.resource, span)
                for of in sent.resource_spans
                for part in of.scope_spans
                for span in part.spans
            )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    yield found
    server.shutdown()
    server.server_close()


def told(attributes: Any) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in attributes}


def test_a_request_is_a_span_of_its_callers_trace(toy: Toy, taken: list[Any]) -> None:  # noqa: F811
    with toy.client() as client:
        parent = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        answer = client.post("/v1/toy/predict", json={"rows": [ROW, ROW]}, headers=parent)
        assert answer.status_code == 200
        assert ask(client, []).status_code == 422
        client.get("/healthz")
    spans = {span.trace_id.hex() == TRACE: (resource, span) for resource, span in taken}
    assert len(taken) == 2
    resource, span = spans[True]
    assert told(resource.attributes)["service.name"] == "headrace"
    assert (span.name, span.parent_span_id.hex()) == ("POST /v1/toy/predict", "b7ad6b7169203331")
    noted = told(span.attributes)
    assert (noted["headrace.pipeline"], noted["headrace.version"], noted["headrace.rows"]) == ("toy", 1, 2)
    assert noted["headrace.prediction.id"] == answer.json()["predictions"][0]["id"]
    assert "headrace.version" not in told(spans[False][1].attributes)


def test_a_collector_that_is_gone_costs_no_answer(
    toy: Toy,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with toy.client() as client:
        assert ask(client, [ROW]).status_code == 200


def test_without_the_extra_it_says_what_is_missing_and_serves(
    toy: Toy,  # noqa: F811
    taken: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.fastapi", None)
    with caplog.at_level(logging.ERROR), toy.client() as client:
        assert ask(client, [ROW]).status_code == 200
    assert "pip install 'headrace[telemetry]'" in caplog.text
    assert taken == []
