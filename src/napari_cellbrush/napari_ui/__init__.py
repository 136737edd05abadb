"""Docks, layers and the worker: the only place that imports Qt or napari."""
