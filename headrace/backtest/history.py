"""The history that policies are put through: a vintage for each decision, and what it costs from then on."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from headrace import cluster, spine
from headrace.backtest.errors import NotKnownYet
from headrace.backtest.vintage import MAKING, Vintage, with_predictions, work
from headrace.feature_store import store as features
from headrace.lake import DatasetRef, Lake, Window
from headrace.monitoring.drift import drift, preset
from headrace.monitoring.estimates import forecast
from headrace.monitoring.policy import foreseen
from headrace.monitoring.shift import SPANS
from headrace.monitoring.sketch import SIZE, sketch
from headrace.monitoring.watch import BACK, proven_on, some
from headrace.release.study import space_of, tuned
from headrace.release.verdict import compared
from headrace.training import dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    import pyarrow as pa
    from feast import FeatureStore
    from numpy.typing import NDArray

    from headrace.ledger import Ledger
    from headrace.monitoring.drift import Drift
    from headrace.pipeline import Pipeline

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """How far a rehearsal is: ``done`` ``of`` so many of what is ``told``."""

    told: str
    done: int
    of: int


@dataclass(frozen=True, eq=False)
class History:
    """Windows, oldest first, their rows, and the vintage of what was known when each began.

    Vintage ``s`` may serve from window ``s`` on. What is asked twice is found once.
    """

    spec: Pipeline
    windows: Sequence[Window]
    rows: Sequence[Path]
    vintages: Sequence[Vintage]
    _found: dict[tuple[str | int, ...], Any] = field(default_factory=dict, repr=False)

    @lru_cache(maxsize=64)  # noqa: B019 - a history lives as long as its process
    def asked(self, window: int) -> pa.Table:
        """Return what was asked in a window, with features, ``label``, and when that was ``available_at``."""
        import pyarrow.parquet as pq

        return pq.read_table(self.rows[window])

    def made(self, serving: int, window: int) -> pa.Table:
        """Return the rows of a window as a vintage predicts them."""
        return with_predictions(
            self.spec, self.asked(window), self.vintages[serving].predicted(self.rows[window])
        )

    def known(self, serving: int, window: int, by: int) -> pa.Table:
        """Return those rows of which the truth was known when window ``by`` ended."""
        import pyarrow as pa
        import pyarrow.compute as pc

        made = self.made(serving, window)
        at = pc.less(made["available_at"], pa.scalar(self.windows[by].end, made["available_at"].type))
        return made.filter(pc.fill_null(at, fill_value=False))

    def losses(self, serving: int, window: int, by: int) -> Floats:
        """Return what the rows of a window cost whose truth was known when window ``by`` ended."""
        rows = self.known(serving, window, by)
        if not rows.num_rows:
            return np.empty(0)
        problem = self.spec.problem
        return problem.losses(problem.encode(rows["label"]), problem.predicted(rows))

    @cached_property
    def sums(self) -> Floats:
        """What each vintage loses in each window, shape ``(windows, windows)``; NaN before it is there.

        Rows whose truth never came cost nothing.
        """
        count = len(self.windows)
        found = np.full((count, count), np.nan)
        for window in range(count):
            asked = self.asked(window)
            truth = self.spec.problem.encode(asked.filter(asked["label"].is_valid())["label"])
            of = np.flatnonzero(asked["label"].is_valid().to_numpy(zero_copy_only=False))
            for serving in range(window + 1):
                predicted = self.vintages[serving].predicted(self.rows[window])[of]
                found[serving, window] = self.spec.problem.losses(truth, predicted).sum() if of.size else 0.0
        return found

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How many rows of each window have a truth."""
        each = [self.asked(n)["label"] for n in range(len(self.windows))]
        return np.array([len(labels) - labels.null_count for labels in each])

    def promoted(self, serving: int, challenger: int) -> bool:
        """Say whether the gate lets a vintage take another one's place."""

        def judged() -> bool:
            proven = self.vintages[challenger].proven
            ours = self.spec.problem.predicted(proven)
            theirs = self.vintages[serving].model.predict(proven)
            unguarded = replace(self.spec, gate=replace(self.spec.gate, guards=None))
            names = str(challenger), str(serving)
            # Guards take longest, and matter to none that would not be promoted anyway.
            return all(
                compared(spec, proven, names[0], ours, names[1], theirs).promoted
                for spec in (unguarded, self.spec)
            )

        return bool(self.once(("promoted", serving, challenger), judged))

    def drifted(self, serving: int, window: int) -> bool:
        """Say whether a window has drifted from what the vintage that serves has learnt from."""
        return self._drift(serving, window).drifted

    def moved(self, serving: int, window: int) -> bool:
        """Say whether columns have moved over the last windows that the vintage has served in."""
        return bool(self._drift(serving, window).moved)

    def _drift(self, serving: int, window: int) -> Drift:
        def found() -> Drift:
            earlier = range(max(serving, window + 1 - max(SPANS)), window)
            before = [self._drift(serving, one).distances for one in earlier]
            reference, made = self.vintages[serving].reference, self.made(serving, window)
            current = sketch(made, self.spec.watched, limits=reference.whole.limits)
            ignored = self.vintages[serving].ignored
            return drift(reference, current, self.spec.watched, self.spec.drift, before, ignored)

        one: Drift = self.once(("drift", serving, window), found)
        return one

    def preset(self, serving: int, window: int) -> bool:
        """Say whether Evidently's preset calls a window drifted, at its defaults."""

        def found() -> bool:
            reference, made = self.vintages[serving].reference, self.made(serving, window)
            size = min(SIZE, made.num_rows)
            current = sketch(made, self.spec.watched, size, reference.whole.limits)
            return preset(reference.whole.frame, current.frame, self.spec.watched)

        return bool(self.once(("preset", serving, window), found))

    def foreseen(self, serving: int, window: int) -> bool:
        """Say whether the vintage that serves is expected to be worse in a window than it was promised."""

        def found() -> bool:
            before = range(max(serving, window - BACK), window)
            made = _together([self.made(serving, n) for n in before])
            known = _together([self.known(serving, n, window) for n in before])
            vintage, proven = self.vintages[serving], some(self.vintages[serving].proven)
            if made is not None and known is not None:
                proven = proven_on(self.spec, proven, made, known)
            now = some(self.made(serving, window))
            ahead = forecast(self.spec, proven, now, adapt=True) or forecast(self.spec, proven, now)
            return ahead is not None and foreseen(ahead.scores, vintage.about["promised"])

        return bool(self.once(("foreseen", serving, window), found))

    def once(self, key: tuple[str | int, ...], find: Callable[[], Any]) -> Any:
        """Return what ``find`` does, found once for the same ``key``."""
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]


