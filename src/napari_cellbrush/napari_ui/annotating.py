"""Strokes: makes annotation layers, keeps them in step with the class table, counts what is painted.

Only the person writes into an annotation layer. What has to be rewritten as a whole (a class was taken out, other
labels were taken over) becomes a new layer, whose undo history cannot bring back values of another meaning.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer, Signal

from napari_cellbrush.config import LabelKind
from napari_cellbrush.errors import AnnotationError, CellbrushError
from napari_cellbrush.napari_ui import layers, runs
from napari_cellbrush.napari_ui.worker import Job, memory_in_words
from napari_cellbrush.session import OF_OBJECTS, ImageEntry, Phase, Session

if TYPE_CHECKING:
    from napari_cellbrush.napari_ui.workbench import Workbench

#: Milliseconds without a stroke before pixels are counted.
COUNT_AFTER_MS = 200
#: Pixels that are counted at a time (a few milliseconds).
COUNT_CHUNK_PX = 8_000_000


class Annotating(QObject):
    """The annotation layers of one viewer."""

    #: Of some layer; see :meth:`unseen_in`.
    unseen_changed = Signal()

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        book, session = bench.book, bench.session
        self._book = book
        self._session = session
        self._run = session.taking_over
        self._job: Job | None = None
        self._counters: dict[str, PixelCounter] = {}
        #: By the key of the layer: where something was painted when the first answer came, stack axes + YX.
        self._unseen: dict[str, NDArray[np.bool_]] = {}
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
        OutOfMemory
            If the layer does not fit.
        """
        image = self._image(image_key)
        existing = self.layer_of(image_key)
        if existing is not None:
            # A second one would leave the first one's strokes out of training without a word.
            self._bring(image_key, existing)
            return existing
        axes = layers.labels_axes(image.axes)
        with memory_in_words("making an annotation"):
            empty = np.zeros(layers.labels_shape(image.axes, image.shape), np.uint8)
        layer = self._start(image, layers.in_engine_order(empty, axes))
        self._bring(image_key, layer)
        return layer

    def replace(self, image_key: str, strokes: NDArray[np.uint8]) -> None:
        """Make an annotation layer of strokes, stack axes + YX; the one that the image had is hidden.

        Raises
        ------
        AnnotationError
            If the image was removed, or nobody knows its axes.
        """
        image, replaced = self._image(image_key), self.layer_of(image_key)
        self._place(image_key, self._start(image, strokes, opacity=layers.opacity_of(strokes)))
        if replaced is not None:
            self._bench.showing.hide(replaced)

    def likely_kind(self, labels_key: str) -> LabelKind:
        """What the values of a labels layer mean: what a run says that wrote them, else as far as a glance tells."""
        layer = self._book.layer(labels_key)
        noted = layers.note_of(layer).get("output") if layer is not None else "classes"
        if noted == "classes":
            return "classes"
        is_objects = noted in OF_OBJECTS or (
            layers.largest_at_a_glance(layer, self._book.viewer.dims.point) > len(self._session.classes))
        return "objects" if is_objects else "classes"

    def take_over(self, labels_key: str, image_key: str, kind: LabelKind) -> None:
        """Make an annotation layer from a copy of another labels layer, which is hidden then.

        Runs beside the window; ends at once, with a sentence, if that is not possible.
        """
        source = self._book.layer(labels_key)
        if self._run.busy or source is None:
            return
        try:
            image = self._image(image_key)
            axes = layers.axes_on_image(source, image.axes, image.shape)
        except CellbrushError as error:
            self._run.end(str(error), "error")
            return
        task = runs.TakeOverTask(source.name, layers.full_resolution(source), axes, kind, self._session.classes)
        self._run.begin(f"Copying '{source.name}'…")
        self._job = self._bench.job(partial(runs.take_over, task), "taking over labels", exclusive=False)
        self._job.received.connect(self._on_plane_taken)
        self._job.finished.connect(partial(self._on_taken, task, labels_key, image))
        self._job.stopped.connect(lambda _: self._run.end("Stopped; nothing has changed."))
        self._job.failed.connect(lambda error: self._run.end(str(error), "error"))
        self._job.start()

    def stop(self) -> None:
        """End the taking over without an annotation."""
        if self._job is not None and self._run.busy:
            self._run.stopping()
            self._job.stop()

    def paint_with(self, position: int) -> None:
        """Choose a class, and the brush on the chosen image's annotation layer."""
        self._session.choose_class(position)
        if self._session.image is not None:
            self.take_brush(self._session.image.key)

    def remove_class(self, position: int) -> None:
        """Take a class out of the table and its strokes out of all annotations.

        Raises
        ------
        ConfigError
            If fewer than two classes would be left.
        OutOfMemory
            If the rewritten strokes do not fit; nothing has changed then.
        """
        with memory_in_words("removing a class"):
            rewritten = [(key, layers.without_class(self._strokes(layer), position + 1))
                         for key in self._session.annotations if (layer := self.layer_of(key)) is not None]
        self._session.remove_class(position)
        for image_key, data in rewritten:
            old = self._book.layer(self._session.annotation_of(image_key))
            name, old.name = old.name, f"{old.name} (before)"
            unseen = self.unseen_in(str(old.unique_id))
            self._place(image_key, self._start(self._image(image_key), data, name, old.opacity))
            self.set_unseen(image_key, unseen)
            self._book.viewer.layers.remove(old)

    def snapshot(self, image_key: str) -> NDArray[np.uint8]:
        """A copy of an image's strokes, stack axes + YX, that later strokes do not change; zeros if it has none."""
        layer, image = self.layer_of(image_key), self._image(image_key)
        with memory_in_words("copying the strokes"):
            if layer is None:
                shape = layers.labels_shape(image.axes, image.shape)
                return layers.in_engine_order(np.zeros(shape, np.uint8), layers.labels_axes(image.axes))
            return np.array(self._strokes(layer))

    def unseen_in(self, key: str) -> NDArray[np.bool_] | None:
        """Where a layer was painted before an answer to it was seen, stack axes + YX; None while nobody has."""
        return self._unseen.get(key)

    def note_answered(self, image_key: str) -> None:
        """Say that an answer to an image's strokes is there: what is painted from now on corrects it.

        Only the first answer counts.
        """
        layer = self.layer_of(image_key)
        if layer is not None and self.unseen_in(str(layer.unique_id)) is None:
            # Where it cannot be remembered, all strokes count the same.
            with suppress(MemoryError):
                self.set_unseen(image_key, runs.painted_in(self._strokes(layer)))

    def set_unseen(self, image_key: str, unseen: NDArray[np.bool_] | None) -> None:
        """Say where an image was painted before an answer was seen, see :meth:`unseen_in`."""
        layer = self.layer_of(image_key)
        if layer is not None and unseen is not None and self._strokes(layer).shape == unseen.shape:
            self._unseen[str(layer.unique_id)] = unseen
            self.unseen_changed.emit()

    def close(self) -> None:
        """Stop counting."""
        for counter in self._counters.values():
            counter.close()
        self._counters.clear()

    # ---------------------------------------------------------------------------------------------- taking over

    def _on_plane_taken(self, taken: runs.PlaneTaken) -> None:
        if self._run.phase is Phase.RUNNING:
            self._run.say(f"Turning labels into strokes: plane {taken.plane} of {taken.n_planes}.")

    def _on_taken(self, task: runs.TakeOverTask, labels_key: str, image: ImageEntry,
                  strokes: NDArray[np.uint8]) -> None:
        self._bench.after_drag(partial(self._finish_taking_over, task, labels_key, image, strokes))

    def _finish_taking_over(self, task: runs.TakeOverTask, labels_key: str, image: ImageEntry,
                            strokes: NDArray[np.uint8]) -> None:
        self._job = None
        found = self._session.find_image(image.key)
        if found is None or found.axes != image.axes or self._session.classes != task.classes:
            self._run.end(f"'{image.name}' or its classes changed meanwhile. Take the labels over once more.", "error")
            return
        self.replace(found.key, strokes)
        source = self._book.layer(labels_key)
        if source is not None:
            source.visible = False
        self._run.end("")

    # -------------------------------------------------------------------------------------------- making layers

    def _image(self, key: str) -> ImageEntry:
        image = self._session.find_image(key)
        if image is None:
            raise AnnotationError("The image was removed", "Choose another image")
        if not image.axes:
            raise AnnotationError(f"Nobody knows what the axes of '{image.name}' mean",
                                  "Write one letter per axis into the field Axes")
        return image

    def _start(self, image: ImageEntry, data: NDArray[np.uint8], name: str = "",
               opacity: float = layers.ANNOTATION_OPACITY) -> Labels:
        session = self._session
        image_layer = self._book.layer(image.key)
        layer = layers.new_labels(
            image_layer, image.axes, data, name or f"{image.name} annotation", opacity=opacity,
            colormap=layers.class_colormap(session.classes), features=layers.class_features(session.classes))
        layer.brush_size = session.brush_px
        layer.selected_label = session.current_class + 1
        layers.bind_class_keys(layer, len(session.classes))
        # napari would go on to say that digits choose tools.
        layer.events.help.connect(self._on_help)
        layer.events.selected_label.connect(self._on_label_selected)
        layer.events.brush_size.connect(self._on_brush_used)
        key = self._book.add(layer)
        self._on_layer_removed(session.annotation_of(image.key) or "")
        session.set_annotation(image.key, key)
        self._counters[key] = PixelCounter(layer, image.key, session, self._book.viewer, self)
        return layer

    def take_up(self) -> None:
        """Give mouse and keys to the strokes of the chosen image, if it is objects that have them."""
        session, active = self._session, self._book.viewer.layers.selection.active
        image_key = session.image.key if session.image else ""
        layer = self.layer_of(image_key)
        if layer is not None and active is not None and str(active.unique_id) == session.correction.layer:
            self._bring(image_key, layer)

    def take_brush(self, image_key: str) -> bool:
        """Give mouse and keys to the strokes of an image; whether it has any."""
        layer = self.layer_of(image_key)
        if layer is not None:
            self._ready(layer)
        return layer is not None

    @staticmethod
    def _strokes(layer: Labels) -> NDArray[np.uint8]:
        """A view of a layer's array as the engine orders it: stack axes + YX."""
        return layers.in_engine_order(layer.data, layers.mask_axes(layer))

    def _place(self, image_key: str, layer: Labels) -> None:
        """Ready to be painted if it is of the chosen image; else seen as soon as that is chosen."""
        if self._session.image is not None and self._session.image.key == image_key:
            self._bring(image_key, layer)
        else:
            self._bench.showing.reveal(layer)

    def _bring(self, image_key: str, layer: Labels) -> None:
        """Into sight, with its image, and ready to be painted."""
        self._bench.showing.show(image_key)
        self._ready(layer)

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
            layer.help = layers.keys_in_words(len(classes))
        for counter in self._counters.values():
            counter.count_all_soon()

    def _on_help(self, event: Any) -> None:
        layer, viewer = event.source, self._book.viewer
        layer.help = layers.keys_in_words(len(self._session.classes))
        if viewer.layers.selection.active is layer:
            viewer.help = layer.help

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
            self._unseen.pop(str(layer.unique_id), None)
            self.unseen_changed.emit()
            self._counters[str(layer.unique_id)].count_all_soon()
        else:
            self._on_layer_removed(str(layer.unique_id))
            self._session.forget_annotation(image_key)

    def _on_layer_removed(self, key: str) -> None:
        self._unseen.pop(key, None)
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
