"""``python -m deployments``: what `prefect.yaml` and this folder declare, onto the Prefect server.

work pool ─▶ deployments, schedules, triggers ─▶ automations ─▶ what is no longer declared
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import yaml
from prefect.cli.deploy._config import _load_deploy_configs_and_actions, _merge_with_default_deploy_config
from prefect.cli.deploy._core import _run_single_deploy
from prefect.context import AsyncClientContext
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import PrefectException
from rich.console import Console
from rich.table import Column, Table

from deployments.client import CarefulClient
from headrace.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deployments.client import Outcome

DECLARED = Path("prefect.yaml")
POOL = "headrace"
TEMPLATE = Path("deployments/process-pool.json")
AUTOMATIONS = Path("deployments/automations.yaml")
NOTIFICATIONS = Path("deployments/notifications.yaml")


class _Context(AsyncClientContext):
    """Makes Prefect's own code use the client given, wherever it asks for one."""

    def __init__(self, client: CarefulClient) -> None:
        super(AsyncClientContext, self).__init__(client=client)


async def deploy() -> Mapping[str, Outcome]:
    """Deploy all that is declared; return what was done, by kind and name.

    Raises:
        ValueError: What is declared is not what Prefect takes; nothing further was deployed.
    """
    said = io.StringIO()
    quiet = Console(file=said, width=110)
    configs, actions = _load_deploy_configs_and_actions(DECLARED, console=quiet)
    if not configs:
        raise ValueError(said.getvalue().strip() or f"{DECLARED} declares no deployment.")
    async with _Context(CarefulClient(yaml.safe_load(DECLARED.read_text()).get("name", ""))) as context:
        client = context.client
        assert isinstance(client, CarefulClient)
        await client.recall()
        try:
            await client.settle_work_pool(POOL, json.loads(TEMPLATE.read_text()))
            for config in configs:
                client.versioned = bool(config.get("version"))
                await _run_single_deploy(
                    _merge_with_default_deploy_config(config),
                    actions,
                    client=client,
                    prefect_file=DECLARED,
                    console=quiet,
                    is_interactive=lambda: False,
                )
            for automation in await _automations(client):
                await client.create_automation(AutomationCore.model_validate(automation))
            await client.remove_given_up()
        finally:
            await client.remember()
        return client.outcomes


async def _automations(client: CarefulClient) -> list[dict[str, Any]]:
    """Return the automations that are declared, and who is to be told of what, if anybody is."""
    declared: list[dict[str, Any]] = yaml.safe_load(AUTOMATIONS.read_text())["automations"]
    if not (whom := Settings().notify.get_secret_value()):
        return declared
    block = str(await client.settle_block(whom))
    told = yaml.safe_load(NOTIFICATIONS.read_text())["automations"]
    for action in (action for automation in told for action in automation["actions"]):
        action["block_document_id"] = block
    return [*declared, *told]


def tell(outcomes: Mapping[str, Outcome], console: Console) -> None:
    """Print what was done, and what was kept, as a table; then all of it in one last line."""
    noted = {name: outcome for name, outcome in outcomes.items() if outcome.done or outcome.kept}
    table = Table(
        *(Column(name, overflow="fold") for name in ("declared", "what was done", "kept as set in Prefect"))
    )
    for name, outcome in noted.items():
        table.add_row(name, outcome.done or "unchanged", "\n".join(outcome.kept))
    if noted:
        console.print(table)
    created = sum(outcome.done == "created" for outcome in outcomes.values())
    unchanged = sum(not outcome.done for outcome in outcomes.values())
    kept = sum(len(outcome.kept) for outcome in outcomes.values())
    told = [f"{created} created"] if created else []
    told += [
        f"{name} {outcome.done}" for name, outcome in noted.items() if outcome.done not in {"", "created"}
    ]
    told += [f"{unchanged} unchanged"] if unchanged else []
    told += [f"{kept} settings made in Prefect kept"] if kept else []
    line = f"Deployed {DECLARED}: {', '.join(told)}."
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def main() -> int:
    """Deploy, and say what was done; else what Prefect said, and exit with 1."""
    try:
        outcomes = asyncio.run(deploy())
    except (ValueError, OSError, RuntimeError, PrefectException, httpx.HTTPError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    tell(outcomes, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
