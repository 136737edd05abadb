"""Segmentation in a window: streams tiles into result layers and says how it ended.

Layers are made before the run and never during a drag; the selection and the undo history are left alone.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels, Layer
from numpy.typing import NDArray
from qtpy.QtCore import QObject, Signal

from napari_cellbrush.config import OutputKind
from napari_cellbrush.engine.accepted import Accepted
from napari_cellbrush.engine.tiling import Region
from napari_cellbrush.errors import AnnotationError, CellbrushError
from napari_cellbrush.events import InferenceStarted, TileSegmented, TileSizeReduced
from napari_cellbrush.napari_ui import layers, runs
from napari_cellbrush.napari_ui.result_layers import ResultLayers, Sheet
from napari_cellbrush.napari_ui.worker import Job, memory_in_words
from napari_cellbrush.session import ImageEntry, NoticeKind, Scope, duration_in_words, objects_in_words, sizes_in_words

if TYPE_CHECKING:
    from napari_cellbrush.napari_ui.workbench import Workbench

_SCOPE_WORDS: dict[Scope, str] = {"view": "the view of ", "slice": "the slice shown of ", "layer": "", "all": ""}


class Segmenting(QObject):
    """The segmentations of one viewer, one at a time."""

    #: A layer of objects was written anew.
    objects_written = Signal(object)

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        self._session = bench.session
        self._run = bench.session.segmentation
        self.results = ResultLayers(bench.book, bench.session, bench.showing)
        self._job: Job | None = None
        self._sheets: list[Sheet] = []
        #: Numbers of the images of which a tile came.
        self._answered: set[int] = set()
        #: Of the image that is being segmented.
        self._provenance: dict[str, Any] = {}
        #: What was accepted on each sheet when the run began.
        self._accepted: list[Accepted] = []
        self._dirty: set[Layer] = set()
        self._latest: tuple[int, TileSegmented] | None = None
        self._began = 0.0
        self._what = ""
        #: Keys of the images of a run, in their order.
        self._keys: list[str] = []
        #: How large objects are taken to be, by the number of the image in the run.
        self._sizes: dict[int, float] = {}
        #: Object diameter in pixels that was measured, by image and model.
        self._diameters: dict[tuple[str, str], float] = {}
        #: How many were found, by the number of the image in the run.
        self._n_objects: dict[int, int] = {}
        self._problems: list[str] = []
        self._lost_layer = False
        self._whole = False
        bench.book.removed.connect(self._on_layer_removed)

    def start(self, scope: Scope | None = None, output: OutputKind | None = None, *, beside: bool = False) -> None:
        """Segment as the session's options say, or otherwise; ends at once, with a sentence, if that cannot be.

        With ``beside``, what another model said of all of an image stays, in layers of its own.
        """
        options = self._session.options
        self._bench.after_drag(partial(self._start, scope or options.scope, output or options.output, beside))

    def _start(self, scope: Scope, output: OutputKind, beside: bool) -> None:
        if self._run.busy or self._session.why_not_segment():
            return
        viewer_layers = self._bench.book.viewer.layers
        before = set(viewer_layers)
        try:
            with memory_in_words("making room for the result"):
                task = self._prepare(scope, output, beside)
        except CellbrushError as error:
            sheets, self._sheets = self._sheets, []
            for sheet in sheets:
                self.results.take_back(sheet)
            for layer in [layer for layer in viewer_layers if layer not in before]:
                viewer_layers.remove(layer)
            self._run.end(str(error), "error")
            return
        self._answered = set()
        if len(self._sheets) > 1 and self._session.image is not None:
            # Results of several images in one place would lie on top of each other.
            self._bench.showing.show(self._session.image.key)
        self._sizes = {}
        self._latest, self._n_objects, self._problems, self._lost_layer = None, {}, [], False
        self._began = time.perf_counter()
        self._run.begin(f"Loading '{task.model}'…")
        self._launch(self._bench.job(partial(runs.segment, task), "segmenting"))

    def stop(self) -> None:
        """End the run; what is segmented stays."""
        if self._job is not None:
            self._run.stopping()
            self._job.stop()

    # ------------------------------------------------------------------------------------------------ before

    def _prepare(self, scope: Scope, output: OutputKind, beside: bool) -> runs.SegmentationTask:
        session, options = self._session, self._session.options
        chosen = [image for image in session.images if image.axes] if scope == "all" else [session.image]
        images = [image for image in chosen if image is not None]
        # First everything that can fail, then the layers.
        bare = [self._target(image, scope) for image in images]
        self._keys = [image.key for image in images]
        model = session.find_model(session.model)
        classes = model.card.classes if model is not None else session.classes
        self._whole = scope in ("layer", "all")
        beside = beside or not self._whole
        for image in images:
            fresh = options.keep_earlier or (beside and self.results.holds_whole_of_another(image, session.model))
            self._sheets.append(self.results.sheet(image, output, classes, fresh=fresh))
        targets = [self._with_earlier(target, sheet) for target, sheet in zip(bare, self._sheets, strict=True)]
        self._accepted = [target.accepted for target in targets]
        names = f"'{images[0].name}'" if len(images) == 1 else f"{len(images)} images"
        self._what = f"{_SCOPE_WORDS[scope]}{names} with '{session.model}'"
        return runs.SegmentationTask(session.model, tuple(targets), output, session.inference_config,
                                     options.device_name)

    def _target(self, image: ImageEntry, scope: Scope) -> runs.SegmentationTarget:
        viewer, layer = self._bench.book.viewer, self._bench.book.layer(image.key)
        if layer is None:
            raise AnnotationError("The image was removed", "Choose another image")
        planes = layers.planes_of(layer, image.axes)
        here = layers.plane_index(layer, image.axes, viewer.dims.point)
        region = self._visible_region(layer, image, required=scope == "view")
        nearest = sorted(planes.indices(), key=lambda index: sum(abs(a - b) for a, b in zip(index, here, strict=True)))
        return runs.SegmentationTarget(
            planes,
            indices=(here,) if scope in ("view", "slice") else tuple(nearest),
            region=region if scope == "view" else None,
            centre=layers.centre_of(region) if region else None,
            diameter_px=self._diameters.get((image.key, self._session.model), 0.0))

    def _visible_region(self, layer: Layer, image: ImageEntry, required: bool) -> Region | None:
        dims = self._bench.book.viewer.dims
        if required:
            return layers.visible_region(layer, image.axes, layers.displayed_axes(layer, dims))
        return layers.region_in_sight(layer, image.axes, dims)

    def _with_earlier(self, target: runs.SegmentationTarget, sheet: Sheet) -> runs.SegmentationTarget:
        """What is known of the rest of the planes, which objects that reach into it need."""
        if sheet.objects is None:
            return target
        if sheet.answers.model_hash != sheet.model_hash:
            # Another model has written there since.
            sheet.answers.model_hash = ""
        return replace(target, answers=sheet.answers, earlier_objects=np.array(sheet.array(sheet.objects)),
                       accepted=self._accepted_on(sheet))

    def _accepted_on(self, sheet: Sheet) -> Accepted:
        return Accepted() if sheet.objects is None else self._session.accepted_in(str(sheet.objects.unique_id))

    # ------------------------------------------------------------------------------------------------ during

    def _launch(self, job: Job) -> None:
        self._job = job
        job.received.connect(self._on_event)
        job.drained.connect(self._on_drained)
        job.finished.connect(self._on_finished)
        job.stopped.connect(self._on_stopped)
        job.failed.connect(self._on_failed)
        job.start()

    def _on_event(self, event: runs.SegmentationEvent) -> None:
        sheet = self._sheets[event.target]
        if isinstance(event, runs.TargetStarted):
            self._provenance = event.provenance
        elif isinstance(event, runs.ObjectsNumbered):
            self._show_objects(sheet, event)
        elif isinstance(event, runs.TargetFailed):
            self._problems.append(str(event.error))
        elif isinstance(event.event, TileSegmented):
            if event.target not in self._answered:
                self._begin_sheet(event.target)
            self._write(sheet, event.event)
            self._latest = event.target, event.event
        elif isinstance(event.event, InferenceStarted):
            self._hear_diameter(event.target, event.event.diameter_px)
            self._say(f"Segmenting {self._what} ({event.event.precision}).{sizes_in_words(self._sizes.values())}")
        elif isinstance(event.event, TileSizeReduced):
            self._say(f"The memory was too small; going on with tiles of {event.event.tile_size} px.")

    def _begin_sheet(self, target: int) -> None:
        """Only now, with the first tile, anything is written: a run that ends before leaves all as it was."""
        self._answered.add(target)
        sheet = self._sheets[target]
        sheet.begin(self._provenance, whole=self._whole, accepted=self._accepted_on(sheet))
        self._dirty.update(sheet.layers())
        self._session.note_segmented(self._keys[target])

    def _hear_diameter(self, target: int, diameter_px: float | None) -> None:
        """Measured once per image and model: a second look at another view would find another size."""
        if diameter_px:
            self._sizes[target] = diameter_px
        if diameter_px and not self._session.inference_config.diameter_px:
            self._diameters[self._keys[target], self._session.model] = diameter_px

    def _say(self, text: str) -> None:
        if self._job is not None and not self._job.thread_side.stop.stopped:
            self._run.say(text)

    def _write(self, sheet: Sheet, tile: TileSegmented) -> None:
        place: tuple[int | slice, ...] = (*tile.plane, tile.rows, tile.columns)
        if sheet.classes is not None:
            sheet.array(sheet.classes)[place] = tile.classes
        for layer, probability in zip(sheet.probabilities, tile.probabilities, strict=False):
            sheet.array(layer)[place] = probability
        self._dirty.update(layer for layer in sheet.layers() if layer is not sheet.objects)

    def _show_objects(self, sheet: Sheet, numbered: runs.ObjectsNumbered) -> None:
        layer = sheet.objects
        if layer is None or sheet.classes is None:
            return
        self.write_objects(layer, numbered.ids, self._accepted[numbered.target])
        self._bench.showing.hide(sheet.classes)
        self._n_objects[numbered.target] = numbered.n_objects
        self._dirty.add(layer)

    def write_objects(self, layer: Labels, ids: NDArray[Any], accepted_then: Accepted) -> None:
        """Put objects, stack axes + YX, into their layer; they know of what was accepted when they were looked for."""
        axes = layers.mask_axes(layer)
        accepted, array = self._session.accepted_in(str(layer.unique_id)), layers.in_engine_order(layer.data, axes)
        if accepted != accepted_then:
            from napari_cellbrush.engine.proofreading import around_accepted

            # She went on correcting meanwhile.
            ids = around_accepted(ids, array, accepted)
        if np.can_cast(ids.dtype, layer.dtype):
            array[...] = ids
        else:
            layer.data = layers.in_layer_order(ids, axes)
        self.objects_written.emit(layer)

    def _on_drained(self) -> None:
        for layer in self._dirty:
            layer.refresh(extent=False, thumbnail=False, highlight=False)
        self._dirty.clear()
        if self._latest is not None:
            (number, tile), n = self._latest, len(self._sheets)
            image = f"image {number + 1} of {n}, " if n > 1 else ""
            self._run.advance((number + tile.tile / tile.n_tiles) / n, tile.seconds_left,
                              f"{image}tile {tile.tile} of {tile.n_tiles}")
            self._latest = None

    # ------------------------------------------------------------------------------------------------- after

    def _on_finished(self, _: None) -> None:
        took = duration_in_words(time.perf_counter() - self._began)
        objects: str = ""
        kind: NoticeKind = "success"
        if self._n_objects:
            has_depth = any("Z" in sheet.axes for sheet in self._sheets)
            objects, kind = objects_in_words(
                sum(self._n_objects.values()), joinable=self._whole and has_depth,
                by_image=[(self._sheets[number].image.name, n) for number, n in self._n_objects.items()])
        done = f"Segmented {self._what} in {took}. {objects}".rstrip()
        text = " ".join([done + sizes_in_words(self._sizes.values()), *self._problems])
        self._end(text, "warning" if self._problems else kind)

    def _on_stopped(self, _: None) -> None:
        if self._lost_layer:
            self._end("Stopped, because the layer for the result was removed.", "warning")
        elif not self._answered:
            self._end("Stopped before the first tile; nothing has changed.", "info")
        else:
            done = f" at {self._run.count}" if self._run.count else ""
            unnumbered = any(self._sheets[number].objects is not None for number in self._answered
                             if number not in self._n_objects)
            kept = ", as classes" if unnumbered and not self._n_objects else (
                ", of the last image as classes" if unnumbered else "")
            self._end(f"Stopped{done}. What is segmented already stays{kept}.", "info")

    def _on_failed(self, error: CellbrushError) -> None:
        self._end(str(error), "error")

    def _end(self, text: str, kind: NoticeKind) -> None:
        self._job = None
        sheets, self._sheets = self._sheets, []
        for layer in (layer for sheet in sheets for layer in sheet.layers()):
            layer.refresh(extent=False)
        unanswered = [sheet for number, sheet in enumerate(sheets) if number not in self._answered
                      and self._accepted_on(sheet) == self._accepted[number]]
        for sheet in unanswered:
            self._bench.after_drag(partial(self.results.take_back, sheet))
        self._run.end(text, kind)

    def _on_layer_removed(self, key: str) -> None:
        if any(str(layer.unique_id) == key for sheet in self._sheets for layer in sheet.layers()):
            self._lost_layer = True
            self.stop()
