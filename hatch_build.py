"""What `headrace init` makes a project of is this one: beside headrace/ in a checkout, in it in the wheel."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PARTS = ("flows", "deployments", "features", "pipelines", "validations", "prefect.yaml")


class Template(BuildHookInterface):
    """Puts the project's own parts into the package, where it is not installed for development."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add them to what is built."""
        if version == "standard":
            build_data["force_include"] |= {part: f"headrace/template/{part}" for part in PARTS}
