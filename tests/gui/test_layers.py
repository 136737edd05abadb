from __future__ import annotations

from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_cellbrush.config import DEFAULT_CLASSES
from napari_cellbrush.errors import AnnotationError, CellbrushError
from napari_cellbrush.events import StopToken, run_to_end
from napari_cellbrush.napari_ui import layers, runs

SIZES = {"T": 3, "Z": 4, "C": 2, "Y": 6, "X": 5, "S": 3}
AXES = ["YX", "YXS", "ZYX", "TYX", "CYX", "TZYX", "CZYX", "TCYX", "ZCYX", "TCZYX", "TZCYX", "TYXS"]


def image_layer(axes: str, **placement) -> Image:
    data = np.random.default_rng(0).random([SIZES[a] for a in axes]).astype(np.float32)
    return Image(data, rgb="S" in axes, name="image", **placement)


def askew(ndim: int) -> dict:
    """A placement in which every axis differs from every other."""
    affine = np.eye(ndim + 1)
    affine[:2, -1] = 3, -2
    affine[-2, -3] = 0.1
    return {"scale": np.arange(2, 2 + ndim) / 4, "translate": np.arange(ndim) * 1.5, "affine": affine,
            "units": ["second", "um", "nm", "um", "mm"][-ndim:]}


# ---------------------------------------------------------------------------------- labels at a glance


def test_only_the_middle_of_the_plane_shown_is_read_of_labels():
    read = []

    class Labels4D:
        shape, ndim, dtype = (2, 3, 4000, 500), 4, np.dtype(np.int32)

        def __getitem__(self, place):
            read.append(place)
            return np.arange(12).reshape(3, 4)

    source = SimpleNamespace(data=Labels4D(), metadata={"cellbrush": {"axes": "TZYX"}}, ndim=4,
                             world_to_data=lambda point: point)
    assert layers.largest_at_a_glance(source, (1.2, 1.8, 900, 0)) == 11
    assert read == [(1, 2, slice(1488, 2512), slice(0, 500))]


