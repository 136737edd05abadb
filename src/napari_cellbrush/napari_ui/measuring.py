"""A length by hand: a line dragged in the picture becomes a number of image pixels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Shapes
from qtpy.QtCore import QObject, QTimer, Signal

from napari_cellbrush.napari_ui.proofreading_marks import LINE_COLOR, LINE_PX

if TYPE_CHECKING:
    from napari_cellbrush.napari_ui.workbench import Workbench

#: Shorter lines, in screen pixels, are clicks.
SHORTEST_PX = 4


class Measuring(QObject):
    """Waits for one line on an image; a layer that takes the mouse meanwhile leaves the others' tools alone."""

    #: Whether a line is waited for.
    active_changed = Signal(bool)
    #: The length of a line, in pixels of the image.
    measured = Signal(float)

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        self._sheet: Shapes | None = None
        self._image_key = ""
        self._before: tuple[set[Any], Any] = set(), None
        bench.book.removed.connect(self._on_layer_removed)

    @property
    def active(self) -> bool:
        """Whether a line is waited for."""
        return self._sheet is not None

    def start(self) -> None:
        """Wait for a line on the chosen image."""
        if self._bench.session.image is not None and not self.active:
            self._bench.after_drag(partial(self._start, self._bench.session.image.key))

    def _start(self, image_key: str) -> None:
        viewer = self._bench.book.viewer
        self._image_key = image_key
        self._before = set(viewer.layers.selection), viewer.layers.selection.active
        units = next((layer.units for layer in viewer.layers if layer.ndim == viewer.dims.ndim), None)
        self._sheet = Shapes(ndim=max(2, viewer.dims.ndim), name="length", edge_color=LINE_COLOR, units=units)
        self._sheet.mouse_drag_callbacks.append(self._on_drag)
        self._sheet.bind_key("Escape", lambda _: self.stop(), overwrite=True)
        self._bench.book.add(self._sheet)
        self._sheet.mode = "pan_zoom"
        self._sheet.cursor = "cross"
        viewer.layers.selection.active = self._sheet
        self._sheet.help = viewer.help = "Drag a line across one object; Esc ends without."
        self.active_changed.emit(True)

    def stop(self) -> None:
        """End without a length: what was selected before is again."""
        sheet, self._sheet = self._sheet, None
        if sheet is None:
            return
        layers = self._bench.book.viewer.layers
        if sheet in layers:
            layers.remove(sheet)
        selected, active = self._before
        self._before = set(), None
        layers.selection = {layer for layer in selected if layer in layers}
        layers.selection.active = active if active in layers else None
        self.active_changed.emit(False)

    def _on_drag(self, sheet: Shapes, event: Any) -> Iterator[None]:
        if event.button != 1 or len(event.dims_displayed) != 2:
            return
        start, pressed = np.asarray(event.position, float), np.asarray(event.pos, float)
        # The camera must not follow.
        event.handled = True
        yield
        while event.type == "mouse_move":
            event.handled = True
            sheet.data = []
            sheet.add([np.stack([start, event.position])], shape_type="line", edge_color=LINE_COLOR,
                      edge_width=LINE_PX / self._bench.book.viewer.scene.camera.zoom)
            yield
        if np.abs(np.asarray(event.pos) - pressed).max() < SHORTEST_PX:
            return
        length = self._length_px(start, np.asarray(event.position, float))
        # Not in the middle of what napari does with this event.
        QTimer.singleShot(0, partial(self._end, length))

    def _length_px(self, start: Any, stop: Any) -> float:
        image = self._bench.session.find_image(self._image_key)
        layer = self._bench.book.layer(self._image_key)
        if image is None or layer is None:
            return 0.0
        letters = image.axes.replace("S", "")
        first, last = (layer.world_to_data(point[-layer.ndim :]) for point in (start, stop))
        return float(np.hypot(*(first[letters.index(letter)] - last[letters.index(letter)] for letter in "YX")))

    def _end(self, length_px: float) -> None:
        self.stop()
        if length_px > 0:
            self.measured.emit(length_px)

    def _on_layer_removed(self, key: str) -> None:
        if key == self._image_key or (self._sheet is not None and key == str(self._sheet.unique_id)):
            self.stop()
