"""One pipeline's place in the service: requests that wait are predicted together, logged, and answered.

The more is asked, the more rows each pass takes, and the less each of them costs. What would wait
too long is refused at once, rather than let everybody wait.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.errors import HeadraceError
from headrace.serving.errors import Busy, NoChampion
from headrace.serving.journal import Entry, Journal
from headrace.serving.predictor import AT

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from headrace.serving.predictor import Made, Predictor

TOGETHER = 256
"""Rows that are predicted in one pass."""
WAITING = 0.05
"""Seconds that what is taken may have to wait before its pass begins."""
logger = logging.getLogger(__name__)


def served(pipeline: str) -> str:
    """Return the name of the table that answered predictions are in."""
    return f"served/{pipeline}"


def new_id(at: datetime) -> str:
    """Return a prediction's id: a UUID, version 7, that begins with the instant (RFC 9562)."""
    number = int(at.timestamp() * 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    number = number & ~(0xF << 76) | 7 << 76
    number = number & ~(3 << 62) | 2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@dataclass(frozen=True)
class Answer:
    """Predictions by column, their ids, and which version made them of what."""

    ids: list[str]
    made: Made
    version: int
    explained: tuple[tuple[str, ...], list[Any]] | None = None


@dataclass
class _Request:
    rows: Sequence[Mapping[str, Any]]
    ready: bool
    explain: bool
    at: datetime
    loop: AbstractEventLoop
    future: Future[Answer]
    since: float = field(default_factory=time.perf_counter)


class Endpoint:
    """Answers for one pipeline, with whatever predictor serves at the moment."""

    def __init__(self, pipeline: str, journal: Journal) -> None:
        self.pipeline, self.journal = pipeline, journal
        self.predictor: Predictor | None = None
        """What serves; another one may take its place between two passes."""
        self._taken = self._begun = 0  # each written by one thread alone
        self._seconds_a_row = 0.0005
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"serve-{pipeline}", daemon=True)

    @property
    def waiting(self) -> int:
        """How many rows are taken, and not begun yet."""
        return self._taken - self._begun

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what was taken, and end."""
        self._requests.put(None)
        self._thread.join()

    def serving(self) -> Predictor:
        """Return what serves.

        Raises:
            NoChampion: Nothing does yet.
        """
        if self.predictor is None:
            raise NoChampion(self.pipeline)
        return self.predictor

    def ask(
        self,
        rows: Sequence[Mapping[str, Any]],
        at: datetime,
        loop: AbstractEventLoop,
        *,
        ready: bool = False,
        explain: bool = False,
    ) -> Future[Answer]:
        """Take rows to predict, as ``Fields`` read them, or, if ``ready``, as the model takes them.

        Raises:
            Busy: They would have to wait for too long.
        """
        expected = self.waiting * self._seconds_a_row
        if expected > WAITING:
            raise Busy(self.pipeline, expected)
        self._taken += len(rows)
        future = loop.create_future()
        self._requests.put(_Request(rows, ready, explain, at, loop, future))
        return future

    def _run(self) -> None:
        ended = False
        while not ended:
            first = self._requests.get()
            taken: list[_Request] = []
            while first is not None:
                taken.append(first)
                if sum(len(one.rows) for one in taken) >= TOGETHER or self._requests.empty():
                    break
                first = self._requests.get()
            ended = first is None
            if taken:
                self._pass(taken)

    def _pass(self, taken: Sequence[_Request]) -> None:
        start = time.perf_counter()
        count = sum(len(request.rows) for request in taken)
        self._begun += count
        kinds: dict[tuple[bool, bool], list[_Request]] = defaultdict(list)
        for request in taken:
            kinds[request.ready, request.explain].append(request)
        for (ready, explain), requests in kinds.items():
            self._together(requests, ready, explain)
        spent = (time.perf_counter() - start) / count
        self._seconds_a_row += 0.1 * (spent - self._seconds_a_row)

    def _together(self, requests: Sequence[_Request], ready: bool, explain: bool) -> None:
        """Predict requests of one kind in one go; if that fails, one by one, so that one spoils no other."""
        try:
            answers = self._answered(requests, ready, explain)
        except Exception as error:  # a thread that ends would answer nobody
            if len(requests) > 1:
                for request in requests:
                    self._together([request], ready, explain)
                return
            if not isinstance(error, HeadraceError):
                logger.exception("A request to %s failed", self.pipeline)
            _settle([(requests[0], error)])
            return
        predictor, answered = answers

        def done(error: HeadraceError | None) -> None:
            _settle([(request, error or answer) for request, answer in answered])

        self.journal.put(Entry(served(self.pipeline), predictor.schema, _rows(predictor, answered), done))

    def _answered(
        self, requests: Sequence[_Request], ready: bool, explain: bool
    ) -> tuple[Predictor, list[tuple[_Request, Answer]]]:
        from headrace.serving.predictor import Made

        predictor = self.serving()
        rows = [row for request in requests for row in request.rows]
        if ready:
            inputs = {name: [row[name] for row in rows] for name in predictor.spec.columns.names}
            made = Made(predictor.predicted(inputs), inputs, [()] * len(rows))
        else:
            made = predictor.predict(rows)
        reasons = predictor.explained(made.inputs) if explain else None
        answered, end = [], 0
        for request in requests:
            start, end = end, end + len(request.rows)
            part = Made(
                {name: values[start:end] for name, values in made.predictions.items()},
                {name: values[start:end] for name, values in made.inputs.items()},
                made.missing[start:end],
            )
            ids = [new_id(request.at) for _ in request.rows]
            of = (reasons[0], reasons[1][start:end]) if reasons else None
            answered.append((request, Answer(ids, part, predictor.version, of)))
        return predictor, answered


def _rows(predictor: Predictor, answered: Sequence[tuple[_Request, Answer]]) -> list[dict[str, Any]]:
    """Return what was answered as the log has it."""
    names, keys = predictor.spec.columns.names, [key for key in predictor.spec.keys if key != AT]
    found = []
    for request, answer in answered:
        made = answer.made
        for place, row in enumerate(request.rows):
            logged = {"prediction_id": answer.ids[place], "requested_at": request.at}
            logged |= {key: row.get(key) for key in keys}
            logged[AT] = row.get(AT, request.at)
            logged |= {name: made.inputs[name][place] for name in names}
            logged |= {name: values[place] for name, values in made.predictions.items()}
            logged["missing"] = made.missing[place]
            logged["model_version"] = answer.version
            logged["available_at"] = request.at
            found.append(logged)
    return found


def _settle(outcomes: Sequence[tuple[_Request, Any]]) -> None:
    """Hand answers, or errors, to the event loops that wait for them."""
    loops: dict[int, tuple[AbstractEventLoop, list[tuple[_Request, Any]]]] = {}
    for request, outcome in outcomes:
        loops.setdefault(id(request.loop), (request.loop, []))[1].append((request, outcome))
    for loop, of in loops.values():
        loop.call_soon_threadsafe(_resolve, of)


def _resolve(outcomes: Sequence[tuple[_Request, Any]]) -> None:
    for request, outcome in outcomes:
        if request.future.done():  # whoever asked is gone
            continue
        if isinstance(outcome, BaseException):
            request.future.set_exception(outcome)
        else:
            request.future.set_result(outcome)
