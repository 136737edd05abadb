"""Correcting objects by hand: clicks, lines and keys on an objects layer become corrections that later runs keep.

Whatever a person changes among objects, with these tools or with napari's own brush, counts as accepted. Each change
is one step of the layer's own undo history; what is accepted goes back and forth with it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray
from psygnal import Signal
from qtpy.QtCore import QObject

from napari_cellbrush.engine.accepted import Accepted
from napari_cellbrush.errors import AnnotationError, CellbrushError
from napari_cellbrush.napari_ui import layers, runs
from napari_cellbrush.napari_ui.proofreading_marks import Marks
from napari_cellbrush.napari_ui.worker import memory_in_words
from napari_cellbrush.session import Correction, CorrectionTool, ImageEntry, MaskEntry, Notice, NoticeKind, Session

if TYPE_CHECKING:
    from napari_cellbrush.engine.proofreading import Boxes, Edit
    from napari_cellbrush.napari_ui.workbench import Workbench

#: Steps that can be undone; napari keeps as many.
STEPS = 100
#: A press and a release closer than this, in screen pixels, are a click.
CLICK_PX = 4
#: New ids that are looked at for one of another colour.
COLOURS_TRIED = 4
#: An object smaller than this on the screen is brought closer, to that size.
SMALL_PX, CLOSE_PX = 24, 100

_HINTS: dict[CorrectionTool, str] = {
    "select": "Click an object to work on it.",
    "merge": "Click two objects that are one.",
    "split": "Draw a line across an object, from outside to outside."}
_BY_HAND = "One of napari's own tools has the mouse: what it changes is accepted. Esc to end."
_PAINT_ONE = "Paint one object; right-click and circle it to fill it. C for the next one, Esc to end."
_NO_PLANE = "The view does not show planes of the image. Turn the axes back, or go to 2D."


class Proofreading(QObject):
    """The corrections of one viewer's objects."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        self._book = bench.book
        self._session = bench.session
        self._histories: dict[str, History] = {}
        self._layer: Labels | None = None
        self._marks: Marks | None = None
        #: Where the objects of one plane are, and which plane that is.
        self._boxes: tuple[layers.Index, Boxes] | None = None
        #: In the middle of a change: what is known of boxes does not fit yet.
        self._changing = False
        #: Id of the object that New paints, and whether napari preserved labels before.
        self._new, self._preserved = 0, False
        #: The highest id of the layer.
        self._highest: int | None = None
        #: Row, column and diameter of objects on that plane.
        self._places: dict[int, tuple[float, float, float]] = {}
        self._session.images_changed.connect(self._watch_results)
        self._session.accepted_changed.connect(self._on_accepted_changed)
        self._book.removed.connect(self._on_layer_removed)
        bench.segmenting.objects_written.connect(self._on_objects_written)

    def choices(self) -> list[MaskEntry]:
        """Layers that may hold objects, those that a run found first."""
        strokes = self._session.annotations.values()
        found = [mask for mask in self._session.masks
                 if mask.labels and mask.output in ("objects", "") and mask.key not in strokes]
        return sorted(found, key=lambda mask: mask.output != "objects")

    def say_image(self, layer_key: str, image_key: str) -> None:
        """Say which image the objects of a layer from elsewhere are of; what is accepted teaches that one."""
        layer, image = self._book.layer(layer_key), self._session.find_image(image_key)
        if layer is None or image is None:
            return
        _note_image(layer, image)
        if layer_key in self._histories:
            self._histories[layer_key].belong_to(image)
        if layer is self._layer:
            self._show(layer)
        self._session.correction_changed.emit()

    def checked(self, image_key: str) -> tuple[runs.CheckedObjects, ...]:
        """Copies of an image's objects layers in which something is accepted."""
        found = []
        for key, accepted in self._session.accepted_of(image_key).items():
            layer = self._book.layer(key)
            with memory_in_words("copying the accepted objects"):
                ids = np.array(layers.in_engine_order(layer.data, layers.mask_axes(layer)))
            found.append(runs.CheckedObjects(ids, accepted))
        return tuple(found)

    def table(self) -> dict[str, NDArray[Any]]:
        """Columns of the objects of the plane shown: id, pixels, whether accepted, and what was measured of them."""
        if self._layer is None:
            return {}
        ids, pixels = np.unique(self._plane(), return_counts=True)
        pixels, ids = pixels[ids > 0], ids[ids > 0]
        columns = {"id": ids, "pixels": pixels, "accepted": self._accepted.covers(ids)}
        measured = self._layer.features
        if "index" in measured and measured["index"].is_unique:
            known = measured.set_index("index").reindex(ids)
            columns |= {str(name): known[name].to_numpy() for name in known}
        return columns

    # -------------------------------------------------------------------------------------------- on and off

    def start(self, layer_key: str) -> None:
        """Begin to correct a layer; says so where it cannot be."""
        self._bench.after_drag(partial(self._start, layer_key))

    def take_up(self) -> None:
        """Give mouse and keys back to the objects that are being corrected, if strokes have them or they are hidden."""
        active, painted = self._book.viewer.layers.selection.active, self._session.annotations.values()
        if self._layer is not None and (
                not self._layer.visible or str(getattr(active, "unique_id", "")) in painted):
            self._show(self._layer)
            self._book.viewer.layers.selection.active = self._layer

    def _start(self, layer_key: str, activate: bool = True) -> None:
        self.stop()
        layer = self._book.layer(layer_key)
        mask = next((mask for mask in self.choices() if mask.key == layer_key), None)
        if layer is None or mask is None:
            return
        try:
            self._watch(layer, mask)
        except CellbrushError as error:
            self._say(str(error), "error")
            return
        self._layer = layer
        if activate:
            self._show(layer)
        else:
            self._bench.segmenting.results.show_alone(layer)
        self._marks = Marks(self._book, layer, layers.mask_axes(layer))
        if activate:
            self._book.viewer.layers.selection.active = layer
        layer.mode = "pan_zoom"
        for key, action in self._keys().items():
            layer.bind_key(key, _without_layer(action), overwrite=True)
        layer.mouse_drag_callbacks.append(self._on_drag)
        layer.events.selected_label.connect(self._on_label_selected)
        layer.events.mode.connect(self._on_mode)
        layer.events.set_data.connect(self._on_shown)
        self._book.viewer.dims.events.ndisplay.connect(self._on_turned)
        self._history.painted.connect(self._on_painted)
        self._history.moved.connect(self._say)
        self._history.added.connect(self._on_added)
        self._session.set_correction(layer=layer_key, tool="select", current=0)
        self._forget_boxes()
        self._refresh(Notice(_HINTS["select"]))

    def stop(self) -> None:
        """End the correcting; what was corrected stays."""
        layer, self._layer = self._layer, None
        if layer is None:
            return
        for key in self._keys():
            layer.bind_key(key, None)
        layer.mouse_drag_callbacks.remove(self._on_drag)
        layer.events.selected_label.disconnect(self._on_label_selected)
        layer.events.mode.disconnect(self._on_mode)
        layer.events.set_data.disconnect(self._on_shown)
        self._book.viewer.dims.events.ndisplay.disconnect(self._on_turned)
        history = self._histories.get(str(layer.unique_id))
        if history is not None:
            history.painted.disconnect(self._on_painted)
            history.moved.disconnect(self._say)
            history.added.disconnect(self._on_added)
        layer.mode = "pan_zoom"
        self._end_new(layer)
        self._new = 0
        if self._marks is not None:
            self._marks.close()
            self._marks = None
        self._session.correction = Correction()
        self._session.correction_changed.emit()

    def close(self) -> None:
        """The window closes: nothing more is drawn."""
        self._layer = None
        for history in self._histories.values():
            history.close()
        self._histories.clear()

    def new_layer(self) -> None:
        """Begin to paint objects on the chosen image, which nobody segmented yet."""
        self._bench.after_drag(self._new_layer)

    def _new_layer(self) -> None:
        image = self._session.image
        if image is None:
            return
        try:
            if not image.axes:
                raise AnnotationError(f"Nobody knows what the axes of '{image.name}' mean",
                                      "Write one letter per axis into the field Axes of Annotate")
            with memory_in_words("making a layer for objects"):
                layer = self._bench.segmenting.results.objects_layer(image)
        except CellbrushError as error:
            self._say(str(error), "error")
            return
        self._start(str(layer.unique_id))
        self.new_object()

    def _keys(self) -> dict[str, Callable[[], None]]:
        return {"A": self.accept, "Shift-A": self.accept_view, "N": self.go_on, "Shift-N": partial(self.go_on, -1),
                "M": partial(self.use, "merge"), "S": partial(self.use, "split"), "Escape": partial(self.use, "select"),
                "D": self.delete, "H": self.fill_holes, "C": self.new_object}

    # ------------------------------------------------------------------------------------------------- tools

    def use(self, tool: CorrectionTool) -> None:
        """Let clicks and lines do something else."""
        if self._layer is not None:
            self._new = 0
            self._layer.mode = "pan_zoom"
            self._layer.cursor = "cross" if tool == "split" else "standard"
            # The object at hand may lie anywhere: to merge, both are clicked.
            current = 0 if tool == "merge" else self._session.correction.current
            self._session.set_correction(tool=tool, current=current, notice=Notice(_HINTS[tool]))
            self._sees_a_plane()

    def select(self, number: int) -> None:
        """Work on an object of the plane shown; 0 for none."""
        layer = self._layer
        if layer is None:
            return
        self._session.set_correction(current=number)
        if number and layer.selected_label != number:
            layer.selected_label = number
        self._refresh(Notice(_HINTS[self._session.correction.tool]) if number and layer.mode == "pan_zoom" else None)

    def go_on(self, step: int = 1) -> None:
        """Go to the next object that is not accepted yet, or with a step of -1 to the one before."""
        from napari_cellbrush.engine.proofreading import next_object

        if self._layer is None or not self._sees_a_plane():
            return
        number = next_object(self._boxes_shown(), self._session.correction.current, self._accepted.ids, step)
        if number:
            self._go_to(number, stays=True)
        else:
            self._say("All objects of this plane are accepted.", "success")

    def go_to(self, number: int) -> None:
        """Bring an object of the plane shown to the middle of the view, and work on it."""
        self._go_to(number, stays=False)

    def _go_to(self, number: int, stays: bool) -> None:
        layer, box = self._layer, self._boxes_shown().get(number)
        if layer is not None and box is not None and self._sees_a_plane():
            show_box(self._book.viewer, layer, self._axes, self._index(), box, stays)
            self.select(number)

    def accept(self) -> None:
        """Accept the object at hand, or take that back."""
        number = self._at_hand()
        if number:
            accepted = self._accepted
            taken_back = number in accepted.ids
            self._change(None, accepted.without_objects([number]) if taken_back else accepted.with_objects([number]))
            self._say(f"Object {number} is {'no longer ' if taken_back else ''}accepted.")

    def accept_view(self) -> None:
        """Accept all objects that are seen as a whole."""
        layer = self._layer
        if layer is None:
            return
        try:
            region = layers.visible_region(layer, self._axes, self._displayed())
        except AnnotationError as error:
            self._say(str(error), "warning")
            return
        if region is None:
            self._say(_NO_PLANE, "warning")
            return
        whole = self._boxes_shown().within(region)
        seen = frozenset(np.unique(self._plane()[region]).tolist()) - {0}
        n_cut = len(seen - whole - self._accepted.ids)
        are = "is" if n_cut == 1 else "are"
        self._accept_all_of(whole, f" {n_cut:,} that the view cuts {are} not." if n_cut else "")

    def accept_all(self) -> None:
        """Accept all objects of the layer, on all planes."""
        if self._layer is not None:
            self._accept_all_of(frozenset(np.unique(self._layer.data).tolist()) - {0})

    def _accept_all_of(self, ids: frozenset[int], but: str = "") -> None:
        new = ids - self._accepted.ids
        if new:
            self._change(None, self._accepted.with_objects(new))
        accepted = f"{len(new):,} more objects accepted." if len(new) != 1 else "One more object accepted."
        self._say(f"{accepted}{but}", "success")

    def delete(self) -> None:
        """Take the object at hand away."""
        from napari_cellbrush.engine.proofreading import deleted, runs_of_pixels

        number = self._at_hand()
        if number:
            edit = deleted(self._plane(), self._boxes_shown(), number)
            runs_gone = runs_of_pixels(self._index(), *edit.pixels()[:2])
            self._change(edit, self._accepted.without_objects([number]).with_emptied(runs_gone))
            self._session.set_correction(current=0)
            self._say(f"Object {number} is deleted; later runs will find none there.")

    def fill_holes(self) -> None:
        """Fill the holes of the object at hand."""
        from napari_cellbrush.engine.proofreading import filled

        number = self._at_hand()
        if number:
            self._try(lambda: filled(self._plane(), self._boxes_shown(), number), f"Filled object {number}.")

    def new_object(self) -> None:
        """Paint an object that was not found."""
        layer = self._layer
        if layer is not None and self._sees_a_plane():
            try:
                number = next(self._new_ids())
            except AnnotationError as error:
                self._say(str(error), "error")
                return
            self._session.set_correction(tool="select", current=0)
            layer.selected_label = self._new = number
            layer.mode = "paint"
            self._begin_new(layer)

    def undo(self) -> None:
        """Take the last step back."""
        if self._layer is not None:
            self._history.undo()

    def redo(self) -> None:
        """Take the last undo back."""
        if self._layer is not None:
            self._history.redo()

    def _merge(self, second: int) -> None:
        from napari_cellbrush.engine.proofreading import merged

        first = self._session.correction.current
        if first in (0, second) or first not in self._boxes_shown():
            self.select(second)
            self._say("Click the object that belongs to this one.")
            return
        edit = merged(self._plane(), self._boxes_shown(), first, second)
        # The next click is on the first of two others.
        self._session.set_correction(current=0)
        self._change(edit, self._accepted.with_objects([first]).without_objects([second]))
        self._say(f"Objects {first} and {second} are one, {first}.")

    def _split(self, path: list[tuple[float, float]]) -> None:
        from napari_cellbrush.engine.proofreading import crossed, split

        number = crossed(self._plane(), path)
        if number:
            self._try(lambda: split(self._plane(), self._boxes_shown(), number, path, self._new_ids_unlike(number)),
                      f"Split object {number}.")
        else:
            self._say("The line crosses no object.", "warning")

    def _try(self, make: Callable[[], Edit], done: str) -> None:
        try:
            edit = make()
        except AnnotationError as error:
            self._say(str(error), "warning")
            return
        self._change(edit, self._accepted.with_objects(edit.touched))
        self._say(done)

    # ------------------------------------------------------------------------------------------------- mouse

    def _on_drag(self, layer: Labels, event: Any) -> Iterator[None]:
        tool = self._session.correction.tool
        if layer.mode != "pan_zoom" or event.button != 1 or event.modifiers or len(event.dims_displayed) != 2:
            return
        start, path = np.asarray(event.pos), [event.position]
        moved = False
        # The camera must not follow a line.
        event.handled = tool == "split"
        yield
        while event.type == "mouse_move":
            moved = moved or float(np.abs(np.asarray(event.pos) - start).max()) > CLICK_PX
            path.append(event.position)
            if tool == "split":
                event.handled = True
                self._draw_path(path)
            yield
        if tool == "split" and moved:
            self._on_line([*path, event.position])
        elif not moved and tool != "split":
            self._on_click(event.position)

    def _on_click(self, position: Any) -> None:
        if self._layer is None:
            return
        found = layers.pixel_at(self._layer, self._axes, position)
        number = 0 if found is None else int(self._plane()[round(found[1]), round(found[2])])
        if number and self._session.correction.tool == "merge":
            self._merge(number)
        else:
            self.select(number)

    def _on_line(self, positions: list[Any]) -> None:
        found = self._path_on_plane(positions)
        if found is not None:
            self._split(found)
        self._refresh()

    def _draw_path(self, positions: list[Any]) -> None:
        path = self._path_on_plane(positions)
        if path is not None and len(path) > 1 and self._marks is not None:
            outline = self._outline(self._session.correction.current, self._boxes_shown())
            self._marks.draw(self._index(), [*outline, np.asarray(path)])

    def _path_on_plane(self, positions: list[Any]) -> list[tuple[float, float]] | None:
        """Rows and columns, outside of the image too; None where the view shows no planes of it."""
        layer = self._layer
        if layer is None or not self._sees_a_plane():
            return None
        points = [layer.world_to_data(np.asarray(position)[-layer.ndim :]) for position in positions]
        return [(float(at[self._axes.index("Y")]), float(at[self._axes.index("X")])) for at in points]

    # ----------------------------------------------------------------------------------------------- changes

    def _change(self, edit: Edit | None, accepted: Accepted) -> None:
        layer = self._layer
        if layer is None:
            return
        pixels = None
        if edit is not None:
            rows, columns, values = edit.pixels()
            pixels = layers.in_layer_coordinates(self._axes, self._index(), rows, columns), values
        self._changing = True
        try:
            self._history.change(pixels, accepted)
        finally:
            self._changing = False
        if edit is not None:
            self._forget_objects(edit.window, edit.touched)
        self._refresh()

    def _forget_objects(self, window: tuple[slice, slice], touched: frozenset[int]) -> None:
        """Objects of the plane shown have other pixels now."""
        self._boxes_shown().update(window, touched)
        for number in touched:
            self._places.pop(number, None)

    def _on_painted(self, atoms: list[Any]) -> None:
        """With napari's own tools."""
        axes, index, touched = self._axes, self._index(), set()
        places = []
        for atom in atoms:
            coordinates, before, after = layers.painted_pixels(atom)
            touched |= set(np.unique(before).tolist()) | set(np.unique(after).tolist())
            at = dict(zip(axes, coordinates, strict=True))
            places.append(np.stack([at[letter] for letter in (*(a for a in axes if a in "TZ"), "Y", "X")]))
        first, last = (getattr(np, end)(np.concatenate(places, axis=1), axis=1) for end in ("min", "max"))
        if tuple(first[:-2]) == tuple(last[:-2]) == index:
            rows, columns = (slice(int(a), int(b) + 1) for a, b in zip(first[-2:], last[-2:], strict=True))
            self._forget_objects((rows, columns), frozenset(touched) - {0})
        else:
            self._forget_boxes()
        self._highest = None

    def _watch_results(self) -> None:
        """What a person paints among objects is accepted, whether the tools are on or not."""
        for mask in self._session.masks:
            if mask.output == "objects" and mask.key not in self._histories:
                self._watch(self._book.layer(mask.key), mask)

    def _show(self, layer: Labels) -> None:
        """Work on the image that objects are of; show it, and no other result of it."""
        image_key = str(layers.note_of(layer).get("image", ""))
        self._session.choose_image(image_key)
        self._bench.showing.show(image_key)
        self._bench.segmenting.results.show_alone(layer)

    def _watch(self, layer: Labels, mask: MaskEntry) -> None:
        image = self._bench.exporting.image(mask)
        if mask.key in self._histories:
            return
        _check(layer, mask)
        if image is not None:
            _note_image(layer, image)
        self._histories[mask.key] = History(layer, image, self._session)

    def _on_objects_written(self, layer: Labels) -> None:
        history = self._histories.get(str(layer.unique_id))
        if history is not None:
            history.clear()
        if layer is self._layer:
            self._forget_boxes()
            self._refresh()
        elif self._layer is not None and not self._layer.visible and (
                layers.note_of(layer).get("image") == layers.note_of(self._layer).get("image")):
            # The run made a new layer, and what was accepted went along; who paints strokes meanwhile keeps the brush.
            is_at_hand = self._book.viewer.layers.selection.active is self._layer
            self._bench.after_drag(partial(self._start, str(layer.unique_id), activate=is_at_hand))

    def _on_accepted_changed(self, key: str) -> None:
        if not self._changing and key == self._session.correction.layer:
            at_rest = self._layer is not None and self._layer.mode == "pan_zoom"
            self._refresh(Notice(_HINTS[self._session.correction.tool]) if at_rest else None)

    def _on_label_selected(self, event: Any) -> None:
        if self._layer is not None and self._session.correction.current != self._layer.selected_label:
            number = int(self._layer.selected_label)
            self._session.set_correction(current=number if number in self._boxes_shown() else 0)
            self._refresh()

    def _on_mode(self, event: Any) -> None:
        """napari's own tools took the mouse, or gave it back; also while Space is held."""
        layer = self._layer
        if layer is None:
            return
        self._end_new(layer)
        if layer.mode == "paint" and self._new and layer.selected_label == self._new:
            self._begin_new(layer)
        elif layer.mode == "pan_zoom":
            self._session.set_correction(painting="", notice=Notice(_HINTS[self._session.correction.tool]))
        else:
            self._new = 0
            self._session.set_correction(painting="by hand", notice=Notice(_BY_HAND))

    def _begin_new(self, layer: Labels) -> None:
        """What was not found lies, as a rule, beside what was, and takes nothing from it."""
        if self._session.correction.painting != "new":
            self._preserved = layer.preserve_labels
        layer.preserve_labels = True
        self._session.set_correction(painting="new", notice=Notice(_PAINT_ONE))

    def _end_new(self, layer: Labels) -> None:
        """What is painted from now on may take pixels from objects again."""
        if self._session.correction.painting == "new":
            layer.preserve_labels = self._preserved

    def _on_shown(self, event: Any = None) -> None:
        """Another plane, an undo, or somebody wrote: what is known of boxes no longer holds."""
        self._forget_boxes()
        self._refresh()

    def _on_added(self) -> None:
        if not self._changing:
            self._refresh()

    def _on_turned(self, event: Any) -> None:
        """To 3D, where tools do nothing, or back."""
        if self._layer is not None and self._sees_a_plane():
            self._on_mode(event)

    def _on_layer_removed(self, key: str) -> None:
        self._histories.pop(key, None)
        if self._layer is not None and str(self._layer.unique_id) == key:
            self.stop()

    # ----------------------------------------------------------------------------------------------- showing

    @property
    def _corrected(self) -> Labels:
        if self._layer is None:
            raise RuntimeError("No layer is being corrected")
        return self._layer

    @property
    def _history(self) -> History:
        return self._histories[str(self._corrected.unique_id)]

    @property
    def _axes(self) -> str:
        return layers.mask_axes(self._layer) if self._layer is not None else ""

    @property
    def _accepted(self) -> Accepted:
        return self._session.accepted_in(self._session.correction.layer)

    def _index(self) -> layers.Index:
        return layers.plane_index(self._corrected, self._axes, self._book.viewer.dims.point)

    def _displayed(self) -> list[int]:
        """The layer's axes that the view shows."""
        return layers.displayed_axes(self._layer, self._book.viewer.dims) if self._layer is not None else []

    def has_planes(self) -> bool:
        """Whether the objects that are corrected lie on several planes."""
        return bool(set(self._axes) & set("TZ"))

    def _sees_a_plane(self) -> bool:
        """Whether the view shows what the tools work on; says so if not."""
        sees = set(self._displayed()) == {self._axes.index("Y"), self._axes.index("X")}
        if not sees:
            self._say(_NO_PLANE, "warning")
        return sees

    def _plane(self) -> NDArray[Any]:
        plane: NDArray[Any] = layers.in_engine_order(self._corrected.data, self._axes)[self._index()]
        return plane

    def _boxes_shown(self) -> Boxes:
        from napari_cellbrush.engine.proofreading import Boxes

        index = self._index()
        if self._boxes is None or self._boxes[0] != index:
            self._places.clear()
            self._boxes = index, Boxes(self._plane())
        return self._boxes[1]

    def _forget_boxes(self) -> None:
        self._boxes, self._highest = None, None

    def _at_hand(self) -> int:
        """The object that the next action is about; says so if there is none."""
        number = self._session.correction.current
        if self._layer is None or not self._sees_a_plane():
            return 0
        if number not in self._boxes_shown():
            self._say("Click an object first.", "warning")
            return 0
        return number

    def _new_ids(self) -> Iterator[int]:
        from napari_cellbrush.engine.proofreading import free_ids

        ids = self._corrected.data
        if self._highest is None:
            self._highest = int(ids.max(initial=0))
        highest = self._highest
        for n in itertools.count(1):
            number = free_ids(ids, n, highest)[-1]
            self._highest = max(self._highest, number)
            yield number

    def _new_ids_unlike(self, number: int) -> Iterator[int]:
        """Those whose colour is not that of an object, from which they are to be told, if a few have another one."""
        ids, colours = self._new_ids(), self._corrected.colormap
        while True:
            few = list(itertools.islice(ids, COLOURS_TRIED))
            yield next((other for other in few if not np.allclose(colours.map(other), colours.map(number))), few[0])

    def _say(self, text: str, kind: NoticeKind = "info") -> None:
        self._session.set_correction(notice=Notice(text, kind))

    def _refresh(self, notice: Notice | None = None) -> None:
        """Draw what is at hand and what is accepted, and tell the session how far it is."""
        if self._layer is None or self._marks is None:
            return
        boxes, index, current = self._boxes_shown(), self._index(), self._session.correction.current
        self._marks.draw(index, self._outline(current, boxes))
        done = sorted(self._accepted.ids & boxes.keys())
        self._marks.dot(index, np.array([self._place(number, boxes) for number in done], float))
        changes = {} if notice is None else {"notice": notice}
        self._session.set_correction(n_objects=len(boxes), n_accepted=len(done),
                                     current=current if current in boxes else 0,
                                     current_accepted=current in boxes and current in self._accepted.ids,
                                     can_undo=self._history.can_undo, can_redo=self._history.can_redo, **changes)

    def _outline(self, number: int, boxes: Boxes) -> list[NDArray[Any]]:
        """Closed lines along the edges of an object's pixels, as rows and columns of pixels' centres."""
        from napari_cellbrush.engine.outlines import outlines

        if number not in boxes:
            return []
        rows, columns = boxes[number]
        polygons = outlines(self._plane()[rows, columns] == number)[1]
        rings = [ring for polygon in polygons for ring in (polygon.outer, *polygon.holes)]
        return [np.concatenate([ring, ring[:1]])[:, ::-1] - 0.5 + [rows.start, columns.start] for ring in rings]

    def _place(self, number: int, boxes: Boxes) -> tuple[float, float, float]:
        if number not in self._places:
            rows, columns = np.nonzero(self._plane()[boxes[number]] == number)
            nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
            self._places[number] = (float(rows[nearest] + boxes[number][0].start),
                                    float(columns[nearest] + boxes[number][1].start), float(np.sqrt(len(rows))))
        return self._places[number]


