"""Layers that hold a model's answers: made before a run, found again by the next one, coloured like the classes.

One that the person corrected by hand is never written again: the next run makes a new layer beside it. Of objects,
those that she accepted stay, and all others are written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from napari.layers import Image, Labels, Layer
from numpy.typing import NDArray

from napari_cellbrush.config import ClassDefinition, OutputKind
from napari_cellbrush.engine.accepted import Accepted
from napari_cellbrush.napari_ui import layers
from napari_cellbrush.napari_ui.layer_book import LayerBook
from napari_cellbrush.napari_ui.runs import Answers
from napari_cellbrush.napari_ui.showing import Showing
from napari_cellbrush.session import ImageEntry, Session


@dataclass(eq=False)
class Sheet:
    """The result layers of one image in one run."""

    image: ImageEntry
    #: Axes of the result layers.
    axes: str
    classes: Labels | None = None
    objects: Labels | None = None
    probabilities: list[Image] = field(default_factory=list)
    #: Behind the objects.
    answers: Answers = field(default_factory=Answers)
    #: What :meth:`ResultLayers.take_back` needs: the image's layers before, by kind, and which of them were seen.
    before: dict[str, str] = field(default_factory=dict)
    seen_before: frozenset[str] = frozenset()

    def layers(self) -> list[Layer]:
        """All of them."""
        return [layer for layer in (self.classes, self.objects, *self.probabilities) if layer is not None]

    def array(self, layer: Layer) -> NDArray[Any]:
        """A view of a layer's array as the engine orders it: stack axes + YX."""
        return layers.in_engine_order(layer.data, self.axes)

    @property
    def model_hash(self) -> str:
        """Hash of the model whose answers the layers hold; empty while there are none."""
        return str(layers.note_of(self.layers()[0]).get("provenance", {}).get("model_weights_sha256", ""))

    def begin(self, provenance: dict[str, Any], *, whole: bool, accepted: Accepted) -> None:
        """Note what will be written, and whether on all of the image; answers of another model are wiped first.

        Accepted objects are no model's answers.
        """
        same = self.model_hash == provenance["model_weights_sha256"]
        for layer in self.layers():
            if not same and layer is self.objects:
                accepted.keep_only(self.array(layer))
            elif not same:
                layer.data[...] = 0
            whole_before = same and bool(layers.note_of(layer).get("whole"))
            layers.note_on(layer, provenance=provenance, whole=whole or whole_before)


