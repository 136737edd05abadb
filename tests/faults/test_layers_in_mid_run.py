"""Layers that are renamed, moved, replaced and deleted while a run reads or writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from accidents import tiny_model
from qtpy.QtTest import QTest

from napari_cellbrush.config import NetworkConfig
from napari_cellbrush.engine.model_file import add_to_library
from napari_cellbrush.napari_ui.workbench import Workbench, workbench_for

SIZE = 300


def wait(condition: Any) -> None:
    for _ in range(6000):
        if condition():
            return
        QTest.qWait(10)
    raise AssertionError("waited too long")


@pytest.fixture
def bench(make_napari_viewer_proxy: Any) -> Workbench:
    """A window with a painted image, a spare one, and a model; only the main thread may change layers."""
    add_to_library(tiny_model(), "tiny")
    viewer = make_napari_viewer_proxy(show=True, ensure_main_thread=True)
    bench = workbench_for(viewer)
    random = np.random.default_rng(0)
    viewer.add_image(random.random((SIZE, SIZE)).astype(np.float32), name="spare")
    viewer.add_image(random.random((SIZE, SIZE)).astype(np.float32), name="cells")
    bench.look_around()
    wait(lambda: bench.session.models is not None and bench.session.device_text)
    session = bench.session
    layer = bench.annotating.new_annotation(session.image.key)
    layer.data[10:30, 10:30], layer.data[60:90, 60:90] = 1, 2
    layer.refresh()
    wait(lambda: all(session.painted[:2]))
    session.choose_base("tiny")
    session.choose_model("tiny")
    session.set_options(scope="layer", device_name="cpu")
    session.training_config = session.training_config.replace(
        max_steps=100_000, max_minutes=5, patience=0, patch_px=64, batch_size=1,
        network=NetworkConfig(depth=3, base_filters=8).model_dump())
    session.inference_config = session.inference_config.replace(tile_size_px=128)
    return bench


def rename(layers: Any) -> None:
    for layer in layers:
        layer.name = f"{layer.name} renamed"


def replace(layers: Any) -> None:
    """Other pixels of the same shape, in every layer."""
    for layer in layers:
        layer.data = np.zeros_like(layer.data)


def replace_by_another_shape(layers: Any) -> None:
    """Of the image that is worked on."""
    layers["spare renamed"].data = np.random.default_rng(0).random((50, 60)).astype(np.float32)


def delete_a_result(layers: Any) -> None:
    for layer in [layer for layer in layers if "classes" in layer.name or "annotation" in layer.name]:
        layers.remove(layer)


#: In this order, each in the middle of the same run.
ACCIDENTS = [rename, lambda layers: layers.reverse(), replace, replace_by_another_shape, delete_a_result,
             lambda layers: layers.clear()]


@pytest.mark.parametrize("work", ["fine_tuning", "segmenting"])
def test_a_run_ends_in_words_whatever_happens_to_layers(work: str, bench: Workbench, caplog: Any) -> None:
    session, viewer = bench.session, bench.book.viewer
    run = session.training if work == "fine_tuning" else session.segmentation
    for accident in ACCIDENTS:
        if not run.busy and session.image is not None and not (
                session.why_not_train() if work == "fine_tuning" else session.why_not_segment()):
            getattr(bench, work).start()
            wait(lambda: run.fraction or not run.busy)
        accident(viewer.layers)
        QTest.qWait(100)
    getattr(bench, work).stop()
    wait(lambda: not run.busy)
    assert run.notice.text.endswith(".")
    assert not [record for record in caplog.records if record.exc_info]
    viewer.add_image(np.random.default_rng(0).random((80, 90)).astype(np.float32), name="next")
    wait(lambda: not session.why_not_segment())
    bench.segmenting.start("layer")
    wait(lambda: session.segmentation.notice.kind == "success")
    assert (viewer.layers["next classes"].data > 0).all()