def rehearse(
    spec: Pipeline,
    lake: Lake,
    ledger: Ledger,
    store: FeatureStore,
    known: Mapping[str, datetime],
    due: Sequence[Window],
    folder: Path,
    workers: int = 1,
) -> Iterator[History | Step]:
    """Make a vintage for each of the windows ``due``; yield each step, and last the history.

    Killed, or asked for more, it goes on where it stopped: what is in ``folder`` is not made again, as long
    as it would be the same. Of two at once one waits for the other.

    Args:
        spec: The pipeline; its candidates are taken as they were tuned at the time.
        lake: Raw and feature tables; nothing is written there.
        ledger: What was tuned; nothing is written there.
        store: Where the feature service is applied.
        known: Up to when each source is complete, by name.
        due: Windows of equal length that follow each other.
        folder: Where vintages are kept.
        workers: Processes beside this one; with one, it is threads of this one.

    Raises:
        NotKnownYet: Not all is known up to the end of the last.
        NotEnoughData: The first is too early to train.
    """
    every = due[0].end - due[0].start
    if (until := dataset.known_to(spec, known, lake)) < due[-1].end:
        raise NotKnownYet(spec.name, due[-1].end, until)
    pins = features.pins(store, spec.feature_service)
    pins |= {name: lake.table(name).open().version() for name in spec.raw.values()}
    of_views = {name: version for name, version in pins.items() if name not in spec.raw.values()}
    joined_by = features.identity(store, spec.feature_service)

    def historical(rows: pa.Table) -> pa.Table:
        return features.historical(store, spec.feature_service, rows, of_views)

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # of two at once one waits, and finds what the other has made
        _tidy(folder)
        asked, sets, scratch = [], [], Lake(f"{folder}/sets")
        for done, window in enumerate(due, start=1):
            asked.append(_asked(spec, lake, window, until, pins, joined_by, historical, folder))
            yield Step("rows of windows", done, len(due))
        for done, window in enumerate(due, start=1):
            name = dataset.identity(spec, window.start, pins, joined_by)
            sets.append(_set(spec, lake, scratch, window.start, historical, pins, name, folder))
            yield Step("training sets", done, len(due))
        jobs = []
        for place, (window, data) in enumerate(zip(due, sets, strict=True)):
            as_then = tuned(spec, ledger, window.start)
            name = _digest(
                spec, data.fingerprint, [_told(one) for one in as_then.candidates], every.total_seconds()
            )
            jobs.append((as_then, data, scratch, window.start, every, folder / name, asked[place:]))
        with cluster.cluster("", workers) as client:
            for done, _ in enumerate(cluster.spread(client, work, jobs), start=1):
                yield Step("models", done, len(due))
    yield History(spec, due, asked, [Vintage(job[5]) for job in jobs])