@given(st.integers(1, 3), st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_strokes_are_see_through_where_they_cover_a_plane(n, height, width, covers):
    strokes = np.zeros((n, height, width), np.uint8)
    strokes[-1] = covers
    assert layers.opacity_of(strokes) == (layers.COVERING_OPACITY if covers else layers.ANNOTATION_OPACITY)


# ---------------------------------------------------------------------------------- labels lie on images


@pytest.mark.parametrize("axes", AXES)
def test_labels_lie_on_their_image_to_the_pixel(axes):
    letters = axes.replace("S", "")
    image = image_layer(axes, **askew(len(letters)))
    image.rotate = 30 if len(letters) == 2 else image.rotate
    shape = (*tuple(SIZES[a] for a in axes if a in "TZ"), SIZES["Y"], SIZES["X"])
    labels = layers.new_labels(image, axes, np.zeros(shape, np.uint8), "labels")
    kept = [i for i, a in enumerate(letters) if a != "C"]
    where = [i for i, a in enumerate(layers.labels_axes(axes)) if a != "C"]
    missing = image.ndim - labels.ndim
    for corner in (np.zeros(image.ndim), np.array([SIZES[a] - 1 for a in letters])):
        inside = np.zeros(labels.ndim)
        inside[where] = corner[kept]
        of_image = np.array(image.data_to_world(corner))[[i for i in range(image.ndim) if letters[i] != "C"]]
        of_labels = np.array(labels.data_to_world(inside))[where]
        np.testing.assert_allclose(of_labels, of_image)
    assert [str(u) for u in labels.units] == [str(u) for u in image.units[missing:]]


@pytest.mark.parametrize("axes", AXES)
def test_labels_keep_a_rotation_and_a_shear_in_the_plane(axes):
    letters = axes.replace("S", "")
    angle = np.eye(len(letters))
    angle[-2:, -2:] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    shear = np.eye(len(letters))
    shear[-2, -1] = 0.4
    image = image_layer(axes, rotate=angle, shear=shear)
    shape = (*tuple(SIZES[a] for a in axes if a in "TZ"), SIZES["Y"], SIZES["X"])
    labels = layers.new_labels(image, axes, np.zeros(shape, np.uint8), "labels")
    corner = np.array([2.0, 3.0])
    of_image = np.array(image.data_to_world([0] * (image.ndim - 2) + [*corner]))[-2:]
    of_labels = np.array(labels.data_to_world([0] * (labels.ndim - 2) + [*corner]))[-2:]
    np.testing.assert_allclose(of_labels, of_image)


@pytest.mark.parametrize("axes", ["TCYX", "ZCYX", "TCZYX"])
def test_labels_are_seen_and_painted_on_every_channel(axes):
    """Channels between other axes: the labels' axis of length one covers them all and adds no step."""
    viewer = ViewerModel()
    image = viewer.add_layer(image_layer(axes))
    steps = viewer.dims.nsteps
    shape = (*tuple(SIZES[a] for a in axes if a in "TZ"), SIZES["Y"], SIZES["X"])
    labels = viewer.add_layer(layers.new_labels(image, axes, np.zeros(shape, np.uint8), "labels"))
    assert viewer.dims.nsteps == steps
    channel = axes.index("C")
    for position in range(SIZES["C"]):
        viewer.dims.set_current_step(channel, position)
        where = np.round(labels.world_to_data(viewer.dims.point)).astype(int)
        assert where[channel] == 0
        labels.data[...] = 0
        labels.paint((*where[:-2], 2, 3), 1)
        assert layers.in_engine_order(labels.data, axes)[..., 2, 3].sum() == 1


@pytest.mark.parametrize("axes", [*AXES, "XY", "YXC", "XYZ", "YXZ"])
def test_engine_order_is_a_view_with_stack_axes_first_and_can_be_undone(axes):
    kept = layers.labels_axes(axes)
    shape = layers.labels_shape(axes, [SIZES[a] for a in axes])
    assert shape == tuple(1 if a == "C" else SIZES[a] for a in kept)
    data = np.arange(np.prod(shape)).reshape(shape)
    engine = layers.in_engine_order(data, kept)
    assert engine.shape == (*tuple(SIZES[a] for a in axes if a in "TZ"), SIZES["Y"], SIZES["X"])
    np.testing.assert_array_equal(layers.in_layer_order(engine, kept), data)
    engine[..., 1, 2] = -7
    assert (data == -7).sum() == engine[..., 1, 2].size


def test_labels_of_a_pyramid_have_its_finest_size_and_scale():
    levels = [np.zeros((64, 48), np.float32), np.zeros((32, 24), np.float32)]
    image = Image(levels, multiscale=True, scale=(0.5, 0.25))
    labels = layers.new_labels(image, "YX", np.zeros((64, 48), np.uint8), "labels")
    assert layers.full_resolution(image).shape == labels.data.shape
    np.testing.assert_allclose(labels.scale, (0.5, 0.25))


def test_lazy_images_are_handed_to_the_engine_without_being_read():
    def refuse(block):
        raise AssertionError("the image was read")

    lazy = da.zeros((3, 4000, 4000), chunks=(1, 512, 512), dtype=np.uint16)
    image = Image(lazy, name="lazy", contrast_limits=(0, 1), cache=False)
    planes = layers.planes_of(image, "ZYX")
    assert planes.data is image.data
    assert planes.spatial_shape == (3, 4000, 4000)


# ------------------------------------------------------------------------------------------------- axes


@pytest.mark.parametrize(("shape", "rgb", "names", "axes"), [
    ((5, 6), False, None, "YX"),
    ((5, 6, 3), True, None, "YXS"),
    ((4, 5, 6), False, None, "ZYX"),
    ((4, 5, 6), False, ("time", "row", "column"), "TYX"),
    ((4, 5, 6), False, ("c", "y", "x"), "CYX"),
    ((4, 5, 6), False, ("q", "y", "x"), "ZYX"),
    ((2, 4, 5, 6), False, None, "TZYX"),
    ((2, 2, 2, 2, 5, 6), False, None, ""),
])
def test_axes_come_from_the_layers_names_or_are_guessed(shape, rgb, names, axes):
    layer = Image(np.zeros(shape, np.float32), rgb=rgb, axis_labels=names)
    assert layers.layer_axes(layer) == axes


@pytest.mark.parametrize(("written", "shape", "axes"), [("CYX", (5, 6, 7), "CYX"), ("TYX", (5, 6, 7), "TYX"),
                                                        ("CYX", (5, 6, 8), "ZYX"), (None, (5, 6, 7), "ZYX")])
def test_axes_that_the_file_names_are_believed_while_it_holds_this_image(viewer, tmp_path, written, shape, axes):
    path = tmp_path / "image.tif"
    metadata = {"axes": written} if written else None
    tifffile.imwrite(path, np.zeros((5, 6, 7), np.uint16), photometric="minisblack", metadata=metadata)
    (layer,) = viewer.open(str(path), plugin="napari")
    layer.data = np.zeros(shape, np.uint16)
    assert layers.layer_axes(layer) == axes


# ------------------------------------------------------------------------------------------- pixel size


def test_pixel_size_is_in_micrometres_and_keeps_axes_apart():
    layer = Labels(np.zeros((2, 3, 4), np.uint8), scale=(0.3, 100, 0.2), units=("um", "nm", "um"))
    size = layers.pixel_size(layer, "ZYX")
    assert (size.z, size.y, size.x, size.unit) == pytest.approx((0.3, 0.1, 0.2, "µm"))


def test_time_is_no_length_and_pixels_have_no_unit():
    layer = Labels(np.zeros((2, 3, 4), np.uint8), scale=(5, 0.1, 0.2), units=("second", "um", "um"))
    assert layers.pixel_size(layer, "TYX").z is None
    bare = Labels(np.zeros((3, 4), np.uint8), scale=(0.5, 0.25))
    size = layers.pixel_size(bare, "YX")
    assert (size.y, size.x, size.unit) == (0.5, 0.25, "pixel")


# --------------------------------------------------------------------------------------------- the view


def viewed(data: np.ndarray, **named) -> tuple[ViewerModel, Image]:
    viewer = ViewerModel()
    return viewer, viewer.add_image(data, **named)


def test_the_shown_plane_is_found_through_scale_and_offset():
    viewer, layer = viewed(np.zeros((4, 5, 6, 7)), scale=(1, 3, 1, 1), translate=(0, 10, 0, 0))
    viewer.dims.set_current_step((0, 1), (2, 3))
    assert layers.plane_index(layer, "TZYX", viewer.dims.point) == (2, 3)


def test_the_shown_plane_of_a_smaller_image_beside_a_larger_one_is_one_that_exists():
    viewer, layer = viewed(np.zeros((3, 5, 5)))
    viewer.add_image(np.zeros((9, 5, 5)))
    viewer.dims.set_current_step(0, 8)
    assert layers.plane_index(layer, "ZYX", viewer.dims.point) == (2,)


def test_the_visible_region_is_inside_the_image_and_covers_what_the_camera_sees():
    _, layer = viewed(np.zeros((50, 60)))
    layer.corner_pixels = np.array([[10, 20], [30, 100]])
    assert layers.visible_region(layer, "YX", (0, 1)) == (slice(10, 31), slice(20, 60))


def test_a_pyramids_visible_region_is_in_pixels_of_its_finest_level():
    levels = [np.zeros((64, 48)), np.zeros((32, 24))]
    _, layer = viewed(levels, multiscale=True)
    layer._data_level = 1  # what drawing sets
    layer.corner_pixels = np.array([[4, 5], [10, 20]])
    assert layers.visible_region(layer, "YX", (0, 1)) == (slice(8, 21), slice(10, 41))


def test_a_view_of_other_axes_has_no_region_and_an_image_outside_says_so():
    _, layer = viewed(np.zeros((8, 50, 60)))
    layer.corner_pixels = np.array([[0, 10, 20], [0, 30, 40]])
    assert layers.visible_region(layer, "ZYX", (0, 2)) is None
    assert layers.visible_region(layer, "ZYX", (0, 1, 2)) is None
    layer.corner_pixels = np.array([[0, 49, 20], [0, 49, 40]])
    with pytest.raises(AnnotationError, match="outside the view"):
        layers.visible_region(layer, "ZYX", (1, 2))


# ---------------------------------------------------------------------------------------------- classes


def test_unlabelled_and_unknown_values_are_transparent_and_classes_have_their_colour():
    colors = layers.class_colormap(DEFAULT_CLASSES, background_alpha=0.25).map(np.array([0, 1, 2, 3, 99]))
    assert colors[0][3] == colors[4][3] == 0
    assert colors[1][3] == pytest.approx(0.25)
    np.testing.assert_allclose(colors[2] * 255, [0xF2, 0xB1, 0x34, 255], atol=0.6)


label_arrays = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 6))


