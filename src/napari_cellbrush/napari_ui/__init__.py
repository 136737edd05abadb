"""Docks, layers and the worker: the only place that knows Qt and napari.

The manifest names its targets here. They are loaded when napari asks for them, so that learning what the plugin
offers costs neither Qt nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_TARGETS = {
    "Workspace": "workspace",
    "AnnotateDock": "annotate_dock",
    "FineTuneDock": "finetune_dock",
    "SegmentDock": "segment_dock",
    "CorrectDock": "correct_dock",
    "ExportDock": "export_dock",
    "segment_with_cellbrush": "menu_actions",
    "export_mask": "menu_actions",
    "immunohistochemistry": "sample_data",
    "nuclei": "sample_data",
}


def __getattr__(name: str) -> Any:
    if name not in _TARGETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_TARGETS[name]}"), name)
