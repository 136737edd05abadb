from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

import napari_cellbrush
from napari_cellbrush import CellbrushError, InferenceConfig, NetworkConfig, StopToken, TrainingConfig
from napari_cellbrush.config import DEFAULT_CLASSES
from napari_cellbrush.engine.annotation import objects_to_classes
from napari_cellbrush.engine.model import Model, ModelCard, new_model
from napari_cellbrush.errors import AnnotationError, ConfigError, ImageError, ModelError, ModelFileError
from napari_cellbrush.events import InferenceStarted, TileSegmented, TrainingStarted, TrainingStep
from napari_cellbrush.export.mask_tiff import read_provenance

TINY = NetworkConfig(depth=3, base_filters=8)
QUICK = TrainingConfig(max_steps=2, max_minutes=5, batch_size=1, patch_px=64, network=TINY)


def tiny_model(n_channels: int = 1) -> Model:
    card = ModelCard(name="tiny", classes=DEFAULT_CLASSES, in_channels=n_channels, network=TINY)
    return new_model(card, seed=0)


def image_and_objects(shape: tuple[int, int] = (96, 110)) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    objects = np.zeros(shape, np.uint16)
    for number, (row, column) in enumerate(random.integers(10, 86, (6, 2)), start=1):
        objects[(rows - row) ** 2 + (columns - column) ** 2 < 64] = number
    image = np.clip(np.where(objects > 0, 160, 60) + random.normal(0, 10, shape), 0, 255).astype(np.uint8)
    return image, objects


IMAGE, OBJECTS = image_and_objects()
CLASSES = objects_to_classes(OBJECTS)


# --------------------------------------------------------------------------------------------------- the names


def test_every_exported_name_is_there_and_described() -> None:
    for name in napari_cellbrush.__all__:
        assert getattr(napari_cellbrush, name) is not None
        assert name in dir(napari_cellbrush)
        assert name.startswith("__") or getattr(napari_cellbrush, name).__doc__


def test_other_names_are_missing_in_the_usual_way() -> None:
    with pytest.raises(AttributeError, match="no attribute 'brush'"):
        napari_cellbrush.brush  # noqa: B018


def test_the_paper_network_is_one_call_away() -> None:
    network = napari_cellbrush.UNet(in_channels=1, n_classes=2, base_filters=64, depth=4, batch_norm=False, dropout=0.0)
    assert sum(p.numel() for p in network.parameters()) == 31_030_658


# ----------------------------------------------------------------------------------------------------- segment


@pytest.mark.parametrize(("output", "shape", "dtype"), [
    ("classes", (96, 110), np.uint8), ("objects", (96, 110), np.uint16), ("probabilities", (3, 96, 110), np.float32)])
def test_segmenting_gives_the_documented_array(output: Any, shape: tuple[int, ...], dtype: type) -> None:
    found = napari_cellbrush.segment(IMAGE, tiny_model(), output, device="cpu")
    assert (found.shape, found.dtype) == (shape, dtype)
    if output == "classes":
        assert set(np.unique(found)) <= {1, 2, 3}
    if output == "probabilities":
        np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)


def test_a_file_an_array_and_a_list_of_lists_give_the_same(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", IMAGE)
    napari_cellbrush.save_model(tiny_model(), tmp_path / "m.safetensors")
    expected = napari_cellbrush.segment(IMAGE, tiny_model(), "probabilities", device="cpu")
    for image, model in ((tmp_path / "a.tif", tmp_path / "m.safetensors"), (str(tmp_path / "a.tif"), tiny_model()),
                         (IMAGE.tolist(), napari_cellbrush.load_model(tmp_path / "m.safetensors"))):
        found = napari_cellbrush.segment(image, model, "probabilities", device="cpu")
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint32, np.int64, np.float16, np.float64])
def test_every_usual_type_of_image_is_taken(dtype: type) -> None:
    found = napari_cellbrush.segment((IMAGE > 100).astype(dtype), tiny_model(), device="cpu")
    expected = napari_cellbrush.segment((IMAGE > 100).astype(np.uint8), tiny_model(), device="cpu")
    np.testing.assert_array_equal(found, expected)


