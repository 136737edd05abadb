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
    from napari_cellbrush.engine.model import Model
    from napari_cellbrush.engine.unet import UNet
    from napari_cellbrush.errors import CellbrushError
    from napari_cellbrush.events import StopToken

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
    "load_model",
    "save_mask",
    "save_model",
    "segment",
]

_MODULES = {
    "api": ("fine_tune", "load_model", "save_mask", "save_model", "segment"),
    "config": ("AugmentationConfig", "ClassDefinition", "InferenceConfig", "NetworkConfig", "TrainingConfig"),
    "engine.axes": ("PixelSize",),
    "engine.model": ("Model",),
    "engine.unet": ("UNet",),
    "errors": ("CellbrushError",),
    "events": ("StopToken",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
