"""What is drawn over objects while they are corrected: the one at hand, a line, a dot on each accepted one.

Two layers that are there only as long as the tool is on. They are drawn, never asked: all is known elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from napari.layers import Labels, Layer, Points, Shapes
from numpy.typing import NDArray

from napari_cellbrush.napari_ui import layers
from napari_cellbrush.napari_ui.layer_book import LayerBook

#: Screen pixels.
LINE_PX = 2.0
LINE_COLOR = "#ffffff"
ACCEPTED_COLOR = "#3ddc84"
#: Diameter of a dot, as a fraction of its object's.
DOT_FRACTION = 0.28
#: Screen pixels between which it stays: it is to be seen, and to hide no object that is looked at closely.
DOT_SIZES_PX = 3, 16


def overlay_of(layer: Layer) -> dict[str, Any]:
    """What another layer must be given to lie on a layer."""
    return {name: getattr(layer, name) for name in ("scale", "translate", "rotate", "shear", "affine", "units")}


class Marks:
    """The marks on one objects layer.

    Parameters
    ----------
    book
        Where the layers are added, above all others.
    layer
        What is corrected.
    axes
        Its axes.
    """

    def __init__(self, book: LayerBook, layer: Labels, axes: str) -> None:
        self._book = book
        self._axes = axes
        self._objects = layer
        self._dots = Points(ndim=layer.ndim, name="accepted", face_color=ACCEPTED_COLOR, border_color="black",
                            border_width=0.1, canvas_size_limits=DOT_SIZES_PX, **overlay_of(layer))
        self._lines = Shapes(ndim=layer.ndim, name="object at hand", edge_color=LINE_COLOR, **overlay_of(layer))
        for added in (self._dots, self._lines):
            layers.note_on(added, marks=str(layer.unique_id))
            book.add(added)
        #: What is drawn: drawing the same again takes a tenth of a second.
        self._drawn: list[NDArray[Any]] = []
        self._dotted = np.zeros((0, layer.ndim + 1))

    def close(self) -> None:
        """Take the layers away."""
        for layer in (self._dots, self._lines):
            if layer in self._book.viewer.layers:
                self._book.viewer.layers.remove(layer)

    def draw(self, index: layers.Index, paths: Sequence[NDArray[Any]]) -> None:
        """Draw lines on a plane instead of those drawn before; each is N × 2, rows and columns."""
        drawn = [np.stack(layers.in_layer_coordinates(self._axes, index, *path.T), axis=1) for path in paths]
        if len(drawn) == len(self._drawn) and all(map(np.array_equal, drawn, self._drawn)):
            return
        self._drawn = drawn
        self._lines.data = []
        if not drawn:
            return
        zoom, scale = self._book.viewer.scene.camera.zoom, float(np.max(np.abs(self._lines.scale)))
        self._lines.add(drawn, shape_type="path", edge_width=LINE_PX / max(zoom * scale, 1e-9), edge_color=LINE_COLOR)
        self._lines.selected_data = set()

    def dot(self, index: layers.Index, places: NDArray[Any]) -> None:
        """Mark accepted objects of a plane: N × 3, row, column and diameter."""
        rows, columns, sizes = places.reshape(-1, 3).T
        dotted = np.stack([*layers.in_layer_coordinates(self._axes, index, rows, columns), sizes], axis=1)
        if np.array_equal(dotted, self._dotted):
            return
        self._dotted = dotted
        self._dots.data = dotted[:, :-1]
        if len(sizes):
            self._dots.size = np.maximum(sizes * DOT_FRACTION, 1.0)
        self._dots.selected_data = set()
