"""One pipeline's place in the service: requests that wait are predicted together, logged, and answered.

The more is asked, the more rows each pass takes, and the less each of them costs.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.errors import HeadraceError
from headrace.lake import AVAILABLE
from headrace.serving.errors import NoChampion, NotLogged
from headrace.serving.feedback import truth_schema, truths
from headrace.serving.ids import new_id
from headrace.serving.predictor import AT, Made
from headrace.sources.feedback import feedback_of, served_by, shadow_of

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from headrace.pipeline import Pipeline
    from headrace.serving.canary import Canary
    from headrace.serving.journal import Journal
    from headrace.serving.predictor import Predictor

    _Passed = tuple[Predictor, Sequence[tuple["_Request", "Answer"]]]

BEHIND, LATER, AT_ONCE = 2_048, 0.02, 64
"""Passes that shadows may be behind; seconds that they let gather; and rows that they predict at once."""
TOGETHER = 64
"""Rows that are predicted in one pass; a request that has more is not parted."""
PATIENCE = 0.003
"""Seconds for which more requests are let in before a pass."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What was made for all that were predicted together, of which some rows, from ``start``, are meant.

    Those are as many as there are ``ids``; ``version`` made them, but for those places, in ``made``, that
    ``others`` did; and ``explained`` says why, if that was asked.
    """

    ids: list[str]
    made: Made
    start: int
    version: int
    others: Mapping[int, int]
    explained: tuple[tuple[str, ...], list[Any]] | None = None

    @property
    def predictions(self) -> dict[str, list[Any]]:
        """The predictions that are meant, a list for each column."""
        end = self.start + len(self.ids)
        return {name: values[self.start : end] for name, values in self.made.predictions.items()}


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
        self._truth = truth_schema(spec.problem)
        self.predictor: Predictor | None = None
        """What serves; another one may take its place between two passes."""
        self.shadows: Sequence[Predictor] = ()
        """What predicts the same rows beside it, and answers nobody."""
        self.canary: Canary | None = None
        """What answers for some keys in its place."""
        self.unshadowed = 0
        """Rows that no shadow predicted, for they were too far behind, or failed."""
        self._waiting: deque[_Request] = deque()
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._behind: queue.Queue[_Passed | None] = queue.Queue(BEHIND)
        self._threads = [
            threading.Thread(target=self._run, name=f"serve-{spec.name}", daemon=True),
            threading.Thread(target=self._shadow, name=f"shadow-{spec.name}", daemon=True),
        ]

    @property
    def waiting(self) -> int:
        """How many requests are taken, and not begun yet."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to answer."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Answer what was taken, and end."""
        self._wake.put(False)
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
            NoChampion: Nothing serves.
        """
        waits = self.serving().waits
        request = _Request(rows, ready, explain, at, loop, loop.create_future())
        self._waiting.append(request)
        if waits:
            self._wake.put(True)
        elif len(self._waiting) == 1:
            loop.call_soon(self._pass_here, 1)
        return request.future

    def _pass_here(self, known: int) -> None:
        """Predict what waits in the event loop itself: threads would only take turns with it.

        As long as more comes each time that the loop looks, it is let in first, for a moment.
        """
        first = self._waiting[0]
        lately = time.perf_counter() - first.since < PATIENCE
        if known < len(self._waiting) < TOGETHER and lately:
            first.loop.call_soon(self._pass_here, len(self._waiting))
            return
        self._pass(self._next())
        if self._waiting:
            first.loop.call_soon(self._pass_here, len(self._waiting))

    def _next(self) -> list[_Request]:
        """Take what waits, up to so many rows."""
        taken, count = list[_Request](), 0
        while self._waiting and count < TOGETHER:
            taken.append(self._waiting.popleft())
            count += len(taken[-1].rows)
        return taken

    def told(self, body: Any, at: datetime, most: int) -> None:
        """Log what came true of predictions.

        Raises:
            BadRequest: Something about it is wrong.
            NotLogged: It cannot be written.
        """
        problem = self.spec.problem
        rows = truths(problem, body, at, most)
        self.journal.write(feedback_of(self.pipeline), self._truth, [*zip(*rows, strict=True)])

    def _run(self) -> None:
        while self._wake.get():
            self._pass(self._next())

    def _pass(self, taken: Sequence[_Request]) -> None:
        kinds: dict[tuple[bool, bool], list[_Request]] = defaultdict(list)
        for request in taken:
            kinds[request.ready, request.explain].append(request)
        for (ready, explain), requests in kinds.items():
            self._together(requests, ready, explain)

    def _together(self, requests: Sequence[_Request], ready: bool, explain: bool) -> None:
        """Predict requests of one kind in one go; if that fails, one by one, so that one spoils no other."""
        try:
            predictor, answered = self._answered(requests, ready, explain)
            self.journal.write(served_by(self.pipeline), predictor.schema, _columns(predictor, answered))
        except Exception as error:  # a thread that ends would answer nobody
            if len(requests) > 1 and not isinstance(error, NotLogged):
                for request in requests:
                    self._together([request], ready, explain)
                return
            if not isinstance(error, HeadraceError):
                logger.exception("A request to %s failed", self.pipeline)
            _settle([(request, error) for request in requests])
            return
        _settle(answered)
        if self.shadows or answered[0][1].others:
            try:
                self._behind.put_nowait((predictor, answered))
            except queue.Full:
                self.unshadowed += sum(len(request.rows) for request, _ in answered)

    def _shadow(self) -> None:
        """Let shadows predict what was answered, of the same inputs, and log that: many rows at once.

        So does the champion where a canary answered: what the two said of the same requests is compared.
        """
        passes: list[_Passed]
        ended = False
        while not ended:
            if (first := self._behind.get()) is None:
                return
            time.sleep(LATER)
            passes = [first]
            with suppress(queue.Empty):
                while (one := self._behind.get_nowait()) is not None:
                    passes.append(one)
                ended = True
            try:
                self._beside(passes)
            except Exception:  # a thread that ends would let the queue fill, and the service never end
                self.unshadowed += sum(len(one.rows) for _, answered in passes for one, _ in answered)
                logger.exception("Shadows of %s failed", self.pipeline)

    def _beside(self, passes: Sequence[_Passed]) -> None:
        """Let all that stand beside predict passes, and log that."""
        ids: list[str] = []
        at: list[datetime] = []
        inputs: dict[str, list[Any]] = {name: [] for name in self.spec.columns.names}
        stood_in: dict[Predictor, list[int]] = defaultdict(list)
        for champion, answered in passes:
            start, made = len(ids), answered[0][1].made
            for request, answer in answered:
                ids += answer.ids
                at += [request.at] * len(answer.ids)
            for name in inputs:
                inputs[name] += made.inputs[name]
            if others := answered[0][1].others:
                stood_in[champion] += [start + place for place in others]
        every = [*range(len(ids))]
        for shadow, places in [*((shadow, every) for shadow in self.shadows), *stood_in.items()]:
            for some in (places[n : n + AT_ONCE] for n in range(0, len(places), AT_ONCE)):
                try:
                    asked = {name: [values[n] for n in some] for name, values in inputs.items()}
                    made_of, when = [ids[n] for n in some], [at[n] for n in some]
                    said = shadow.predicted(asked).values()
                    columns = [made_of, [shadow.version] * len(some), *said, when]
                    self.journal.write(shadow_of(self.pipeline), shadow.shadow_schema, columns, sync=False)
                except Exception as error:  # noqa: BLE001  # whatever befalls a shadow, nobody else hears of it
                    self.unshadowed += len(some)
                    logger.error("Shadow %s of %s: %s", shadow.version, self.pipeline, error)

    def _answered(
        self, requests: Sequence[_Request], ready: bool, explain: bool
    ) -> tuple[Predictor, list[tuple[_Request, Answer]]]:
        predictor, others = self.serving(), dict[int, int]()
        rows = [row for request in requests for row in request.rows]
        if ready:
            inputs = {name: [row[name] for row in rows] for name in predictor.spec.columns.names}
            made = Made(predictor.predicted(inputs), inputs, [()] * len(rows))
            reasons = predictor.explained(inputs) if explain else None
        else:
            made, reasons, others = self._made(predictor, rows, explain)
        answered, end = [], 0
        for request in requests:
            start, end = end, end + len(request.rows)
            ids = [new_id(request.at) for _ in request.rows]
            answered.append((request, Answer(ids, made, start, predictor.version, others, reasons)))
        return predictor, answered

    def _made(
        self, champion: Predictor, rows: Sequence[Mapping[str, Any]], explain: bool
    ) -> tuple[Made, tuple[tuple[str, ...], list[Any]] | None, dict[int, int]]:
        """Predict rows, those of some keys by the canary; what it cannot the champion does."""
        canary = self.canary
        theirs = canary.chosen(rows) if canary else []
        made = canary.predict([rows[place] for place in theirs]) if canary and theirs else None
        if canary is None or made is None:
            ours = champion.predict(rows)
            if canary and theirs:
                canary.count(len(theirs), failed=True)
            return ours, champion.explained(ours.inputs) if explain else None, {}
        parts = [(canary.predictor, made, theirs)]
        if rest := sorted({*range(len(rows))} - {*theirs}):
            parts.append((champion, champion.predict([rows[place] for place in rest]), rest))
        canary.count(len(theirs), failed=False)
        reasons = None
        if explain and all(found := [by.explained(of.inputs) for by, of, _ in parts]):
            values = _mixed(
                [(told[1], places) for told, (_, _, places) in zip(found, parts, strict=True) if told]
            )
            reasons = found[0][0], values  # type: ignore[index]
        mixed = Made(
            {n: _mixed([(of.predictions[n], at) for _, of, at in parts]) for n in made.predictions},
            {n: _mixed([(of.inputs[n], at) for _, of, at in parts]) for n in made.inputs},
            _mixed([(of.missing, at) for _, of, at in parts]),
        )
        return mixed, reasons, dict.fromkeys(theirs, canary.version)


def _mixed(parts: Sequence[tuple[Sequence[Any], Sequence[int]]]) -> list[Any]:
    """Return values in the order of their places."""
    found = [None] * sum(len(places) for _, places in parts)
    for values, places in parts:
        for place, value in zip(places, values, strict=True):
            found[place] = value
    return found


def _columns(predictor: Predictor, answered: Sequence[tuple[_Request, Answer]]) -> list[list[Any]]:
    """Return what was answered as the log has it, in the order of ``Predictor.schema``."""
    rows = [row for request, _ in answered for row in request.rows]
    at = [request.at for request, answer in answered for _ in answer.ids]
    found: dict[str, list[Any]] = {"prediction_id": [one for _, answer in answered for one in answer.ids]}
    found["requested_at"] = at
    for name in predictor.fields.types:
        found[name] = [row.get(name) for row in rows]
    found[AT] = [row.get(AT) or now for row, now in zip(rows, at, strict=True)]
    made = answered[0][1].made
    found |= made.inputs
    found |= made.predictions
    found["missing"] = made.missing
    others = answered[0][1].others
    found["model_version"] = [others.get(place, predictor.version) for place in range(len(at))]
    found[AVAILABLE] = at
    return list(found.values())


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
