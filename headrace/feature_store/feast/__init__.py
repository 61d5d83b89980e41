"""The plug-in: Feast's offline store, compute engine and stores on Delta, DuckDB and Dask.

``features/feature_store.yaml`` names its classes, and Feast calls them, whoever uses Feast. ``offline``,
``asof``, ``sources`` and ``job`` join point in time; ``engine``, ``latest``, ``encoding`` and ``writers``
fill online stores, and ``brought`` notes what is in them; ``embedded`` puts files below a home.
"""
