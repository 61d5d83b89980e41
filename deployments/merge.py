"""What is declared meets what a person set since: only what changed in the declaration changes.

Three sides: what was declared ``last``, what is declared ``now``, and what is ``there``.
"""

from __future__ import annotations

from typing import Any

ABSENT = object()


def merge(last: Any, now: Any, there: Any) -> Any:
    """Return what is to be there: ``now`` where it differs from ``last``, else what is there.

    Mappings are merged key by key, so that each setting counts for itself.

    >>> merge({"cron": "1 0 * * *", "active": False},
    ...       {"cron": "5 0 * * *", "active": False},
    ...       {"cron": "1 0 * * *", "active": True})
    {'cron': '5 0 * * *', 'active': True}
    """
    if not (isinstance(now, dict) and isinstance(there, dict)):
        return there if now == last else now
    sides = [side if isinstance(side, dict) else {} for side in (last, now, there)]
    keys = dict.fromkeys([*there, *now])
    both = {key: merge(*(side.get(key, ABSENT) for side in sides)) for key in keys}
    return {key: value for key, value in both.items() if value is not ABSENT}


def differing(one: Any, other: Any, path: str = "") -> list[str]:
    """Return the dotted paths at which two values differ.

    >>> differing({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 0}})
    ['b.c', 'b.d']
    """
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        found = (differing(one.get(k, ABSENT), other.get(k, ABSENT), f"{path}.{k}".lstrip(".")) for k in keys)
        return [each for paths in found for each in paths]
    return [] if one == other else [path]