@given(label_arrays)
def test_counting_is_bincount(labels):
    expected = np.bincount(labels.ravel(), minlength=6)[1:6]
    np.testing.assert_array_equal(layers.count_labels(labels, 5), expected)


def test_counting_goes_on_after_the_first_block():
    labels = np.zeros((1500, 3), np.uint8)
    labels[[0, 511, 512, 1499]] = 2
    np.testing.assert_array_equal(layers.count_labels(labels, 3), [0, 12, 0])


@given(label_arrays, st.integers(1, 6))
def test_taking_a_class_out_leaves_the_others_in_order(labels, value):
    left = layers.without_class(labels, value)
    for old in range(1, 7):
        new = 0 if old == value else old - (old > value)
        assert (left[labels == old] == new).all()
    assert (left[labels == 0] == 0).all()


# -------------------------------------------------------------------------------------- labels taken over


@pytest.mark.parametrize(("axes", "given_shape"), [("YX", (6, 5)), ("CYX", (6, 5)), ("TCYX", (3, 1, 6, 5)),
                                                   ("TCYX", (3, 6, 5)), ("YXS", (6, 5))])
def test_labels_with_or_without_the_channel_axis_become_an_annotation(axes, given_shape):
    data = np.random.default_rng(0).integers(0, 4, given_shape).astype(np.uint16)
    found = layers.axes_on_image(Labels(data), axes, [SIZES[a] for a in axes])
    taken = run_to_end(runs.take_over(runs.TakeOverTask("given", data, found, "classes", DEFAULT_CLASSES), StopToken()))
    np.testing.assert_array_equal(taken, data.reshape(taken.shape))
    assert taken.dtype == np.uint8
    assert not np.shares_memory(taken, data)


