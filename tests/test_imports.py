"""Imports are lean, and a mistake in what is declared is still told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from headrace import imports
from headrace.imports import NotInstalled, explained, extra_of, lean, whole
from tests.conftest import ROOT


def test_feast_comes_without_torch_and_still_refuses_what_is_of_the_wrong_type() -> None:
    code = """
import sys
from datetime import timedelta
from threading import Thread
from headrace.imports import lean

with lean():
    import feast
    found = []
    another = Thread(target=lambda: found.append(__import__("torch").__name__))  # such as a training's
    another.start()
    another.join()
assert found == ["torch"]
assert not feast.torch_wrapper.TORCH_AVAILABLE
from feast import Entity, FeatureView
from feast.infra.offline_stores.file_source import FileSource
source = FileSource(name="s", path="p", timestamp_field="t")
FeatureView(name="v", source=source, entities=[Entity(name="e", join_keys=["e"])], ttl=timedelta(days=1))
for wrong in (lambda: Entity(name=5), lambda: FeatureView(name="v", source=source, ttl="a day")):
    try:
        wrong()
    except Exception as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'int of argument "name" is not an instance of str' in done.stdout
    assert 'str of argument "ttl"' in done.stdout


def test_torch_is_found_inside_if_it_was_loaded() -> None:
    torch = __import__("torch")
    with lean():
        assert __import__("torch") is torch


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("prefect", "pipelines"),
        ("distributed", "pipelines"),
        ("torch", "torch"),
        ("numpy", ""),
        ("mkdocs", ""),
    ],
)
def test_who_brings_what_is_not_installed_is_known(module: str, extra: str) -> None:
    assert extra_of(module) == extra


def test_flows_are_not_started_where_only_what_serves_is(monkeypatch: pytest.MonkeyPatch) -> None:
    whole()
    monkeypatch.setattr(imports, "find_spec", lambda _: None)
    with pytest.raises(NotInstalled, match=r"pip install 'headrace\[pipelines\]'"):
        whole()


def test_a_model_whose_package_is_not_there_names_the_extra() -> None:
    lacking = ModuleNotFoundError("No module named 'torch._dynamo'", name="torch._dynamo")
    assert "pip install 'headrace[torch]'" in str(explained(lacking))
    another = ModuleNotFoundError("No module named 'theirs'", name="theirs")
    assert explained(another) is another
