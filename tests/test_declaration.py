"""A declaration's slips are told when it is loaded, all in one message."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from headrace.errors import BrokenDeclaration
from headrace.feature_store import store as feature_store
from headrace.gate import Gate, Guards
from headrace.pipeline import Candidate, Columns, Pipeline, declared, load
from headrace.problem import Regression
from headrace.settings import Settings
from headrace.sources import Call, Files
from pipelines.flights import PIPELINE
from tests.conftest import ROOT

FIRST, *OTHERS = PIPELINE.sources
TABLE = PIPELINE.feature_tables[0]


def changed(one: Any, others: tuple[Any, ...] = (), **fields: Any) -> tuple[Any, ...]:
    return (replace(one, **fields), *others)


def sourced(**fields: Any) -> dict[str, Any]:
    return {"sources": changed(FIRST, tuple(OTHERS), **fields)}


def built(**fields: Any) -> dict[str, Any]:
    return {"feature_tables": changed(TABLE, **fields)}


@pytest.fixture
def slips(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Declare flights with some fields changed; return what is said of it."""

    def slips(**fields: Any) -> tuple[str, ...]:
        module = ModuleType("pipelines.flights")
        module.PIPELINE = replace(PIPELINE, **fields)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pipelines.flights", module)
        with pytest.raises(BrokenDeclaration) as caught:
            load("flights")
        assert all(slip in str(caught.value) for slip in caught.value.slips)
        return caught.value.slips

    return slips


@pytest.mark.parametrize("name", declared())
def test_the_declarations_there_are_have_none(name: str) -> None:
    assert isinstance(load(name), Pipeline)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"candidates": Candidate("trees", "xgboost")},
            "`candidates` must be tuple[Candidate, ...], but headrace.pipeline.Candidate is not a tuple; "
            "a tuple of one is written `(it,)`, with a comma",
        ),
        ({"keys": "flight"}, "`keys` must be tuple[str, ...], but str is not a tuple; a tuple of one"),
        ({"columns": Columns("dest", ("hour",))}, "`columns.categorical` must be tuple[str, ...], but str"),  # type: ignore[arg-type]
        ({"start": "2013-01-01"}, "`start` must be datetime, but str"),
        ({"window": 7}, "`window` must be timedelta, but int"),
        ({"window": timedelta(0)}, "`window` must be longer than 0"),
        ({"gate": Gate(group=timedelta(0))}, "`gate.group` must be longer than 0, or name a column"),
        ({"gate": Gate(risk=5)}, "`gate.risk` must be between 0 and 1"),
        ({"gate": Gate(least_groups=1)}, "`gate.least_groups` must be 2 or more"),
        ({"gate": Gate(approval=timedelta(0))}, "`gate.approval` must be longer than 0"),
        ({"gate": Gate(live=True, approval=timedelta(1))}, "`gate.live` promotes while nobody looks"),
        ({"gate": Gate(guards=Guards(("a", "a")))}, "`gate.guards.segments` names `a` twice"),
        ({"gate": Gate(guards=Guards(margin=-1.0))}, "`gate.guards.margin` must not be below 0"),
        (
            {"gate": Gate(guards=Guards(scores={"accuracy": 0.1}))},
            "`gate.guards.scores` names `accuracy`, but what can become worse is `auc`, `log_loss`, `brier`",
        ),
        (
            {"gate": Gate(guards=Guards(scores={"auc": -0.1}))},
            "`gate.guards.scores` must not be below 0, but has -0.1 for `auc`",
        ),
        (
            {"problem": Regression(), "gate": Gate(guards=Guards(scores={"bias": 0.1}))},
            "`gate.guards.scores` names `bias`, but what can become worse is `rmse`, `mae`",
        ),
        ({"name": "fligths"}, "`name` must be `flights`, as its file, but is `fligths`"),
        ({"keys": ()}, "`keys` names none"),
        (
            {"candidates": (Candidate("a", "xgbost"),)},
            "`candidates[0].trainer` names `xgbost`: there are `sk",
        ),  # type: ignore[arg-type]
        ({"candidates": PIPELINE.candidates * 2}, "`candidates` names `torch` twice"),
        ({"columns": Columns((), ())}, "`columns` names none"),
        ({"columns": Columns(("hour",), ("hour",))}, "`columns` names `hour` twice"),
        ({"columns": Columns((), ("label",))}, "`columns` names `label`, which headrace keeps for itself"),
        ({"suite": "flights.prediction"}, "`suite` names `flights.prediction`, but `validations/` has `a"),
        ({"spine": "SELECT * FROM schedule"}, "`spine` reads `schedule`, but the sources are `flights`, "),
        ({"label": "FROM Flights JOIN nowhere USING (x)"}, "`label` reads `nowhere`, but"),
        (sourced(keys="origin"), "`sources[0].keys` must be tuple[str, ...], but str is not a tuple"),
        (sourced(new_columns="asid"), "`sources[0].new_columns` must be Literal['aside', "),
        (sourced(origin=Files("f.csv")), "`sources[0].origin.files` must be Mapping[str, str | Path] | "),  # type: ignore[arg-type]
        (sourced(origin=Call(7)), "`sources[0].origin.function` must be Callable[[Window], "),  # type: ignore[arg-type]
        (sourced(suite=""), "`sources[0].suite` names ``, but"),
        (sourced(name="a/b"), "`sources` names `a/b`: a table's name is letters"),
        (sourced(name="weather"), "`sources` names `weather` twice"),
        (sourced(late=timedelta(-1)), "`sources[0].late` must not be below 0"),
        (built(sql=Path("nowhere.sql")), "`feature_tables[0].sql` names `nowhere.sql`, where there is no"),
        (built(lookback=6), "`feature_tables[0].lookback` must be timedelta, but int"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_slip_is_told(fields: dict[str, Any], told: str, slips: Any) -> None:
    assert any(slip.startswith(told) for slip in slips(**fields)), slips(**fields)


def test_all_are_told_at_once(slips: Any) -> None:
    told = slips(
        **sourced(time=7), keys="flight", candidates=PIPELINE.candidates[0], columns=Columns((), ("label",))
    )

    assert [slip.split()[0] for slip in told] == ["`sources[0].time`", "`keys`", "`candidates`", "`columns`"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("PIPELINE = Pipeline(nam='x')", "NameError: name 'Pipeline' is not defined"),
        ("PIPELINES = 7", "AttributeError: module 'pipelines.broken' has no attribute 'PIPELINE'"),
        ("PIPELINE = 7", "`PIPELINE` must be a `Pipeline`, but is int"),
    ],
)
def test_a_module_that_declares_none_is_told(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.setattr("pipelines.__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "pipelines.broken", raising=False)

    with pytest.raises(BrokenDeclaration) as caught:
        load("broken")

    assert caught.value.slips == (told,)


def test_what_feast_refuses_when_it_is_declared_is_told_with_its_file(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(
        "from feast import Entity\nkey = Entity(name='key', join_keys='key')\n"
    )
    monkeypatch.setattr("features.__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "features.broken", raising=False)

    with pytest.raises(BrokenDeclaration, match=r"`features/broken.py` .*\n  - TypeCheckError: .*join_keys"):
        feature_store.apply(feature_store.open_store(ROOT / "features", settings), "features.broken")
