"""What belongs to one viewer and outlives its docks: the session, the layers, the jobs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from qtpy.QtCore import QObject, Qt, QTimer
from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtWidgets import QApplication

from napari_cellbrush.config import DeviceName
from napari_cellbrush.errors import CellbrushError
from napari_cellbrush.napari_ui import runs
from napari_cellbrush.napari_ui.annotating import Annotating
from napari_cellbrush.napari_ui.autosaving import Autosaving
from napari_cellbrush.napari_ui.comparing import Comparing
from napari_cellbrush.napari_ui.exporting import Exporting
from napari_cellbrush.napari_ui.fine_tuning import FineTuning
from napari_cellbrush.napari_ui.guiding import Guiding
from napari_cellbrush.napari_ui.joining import Joining
from napari_cellbrush.napari_ui.layer_book import LayerBook
from napari_cellbrush.napari_ui.live import Live
from napari_cellbrush.napari_ui.live_keys import bind_live_keys
from napari_cellbrush.napari_ui.measuring import Measuring
from napari_cellbrush.napari_ui.previewing import Previewing
from napari_cellbrush.napari_ui.proofreading import Proofreading
from napari_cellbrush.napari_ui.segmenting import Segmenting
from napari_cellbrush.napari_ui.showing import Showing
from napari_cellbrush.napari_ui.weighing import Weighing
from napari_cellbrush.napari_ui.worker import Job, Work, WorkThread, close_all, close_with, note_quit
from napari_cellbrush.session import Session

#: Milliseconds between opening a dock and looking for models and a device.
LOOK_AFTER_MS = 300
#: Milliseconds after which work that waits for the end of a drag looks again.
DRAG_POLL_MS = 50

_log = logging.getLogger(__name__)
_workbenches: WeakKeyDictionary[Any, Workbench] = WeakKeyDictionary()


def workbench_for(viewer: Any) -> Workbench:
    """The workbench of a viewer (or of a proxy of it); made when it is first asked for."""
    viewer = getattr(viewer, "__wrapped__", viewer)
    if viewer not in _workbenches:
        _workbenches[viewer] = Workbench(viewer)
    return _workbenches[viewer]


class Workbench(QObject):
    """Session, layers and jobs of one viewer.

    Closing the window stops and joins its threads; closing a dock does nothing to them.
    """

    def __init__(self, viewer: Any) -> None:
        # Where a plugin may not see the window itself, the application's end is the only notice.
        window = getattr(viewer.window, "_qt_window", None)
        super().__init__(window)
        self._threads: list[WorkThread] = []
        self._looking: Job | None = None
        self._closed = False
        self._looked_for: DeviceName | None = None
        self.session = Session()
        self.book = LayerBook(viewer, self.session)
        self.showing = Showing(self)
        self.annotating = Annotating(self)
        self.segmenting = Segmenting(self)
        self.fine_tuning = FineTuning(self)
        self.exporting = Exporting(self)
        self.proofreading = Proofreading(self)
        self.joining = Joining(self)
        self.previewing = Previewing(self)
        self.measuring = Measuring(self)
        self.weighing = Weighing(self)
        self.autosaving = Autosaving(self)
        self.live = Live(self)
        bind_live_keys(self)
        self.guiding = Guiding(self)
        self.comparing = Comparing(self)
        viewer.layers.events.removing.connect(self._on_layer_removing)
        self.session.options_changed.connect(self._on_options_changed)
        if window is not None:
            close_with(window, self._threads)
        application = QApplication.instance()
        if application is not None:
            application.aboutToQuit.connect(self.close)
            application.aboutToQuit.connect(note_quit)

    def job(self, work: Work, doing: str, *, exclusive: bool = True, to_the_end: bool = False,
            patient: bool = False) -> Job:
        """A job whose thread ends with the window."""
        self._threads[:] = [thread for thread in self._threads if not thread.ended]
        job = Job(work, doing, exclusive=exclusive, to_the_end=to_the_end, patient=patient, parent=self)
        self._threads.append(job.thread_side)
        return job

    def after_drag(self, action: Callable[[], None]) -> None:
        """Do something that adds layers once no mouse button is down.

        In mid-stroke it would cut the stroke and leave napari's undo history blocked.
        """
        if QApplication.mouseButtons() == Qt.MouseButton.NoButton:
            action()
            return
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.timeout.connect(timer.deleteLater)
        timer.timeout.connect(partial(self.after_drag, action))
        timer.start(DRAG_POLL_MS)

    def look_around(self) -> None:
        """Read the library and try the device, beside the window; does nothing while that is under way."""
        if self._looking is None and not self._closed:
            self._looked_for = self.session.options.device_name
            self._looking = self.job(partial(runs.look_around, self._looked_for), "looking for models and a device",
                                     exclusive=False)
            self._looking.received.connect(self._on_found)
            self._looking.finished.connect(self._on_looked)
            self._looking.failed.connect(self._on_looked)
            self._looking.start()

    def look_around_soon(self) -> None:
        """Look around once the dock that asks is drawn: importing torch slows the window down."""
        if self.session.models is None:
            QTimer.singleShot(LOOK_AFTER_MS, self.look_around)

    def take_library(self, library: runs.LibraryFound) -> None:
        """Tell the session what models there are."""
        for problem in library.problems:
            _log.warning("%s", problem)
        self.session.set_models(library.models, library.default_base)
        self.session.set_unfinished(library.unfinished)

    def close(self) -> None:
        """Stop everything."""
        self._closed = True
        self.autosaving.close()
        self.live.close()
        close_all(self._threads)
        self.annotating.close()
        self.proofreading.close()
        self.book.close()

    def _on_layer_removing(self, event: Any) -> None:
        """Make the canvas' OpenGL context the current one before a layer goes.

        napari's canvas (vispy) deletes a layer's textures at once, in whichever context is current. After a repaint
        that is Qt's own, and the next frame ends in a segmentation fault (napari 0.9.2 with Mesa, no plugin needed).
        """
        window = self.parent()
        if window is not None:
            for canvas in window.findChildren(QOpenGLWidget):
                canvas.makeCurrent()

    def _on_found(self, found: runs.LibraryFound | runs.DeviceFound) -> None:
        if isinstance(found, runs.LibraryFound):
            self.take_library(found)
        else:
            self.session.set_device(found.text, found.note)

    def _on_looked(self, error: CellbrushError | None) -> None:
        self._looking = None
        if error is not None:
            self.session.set_device("No device", str(error))
        self._on_options_changed()

    def _on_options_changed(self) -> None:
        if self._looked_for not in (None, self.session.options.device_name):
            self.session.set_device("", "")
            self.look_around()
