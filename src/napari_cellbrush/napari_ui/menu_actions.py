"""What the entries of napari's Layers menu do."""

from __future__ import annotations

from typing import Any

from napari_cellbrush.napari_ui.workspace import Tab, Workspace

PLUGIN = "napari-cellbrush"
WIDGET = "Workspace"


def segment_with_cellbrush(napari_viewer: Any) -> None:
    """Open the workspace at Segment, with the selected image."""
    workspace = open_workspace(napari_viewer, "segment")
    for layer in napari_viewer.layers.selection:
        workspace.segment.bench.showing.choose(str(layer.unique_id))


def export_mask(napari_viewer: Any) -> None:
    """Open the workspace at Export, with the selected layer."""
    workspace = open_workspace(napari_viewer, "export")
    for layer in napari_viewer.layers.selection:
        workspace.export.choose(str(layer.unique_id))


def open_workspace(napari_viewer: Any, tab: Tab = "annotate") -> Workspace:
    """The workspace of a viewer's window, opened if need be, with a tab in front."""
    workspace = _open_one(napari_viewer)
    if workspace is None:
        _, workspace = napari_viewer.window.add_plugin_dock_widget(PLUGIN, WIDGET)
        workspace = _bare(workspace)
    dock = workspace.parentWidget()
    if dock is not None:
        dock.setVisible(True)
        dock.raise_()
    workspace.show_tab(tab)
    return workspace


def _open_one(viewer: Any) -> Workspace | None:
    # napari names a dock differently when it is opened from the menu, and would open a second one.
    widgets = [_bare(widget) for widget in dict(viewer.window.dock_widgets).values()]
    return next((widget for widget in widgets if isinstance(widget, Workspace)), None)


def _bare(widget: Any) -> Any:
    """The widget itself, out of napari's proxy."""
    return getattr(widget, "__wrapped__", widget)
