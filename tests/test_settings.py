"""Settings say what is wrong with them."""

from __future__ import annotations

import pytest

from headrace.errors import BadSetting
from headrace.settings import Settings


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HEADRACE_MLFLOW_PORT", "abc"),
        ("HEADRACE_DASK_WORKERS", "0"),
        ("PREFECT_API_URL", "http://x:abc/api"),
    ],
)
def test_one_that_cannot_be_is_named(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadSetting, match=f"`{variable}` is set to `{value}`"):
        Settings()
