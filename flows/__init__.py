"""The DAGs: Prefect flows, made of the steps in ``flows.steps``."""

import atexit
import gc

# What libraries define while they are imported stays. With Python's own thresholds, looking
# for garbage among it takes a quarter of a run's start.
gc.set_threshold(10_000, 20, 100)
atexit.register(gc.freeze)  # nor among what is left when a run ends