def _tidy(folder: Path) -> None:
    """Delete what runs that were killed have left half-made."""
    for left in folder.glob(f"{MAKING}*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in folder.glob("*.tmp"):
        left.unlink(missing_ok=True)


def _asked(
    spec: Pipeline,
    lake: Lake,
    window: Window,
    until: datetime,
    pins: Mapping[str, int],
    joined_by: str,
    historical: dataset.Historical,
    folder: Path,
) -> Path:
    """Return the file of a window's rows with features and truth; made once."""
    import pyarrow.parquet as pq

    file = folder / f"{_digest(spec, sorted(pins.items()), joined_by, str(window), str(until))}.parquet"
    if not file.exists():
        rows = spine.outcomes(spec, lake, historical(spine.rows(spec, lake, window)), until)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as scratch:
            pq.write_table(rows, scratch, compression="zstd")
        Path(scratch.name).replace(file)
    return file


def _set(
    spec: Pipeline,
    lake: Lake,
    scratch: Lake,
    at: datetime,
    historical: dataset.Historical,
    pins: Mapping[str, int],
    name: str,
    folder: Path,
) -> DatasetRef:
    """Return the training set of an instant; built once."""
    noted = folder / f"set-{name}.json"
    if noted.exists():
        return DatasetRef.of(json.loads(noted.read_text()))
    made = dataset.build(spec, lake, at, historical, pins, into=scratch)
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False) as file:
        json.dump(asdict(made), file)
    Path(file.name).replace(noted)
    return made


def _together(tables: Sequence[pa.Table]) -> pa.Table | None:
    import pyarrow as pa

    return pa.concat_tables(tables) if tables else None


def _told(candidate: Any) -> list[Any]:
    return [candidate.name, candidate.seed, *space_of(candidate)]


def _digest(spec: Pipeline, *of: Any) -> str:
    """Return a digest of all that rows, or a vintage, follow from."""
    asked: list[Any] = [
        spec.columns.names,
        spec.problem.to_json(),
        spec.spine,
        spec.label,
        repr(spec.weights),
    ]
    gate = spec.gate  # by which a candidate is chosen
    asked += [spec.keys, str(spec.holdout), gate.risk, gate.min_gain, str(gate.group), gate.least_groups]
    return hashlib.sha256(json.dumps([*asked, *of], default=str).encode()).hexdigest()[:16]
