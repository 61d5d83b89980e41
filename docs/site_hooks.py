"""Pages of the site that are made of the code: the command line, the settings, the list of decisions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add them to the files of docs/."""
    pages = {
        "reference/cli.md": commands(),
        "reference/settings.md": settings(),
        "decisions/index.md": decisions(Path(config.docs_dir) / "decisions"),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def commands() -> str:
    """Return what ``--help`` says, of each command."""
    from typer.main import get_command

    from headrace.cli import app

    lines = ["# Command line", "", "Commands go to the project's folder from any folder below it.", ""]
    group = get_command(app)
    for name, command in sorted(group.commands.items()):  # type: ignore[attr-defined]
        for title, one in _each(f"headrace {name}", command):
            lines += [f"## `{title}`", "", *_told(title, one), ""]
    return "\n".join(lines)


def _each(title: str, command: Any) -> list[tuple[str, Any]]:
    if subcommands := getattr(command, "commands", None):
        return [part for name, one in subcommands.items() for part in _each(f"{title} {name}", one)]
    return [(title, command)]


def _told(title: str, command: Any) -> list[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and "--help" not in one.opts]
    typed = " ".join(one.name.upper() if one.required else f"[{one.name.upper()}]" for one in arguments)
    lines = [command.help or "", "", "```sh", f"{title} {typed}".strip(), "```", ""]
    if not (arguments or options):
        return lines
    lines += ["| | |", "|---|---|"]
    for one in (*arguments, *options):
        name = one.name.upper() if one in arguments else ", ".join([*one.opts, *one.secondary_opts])
        lines.append(f"| `{name}` | {_cell(getattr(one, 'help', '') or '')} |")
    return lines


def settings() -> str:
    """Return every variable, with what it says and its default."""
    from headrace.settings import Settings

    lines = ["# Settings", "", "Environment variables, read by every process on its own.", ""]
    lines += ["| variable | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        variable = str(field.validation_alias or f"HEADRACE_{name}").upper()
        default = field.get_default(call_default_factory=False)
        value = default.get_secret_value() if hasattr(default, "get_secret_value") else default
        shown = f"`{value}`" if value not in (None, "") and "PREFECT" not in variable else ""
        lines.append(f"| `{variable}` | {shown} | {_cell(field.description or '')} |")
    return "\n".join(lines)


def decisions(folder: Path) -> str:
    """Return the list of decisions, by number."""
    lines = ["# Decisions", "", "Why things are as they are. A change of mind is a new one.", ""]
    for file in sorted(folder.glob("[0-9]*.md")):
        title = file.read_text().splitlines()[0].lstrip("# ")
        lines.append(f"- [{title}]({file.name})")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
