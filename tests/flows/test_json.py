"""What commands tell people they tell programs, too: as JSON, of a home that was lived in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from headrace.cli import app
from headrace.lake import Lake
from tests.flows.conftest import River

DO = {
    *("up", "deploy", "demo", "serve", "dashboards", "init", "new"),  # they start or make something
    *("models promote", "models rollback", "models settle", "models shadow", "models canary"),
    *("keys add", "keys remove", "claims free", "quarantine release", "quarantine drop", "features refill"),
    "models card",  # a page, in Markdown
}
"""Commands that do something, rather than tell something."""


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} ")
        else:
            yield before + name, command


def test_each_command_that_tells_something_tells_it_as_json() -> None:
    all_of_them = dict(commands(get_command(app)))
    assert {name for name, one in all_of_them.items() if "--json" not in str(_options(one))} == DO


def _options(command: Any) -> list[str]:
    return [option for parameter in command.params for option in parameter.opts]


@pytest.mark.parametrize(
    ("typed", "holds"),
    [
        (
            "models list flights",
            lambda told: told[0]["name"] == "flights@1" and told[0]["scores"]["auc"] > 0.6,
        ),
        ("models search flights --metric auc>2", lambda told: told == []),
        ("models show flights@1", lambda told: told["release"]["verdict"] == "promoted" and told["data"]),
        ("models compare flights@1 flights@1", lambda told: told and not any(told.values())),
        ("models verify flights@1", lambda told: len(told["as it was written"]) > 5),
        ("keys list", lambda told: told == []),
        ("verify flights", lambda told: told and not any(one["wrong"] for one in told)),
        ("vacuum", lambda told: {"raw/flights", "raw/weather"} <= {one["table"] for one in told}),
        ("features show temp", lambda told: told["view"] == "origin_weather"),
        ("report flights", lambda told: told[0]["report"].endswith(".html")),
        ("quarantine show weather/2013-02-11/1", lambda told: told["held"] == len(told["rows"]) == 1),
        ("trace {prediction}", lambda told: told["of"] and "{prediction}" not in told["what"]),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_programs_are_told(river: River, typed: str, holds: Any) -> None:
    con = Lake(river.settings.lake).connect({"made": "predictions/flights"})
    (prediction,) = con.sql("SELECT any_value(prediction_id) FROM made").fetchall()[0]
    arguments = [word.replace("{prediction}", str(prediction)) for word in typed.split()]
    told = json.loads(river.command("headrace.cli", *arguments, "--json").stdout)
    assert holds(told), told
