"""A window with a training or segmentation under way, in which somebody paints, undoes, and is saved by itself.

    busy_window.py killed|closed SEED

"killed" goes on until it is killed; "closed" closes its window at a random moment. On the output stream: "now HASH"
before a save, "saved HASH" after it, "closing HASH" before the window is closed.
"""

from __future__ import annotations

import hashlib
import sys
from functools import partial
from typing import Any

import napari
import numpy as np
from qtpy.QtCore import QTimer

from napari_cellbrush.config import NetworkConfig
from napari_cellbrush.napari_ui.workbench import workbench_for

SIZE = 700


def image() -> Any:
    """What the window shows; whoever checks the sessions makes the same."""
    return np.random.default_rng(0).random((SIZE, SIZE)).astype(np.float32)


class BusyWindow:
    def __init__(self, ending: str, seed: int) -> None:
        self.ending = ending
        self.random = np.random.default_rng(seed)
        self.doing = ["training", "segmenting", "taking over", "nothing"][seed % 4]
        self.viewer = napari.Viewer(show=True)
        self.viewer.add_image(image(), name="cells")
        self.viewer.window.add_plugin_dock_widget("napari-cellbrush", "Workspace")
        self.bench = workbench_for(self.viewer)
        self.session = self.bench.session
        self.session.training_config = self.session.training_config.replace(
            max_steps=100_000, max_minutes=5, patience=0, patch_px=64,
            network=NetworkConfig(depth=3, base_filters=8).model_dump())
        self.bench.annotating.new_annotation(self.session.image.key)
        self.bench.autosaving._timer.stop()
        self.saved = False
        for row, value in ((100, 1), (300, 2)):
            self.layer.paint((row, 200), value)
        self.later(self.begin, 50)

    @property
    def layer(self) -> Any:
        """The annotation layer; labels that are taken over become a new one."""
        return self.bench.annotating.layer_of(self.session.image.key)

    def later(self, action: Any, milliseconds: int) -> None:
        QTimer.singleShot(milliseconds, action)

    def begin(self) -> None:
        """Wait for the library, then start the work."""
        if self.session.models is None or not all(self.session.painted[:2]) or not self.session.device_text:
            self.later(self.begin, 20)
            return
        self.session.choose_base("tiny")
        self.session.choose_model("tiny")
        self.session.set_options(scope="layer")
        if self.doing == "training":
            self.bench.fine_tuning.start()
        elif self.doing == "segmenting":
            self.bench.segmenting.start()
        elif self.doing == "taking over":
            self.viewer.add_labels(np.arange(SIZE * SIZE, dtype=np.int32).reshape(SIZE, SIZE) // 7, name="objects")
            self.bench.annotating.take_over(self.session.masks[0].key, self.session.image.key, "objects")
        if self.ending == "closed":
            self.later(self.close, int(self.random.integers(1, 2500)))
        self.act()

    def act(self) -> None:
        """Paint, undo or redo; then save, and go on once that is done."""
        action = self.random.choice(["paint", "paint", "undo", "redo"])
        if action == "paint":
            row, column = (int(n) for n in self.random.integers(10, SIZE - 10, 2))
            self.layer.brush_size = int(self.random.integers(2, 40))
            self.layer.paint((row, column), int(self.random.integers(0, 4)))
        else:
            getattr(self.layer, action)()
        state = self.tell("now")
        self.bench.autosaving.save()
        self.wait_for_save(state)

    def wait_for_save(self, state: str) -> None:
        """What is saved is what was told before: the layer may have been replaced since."""
        if self.bench.autosaving.is_saving:
            self.later(partial(self.wait_for_save, state), 5)
            return
        print("saved", state, flush=True)
        self.later(self.act, int(self.random.integers(1, 40)))

    def close(self) -> None:
        self.tell("closing")
        self.viewer.close()

    def tell(self, what: str) -> str:
        state = hashlib.sha256(self.layer.data.tobytes()).hexdigest()
        print(what, state, flush=True)
        return state


if __name__ == "__main__":
    window = BusyWindow(sys.argv[1], int(sys.argv[2]))
    napari.run()
