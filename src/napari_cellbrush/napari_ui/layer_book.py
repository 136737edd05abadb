"""The viewer's layers, told to the session: the only place that turns the session's keys into layers.

Layers are known by their ``unique_id``: names change, and two layers may want the same one.
"""

from __future__ import annotations

import weakref
from typing import Any

from napari.layers import Image, Labels, Layer
from psygnal import Signal

from napari_cellbrush.napari_ui import layers
from napari_cellbrush.session import ImageEntry, MaskEntry, Session


class LayerBook:
    """Keeps a session's lists of images and masks right, whatever happens to the viewer's layers.

    Parameters
    ----------
    viewer
        The viewer itself, no proxy of it. It is not kept alive.
    session
        Told about every change.
    """

    #: The key of a layer that is no longer in the viewer.
    removed = Signal(str)

    def __init__(self, viewer: Any, session: Session) -> None:
        self._viewer = weakref.ref(viewer)
        self._session = session
        for name in ("inserted", "removed", "reordered"):
            getattr(viewer.layers.events, name).connect(self._on_list_changed)
        self._watched: dict[str, weakref.ref[Layer]] = {}
        self._on_list_changed()

    @property
    def viewer(self) -> Any:
        """The viewer; only valid while its window is open."""
        return self._viewer()

    def layer(self, key: str | None) -> Any:
        """The layer of a key; None if it was removed."""
        return next((layer for layer in self.viewer.layers if str(layer.unique_id) == key), None)

    def add(self, layer: Layer, above: Layer | None = None) -> str:
        """Add a layer without touching the selection, directly above another or on top; its key."""
        viewer = self.viewer
        selection = set(viewer.layers.selection)
        active = viewer.layers.selection.active
        position = viewer.layers.index(above) + 1 if above is not None and above in viewer.layers else None
        viewer.layers.insert(len(viewer.layers) if position is None else position, layer)
        viewer.layers.selection = selection
        viewer.layers.selection.active = active
        return str(layer.unique_id)

    def close(self) -> None:
        """Stop listening."""
        viewer = self.viewer
        if viewer is not None:
            for name in ("inserted", "removed", "reordered"):
                getattr(viewer.layers.events, name).disconnect(self._on_list_changed)
            for layer in viewer.layers:
                self._forget(layer)

    def _on_list_changed(self, event: Any = None) -> None:
        present = {str(layer.unique_id): layer for layer in self.viewer.layers}
        lost = self._watched.keys() - present.keys()
        for key in present.keys() - self._watched.keys():
            self._watch(key, present[key])
        for key in lost:
            layer = self._watched.pop(key)()
            if layer is not None:
                self._forget(layer)
        self._tell()
        for key in lost:
            self.removed.emit(key)

    def _watch(self, key: str, layer: Layer) -> None:
        self._watched[key] = weakref.ref(layer)
        layer.events.name.connect(self._tell)
        layer.events.data.connect(self._tell)

    def _forget(self, layer: Layer) -> None:
        layer.events.name.disconnect(self._tell)
        layer.events.data.disconnect(self._tell)

    def _tell(self, event: Any = None) -> None:
        if self.viewer is None:
            return
        found = list(reversed(self.viewer.layers))
        images = [self._image(layer) for layer in found if isinstance(layer, Image) and not _is_result(layer)]
        masks = [self._mask(layer) for layer in found if isinstance(layer, Labels) or _is_result(layer)]
        self._session.set_layers(images, masks)

    @staticmethod
    def _image(layer: Layer) -> ImageEntry:
        shape = tuple(int(n) for n in layers.full_resolution(layer).shape)
        return ImageEntry(str(layer.unique_id), layer.name, shape, layers.layer_axes(layer), layer.rgb)

    @staticmethod
    def _mask(layer: Layer) -> MaskEntry:
        shape = tuple(int(n) for n in layers.full_resolution(layer).shape)
        output = str(layers.note_of(layer).get("output", ""))
        return MaskEntry(str(layer.unique_id), layer.name, shape, isinstance(layer, Labels), output)


def _is_result(layer: Layer) -> bool:
    """Whether this plugin made the layer from a model's answer."""
    return "output" in layers.note_of(layer)