class ResultLayers:
    """All result layers of one viewer."""

    def __init__(self, book: LayerBook, session: Session, showing: Showing) -> None:
        self._book = book
        self._session = session
        self._showing = showing
        self._keys: dict[tuple[str, str], str] = {}
        self._edited: set[str] = set()
        #: Classes of the model behind each layer of classes.
        self._classes: dict[str, tuple[ClassDefinition, ...]] = {}
        #: Live masks that a run has hidden, rather than a person.
        self._eclipsed: set[str] = set()
        #: Behind each layer of objects.
        self._answers: dict[str, Answers] = {}
        book.removed.connect(lambda key: self._answers.pop(key, None))
        session.classes_changed.connect(self._on_classes_changed)

    def sheet(self, image: ImageEntry, output: OutputKind, classes: Sequence[ClassDefinition], *,
              fresh: bool) -> Sheet:
        """The layers for a run on one image: those of the last run, or new ones.

        Parameters
        ----------
        image
            What is segmented.
        output
            What is wanted.
        classes
            Those of the model.
        fresh
            Make new layers in every case.
        """
        layer, before = self._book.layer(image.key), self._of_image(image.key)
        seen = frozenset(str(result.unique_id) for result in map(self._book.layer, before.values())
                         if result is not None and result.visible)
        self._hide_results(image.key)
        sheet = Sheet(image, layers.labels_axes(image.axes), before=before, seen_before=seen)
        if output == "probabilities":
            sheet.probabilities = [self._probability(image, layer, definition, fresh) for definition in classes]
            for shown, definition in zip(sheet.probabilities, classes, strict=True):
                # Background is nearly everywhere and would hide the image.
                self._see(shown, definition.role != "background")
            return sheet
        sheet.classes = self._labels(image, layer, "classes", np.dtype(np.uint8), fresh)
        self._showing.reveal(sheet.classes)
        self._classes[str(sheet.classes.unique_id)] = tuple(classes)
        self._colour(sheet.classes, tuple(classes))
        if output == "objects":
            sheet.objects = self.objects_layer(image, fresh)
            self._showing.reveal(sheet.objects)
            sheet.answers = self._answers.setdefault(str(sheet.objects.unique_id), Answers())
        return sheet

    def take_back(self, sheet: Sheet) -> None:
        """Undo :meth:`sheet`, as long as nothing was written: remove what it made, show again what it hid."""
        earlier = self._book.layer(sheet.before.get("objects"))
        if sheet.objects is not None and earlier is not None and earlier is not sheet.objects:
            self._hand_over_accepted(sheet.image, sheet.objects, earlier)
        made = {str(layer.unique_id): layer for layer in sheet.layers()
                if str(layer.unique_id) not in sheet.before.values()}
        for kind, key in self._of_image(sheet.image.key).items():
            if key in made:
                self._keys[sheet.image.key, kind] = sheet.before.get(kind, "")
        for layer in made.values():
            if layer in self._book.viewer.layers:
                self._book.viewer.layers.remove(layer)
        for key in sheet.before.values():
            layer = self._book.layer(key)
            if layer is not None:
                self._see(layer, key in sheet.seen_before)

    def answered_objects(self, image: ImageEntry) -> tuple[Labels | None, Answers]:
        """The layer of an image's objects, if there is one, and what a model said behind them."""
        key = self._keys.get((image.key, "objects"))
        return self._book.layer(key), self._answers.get(key or "", Answers())

    def objects_layer(self, image: ImageEntry, fresh: bool = False) -> Labels:
        """The layer of an image's objects, made if need be; what is accepted in an earlier one moves there."""
        before = self._book.layer(self._keys.get((image.key, "objects")))
        layer = self._labels(image, self._book.layer(image.key), "objects", np.dtype(np.uint16), fresh)
        if before is not None and before is not layer:
            self._move_accepted(image, before, layer)
        return layer

    def bodies(self, image: ImageEntry, source: Labels, ids: NDArray[Any], provenance: dict[str, Any]) -> Labels:
        """A layer of what the objects of another became, stack axes + YX, which is shown instead of that one.

        What was joined from the same layer before goes, unless a person has painted on it.
        """
        last = self._book.layer(self._keys.get((image.key, "bodies")))
        same = last is not None and layers.note_of(last).get("joined_from") == str(source.unique_id)
        if same and str(last.unique_id) not in self._edited:
            self._book.viewer.layers.remove(last)
        self._hide_results(image.key)
        on = self._book.layer(image.key)
        layer: Labels = self._find_or_add(
            image, on, "bodies", lambda: layers.new_labels(on, image.axes, ids, f"{source.name} joined",
                                                           opacity=layers.RESULT_OPACITY), fresh=True, above=source)
        layers.note_on(layer, provenance=provenance, joined_from=str(source.unique_id))
        self._showing.hide(source)
        self._showing.reveal(layer)
        return layer

    def restored_objects(self, image: ImageEntry, ids: NDArray[Any]) -> Labels:
        """A new layer of objects, stack axes + YX, shown alone; what is accepted in an earlier one stays there."""
        self._hide_results(image.key)
        layer: Labels = self._labels(image, self._book.layer(image.key), "objects", np.dtype(np.uint16), fresh=True)
        layer.data = layers.in_layer_order(ids, layers.mask_axes(layer))
        self._showing.reveal(layer)
        return layer

    def _move_accepted(self, image: ImageEntry, before: Labels, layer: Labels) -> None:
        accepted = self._session.accepted_in(str(before.unique_id))
        if not accepted or before.data.shape != layer.data.shape:
            return
        kept = layers.in_engine_order(np.array(before.data), layers.mask_axes(before))
        accepted.keep_only(kept)
        layer.data = layers.in_layer_order(kept, layers.mask_axes(layer))
        self._hand_over_accepted(image, before, layer)

    def _hand_over_accepted(self, image: ImageEntry, giver: Labels, taker: Labels) -> None:
        """What is accepted in one layer is from now on accepted in another, which holds the same objects."""
        key = str(giver.unique_id)
        accepted = self._session.accepted_in(key)
        if accepted:
            self._session.set_accepted(key, "", Accepted())
            self._session.set_accepted(str(taker.unique_id), image.key, accepted)

    def live_mask(self, image: ImageEntry, classes: Sequence[ClassDefinition]) -> Labels:
        """The layer that follows the strokes on an image: the last one, or a new one."""
        layer = self._labels(image, self._book.layer(image.key), "live", np.dtype(np.uint8), fresh=False)
        self.show_alone(layer)
        self._eclipsed.discard(str(layer.unique_id))
        layer.events.visible.connect(self._on_live_shown)
        self._classes[str(layer.unique_id)] = tuple(classes)
        self._colour(layer, tuple(classes))
        return layer

    def _on_live_shown(self, event: Any) -> None:
        if event.source.visible:
            self._eclipsed.discard(str(event.source.unique_id))

    def show_live_again(self, image: ImageEntry) -> None:
        """Show the live mask instead of the results of a run that has hidden it."""
        key = self._keys.get((image.key, "live"), "")
        layer = self._book.layer(key)
        if key in self._eclipsed and layer is not None:
            self._hide_results(image.key)
            layer.visible = True

    def holds_whole_of_another(self, image: ImageEntry, model: str, output: OutputKind | None = None) -> bool:
        """Whether a glance at a part of an image would wipe what another model said of all of it, in that kind."""
        found = map(self._book.layer, self._of_image(image.key).values())
        notes = [layers.note_of(layer) for layer in found if layer is not None]
        kind = "probability" if output == "probabilities" else output
        return any(kind in (None, note.get("output")) and note.get("whole")
                   and note.get("provenance", {}).get("model") != model for note in notes)

    def _of_image(self, image_key: str) -> dict[str, str]:
        """Keys of the last layers of an image, by kind."""
        return {kind: key for (of_image, kind), key in self._keys.items() if of_image == image_key}

    def _see(self, layer: Layer, seen: bool) -> None:
        if seen:
            self._showing.reveal(layer)
        else:
            self._showing.hide(layer)

    def _labels(self, image: ImageEntry, image_layer: Layer, kind: str, dtype: np.dtype[Any], fresh: bool) -> Labels:
        def make() -> Labels:
            axes = layers.labels_axes(image.axes)
            empty = np.zeros(layers.labels_shape(image.axes, image.shape), dtype)
            return layers.new_labels(image_layer, image.axes, layers.in_engine_order(empty, axes),
                                     f"{image.name} {kind}", opacity=layers.RESULT_OPACITY)

        return self._find_or_add(image, image_layer, kind, make, fresh)

    def _probability(self, image: ImageEntry, image_layer: Layer, definition: ClassDefinition, fresh: bool) -> Image:
        def make() -> Image:
            return layers.new_probability(image_layer, image.axes, f"{image.name} {definition.name} probability",
                                          definition.color)

        return self._find_or_add(image, image_layer, f"probability of {definition.name}", make, fresh)

    def _find_or_add(self, image: ImageEntry, image_layer: Layer, kind: str, make: Callable[[], Any],
                     fresh: bool, above: Layer | None = None) -> Any:
        found = self._book.layer(self._keys.get((image.key, kind)))
        shape = layers.labels_shape(image.axes, image.shape)
        if found is not None and not fresh and str(found.unique_id) not in self._edited and found.data.shape == shape:
            layers.note_on(found, axes=layers.labels_axes(image.axes))
            return found
        layer = make()
        # What follows the strokes holds classes as well.
        layers.note_on(layer, output="classes" if kind == "live" else kind.split()[0], image=image.key,
                       image_name=image.name)
        key = self._book.add(layer, above=above or found or image_layer)
        self._keys[image.key, kind] = key
        if isinstance(layer, Labels):
            layer.events.paint.connect(self._on_painted)
        return layer

    def show_alone(self, layer: Labels) -> None:
        """Show a layer, and no other result of its image."""
        self._hide_results(str(layers.note_of(layer).get("image", "")))
        self._showing.reveal(layer)

    def _hide_results(self, image_key: str) -> None:
        """One kind of result is shown at a time: on top of each other they cannot be told apart."""
        for kind, key in self._of_image(image_key).items():
            layer = self._book.layer(key)
            if layer is not None:
                if kind == "live" and layer.visible:
                    self._eclipsed.add(key)
                self._showing.hide(layer)

    def _on_painted(self, event: Any) -> None:
        # What a person changes among objects is accepted, which is all the protection it needs.
        if layers.note_of(event.source).get("output") != "objects":
            self._edited.add(str(event.source.unique_id))

    def _on_classes_changed(self) -> None:
        for key, classes in self._classes.items():
            layer = self._book.layer(key)
            if layer is not None:
                self._colour(layer, classes)

    def _colour(self, layer: Labels, classes: tuple[ClassDefinition, ...]) -> None:
        """Colours of the session for classes that it knows, else those of the model."""
        shown = self._session.in_own_colours(classes)
        layer.colormap = layers.class_colormap(shown, layers.BACKGROUND_ALPHA)
        layer.features = layers.class_features(shown)
