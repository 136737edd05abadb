"""What is painted on one annotation layer, told anew whenever it changes: by the brush, by undo, by anything else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray

from napari_cellbrush.engine.live_inbox import Index, Strokes
from napari_cellbrush.napari_ui import layers


class StrokeWatch:
    """Listens to an annotation layer.

    Parameters
    ----------
    layer
        The annotation layer; only read.
    dims
        The viewer's, only asked which plane it shows.
    generation
        Of the strokes that are there at the beginning.
    tell
        Called with copies of all strokes after each change; not for the strokes that are there at the beginning.
    """

    def __init__(self, layer: Labels, dims: Any, generation: int, tell: Callable[[Strokes], None]) -> None:
        self._layer = layer
        self._dims = dims
        self._tell = tell
        self._step = dims.current_step
        self._planes: dict[Index, NDArray[np.uint8]] = {}
        self._take(np.ndindex(self._labels().shape[:-2]))
        self.strokes = Strokes(generation, dict(self._planes))
        layer.events.paint.connect(self._on_paint)
        layer.events.set_data.connect(self._on_shown)

    def close(self) -> None:
        """Stop listening."""
        self._layer.events.paint.disconnect(self._on_paint)
        self._layer.events.set_data.disconnect(self._on_shown)

    def _on_paint(self, event: Any) -> None:
        stack = [i for i, letter in enumerate(layers.mask_axes(self._layer)) if letter in "TZ"]
        self._update(index for atom in event.value for box in [layers.painted_box(atom)]
                     for index in itertools.product(*(range(box[i].start, box[i].stop) for i in stack)))

    def _on_shown(self, event: Any = None) -> None:
        # Undo says nothing but this, and so does every move to another plane: the viewer's step tells them apart.
        if self._dims.current_step == self._step:
            shown = layers.plane_index(self._layer, layers.mask_axes(self._layer), self._dims.point)
            self._update([*self._planes, shown])
        self._step = self._dims.current_step

    def _update(self, planes: Iterable[Index]) -> None:
        if self._take(planes):
            self.strokes = Strokes(self.strokes.generation + 1, dict(self._planes))
            self._tell(self.strokes)

    def _take(self, planes: Iterable[Index]) -> bool:
        """Copy the planes that changed; whether any did."""
        labels, changed = self._labels(), False
        for index in set(planes):
            now, before = labels[index], self._planes.get(index)
            if not now.any() if before is None else np.array_equal(now, before):
                continue
            changed = True
            if now.any():
                self._planes[index] = np.array(now)
            else:
                del self._planes[index]
        return changed

    def _labels(self) -> NDArray[Any]:
        return layers.in_engine_order(self._layer.data, layers.mask_axes(self._layer))
