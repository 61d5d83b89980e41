"""Imports without what a run has no use for: seconds of each start; and what an installation left out."""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from functools import cache, wraps
from importlib.abc import MetaPathFinder
from importlib.metadata import requires
from importlib.util import find_spec
from inspect import signature
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints
from unittest.mock import patch

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

C = TypeVar("C", bound=type)


class NotInstalled(HeadraceError):
    """What only an extra brings is asked for where it was left out, as in the image that serves."""

    def __init__(self, module: str, extra: str) -> None:
        self.module, self.extra = module, extra
        super().__init__(
            f"`{module}` is not installed here: answering with champions does without it. Do this where it "
            f"is, or `pip install 'headrace[{extra}]'`."
        )


def extra_of(module: str) -> str:
    """Return the extra of headrace that brings a module; nothing if none does."""
    of = {}
    for text in requires("headrace") or ():
        name, _, extra = text.partition("; extra == ")
        of[re.split(r"[\[<>=!~ ]", name)[0].replace("-", "_")] = extra.strip("\"'")
    found = of.get("dask" if module == "distributed" else module, "")
    return found if found in ("pipelines", "torch") else ""


def explained(error: ModuleNotFoundError) -> Exception:
    """Return an error that names the extra which brings what was not found; the same if none does."""
    module = (error.name or "").partition(".")[0]
    extra = extra_of(module)
    return NotInstalled(module, extra) if extra else error


def whole() -> None:
    """Refuse to go on without what flows run on.

    Raises:
        NotInstalled: Only what serves is here.
    """
    if find_spec("prefect") is None:
        raise NotInstalled("prefect", "pipelines")


@contextmanager
def lean() -> Iterator[None]:
    """Import, in here, libraries that offer much more than is asked of them.

    - torch is not found, unless it is loaded: Feast and scikit-learn look for it in passing.
    - What typeguard is to check is checked where it is made: Feast has the bodies of all its
      classes written anew at each start, though only people make mistakes, and only in what they declare.
    """
    import typeguard

    sys.meta_path.insert(0, finder := _NoTorch())
    try:
        with patch.object(typeguard, "typechecked", _checked_when_made):
            yield
    finally:
        sys.meta_path.remove(finder)


class _NoTorch(MetaPathFinder):
    def __init__(self) -> None:
        self.thread = get_ident()

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "torch" and get_ident() == self.thread:  # another may be about to train with it
            raise ModuleNotFoundError("No module named 'torch'", name=name)


def _checked_when_made(kind: C) -> C:
    """Let a class refuse arguments of another type than it declares, as typeguard words it."""
    from typeguard import TypeCheckError, check_type

    init: Callable[..., None] = kind.__init__  # type: ignore[misc]
    declared = cache(lambda: get_type_hints(init))
    takes = signature(init)

    @wraps(init)
    def checked(*args: Any, **kwargs: Any) -> None:
        for name, value in takes.bind(*args, **kwargs).arguments.items():
            if name in declared():
                try:
                    check_type(value, declared()[name])
                except TypeCheckError as error:
                    error.append_path_element(f'argument "{name}"')
                    raise
        init(*args, **kwargs)

    kind.__init__ = checked  # type: ignore[misc]
    return kind
