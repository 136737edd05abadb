"""What the job does that looks for the next place to paint; see :mod:`.runs`."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_cellbrush.config import ClassDefinition, DeviceName, InferenceConfig
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.tiling import Region
from napari_cellbrush.events import InferenceEvent, StopToken
from napari_cellbrush.napari_ui.runs import load_torch

if TYPE_CHECKING:
    from napari_cellbrush.engine.features import FeatureSource
    from napari_cellbrush.engine.guide import Guide, ModelAnswers


@dataclass(frozen=True, eq=False)
class GuideTask:
    """Everything that a look over a part of a plane needs."""

    model: str
    planes: Planes
    index: tuple[int, ...]
    region: Region
    #: Stack axes + YX, a copy.
    strokes: NDArray[np.uint8]
    classes: tuple[ClassDefinition, ...]
    config: InferenceConfig
    device_name: DeviceName
    #: Features of the image, where the live loop has them.
    source: FeatureSource | None
    earlier: ModelAnswers | None


def look_over(task: GuideTask, stop: StopToken) -> Generator[InferenceEvent, None, Guide | None]:
    """Find out where strokes would help."""
    load_torch()
    from napari_cellbrush.engine.device import choose_device
    from napari_cellbrush.engine.guide import look_over
    from napari_cellbrush.engine.model_file import find_model, read_model

    return (yield from look_over(
        read_model(find_model(task.model)), task.planes, task.index, task.region, task.strokes, task.classes,
        source=task.source, earlier=task.earlier, config=task.config, device=choose_device(task.device_name),
        stop=stop))
