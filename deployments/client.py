"""A Prefect client with which deploying again changes only what changed in the declarations.

Prefect's own ``deploy`` replaces what it finds: schedules and automations get
new ids, and what a person set in Prefect is undone. With this client it creates
what is missing, and merges what is there: see `deployments.merge`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterType
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL
from prefect.types import SecretDict
from pydantic_core import to_jsonable_python

from deployments.merge import differing, merge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.responses import DeploymentResponse

# What was declared last is kept in an artifact of no run and no key, which the UI shows nowhere.
MEMORY = "headrace.declared"
COMPARED = (
    *("description", "tags", "parameters", "parameter_openapi_schema", "enforce_parameter_schema", "paused"),
    *("concurrency_limit", "concurrency_options", "entrypoint", "path", "pull_steps"),
    *("work_pool_name", "work_queue_name", "job_variables"),
)


@dataclass(frozen=True)
class Outcome:
    """What was done about one declared thing, and the settings kept because a person made them."""

    done: str = ""
    kept: list[str] = field(default_factory=list)


class CarefulClient(PrefectClient):
    """As ``PrefectClient``, but to create what exists is to merge with it.

    ``outcomes`` says what was done, by kind and name.
    """

    def __init__(self, project: str) -> None:
        super().__init__(
            PREFECT_API_URL.value(),
            auth_string=PREFECT_API_AUTH_STRING.value(),
            api_key=PREFECT_API_KEY.value(),
        )
        self.outcomes: dict[str, Outcome] = {}
        self.versioned = False  # whether the deployment at hand is declared with a version
        self._project = project
        self._memory: UUID | None = None
        self._last: dict[str, Any] = {}
        self._now: dict[str, Any] = {}
        self._owners: dict[str, str] = {}

    async def recall(self) -> None:
        """Read what was declared last."""
        of_kind = ArtifactFilter(type=ArtifactFilterType(any_=[MEMORY]))
        for artifact in await self.read_artifacts(artifact_filter=of_kind):
            if isinstance(artifact.data, dict) and artifact.data["project"] == self._project:
                self._memory, self._last = artifact.id, artifact.data["declared"]

    async def remember(self) -> None:
        """Write down what is declared now; of what was not come to, what was declared last."""
        data = {"project": self._project, "declared": self._last | self._now}
        # Prefect's own methods for this would announce all of it as an event.
        if self._memory:
            id = {"id": self._memory}
            await self.request("PATCH", "/artifacts/{id}", path_params=id, json={"data": data})
        else:
            await self.request("POST", "/artifacts/", json={"type": MEMORY, "data": data})

    async def settle_work_pool(self, name: str, template: dict[str, Any]) -> None:
        """Create a process pool with this base job template, or merge the template with the pool's.

        A pool of another type, such as `kubernetes`, has a template of another kind, and is left as it is.
        """
        key, now = f"work pool {name}", {"base_job_template": template}
        try:
            there = await self.read_work_pool(name)
        except ObjectNotFound:
            await self.create_work_pool(WorkPoolCreate(name=name, type="process", **now))
            return self._created(key, now)
        if there.type != "process":
            self.outcomes[key] = Outcome(f"is of the type {there.type}, and left as it is")
            return None

        async def update(changed: dict[str, Any]) -> None:
            await self.update_work_pool(name, WorkPoolUpdate(**changed))

        return await self._settle(key, now, {"base_job_template": there.base_job_template}, update)

    async def settle_block(self, whom: str) -> UUID:
        """Return the id of the notification block that ``whom`` names, as ``type/name``.

        Of a webhook's URL one is made, or written anew, that posts ``{"text": …}``, as Slack, Mattermost and
        Teams take it.

        Raises:
            ValueError: There is no such block.
        """
        if whom.startswith(("http://", "https://")):
            block = CustomWebhookNotificationBlock(
                name="headrace",
                url="{{address}}",
                json_data={"text": "{{subject}}\n{{body}}"},
                secrets=SecretDict({"address": whom}),
            )
            return await block.asave("headrace", overwrite=True, client=self)
        kind, _, name = whom.partition("/")
        try:
            found = await self.read_block_document_by_name(name, kind)
        except ObjectNotFound as error:
            raise ValueError(
                "HEADRACE_NOTIFY must be a webhook's URL or a block, as `slack-webhook/ops`, but Prefect has "
                f"none of the type `{kind}` that is called `{name}`."
            ) from error
        return found.id

    async def read_deployment_by_name(self, name: str) -> DeploymentResponse:
        """Say that there is none, so that Prefect's ``deploy`` always goes on to create it."""
        raise ObjectNotFound(LookupError(name))

    async def create_deployment(self, flow_id: UUID, name: str, **declared: Any) -> UUID:  # type: ignore[override]
        """Create a deployment and its schedules, or merge them with what is there."""
        title = f"{(await self.read_flow(flow_id)).name}/{name}"
        schedules: list[DeploymentScheduleCreate] = declared.pop("schedules") or []
        now = _of_deployment(declared, self.versioned)
        try:
            there = await super().read_deployment_by_name(title)
        except ObjectNotFound:
            id = await super().create_deployment(flow_id, name, **declared)
            self._created(f"deployment {title}", now)
            found = []
        else:
            id, found = there.id, there.schedules
            was = there.model_dump(mode="json")
            limit = there.global_concurrency_limit
            was["concurrency_limit"] = limit.limit if limit else None

            async def update(changed: dict[str, Any]) -> None:
                # The version tells the code that was deployed; with nothing else changed, it stays too.
                changed = {"version": declared["version"]} | changed
                await self.update_deployment(id, DeploymentUpdate(**changed))

            was = _of_deployment(was, self.versioned)
            await self._settle(f"deployment {title}", now, was, update)
        self._owners[f"prefect.deployment.{id}"] = title
        await self._settle_schedules(title, id, schedules, found)
        return id

    async def _settle_schedules(
        self,
        title: str,
        deployment: UUID,
        declared: list[DeploymentScheduleCreate],
        found: list[DeploymentSchedule],
    ) -> None:
        for number, schedule in enumerate(declared, start=1):
            schedule.slug = schedule.slug or f"schedule-{number}"
            key, now = f"schedule {schedule.slug} of {title}", _of_schedule(schedule)
            anchored = "anchor_date" in schedule.schedule.model_fields_set
            there = next((s for s in found if s.slug == schedule.slug), None) or next(
                # one that Prefect's own `deploy` made has no slug
                (s for s in found if not s.slug and _of_schedule(s)["schedule"] == now["schedule"]),
                None,
            )
            if there is None:
                await self.create_deployment_schedules(deployment, [schedule])
                self._created(key, now)
                continue

            async def update(changed: dict[str, Any], id: UUID = there.id) -> None:
                await self.update_deployment_schedule(deployment, id, **changed)

            was = _of_schedule(there)
            if not anchored:  # then it is the moment at which the schedule was made
                for side in (now, was):
                    side["schedule"].pop("anchor_date", None)
            await self._settle(key, now, was, update)
        for there in found:
            if self._given_up(key := f"schedule {there.slug} of {title}"):
                await self.delete_deployment_schedule(deployment, there.id)
                self._removed(key)

    async def delete_resource_owned_automations(self, resource_id: str) -> None:
        """Delete nothing: `remove_given_up` does, once it is known what is declared."""

    async def create_automation(self, automation: AutomationCore) -> UUID:
        """Create an automation, or merge it with the one of its name and owner."""
        owner, now = automation.owner_resource, _of_automation(automation)
        if owner:
            key = f"trigger {automation.name} of {self._owners[owner]}"
            related = await self.read_resource_related_automations(owner)
            found = [each for each in related if each.name == automation.name]
        else:
            key = f"automation {automation.name}"
            found = await self.read_automations_by_name(automation.name)
        if not found:
            id = await super().create_automation(automation)
            self._created(key, now)
            return id
        was = _of_automation(found[0])

        async def update(changed: dict[str, Any]) -> None:
            await self.update_automation(found[0].id, AutomationCore(**(was | changed)))

        await self._settle(key, now, was, update)
        return found[0].id

    async def remove_given_up(self) -> None:
        """Delete the automations that are declared no longer; deployments have a history, and stay."""
        for owner, title in self._owners.items():
            for automation in await self.read_resource_related_automations(owner):
                if self._given_up(key := f"trigger {automation.name} of {title}"):
                    await self.delete_automation(automation.id)
                    self._removed(key)
        for key in [key for key in self._last if key.startswith("automation ") and key not in self._now]:
            for automation in await self.read_automations_by_name(key.removeprefix("automation ")):
                await self.delete_automation(automation.id)
            self._removed(key)
        for key in [key for key in self._last if key.startswith("deployment ") and key not in self._now]:
            title = key.removeprefix("deployment ")
            try:
                await super().read_deployment_by_name(title)
            except ObjectNotFound:
                self._last = {k: v for k, v in self._last.items() if not k.endswith(f" {title}")}
            else:
                self.outcomes[key] = Outcome(
                    f"no longer declared, and left; `prefect deployment delete {title}` deletes it"
                )

    async def _settle(
        self,
        key: str,
        now: dict[str, Any],
        there: dict[str, Any],
        update: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        # With nothing remembered, what is declared counts, as it does for Prefect's own `deploy`.
        wanted = merge(self._last.get(key), now, there)
        changed = {k: wanted.get(k) for k in {**there, **wanted} if wanted.get(k) != there.get(k)}
        if changed:
            await update(changed)
        done = f"changed {', '.join(differing(there, wanted))}" if changed else ""
        self.outcomes[key] = Outcome(done, differing(now, wanted))
        self._now[key] = now

    def _created(self, key: str, now: dict[str, Any]) -> None:
        self.outcomes[key] = Outcome("created")
        self._now[key] = now

    def _given_up(self, key: str) -> bool:
        return key in self._last and key not in self._now

    def _removed(self, key: str) -> None:
        del self._last[key]
        self.outcomes[key] = Outcome("removed")


def _of_deployment(values: dict[str, Any], versioned: bool) -> dict[str, Any]:
    """Return what is compared of a deployment, alike for one that is declared and one that is there."""
    names = (*COMPARED, "version") if versioned else COMPARED
    known = to_jsonable_python({name: values.get(name) for name in names})
    known["paused"] = bool(known["paused"])
    if known["work_queue_name"] == "default":
        del known["work_queue_name"]
    return {name: value for name, value in known.items() if value is not None}


def _of_schedule(schedule: DeploymentScheduleCreate | DeploymentSchedule) -> dict[str, Any]:
    return schedule.model_dump(mode="json", include={"slug", "schedule", "active", "parameters"})


def _of_automation(automation: AutomationCore) -> dict[str, Any]:
    names = set(AutomationCore.model_fields) - {"owner_resource"}
    return cast("dict[str, Any]", _ordered(automation.model_dump(mode="json", include=names)))


def _ordered(value: Any) -> Any:
    """Return a trigger's sets of events and labels in one order."""
    if isinstance(value, dict):
        sets = {"after", "expect", "for_each"}
        return {k: sorted(v) if k in sets else _ordered(v) for k, v in value.items()}
    return [_ordered(each) for each in value] if isinstance(value, list) else value
