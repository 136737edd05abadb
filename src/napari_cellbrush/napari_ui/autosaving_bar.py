"""The bar that offers what was saved of an image."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFrame, QPushButton, QVBoxLayout, QWidget

from napari_cellbrush.engine.session_folder import SavedSession
from napari_cellbrush.napari_ui.autosaving import in_words
from napari_cellbrush.napari_ui.controls import side_by_side, wrapped_label
from napari_cellbrush.session import ImageEntry

#: Seen on dark and on light ground.
BORDER = "#d9a441"


class RecoveryBar(QFrame):
    """A sentence about saved strokes, with a button to restore and one to discard them."""

    #: The session that is shown, and the key of its image.
    restoreRequested = Signal(object, str)
    discardRequested = Signal(object, str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("recovery")
        self.setStyleSheet(f"#recovery {{ border: 1px solid {BORDER}; border-radius: 3px; }}")
        self.text = wrapped_label()
        self.restore = QPushButton("Restore")
        self.discard = QPushButton("Discard")
        self.restore.setToolTip("Make a layer of them, as they were saved; strokes bring classes and settings along")
        self.discard.setToolTip("Do not offer them again; their files are kept for a while")
        layout = QVBoxLayout(self)
        layout.addWidget(self.text)
        layout.addLayout(side_by_side(self.restore, self.discard))
        self._shown: tuple[SavedSession, str] | None = None
        self.restore.clicked.connect(lambda: self._ask(self.restoreRequested))
        self.discard.clicked.connect(lambda: self._ask(self.discardRequested))

    def _ask(self, request: Any) -> None:
        if self._shown is not None:
            request.emit(*self._shown)

    def setValue(self, found: SavedSession | None, image: ImageEntry | None, restoring: bool) -> None:
        """Show the session that was found of an image; takes no space where there is none."""
        self._shown = (found, image.key) if found is not None and image is not None else None
        self.setVisible(found is not None)
        for button in (self.restore, self.discard):
            button.setEnabled(not restoring)
        if found is not None and image is not None:
            saved, what = found.card, "Strokes" if found.kind == "strokes" else "Corrected objects"
            of = "" if saved.image.name == image.name else f" on '{saved.image.name}'"
            self.text.setText("Restoring…" if restoring else f"{what} of {in_words(saved.saved_at)}{of} found.")
