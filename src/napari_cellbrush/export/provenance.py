"""What made a mask: the one note that docks, command line and Python API put into the files they write."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from napari_cellbrush import __version__
from napari_cellbrush.config import InferenceConfig, OutputKind
from napari_cellbrush.engine.model import Model
from napari_cellbrush.events import InferenceStarted


def mask_provenance(model: Model, *, output: OutputKind, config: InferenceConfig, image_name: str,
                    image_axes: str = "", started: InferenceStarted | None = None) -> dict[str, Any]:
    """Say which model, settings and versions made a mask of which image, as plain values.

    Parameters
    ----------
    model
        The model as it was run.
    output
        What the mask holds.
    config
        How the model was run.
    image_name
        The name of the layer or file.
    image_axes
        What its axes were taken to mean.
    started
        What the run decided before its first tile: device, precision, and the diameter of the objects.
    """
    diameter_px = started.diameter_px if started else None
    settings = config.replace(diameter_px=diameter_px) if diameter_px else config
    return {
        "program": "napari-cellbrush",
        "image": image_name,
        "image_axes": image_axes,
        "output": output,
        "model": model.card.name,
        "model_weights_sha256": model.weights_hash,
        "base": model.card.base_name,
        "base_weights_sha256": model.card.base_hash,
        "classes": [definition.name for definition in model.card.classes],
        "settings": settings.model_dump(),
        "device": started.device if started else "",
        "precision": started.precision if started else "",
        "versions": program_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def program_versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {"napari-cellbrush": __version__, "torch": version("torch"), "tifffile": version("tifffile")}
