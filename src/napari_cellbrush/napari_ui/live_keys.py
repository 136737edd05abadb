"""Keys of the live loop: L switches it, Space held down shows what lies under the masks.

napari binds keys of its own on labels layers (L picks a label, Space moves the view), which win over those of the
viewer; on annotation layers ours take their place. napari 0.9 ignores key bindings of a plugin's manifest, so they
cannot be listed in its preferences; the dock lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from napari.layers import Labels

from napari_cellbrush.napari_ui import layers

if TYPE_CHECKING:
    from napari_cellbrush.napari_ui.workbench import Workbench


def bind_live_keys(bench: Workbench) -> None:
    """Bind the keys in the viewer and on all its annotation layers, later ones too."""
    def switch(_: Any) -> None:
        bench.live.switch()

    def look_under(target: Any) -> Iterator[None]:
        yield from _masks_hidden(bench.book.viewer, target if isinstance(target, Labels) else None)

    def bind(target: Any) -> None:
        target.bind_key("L", switch, overwrite=True)
        target.bind_key("Space", look_under, overwrite=True)

    def bind_annotations() -> None:
        for key in bench.session.annotations.values():
            layer = bench.book.layer(key)
            if layer is not None:
                bind(layer)

    bind(bench.book.viewer)
    bench.session.annotations_changed.connect(bind_annotations)


def _masks_hidden(viewer: Any, brush: Labels | None) -> Iterator[None]:
    """Hide results while a key is down; the mouse moves the view meanwhile, as napari's own Space has it."""
    hidden = [layer for layer in viewer.layers if layer.visible and "output" in layers.note_of(layer)]
    mode = brush.mode if brush is not None else None
    for layer in hidden:
        layer.visible = False
    if brush is not None:
        brush.mode = "pan_zoom"
    yield
    for layer in hidden:
        layer.visible = True
    if brush is not None and mode is not None:
        brush.mode = mode