@dataclass(frozen=True)
class _Step:
    """Something that can be undone: what was accepted before and after, and whether pixels changed too."""

    before: Accepted
    after: Accepted
    pixels: bool


class History:
    """What was changed on one objects layer, in the order of doing it.

    napari undoes pixels, and nothing else. Ctrl+Z on the layer goes through both, so that a step is a step whatever it
    consisted of.
    """

    #: What napari's own tools did, before anybody hears what is accepted now.
    painted = Signal(object)
    #: A sentence about a step that was taken back or made again.
    moved = Signal(str)
    #: There is another step to take back, with which nothing else is accepted than before.
    added = Signal()

    def __init__(self, layer: Labels, image: ImageEntry | None, session: Session) -> None:
        self._layer = layer
        self._image = image
        self._session = session
        self._done: deque[_Step] = deque(maxlen=STEPS)
        self._undone: deque[_Step] = deque(maxlen=STEPS)
        self._own = False
        layer.events.paint.connect(self._on_painted)
        for key, action in (("Control-Z", self.undo), ("Control-Shift-Z", self.redo)):
            layer.bind_key(key, _without_layer(action), overwrite=True)

    def belong_to(self, image: ImageEntry) -> None:
        """The objects are of another image than was thought; what is accepted stays so."""
        accepted, self._image = self._accepted, image
        self._tell(Accepted())
        self._tell(accepted)

    def close(self) -> None:
        """Stop listening."""
        self._layer.events.paint.disconnect(self._on_painted)

    def clear(self) -> None:
        """Pixels were written that nobody painted: earlier steps no longer fit them."""
        self._done.clear()
        self._undone.clear()

    def change(self, pixels: tuple[tuple[NDArray[Any], ...], NDArray[Any]] | None, accepted: Accepted) -> None:
        """One step: coordinates of pixels and their new ids, if any change, and what is accepted then."""
        if pixels is not None:
            self._own = True
            try:
                self._layer.data_setitem(*pixels)
            finally:
                self._own = False
        self._add(_Step(self._accepted, accepted, pixels is not None))

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to make again."""
        return bool(self._undone)

    def undo(self) -> None:
        """Take the last step back."""
        if not self._done:
            self.moved.emit("There is nothing to undo.")
            return
        step = self._done.pop()
        self._undone.append(step)
        # First what is accepted: undoing pixels repaints, and everybody looks.
        self._tell(step.before)
        if step.pixels:
            self._layer.undo()
        self.moved.emit("One step back.")

    def redo(self) -> None:
        """Do the last undone step again."""
        if not self._undone:
            self.moved.emit("There is nothing to redo.")
            return
        step = self._undone.pop()
        self._done.append(step)
        self._tell(step.after)
        if step.pixels:
            self._layer.redo()
        self.moved.emit("One step forward again.")

    @property
    def _accepted(self) -> Accepted:
        return self._session.accepted_in(str(self._layer.unique_id))

    def _add(self, step: _Step) -> None:
        self._done.append(step)
        self._undone.clear()
        self._tell(step.after)
        if step.after == step.before:
            self.added.emit()

    def _tell(self, accepted: Accepted) -> None:
        self._session.set_accepted(str(self._layer.unique_id), self._image.key if self._image else "", accepted)

    def _on_painted(self, event: Any) -> None:
        """With napari's own brush, eraser, bucket or polygon."""
        if not self._own:
            self.painted.emit(event.value)
            self._add(_Step(self._accepted, self._after_painting(event.value), True))

    def _after_painting(self, atoms: list[Any]) -> Accepted:
        from napari_cellbrush.engine.proofreading import runs_of_pixels

        accepted, axes = self._accepted, layers.mask_axes(self._layer)
        for atom in atoms:
            coordinates, before, after = layers.painted_pixels(atom)
            erased = (after == 0) & (before != 0)
            accepted = accepted.with_objects(np.unique([*after[after > 0], *before[erased]]).tolist())
            at = dict(zip(axes, (along[erased] for along in coordinates), strict=True))
            stack = np.stack([at[letter] for letter in axes if letter in "TZ"] or [np.zeros_like(at["Y"])])
            for index in np.unique(stack, axis=1).T if erased.any() else ():
                here = (stack == index[:, None]).all(axis=0)
                plane = tuple(index.tolist()) if set(axes) & set("TZ") else ()
                accepted = accepted.with_emptied(runs_of_pixels(plane, at["Y"][here], at["X"][here]))
        return accepted


