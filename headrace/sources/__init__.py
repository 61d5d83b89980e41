"""Where raw rows come from: files, databases, functions, what pipelines predict, and what is told of it.

Each origin has one method, ``read``: it fills a DuckDB connection with the rows of
one span of time, and says what the input lacked. Rows without a time come along
whatever the span, so that somebody decides about them.
"""

from headrace.sources.call import Call
from headrace.sources.feedback import Feedback
from headrace.sources.files import Files
from headrace.sources.predictions import Predictions
from headrace.sources.query import Query
from headrace.sources.rows import Part

__all__ = ["Call", "Feedback", "Files", "Part", "Predictions", "Query"]
