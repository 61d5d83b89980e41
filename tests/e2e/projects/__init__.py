"""Projects beside the default one, each in a folder of its name, to be laid down and lived in."""

from __future__ import annotations

from pathlib import Path

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]


def lay(name: str, folder: Path) -> None:
    """Make ``folder`` that project: its own pipeline, features and suites, and this project's flows."""
    theirs = HERE / name
    for shared in ("flows", "deployments", "pyproject.toml"):
        (folder / shared).symlink_to(ROOT / shared)
    for part in ("features", "pipelines", "validations"):
        (folder / part).mkdir()
        (folder / part / "__init__.py").touch()
        for file in (theirs / part).glob("*"):
            (folder / part / file.name).symlink_to(file)
    (folder / "features/feature_store.yaml").symlink_to(ROOT / "features/feature_store.yaml")
    (folder / "prefect.yaml").symlink_to(theirs / "prefect.yaml")
