"""What Prometheus reads of the service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.serving.service import Service

TYPE = CONTENT_TYPE_LATEST
WATCHED = ("version", "kind", "metric", "of", "method")
"""What tells apart the numbers of a window that was watched."""
BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class Metrics:
    """Counted as requests are answered; what is a state is looked up when it is asked for."""

    def __init__(self, service: Service) -> None:
        self._service, self._registry = service, CollectorRegistry()
        self.refused: Callable[[], int] = lambda: 0
        """How many requests were not let in."""
        self._requests = Counter(
            "headrace_requests",
            "Requests, by what they were answered",
            ["pipeline", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "headrace_request_seconds",
            "Seconds from a request to its answer",
            ["pipeline"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._registry.register(self)  # type: ignore[arg-type]

    def of(self, pipeline: str) -> Callable[[int, float], None]:
        """Return what counts a request to a pipeline: by status and seconds."""
        seconds, counters = self._seconds.labels(pipeline), dict[int, Counter]()

        def count(status: int, took: float) -> None:
            if (counter := counters.get(status)) is None:
                counter = counters[status] = self._requests.labels(pipeline, str(status))
            counter.inc()
            seconds.observe(took)

        return count

    def exposed(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Be a collector of Prometheus' client: states."""
        service = self._service
        version = GaugeMetricFamily("headrace_model_version", "The version that serves", labels=["pipeline"])
        waiting = GaugeMetricFamily(
            "headrace_requests_waiting", "Requests taken and not begun", labels=["pipeline"]
        )
        trouble = GaugeMetricFamily(
            "headrace_champion_not_serving", "1 if the champion is not what serves", labels=["pipeline"]
        )
        for name, endpoint in service.endpoints.items():
            version.add_metric([name], endpoint.predictor.version if endpoint.predictor else 0)
            waiting.add_metric([name], endpoint.waiting)
            trouble.add_metric([name], float(name in service.troubles))
        unshadowed = GaugeMetricFamily(
            "headrace_rows_unshadowed", "Rows that no shadow predicted", labels=["pipeline"]
        )
        for name, endpoint in service.endpoints.items():
            unshadowed.add_metric([name], endpoint.unshadowed)
        canary = CounterMetricFamily(
            "headrace_canary_rows", "Rows that a canary was asked", labels=["pipeline", "version", "failed"]
        )
        for name, endpoint in service.endpoints.items():
            if one := endpoint.canary:
                canary.add_metric([name, str(one.version), "no"], one.rows - one.failed)
                canary.add_metric([name, str(one.version), "yes"], one.failed)
        refused = CounterMetricFamily("headrace_requests_refused", "Requests that were not let in (429)")
        refused.add_metric([], self.refused())
        unsent = GaugeMetricFamily("headrace_log_rows_unsent", "Logged rows that are not in the lake yet")
        unsent.add_metric([], service.journal.unsent)
        looked = GaugeMetricFamily(
            "headrace_champions_looked_up_timestamp_seconds", "When it was last seen who is champion"
        )
        if service.looked:
            looked.add_metric([], service.looked.timestamp())
        of_windows = GaugeMetricFamily(
            "headrace_watched", "What `monitor` found of the last window", labels=["pipeline", *WATCHED]
        )
        ended = GaugeMetricFamily(
            "headrace_watched_window_end_timestamp_seconds",
            "When the last window ended that `monitor` has judged",
            labels=["pipeline"],
        )
        for name, (end, numbers) in list(service.watched.items()):
            for labels, value in numbers:
                of_windows.add_metric([name, *labels], value)
            if end:
                ended.add_metric([name], end.timestamp())
        yield from (of_windows, ended)
        yield from (version, waiting, trouble, unshadowed, canary, refused, unsent, looked)