@pytest.mark.parametrize("axes", ["XYZ", "TXY"])
def test_planes_of_labels_are_taken_over_whatever_the_order_of_their_axes(axes):
    data = np.random.default_rng(0).integers(0, 4, (2, 3, 4)).astype(np.uint8)
    task = runs.TakeOverTask("given", data, axes, "classes", DEFAULT_CLASSES)
    np.testing.assert_array_equal(run_to_end(runs.take_over(task, StopToken())), layers.in_engine_order(data, axes))


@pytest.mark.parametrize(("value", "kind", "words"), [
    (-2, "classes", "the value -2, but there are 2 classes"), (3, "classes", "the value 3, but"),
    (1.5, "classes", "not whole numbers"), (7, "objects", "no class counts as background, or none as object"),
])
def test_labels_that_are_no_classes_are_refused_with_the_value(value, kind, words):
    data = np.zeros((2, 20, 20), np.float32)
    data[1, 5:15, 5:15] = value
    with pytest.raises(CellbrushError, match=words):
        run_to_end(runs.take_over(runs.TakeOverTask("given", data, "ZYX", kind, DEFAULT_CLASSES[1:]), StopToken()))


def test_labels_of_another_size_are_refused_with_both_shapes():
    with pytest.raises(CellbrushError, match=r"\(6, 6\).*\(6, 5\)"):
        layers.axes_on_image(Labels(np.zeros((6, 6), np.uint8), name="other"), "YX", (6, 5))
