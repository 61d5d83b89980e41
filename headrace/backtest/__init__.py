"""Backtest: what each retraining policy would have cost, had it been in force.

past windows ─▶ a model of each ─▶ what it costs in every later window ─▶ each policy lives through them
                                                                        └▶ beside who knew it all

Nothing that is live is touched: models lie in a folder of their own.
"""

from headrace.backtest.history import History, rehearse
from headrace.backtest.run import Backtest, backtest, first_judged

__all__ = ["Backtest", "History", "backtest", "first_judged", "rehearse"]
