"""A project whose data come by the clock: twenty pumps, a reading of each every second."""

from __future__ import annotations

from pathlib import Path

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]


def lay(folder: Path) -> None:
    """Make ``folder`` that project: the pumps' own pipeline, features and suite, and this project's flows."""
    for name in ("flows", "deployments", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    for part in ("features", "pipelines", "validations"):
        (folder / part).mkdir()
        (folder / part / "__init__.py").touch()
        for file in (HERE / part).glob("*"):
            (folder / part / file.name).symlink_to(file)
    (folder / "features/feature_store.yaml").symlink_to(ROOT / "features/feature_store.yaml")
    (folder / "prefect.yaml").symlink_to(HERE / "prefect.yaml")
