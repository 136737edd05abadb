"""How large the objects of an image are, by which it is rescaled for a network that knows objects of one size."""

from __future__ import annotations

from collections.abc import Sequence

from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.planes import Planes


def object_diameter(model: Model, images: Sequence[Planes], stated_px: float, device: Device) -> float | None:
    """In image pixels: the stated one, that of the images the model was tuned on, or a measured one."""
    if model.card.diameter_px is None:
        return None
    return stated_px or model.card.image_diameter_px
