"""The service: an endpoint for each pipeline, the champions that answer, and the log of what was answered."""

from __future__ import annotations

import gc
import logging
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from headrace import registry, tracking
from headrace.addresses import scrubbed
from headrace.errors import HeadraceError
from headrace.imports import explained
from headrace.serving.canary import Canary
from headrace.serving.endpoint import Endpoint
from headrace.serving.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.lake import Lake
    from headrace.pipeline import Pipeline
    from headrace.serving.journal import Journal
    from headrace.serving.predictor import Planned
    from headrace.tracking import MLflow

    Watched = tuple[datetime | None, Sequence[tuple[tuple[str, ...], float]]]

SHADOWS = 5
"""How many versions may predict beside the champion."""
REFRESH, RARELY = 2.0, 15
"""Seconds between two looks at who is champion; and how many of them go by until one at what is watched."""
logger = logging.getLogger(__name__)


class Service:
    """All pipelines' endpoints in one process.

    It shares with other processes nothing but registry, online store and lake. Who is champion is looked
    up every few seconds; the next one is made ready beside the one that answers, and takes its
    place between two passes. While the registry is gone, those that serve go on.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        planned: Planned,
        mlflow: MLflow,
        lake: Lake,
        journal: Journal,
        notice: Callable[[Pipeline], str] = lambda _: "",
        watched: Callable[[Pipeline], Watched] = lambda _: (None, []),
    ) -> None:
        """Serve ``pipelines``; ``notice`` says what people should know of who is champion, if anything.

        ``watched`` returns when the last window ended that was watched (UTC), and its numbers with labels.
        """
        self.pipelines, self.planned, self.mlflow, self.lake = pipelines, planned, mlflow, lake
        self.journal, self._notice, self._watched = journal, notice, watched
        self.endpoints = {name: Endpoint(spec, journal) for name, spec in pipelines.items()}
        self.troubles: dict[str, str] = {}
        """Why a pipeline's champion is not what serves, by pipeline."""
        self.notices: dict[str, str] = {}
        """What people should know of who is champion, by pipeline."""
        self.watched: dict[str, Watched] = {}
        """What was last found of a pipeline's windows, by pipeline."""
        self.looked: datetime | None = None
        """When it was last seen who is champion (UTC)."""
        self._stamp: tuple[int, ...] | None = None
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._keep_up, name="champions", daemon=True)

    def start(self) -> None:
        """Load the champions, and begin to answer."""
        self.journal.start()
        self.refresh()
        for endpoint in self.endpoints.values():
            endpoint.start()
        self._watch.start()

    def stop(self) -> None:
        """Answer what was taken, bring all of the log into the lake, and end."""
        self._ended.set()
        self._watch.join()
        for endpoint in self.endpoints.values():
            endpoint.stop()
        self.journal.stop()

    @property
    def ready(self) -> bool:
        """Whether some pipeline has a champion that answers."""
        return any(endpoint.predictor for endpoint in self.endpoints.values())

    def refresh(self) -> None:
        """See who is champion of each pipeline, and let it serve; return canaries that are in trouble."""
        for endpoint in self.endpoints.values():
            self._return(endpoint)
        stamp = self.mlflow.stamp()
        if stamp and stamp == self._stamp and not self.troubles:
            self.looked = datetime.now(UTC)
            return
        for name, spec in self.pipelines.items():
            try:
                self._refresh(spec)
                self._tell(name, self._notice(spec))
            except Exception as error:  # noqa: BLE001  # what serves goes on serving
                why = explained(error) if isinstance(error, ModuleNotFoundError) else error
                told = str(why) if isinstance(why, HeadraceError) else f"{type(why).__name__}: {why}"
                told = scrubbed(told)
                if self.troubles.get(name) != told:
                    predictor = self.endpoints[name].predictor
                    lasting = f"version {predictor.version} goes on serving" if predictor else "none serves"
                    logger.error(
                        "The champion of %s cannot be looked up or loaded; %s: %s", name, lasting, told
                    )
                self.troubles[name] = told
            else:
                self.troubles.pop(name, None)
        self._stamp, self.looked = stamp, datetime.now(UTC)

    def _tell(self, name: str, notice: str) -> None:
        if notice and notice != self.notices.get(name):
            logger.warning("%s", notice)
        self.notices[name] = notice

    def _refresh(self, spec: Pipeline) -> None:
        endpoint, named = self.endpoints[spec.name], registry.aliases(self.mlflow, spec.name)
        champion = next((number for number, names in named.items() if registry.CHAMPION in names), None)
        serving = endpoint.predictor.version if endpoint.predictor else None
        if champion and champion != serving:
            predictor = self._loaded(spec, champion)
            predictor.warm(self.lake)
            # The connection of the one before closes once the pass that may use it has ended.
            endpoint.predictor = predictor
            logger.info("Version %s of %s serves, after %s", champion, spec.name, serving or "none")
            gc.unfreeze()
            gc.collect()  # what is here stays: else each full collection would hold up requests
            gc.freeze()
        wanted = registry.shadows(named)[:SHADOWS]
        if wanted != [shadow.version for shadow in endpoint.shadows]:
            known = {shadow.version: shadow for shadow in endpoint.shadows}
            endpoint.shadows = [known.get(number) or self._loaded(spec, number) for number in wanted]
            logger.info("Shadows of %s: %s", spec.name, ", ".join(map(str, wanted)) or "none")
        aliased = {alias for of in named.values() for alias in of}

        share = registry.canary(self.mlflow, spec.name) if registry.CANARY in aliased else None
        self._canary(spec, endpoint, share)

    def _canary(self, spec: Pipeline, endpoint: Endpoint, wanted: tuple[int, float] | None) -> None:
        """Let a canary answer for its share, or none; who is champion is none."""
        serving, before = endpoint.predictor, endpoint.canary
        if not wanted or not serving or wanted[0] == serving.version:
            endpoint.canary = None
        elif before is None or (before.version, before.share) != wanted:
            number, share = wanted
            predictor = self._loaded(spec, number)
            predictor.warm(self.lake)
            most = spec.gate.guards.latency_ms if spec.gate.guards else None
            endpoint.canary = Canary(predictor, share, most)
            logger.info("Version %s of %s answers for %.1f %% of the keys", number, spec.name, 100 * share)

    def _return(self, endpoint: Endpoint) -> None:
        """Return a canary that is in trouble: here it answers no more, and nowhere once that is noted."""
        canary = endpoint.canary
        if canary is None or not canary.trouble:
            return
        try:
            registry.end_canary(self.mlflow, endpoint.pipeline, canary.version, canary.trouble)
        except Exception as error:  # noqa: BLE001  # the registry is gone: it is told the next time
            logger.error("The canary of %s cannot be returned everywhere yet: %s", endpoint.pipeline, error)
            return
        told = "The canary of %s, version %s, is returned, for %s"
        logger.warning(told, endpoint.pipeline, canary.version, canary.trouble)
        endpoint.canary = None

    def _loaded(self, spec: Pipeline, version: int) -> Predictor:
        model = tracking.load_model(self.mlflow, registry.uri(spec.name, version))
        return Predictor(spec, version, model, self.planned, self.lake)

    def _keep_up(self) -> None:
        looks = 0
        while not self._ended.wait(REFRESH):
            self.refresh()
            if looks % RARELY == 0:
                self.refresh_watched()
            looks += 1

    def refresh_watched(self) -> None:
        """See what was found of the pipelines' last windows; where that cannot be, what was known stays."""
        for name, spec in self.pipelines.items():
            try:
                self.watched[name] = self._watched(spec)
            except Exception as error:  # noqa: BLE001  # of figures alone: requests are answered all the same
                logger.warning("What is watched of %s cannot be read: %s", name, error)
