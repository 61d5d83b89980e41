"""Imports without what a run has no use for: seconds of each start."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import cache, wraps
from importlib.abc import MetaPathFinder
from inspect import signature
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints
from unittest.mock import patch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

C = TypeVar("C", bound=type)


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
