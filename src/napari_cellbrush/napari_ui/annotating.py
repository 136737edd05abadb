"""Strokes: makes annotation layers, keeps them in step with the class table, counts what is painted.

Only the person writes into an annotation layer. What has to be rewritten as a whole (a class was taken out, other
labels were taken over) becomes a new layer, whose undo history cannot bring back values of another meaning.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer

from napari_cellbrush.errors import AnnotationError
from napari_cellbrush.napari_ui import layers
from napari_cellbrush.napari_ui.layer_book import LayerBook
from napari_cellbrush.session import ImageEntry, Session

LabelKind = Literal["classes", "objects"]

#: Milliseconds without a stroke before pixels are counted.
COUNT_AFTER_MS = 200
#: Pixels that are counted at a time (a few milliseconds).
COUNT_CHUNK_PX = 8_000_000


class Annotating(QObject):
    """The annotation layers of one viewer."""

    def __init__(self, book: LayerBook, session: Session, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._book = book
        self._session = session
        self._counters: dict[str, PixelCounter] = {}
        session.classes_changed.connect(self._on_classes_changed)
        session.class_chosen.connect(self._on_class_chosen)
        session.brush_changed.connect(self._on_brush_changed)
        session.axes_changed.connect(self._on_axes_changed)
        book.removed.connect(self._on_layer_removed)

    def layer_of(self, image_key: str) -> Labels | None:
        """The annotation layer of an image."""
        layer: Labels | None = self._book.layer(self._session.annotation_of(image_key))
        return layer

    def new_annotation(self, image_key: str) -> Labels:
        """Make an empty annotation layer for an image, or find the one it has, ready to be painted.

        Raises
        ------
        AnnotationError
            If nobody knows the image's axes.
        """
        image = self._image(image_key)
        existing = self.layer_of(image_key)
        if existing is not None:
            # A second one would leave the first one's strokes out of training without a word.
            self._ready(existing)
            return existing
        axes = layers.labels_axes(image.axes)
        empty = np.zeros(layers.labels_shape(image.axes, image.shape), np.uint8)
        return self._start(image, layers.in_engine_order(empty, axes))

    def take_over(self, labels_key: str, image_key: str, kind: LabelKind) -> Labels:
        """Make an annotation layer from a copy of another labels layer, which is hidden then.

        Raises
        ------
        CellbrushError
            If shapes do not fit, or a value is no class.
        """
        # Brings scipy and scikit-image along, for which opening the dock need not wait.
        from napari_cellbrush.engine.annotation import objects_to_classes, whole_numbers

        image = self._image(image_key)
        source = self._book.layer(labels_key)
        data = layers.labels_as_annotation(source, image.axes, image.shape)
        data = whole_numbers(data, f"the labels '{source.name}'")
        if kind == "objects":
            planes = [objects_to_classes(data[index]) for index in np.ndindex(data.shape[:-2])]
            data = np.stack(planes).reshape(data.shape)
        highest = int(data.max(initial=0))
        if highest > len(self._session.classes) or int(data.min(initial=0)) < 0:
            raise AnnotationError(
                f"The labels '{source.name}' hold values up to {highest}, but there are {len(self._session.classes)} "
                "classes", "Say that they are objects, or add classes first")
        layer = self._start(image, data.astype(np.uint8))
        source.visible = False
        return layer

    def paint_with(self, position: int) -> None:
        """Choose a class, and the brush on the chosen image's annotation layer."""
        self._session.choose_class(position)
        layer = self.layer_of(self._session.image.key) if self._session.image else None
        if layer is not None:
            self._ready(layer)

    def remove_class(self, position: int) -> None:
        """Take a class out of the table and its strokes out of all annotations.

        Raises
        ------
        ConfigError
            If fewer than two classes would be left.
        """
        self._session.remove_class(position)
        for image_key, old_key in self._session.annotations.items():
            old = self._book.layer(old_key)
            image = self._session.find_image(image_key)
            if old is None or image is None:
                continue
            old_data = layers.in_engine_order(old.data, layers.mask_axes(old))
            name, old.name = old.name, f"{old.name} (before)"
            self._start(image, layers.without_class(old_data, position + 1), name)
            self._book.viewer.layers.remove(old)

    def snapshot(self, image_key: str) -> NDArray[np.uint8]:
        """A copy of an image's strokes, stack axes + YX, that later strokes do not change."""
        layer = self.layer_of(image_key)
        if layer is None:
            raise AnnotationError("The annotation layer was removed", "Make a new annotation")
        return np.array(layers.in_engine_order(layer.data, layers.mask_axes(layer)))

    def close(self) -> None:
        """Stop counting."""
        for counter in self._counters.values():
            counter.close()
        self._counters.clear()

    # -------------------------------------------------------------------------------------------- making layers

    def _image(self, key: str) -> ImageEntry:
        image = self._session.find_image(key)
        if image is None:
            raise AnnotationError("The image was removed", "Choose another image")
        if not image.axes:
            raise AnnotationError(f"Nobody knows what the axes of '{image.name}' mean",
                                  "Write one letter per axis into the field Axes")
        return image

    def _start(self, image: ImageEntry, data: NDArray[np.uint8], name: str = "") -> Labels:
        session = self._session
        image_layer = self._book.layer(image.key)
        layer = layers.new_labels(
            image_layer, image.axes, data, name or f"{image.name} annotation", opacity=layers.ANNOTATION_OPACITY,
            colormap=layers.class_colormap(session.classes), features=layers.class_features(session.classes))
        layer.brush_size = session.brush_px
        layer.selected_label = session.current_class + 1
        layers.bind_class_keys(layer, len(session.classes))
        layer.events.selected_label.connect(self._on_label_selected)
        layer.events.brush_size.connect(self._on_brush_used)
        key = self._book.add(layer)
        self._on_layer_removed(session.annotation_of(image.key) or "")
        session.set_annotation(image.key, key)
        self._counters[key] = PixelCounter(layer, image.key, session, self._book.viewer, self)
        self._ready(layer)
        return layer

    def _ready(self, layer: Labels) -> None:
        self._book.viewer.layers.selection.active = layer
        layer.visible = True
        layer.mode = "paint"

    def _layers(self) -> list[Labels]:
        found = [self._book.layer(key) for key in self._session.annotations.values()]
        return [layer for layer in found if layer is not None]

    # -------------------------------------------------------------------------------------------------- in step

    def _on_classes_changed(self) -> None:
        classes = self._session.classes
        for layer in self._layers():
            layer.colormap = layers.class_colormap(classes)
            layer.features = layers.class_features(classes)
            layers.bind_class_keys(layer, len(classes))
        for counter in self._counters.values():
            counter.count_all_soon()

    def _on_class_chosen(self) -> None:
        for layer in self._layers():
            layer.selected_label = self._session.current_class + 1

    def _on_label_selected(self, event: Any) -> None:
        layer = event.source
        if layer.selected_label > len(self._session.classes):
            # A value without a class would be painted invisibly and refused by training.
            layer.selected_label = self._session.current_class + 1
        elif layer.selected_label > 0:
            self._session.choose_class(int(layer.selected_label) - 1)

    def _on_brush_changed(self) -> None:
        for layer in self._layers():
            layer.brush_size = self._session.brush_px

    def _on_brush_used(self, event: Any) -> None:
        self._session.set_brush(int(event.source.brush_size))

    def _on_axes_changed(self, image_key: str) -> None:
        """Strokes stay if only the meaning of an axis changed, and no longer count if the layer does not fit."""
        image, layer = self._session.find_image(image_key), self.layer_of(image_key)
        if image is None or layer is None:
            return
        if layer.data.shape == layers.labels_shape(image.axes, image.shape):
            layers.note_on(layer, axes=layers.labels_axes(image.axes))
            self._counters[str(layer.unique_id)].count_all_soon()
        else:
            self._on_layer_removed(str(layer.unique_id))
            self._session.forget_annotation(image_key)

    def _on_layer_removed(self, key: str) -> None:
        counter = self._counters.pop(key, None)
        if counter is not None:
            counter.close()


