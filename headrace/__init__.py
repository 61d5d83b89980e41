"""headrace: ML pipelines as scheduled, retryable DAGs.

Importing it turns the telemetry of every package headrace stands on off, unless
the environment already says otherwise. This is the one place that does so, and
child processes inherit it.
"""

import os

for _variable, _off in {
    "DO_NOT_TRACK": "true",  # the word: MLflow does not understand "1"
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(_variable, _off)
