"""napari-cellbrush: paint a few strokes, press one button, get a segmentation.

Everything for scripts is reachable from here and loaded when it is first used: importing the package alone loads
neither torch nor Qt.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_cellbrush.api import fine_tune, load_model, save_mask, save_model, segment
    from napari_cellbrush.config import (
        AugmentationConfig,
        ClassDefinition,
        InferenceConfig,
        NetworkConfig,
        TrainingConfig,
    )
    from napari_cellbrush.engine.axes import PixelSize
    from napari_cellbrush.engine.linking import link_planes
    from napari_cellbrush.engine.measure import measure_objects
    from napari_cellbrush.engine.model import Model
    from napari_cellbrush.engine.unet import UNet
    from napari_cellbrush.errors import CellbrushError
    from napari_cellbrush.events import StopToken
    from napari_cellbrush.export.geojson import save_geojson
    from napari_cellbrush.export.overlay import save_overlay
    from napari_cellbrush.export.rois import save_rois
    from napari_cellbrush.export.tables import save_table

__version__ = "0.1.0"

__all__ = [
    "AugmentationConfig",
    "CellbrushError",
    "ClassDefinition",
    "InferenceConfig",
    "Model",
    "NetworkConfig",
    "PixelSize",
    "StopToken",
    "TrainingConfig",
    "UNet",
    "__version__",
    "fine_tune",
    "link_planes",
    "load_model",
    "measure_objects",
    "save_geojson",
    "save_mask",
    "save_model",
    "save_overlay",
    "save_rois",
    "save_table",
    "segment",
]

_MODULES = {
    "api": ("fine_tune", "load_model", "save_mask", "save_model", "segment"),
    "config": ("AugmentationConfig", "ClassDefinition", "InferenceConfig", "NetworkConfig", "TrainingConfig"),
    "engine.axes": ("PixelSize",),
    "engine.linking": ("link_planes",),
    "engine.measure": ("measure_objects",),
    "engine.model": ("Model",),
    "engine.unet": ("UNet",),
    "errors": ("CellbrushError",),
    "events": ("StopToken",),
    "export.geojson": ("save_geojson",),
    "export.overlay": ("save_overlay",),
    "export.rois": ("save_rois",),
    "export.tables": ("save_table",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