def test_axes_say_what_is_a_channel_and_what_a_plane() -> None:
    stack = np.stack([IMAGE, IMAGE[::-1], IMAGE[:, ::-1]])
    assert napari_cellbrush.segment(stack, tiny_model(), axes="ZYX", device="cpu").shape == stack.shape
    assert napari_cellbrush.segment(stack, tiny_model(3), axes="CYX", device="cpu").shape == IMAGE.shape
    probabilities = napari_cellbrush.segment(stack, tiny_model(), "probabilities", axes="TYX", device="cpu")
    assert probabilities.shape == (3, *stack.shape)
    with pytest.raises(ImageError, match="axes"):
        napari_cellbrush.segment(stack, tiny_model(), device="cpu")


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (845 // 5, 47)])
def test_thin_and_small_images_are_fine(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    assert napari_cellbrush.segment(image, tiny_model(), device="cpu").shape == shape


@pytest.mark.parametrize(("image", "axes", "error", "word"), [
    (np.full((30, 30), 7), None, ImageError, "constant"),
    (np.where(np.eye(30) > 0, np.nan, 1.0), None, ImageError, "NaN"),
    (np.where(np.eye(30) > 0, np.inf, 1.0), None, ImageError, "infinite"),
    (np.zeros((0, 30)), None, ImageError, "empty"),
    (np.ones((30, 30), complex), None, ImageError, "complex"),
    (np.random.default_rng(0).random((3, 30, 30)), "CYX", ModelError, "needs 1"),
    (np.random.default_rng(0).random((30, 30, 3)), "YXS", ModelError, "needs 1"),
    (np.random.default_rng(0).random((30, 30)), "ZYX", ImageError, "axes"),
])
def test_an_unusable_image_gets_a_sentence(image: Any, axes: str, error: type[CellbrushError], word: str) -> None:
    with pytest.raises(error, match=word) as caught:
        napari_cellbrush.segment(image, tiny_model(), axes=axes, device="cpu")
    assert caught.value.remedy


def test_events_tell_how_far_it_is_and_a_stop_is_obeyed() -> None:
    events: list[Any] = []
    stop = StopToken()

    def on_event(event: Any) -> None:
        events.append(event)
        if isinstance(event, TileSegmented):
            stop.stop()

    found = napari_cellbrush.segment(IMAGE, tiny_model(), device="cpu", config=InferenceConfig(tile_size_px=108),
                                     on_event=on_event, stop=stop)
    assert [type(event) for event in events] == [InferenceStarted, TileSegmented]
    assert events[0].n_tiles > 1
    assert 0 < np.count_nonzero(found) < found.size


# --------------------------------------------------------------------------------------------------- fine-tune


def test_fine_tuning_changes_a_copy_and_tells_every_step() -> None:
    base = tiny_model()
    before = base.weights_hash
    events: list[Any] = []
    tuned = napari_cellbrush.fine_tune(base, IMAGE, CLASSES, QUICK, device="cpu", name="mine", on_event=events.append)
    assert base.weights_hash == before != tuned.weights_hash
    assert tuned.card.base_hash == before
    assert tuned.card.name == "mine"
    assert isinstance(events[0], TrainingStarted)
    assert [e.step for e in events if isinstance(e, TrainingStep)] == [1, 2]


def test_corrections_of_one_image_or_of_several_are_told_from_other_strokes() -> None:
    strokes, later = CLASSES.copy(), np.zeros(CLASSES.shape, bool)
    strokes[::2] = 0
    later[60:] = strokes[60:] > 0
    learning, started = QUICK.replace(held_out_fraction=0), list[int]()

    def on_event(event: Any) -> None:
        if isinstance(event, TrainingStarted):
            started.append(event.n_corrections)

    one = napari_cellbrush.fine_tune("scratch", IMAGE, strokes, learning, device="cpu", corrections=later,
                                     on_event=on_event)
    napari_cellbrush.fine_tune("scratch", [IMAGE, IMAGE], [strokes, strokes], learning, device="cpu",
                               corrections=[None, later], on_event=on_event)
    plain = napari_cellbrush.fine_tune("scratch", IMAGE, strokes, learning, device="cpu")
    assert started == [np.count_nonzero(later)] * 2
    assert one.weights_hash != plain.weights_hash
    with pytest.raises(AnnotationError, match="corrections"):
        napari_cellbrush.fine_tune("scratch", IMAGE, strokes, learning, device="cpu", corrections=[])


def test_instance_masks_teach_background_cell_and_boundary() -> None:
    from_objects = napari_cellbrush.fine_tune("scratch", [IMAGE], [OBJECTS], QUICK, label_kind="objects", device="cpu")
    from_classes = napari_cellbrush.fine_tune("scratch", [IMAGE], [CLASSES], QUICK, device="cpu")
    assert from_objects.weights_hash == from_classes.weights_hash
    assert [c.role for c in from_objects.card.classes] == ["background", "object", "boundary"]


def test_the_ignored_value_of_an_instance_mask_is_unlabelled() -> None:
    ignored = OBJECTS.copy()
    ignored[:40] = 999
    tuned = napari_cellbrush.fine_tune("scratch", IMAGE, ignored, QUICK, label_kind="objects", ignore_value=999,
                                       device="cpu")
    assert sum(tuned.card.labelled_pixels.values()) == 56 * 110


def test_names_are_enough_for_classes() -> None:
    two = np.minimum(CLASSES, 2)
    tuned = napari_cellbrush.fine_tune("scratch", IMAGE, two, QUICK, classes=["background", "nucleus"], device="cpu")
    assert [c.name for c in tuned.card.classes] == ["background", "nucleus"]


def test_files_and_arrays_train_the_same_model(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", IMAGE)
    tifffile.imwrite(tmp_path / "l.tif", CLASSES)
    from_files = napari_cellbrush.fine_tune(tiny_model(), tmp_path / "a.tif", str(tmp_path / "l.tif"), QUICK,
                                            device="cpu")
    from_arrays = napari_cellbrush.fine_tune(tiny_model(), [IMAGE], [CLASSES], QUICK, device="cpu")
    assert from_files.weights_hash == from_arrays.weights_hash


@pytest.mark.parametrize(("labels", "options", "error", "word"), [
    (np.zeros_like(CLASSES), {}, AnnotationError, "empty"),
    (np.ones_like(CLASSES), {}, AnnotationError, "background"),
    (CLASSES[:-1], {}, AnnotationError, r"\(95, 110\)"),
    (CLASSES[None], {}, AnnotationError, r"\(1, 96, 110\)"),
    (CLASSES.ravel(), {"label_kind": "objects"}, AnnotationError, "shape"),
    (CLASSES + 9, {}, AnnotationError, "12"),
    (CLASSES - 0.5, {}, AnnotationError, "whole"),
    (CLASSES.astype(np.int16) - 2, {}, AnnotationError, "-1"),
    ([CLASSES, CLASSES], {}, AnnotationError, "2 set"),
    ([], {}, AnnotationError, "0 set"),
    (OBJECTS, {"label_kind": "objects", "classes": ["background", "cell"]}, ConfigError, "Instance masks"),
    (CLASSES, {"classes": ["background"]}, ConfigError, "class names"),
])
def test_unusable_labels_get_a_sentence(
    labels: Any, options: dict[str, Any], error: type[CellbrushError], word: str
) -> None:
    with pytest.raises(error, match=word) as caught:
        napari_cellbrush.fine_tune(tiny_model(), IMAGE, labels, QUICK, device="cpu", **options)
    assert caught.value.remedy


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ModelFileError, match="'nobody'"):
        napari_cellbrush.load_model("nobody")
    with pytest.raises(ModelFileError, match="'nobody'"):
        napari_cellbrush.fine_tune("nobody", IMAGE, CLASSES, QUICK)


def test_a_mask_is_saved_from_the_package_itself(tmp_path: Path) -> None:
    path = napari_cellbrush.save_mask(tmp_path / "m.tif", OBJECTS, pixel_size=napari_cellbrush.PixelSize(0.2, 0.1))
    np.testing.assert_array_equal(tifffile.imread(path), OBJECTS)
    assert read_provenance(path) == {}
