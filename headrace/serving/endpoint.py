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
from headrace.lake import AVAILABLE
from headrace.serving.errors import Busy, NoChampion
from headrace.serving.feedback import truth_schema, truths
from headrace.serving.journal import Entry, Journal
from headrace.serving.predictor import AT
from headrace.sources.feedback import feedback_of, served_by

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from headrace.pipeline import Pipeline
    from headrace.serving.predictor import Made, Predictor

BEHIND = 64
"""Passes that shadows may be behind."""
TOGETHER = 256
"""Rows that are predicted in one pass."""
WAITING = 0.05
"""Seconds that what is taken may have to wait before its pass begins."""
logger = logging.getLogger(__name__)


def new_id(at: datetime) -> str:
    """Return a prediction's id: a UUID, version 7, that begins with the instant (RFC 9562)."""
    number = int(at.timestamp() * 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    number = number & ~(0xF << 76) | 7 << 76
    number = number & ~(3 << 62) | 2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def shadow_of(pipeline: str) -> str:
    """Return the name of the table of what shadows would have answered."""
    return f"shadow/{pipeline}"


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

    def __init__(self, spec: Pipeline, journal: Journal) -> None:
        self.spec, self.pipeline, self.journal = spec, spec.name, journal
        self.predictor: Predictor | None = None
        """What serves; another one may take its place between two passes."""
        self.shadows: Sequence[Predictor] = ()
        """What predicts the same rows beside it, and answers nobody."""
        self.unshadowed = 0
        """Rows that no shadow predicted, for they were too far behind, or failed."""
        self._taken = self._begun = 0  # each written by one thread alone
        self._seconds_a_row = 0.0005
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._behind: queue.Queue[list[tuple[_Request, Answer]] | None] = queue.Queue(BEHIND)
        self._threads = [
            threading.Thread(target=self._run, name=f"serve-{spec.name}", daemon=True),
            threading.Thread(target=self._shadow, name=f"shadow-{spec.name}", daemon=True),
        ]

    @property
    def waiting(self) -> int:
        """How many rows are taken, and not begun yet."""
        return self._taken - self._begun

    def start(self) -> None:
        """Begin to answer."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Answer what was taken, and end."""
        self._requests.put(None)
        self._threads[0].join()
        self._behind.put(None)
        self._threads[1].join()

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

    def told(self, body: Any, at: datetime, loop: AbstractEventLoop, most: int) -> Future[None]:
        """Take what came true of predictions; the future ends once it is on disk.

        Raises:
            BadRequest: Something about it is wrong.
        """
        problem = self.spec.problem
        rows = truths(problem, body, at, most)
        future: Future[None] = loop.create_future()

        def done(error: HeadraceError | None) -> None:
            loop.call_soon_threadsafe(_ended, future, error)

        self.journal.put(Entry(feedback_of(self.pipeline), truth_schema(problem), rows, done))
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
            if self.shadows and not error:
                try:
                    self._behind.put_nowait(answered)
                except queue.Full:
                    self.unshadowed += sum(len(request.rows) for request, _ in answered)

        self.journal.put(Entry(served_by(self.pipeline), predictor.schema, _rows(predictor, answered), done))

    def _shadow(self) -> None:
        """Let shadows predict what was answered, of the same inputs, and log that."""
        while (answered := self._behind.get()) is not None:
            for shadow in self.shadows:
                try:
                    self._shadowed(shadow, answered)
                except Exception as error:  # noqa: BLE001  # whatever befalls a shadow, nobody else hears of it
                    self.unshadowed += sum(len(request.rows) for request, _ in answered)
                    logger.error("Shadow %s of %s: %s", shadow.version, self.pipeline, error)

    def _shadowed(self, shadow: Predictor, answered: Sequence[tuple[_Request, Answer]]) -> None:
        inputs: dict[str, list[Any]] = {name: [] for name in shadow.spec.columns.names}
        for _, answer in answered:
            for name, values in inputs.items():
                values.extend(answer.made.inputs[name])
        predictions = shadow.predicted(inputs)
        ids = [(one, request.at) for request, answer in answered for one in answer.ids]
        columns = zip(*predictions.values(), strict=True)
        rows = [
            {
                "prediction_id": one,
                "model_version": shadow.version,
                **dict(zip(predictions, of, strict=True)),
                AVAILABLE: at,
            }
            for (one, at), of in zip(ids, columns, strict=True)
        ]
        self.journal.put(Entry(shadow_of(self.pipeline), shadow.shadow_schema, rows, lambda _: None))

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
    names, fields = predictor.spec.columns.names, predictor.fields.types
    found = []
    for request, answer in answered:
        made = answer.made
        for place, row in enumerate(request.rows):
            logged = {"prediction_id": answer.ids[place], "requested_at": request.at}
            logged |= {name: row.get(name) for name in fields}
            logged[AT] = row.get(AT, request.at)
            logged |= {name: made.inputs[name][place] for name in names}
            logged |= {name: values[place] for name, values in made.predictions.items()}
            logged["missing"] = made.missing[place]
            logged["model_version"] = answer.version
            logged[AVAILABLE] = request.at
            found.append(logged)
    return found


def _ended(future: Future[None], error: HeadraceError | None) -> None:
    if not future.done():
        if error:
            future.set_exception(error)
        else:
            future.set_result(None)


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
