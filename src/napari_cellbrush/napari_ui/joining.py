"""Objects of planes become bodies: joined through depth, beside the window, in a layer of their own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from qtpy.QtCore import QObject

from napari_cellbrush.errors import CellbrushError
from napari_cellbrush.napari_ui import layers, runs
from napari_cellbrush.napari_ui.worker import Job, memory_in_words
from napari_cellbrush.session import ImageEntry, MaskEntry, Notice, NoticeKind

if TYPE_CHECKING:
    from napari_cellbrush.napari_ui.workbench import Workbench


class Joining(QObject):
    """The joining of one viewer's objects."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        self._session = bench.session
        self._job: Job | None = None
        #: Key of the layer that is being joined, as long as its objects are what they were.
        self._source = ""
        bench.segmenting.objects_written.connect(self._on_objects_written)

    @property
    def busy(self) -> bool:
        """Whether objects are being joined."""
        return self._job is not None

    def has_depth(self, mask: MaskEntry) -> bool:
        """Whether a layer's objects lie on planes above each other."""
        image, layer = self._bench.exporting.image(mask), self._bench.book.layer(mask.key)
        return "Z" in (layers.labels_axes(image.axes) if image is not None else layers.mask_axes(layer))

    def start(self, mask: MaskEntry) -> None:
        """Join the objects of a layer; says so where that cannot be."""
        layer, image = self._bench.book.layer(mask.key), self._bench.exporting.image(mask)
        if layer is None or self.busy or self._session.segmentation.busy:
            return
        if image is None:
            self._say(f"Nobody knows which image '{mask.name}' belongs to. Open that image.", "warning")
            return
        axes = layers.labels_axes(image.axes)
        provenance = {**layers.note_of(layer).get("provenance", {}), "linked_through_depth": True,
                      **self._session.accepted_in(mask.key).in_numbers()}
        try:
            with memory_in_words(f"copying '{mask.name}'"):
                ids = np.array(layers.in_engine_order(layers.full_resolution(layer), axes))
        except CellbrushError as error:
            self._say(str(error), "error")
            return
        stack_axes = "".join(letter for letter in axes if letter in "TZ")
        self._job = self._bench.job(partial(runs.join, ids, stack_axes), "joining objects", exclusive=False)
        self._job.finished.connect(partial(self._on_finished, mask, image, provenance))
        self._job.failed.connect(self._on_failed)
        self._source = mask.key
        self._job.start()
        self._say("Joining objects…")

    def _on_objects_written(self, layer: Labels) -> None:
        if str(layer.unique_id) == self._source:
            self._source = ""

    def _on_finished(self, mask: MaskEntry, image: ImageEntry, provenance: dict[str, Any], joined: runs.Joined) -> None:
        self._bench.after_drag(partial(self._show, mask, image, provenance, joined))

    def _show(self, mask: MaskEntry, image: ImageEntry, provenance: dict[str, Any], joined: runs.Joined) -> None:
        self._job = None
        source, now = self._bench.book.layer(mask.key), self._session.find_image(image.key)
        if source is None or now is None or now.axes != image.axes or not self._source:
            self._say("Nothing was joined: objects were found anew meanwhile, or their layer or image has changed.",
                      "warning")
            return
        self._bench.segmenting.results.bodies(image, source, joined.ids, provenance)
        alone = f" ({joined.n_single:,} of them on one plane alone)" if joined.n_single else ""
        self._say(f"{joined.n_before:,} objects of planes are {joined.n:,} bodies now{alone}, in a layer of their own. "
                  "Export has it for volumes; napari's 3D button shows it in space.", "success")

    def _on_failed(self, error: CellbrushError) -> None:
        self._job = None
        self._say(str(error), "error")

    def _say(self, text: str, kind: NoticeKind = "info") -> None:
        self._session.set_correction(notice=Notice(text, kind))
