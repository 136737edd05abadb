"""All docks as tabs of one, in the order of the work."""

from __future__ import annotations

from typing import Any, Literal

from qtpy.QtWidgets import QTabWidget, QVBoxLayout, QWidget

from napari_cellbrush.napari_ui.annotate_dock import AnnotateDock
from napari_cellbrush.napari_ui.correct_dock import CorrectDock
from napari_cellbrush.napari_ui.export_dock import ExportDock
from napari_cellbrush.napari_ui.finetune_dock import FineTuneDock
from napari_cellbrush.napari_ui.segment_dock import SegmentDock
from napari_cellbrush.napari_ui.workbench import workbench_for

Tab = Literal["annotate", "finetune", "segment", "correct", "export"]


class Workspace(QWidget):
    """Annotate, Fine-tune, Segment, Correct and Export, beside each other."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.bench = workbench_for(napari_viewer)
        self.session = self.bench.session
        self.annotate = AnnotateDock(napari_viewer)
        self.finetune = FineTuneDock(napari_viewer)
        self.segment = SegmentDock(napari_viewer)
        self.correct = CorrectDock(napari_viewer)
        self.export = ExportDock(napari_viewer)
        self.tabs = QTabWidget()
        # napari's theme leaves so little room that letters touch the edge.
        self.tabs.setStyleSheet("QTabBar::tab { padding: 5px 8px; }")
        for title, dock in (("Annotate", self.annotate), ("Fine-tune", self.finetune), ("Segment", self.segment),
                            ("Correct", self.correct), ("Export", self.export)):
            self.tabs.addTab(dock, title)
        self.tabs.currentChanged.connect(self._on_tab)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.tabs)

    def show_tab(self, tab: Tab) -> None:
        """Bring one of them to the front."""
        self.tabs.setCurrentWidget(getattr(self, tab))

    def _on_tab(self, _: int) -> None:
        # A key or a stroke does what the tab in front is for: the keys of classes would rub out objects.
        if self.tabs.currentWidget() is self.annotate:
            self.bench.annotating.take_up()
        elif self.tabs.currentWidget() is self.correct:
            self.bench.proofreading.take_up()