def show_box(viewer: Any, layer: Labels, axes: str, index: layers.Index, box: tuple[slice, slice],
             stays: bool = False) -> None:
    """Bring a part of a plane to the middle of the view; closer if it would be tiny, further if it would not fit.

    With ``stays`` the view is left where it is if it shows the part well.
    """
    rows, columns = ((np.array([side.start + side.stop - 1]) / 2) for side in box)
    point = [float(at[0]) for at in layers.in_layer_coordinates(axes, index, rows, columns)]
    world = np.asarray(layer.data_to_world(point), float)
    before = np.asarray(viewer.dims.point, float)
    full = np.concatenate([before[: viewer.dims.ndim - layer.ndim], world])
    for axis in viewer.dims.not_displayed:
        if axis >= viewer.dims.ndim - layer.ndim:
            viewer.dims.set_point(axis, full[axis])
    camera, shown = viewer.scene.camera, list(viewer.dims.displayed)
    steps = [abs(float(layer.scale[axes.index(letter)])) for letter in "YX"]
    size = max((side.stop - side.start) * step for side, step in zip(box, steps, strict=True)) * camera.zoom
    canvas_px = np.asarray(viewer.canvas.size)
    room = 0.8 * min(canvas_px)
    off_centre = np.abs(full[shown] - np.asarray(camera.center)[-len(shown):]) * camera.zoom
    if stays and size >= SMALL_PX and (off_centre + size / 2 <= canvas_px / 2).all():
        return
    camera.center = tuple(full[shown])
    if size < SMALL_PX:
        camera.zoom *= CLOSE_PX / size
    elif size > room:
        camera.zoom *= room / size


def _note_image(layer: Labels, image: ImageEntry) -> None:
    layers.note_on(layer, image=image.key, image_name=image.name, axes=layers.labels_axes(image.axes))


def _check(layer: Labels, mask: MaskEntry) -> None:
    """Complain unless a layer's ids can be corrected."""
    data = layers.full_resolution(layer)
    if getattr(layer, "multiscale", False) or not isinstance(data, np.ndarray):
        raise AnnotationError(f"'{mask.name}' is not in memory as one array", "Make a copy of it: in the layer list, "
                              "right-click it and duplicate it")
    if data.dtype.kind == "i" and data.size and int(data.min()) < 0:
        raise AnnotationError(f"'{mask.name}' holds the id {int(data.min())}", "Use 0 for background and ids from 1 on")
    if not {"Y", "X"} <= set(layers.mask_axes(layer)):
        raise AnnotationError(f"Nobody knows what the axes of '{mask.name}' mean", "Open the image that it belongs to")


def _without_layer(action: Callable[[], object]) -> Callable[[Labels], None]:
    """napari hands the layer to whatever a key is bound to."""
    def act(layer: Labels) -> None:
        action()

    return act
