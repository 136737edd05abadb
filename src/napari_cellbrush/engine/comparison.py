"""Where two models say different things about a part of a plane."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_cellbrush.config import InferenceConfig
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.inference import segment_planes
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.tiling import Region, relative_to
from napari_cellbrush.errors import ModelError
from napari_cellbrush.events import InferenceEvent, StopToken, TileSegmented


@dataclass(frozen=True, eq=False)
class Difference:
    """What a second model says where it differs from the first."""

    index: tuple[int, ...]
    region: Region
    #: YX uint8 of the region: 0 where both say the same, else the class of the second, 1…K.
    classes: NDArray[np.uint8]

    @property
    def share(self) -> float:
        """Of pixels that differ, in [0, 1]."""
        return float(np.count_nonzero(self.classes) / max(1, self.classes.size))


def compare(first: Model, second: Model, planes: Planes, index: tuple[int, ...], region: Region, *,
            config: InferenceConfig, device: Device,
            stop: StopToken) -> Generator[InferenceEvent, None, Difference | None]:
    """Segment a part of a plane with two models of the same classes.

    Parameters
    ----------
    first, second
        The models.
    planes, index, region
        The image; which of its planes; rows and columns of it.
    config, device, stop
        How, where, and who may end it.

    Returns
    -------
    Difference or None
        None if it was stopped.

    Raises
    ------
    ModelError
        If the models answer different classes.
    """
    names = [[c.name for c in model.card.classes] for model in (first, second)]
    if names[0] != names[1]:
        raise ModelError(f"'{first.card.name}' answers {', '.join(names[0])}, '{second.card.name}' answers "
                         f"{', '.join(names[1])}", "Compare models of the same classes")
    maps = []
    for model in (first, second):
        found = np.zeros([part.stop - part.start for part in region], np.uint8)
        for event in segment_planes(model, planes, config=config, device=device, indices=(index,), region=region,
                                    stop=stop):
            if isinstance(event, TileSegmented):
                found[relative_to((event.rows, event.columns), region)] = event.classes
            yield event
        maps.append(found)
    if stop.stopped:
        return None
    return Difference(index, region, np.where(maps[0] == maps[1], 0, maps[1]).astype(np.uint8))