class PixelCounter(QObject):
    """Counts the painted pixels of one layer, plane by plane, after the hand has rested for a moment.

    Parameters
    ----------
    layer
        The annotation layer.
    image_key, session
        Whose counts these are, and who is told.
    viewer
        Only asked which plane it shows.
    parent
        Qt parent.
    """

    def __init__(self, layer: Labels, image_key: str, session: Session, viewer: Any, parent: QObject) -> None:
        super().__init__(parent)
        self._layer = layer
        self._image_key = image_key
        self._session = session
        self._dims = viewer.dims
        self._step = self._dims.current_step
        self._counts: dict[tuple[int, ...], NDArray[np.int64]] = {}
        self._dirty: set[tuple[int, ...]] = set()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._count)
        layer.events.paint.connect(self._on_paint)
        layer.events.set_data.connect(self._on_shown)
        self.count_all_soon()

    def count_all_soon(self) -> None:
        """Count every plane anew."""
        self._counts.clear()
        self._dirty.update(np.ndindex(self._labels().shape[:-2]))
        self._timer.start(COUNT_AFTER_MS)

    def close(self) -> None:
        """Stop."""
        self._layer.events.paint.disconnect(self._on_paint)
        self._layer.events.set_data.disconnect(self._on_shown)
        self._timer.stop()
        self.deleteLater()

    def _labels(self) -> NDArray[Any]:
        return layers.in_engine_order(self._layer.data, layers.mask_axes(self._layer))

    def _on_paint(self, event: Any) -> None:
        axes = layers.mask_axes(self._layer)
        stack = [i for i, letter in enumerate(axes) if letter in "TZ"]
        for atom in event.value:
            box = layers.painted_box(atom)
            self._dirty.update(itertools.product(*(range(box[i].start, box[i].stop) for i in stack)))
        self._timer.start(COUNT_AFTER_MS)

    def _on_shown(self, event: Any = None) -> None:
        # Undo says nothing but this, and so does every move to another plane: the viewer's step tells them apart.
        if self._dims.current_step == self._step:
            self.count_all_soon()
        self._step = self._dims.current_step

    def _count(self) -> None:
        labels, n_classes, n_pixels = self._labels(), len(self._session.classes), 0
        while self._dirty and n_pixels < COUNT_CHUNK_PX:
            index = self._dirty.pop()
            self._counts[index] = layers.count_labels(labels[index], n_classes)
            n_pixels += labels[index].size
        if self._dirty:
            self._timer.start(0)
            return
        counts = [c for c in self._counts.values() if len(c) == n_classes]
        self._session.set_painted(self._image_key, [int(n) for n in sum(counts, np.zeros(n_classes, np.int64))])
