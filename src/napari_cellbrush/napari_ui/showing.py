"""The image that is worked on is the one that is seen: images in the same place, and their masks, step aside.

napari puts all images in one place, the last one on top. Who chooses another one would paint on what she does not see.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Layer
from qtpy.QtCore import QObject

from napari_cellbrush.napari_ui import layers

if TYPE_CHECKING:
    from napari_cellbrush.napari_ui.workbench import Workbench

#: How much of the view an image fills that comes into sight.
_SHARE_OF_VIEW = 0.95
#: Ways of drawing a layer that let all others shine through.
_SEE_THROUGH = ("additive", "minimum", "multiplicative")


class Showing(QObject):
    """Which image of a viewer is in sight."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        self._session = bench.session
        self._book = bench.book
        #: Keys of the layers that stepped aside.
        self._aside: set[str] = set()
        #: Whether the brush was given up only because the image that was chosen has no strokes.
        self._brush_waits = False
        self._known = {image.key for image in self._session.images}
        self._book.removed.connect(self._on_layer_removed)
        self._session.images_changed.connect(self._on_images_changed)

    def choose(self, image_key: str) -> None:
        """Work on another image, and look at it."""
        self._session.choose_image(image_key)
        self._bench.after_drag(partial(self.show, image_key))

    def show(self, image_key: str) -> None:
        """Bring an image into sight, with what had stepped aside of it; channels and side by side stay as they are.

        Mouse and keys go from layers that step aside to the image, or to its strokes from those of another. The view
        stays where it is, unless images of another size step aside.
        """
        viewer, image = self._book.viewer, self._book.layer(image_key)
        if self._session.find_image(image_key) is None or viewer.canvas.grid.enabled:
            return
        rivals = {entry.key for entry in self._session.images
                  if entry.key != image_key and _in_one_place(self._book.layer(entry.key), image)}
        active = viewer.layers.selection.active
        was_in_sight = [layer for layer in map(self._book.layer, rivals) if layer.visible]
        image.visible = True
        for layer in viewer.layers:
            key, owner = str(layer.unique_id), self._image_of(layer)
            if owner == image_key and key in self._aside:
                self._aside.discard(key)
                layer.visible = True
            elif owner in rivals and layer.visible:
                self._aside.add(key)
                layer.visible = False
        if any(not np.allclose(layer.extent.world[:, -2:], image.extent.world[:, -2:]) for layer in was_in_sight):
            _fit_view(viewer, image)
        _go_into(viewer, image)
        if active is not None and self._image_of(active) in rivals:
            was_painting = self._brush_waits or str(active.unique_id) in self._session.annotations.values()
            self._brush_waits = was_painting and not self._bench.annotating.take_brush(image_key)
            if self._brush_waits or not was_painting:
                viewer.layers.selection.active = image
        else:
            self._brush_waits = False

    def reveal(self, layer: Layer) -> None:
        """Show a layer, or have it shown as soon as its image is in sight."""
        out_of_sight = self._image_of(layer) in self._aside
        if out_of_sight:
            self._aside.add(str(layer.unique_id))
        layer.visible = not out_of_sight

    def hide(self, layer: Layer) -> None:
        """Hide a layer, also from those who choose its image next."""
        self._aside.discard(str(layer.unique_id))
        layer.visible = False

    def _image_of(self, layer: Layer) -> str:
        """Key of the image that a layer is or belongs to; empty for those of the person."""
        key, note = str(layer.unique_id), layers.note_of(layer)
        marked = self._book.layer(note.get("marks"))
        if marked is not None:
            return self._image_of(marked)
        painted = (image for image, annotation in self._session.annotations.items() if annotation == key)
        return key if self._session.find_image(key) else next(painted, str(note.get("image", "")))

    def _on_images_changed(self) -> None:
        """An image that is opened on top of the one that is worked on is worked on; not while a work is going on."""
        session, known = self._session, self._known
        self._known = {image.key for image in session.images}
        opened = next((image for image in session.images if image.key not in known), None)
        covered = session.image
        runs = session.live, session.training, session.segmentation, session.taking_over
        if opened is None or covered is None or session.correction.layer or any(run.busy for run in runs):
            return
        above, below = self._book.layer(opened.key), self._book.layer(covered.key)
        if above.visible and not self._book.viewer.canvas.grid.enabled and _in_one_place(below, above):
            session.choose_image(opened.key)

    def _on_layer_removed(self, _: str) -> None:
        """Without the image that was in sight, the one that is chosen now is."""
        image = self._session.image
        if image is not None and image.key in self._aside:
            self.show(image.key)


def _go_into(viewer: Any, layer: Layer) -> None:
    """Move to the nearest plane that a layer has: a longer stack may have been seen beyond its end."""
    before = viewer.dims.ndim - layer.ndim
    for axis in viewer.dims.not_displayed:
        if axis >= before:
            low, high = layer.extent.world[:, axis - before]
            at = viewer.dims.point[axis]
            if not low <= at <= high:
                viewer.dims.set_point(axis, min(max(at, low), high))


def _fit_view(viewer: Any, layer: Layer) -> None:
    """Look at all of a layer. napari 0.9's ``fit_to_view`` fails for one with fewer axes than the viewer."""
    if viewer.dims.ndisplay != 2:
        return
    low, high = layer.extent.world[:, [axis - viewer.dims.ndim for axis in viewer.dims.displayed]]
    camera = viewer.scene.camera
    camera.center = tuple((low + high) / 2)
    camera.zoom = float(_SHARE_OF_VIEW * min(viewer.canvas.size) / max(high - low))


def _in_one_place(one: Any, other: Any) -> bool:
    """Whether one of two image layers hides the other, or a part of it."""
    if any(layer.blending in _SEE_THROUGH or layer.opacity < 1 for layer in (one, other)):
        return False
    (low, high), (other_low, other_high) = (layer.extent.world[:, -2:] for layer in (one, other))
    return bool((low < other_high).all() and (other_low < high).all())
