"""A pipeline for a table that nobody here has seen, written as a person would.

look: what its columns hold ─▶ doubts: what must be left out ─▶ plan ─▶ write: five files, to be edited
"""

from headrace.scaffold.plan import Asked, Plan, plan
from headrace.scaffold.write import write

__all__ = ["Asked", "Plan", "plan", "write"]
