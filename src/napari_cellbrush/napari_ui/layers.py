"""Between layers and arrays: axes, transforms, colours, what the view shows.

An image layer may carry a channel axis; layers of labels have none. If channels come first, the labels simply lack
the axis (napari aligns axes from the last one). If they stand between others, the labels keep an axis of length
one there, stretched over all channels, so that both still lie on top of each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from napari.layers import Image, Labels, Layer
from napari.utils import Colormap, DirectLabelColormap
from numpy.typing import NDArray

from napari_cellbrush.config import ClassDefinition
from napari_cellbrush.engine.axes import AXIS_NAMES, PixelSize, guess_axes
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.tiling import Region
from napari_cellbrush.errors import AnnotationError, CellbrushError, ImageError

#: Where a layer's metadata say what this plugin knows about it.
METADATA_KEY = "cellbrush"
#: Strokes and results share the classes' colours: only one of them may hide the image.
ANNOTATION_OPACITY = 1.0
#: Of an annotation that leaves next to nothing of a plane unpainted, as copies of masks do: the image must be seen.
COVERING_OPACITY = 0.5
RESULT_OPACITY = 0.35
PROBABILITY_OPACITY = 0.8
#: Opacity of the background class in a result: enough to see what is segmented already.
BACKGROUND_ALPHA = 0.25
#: Rows looked at together when pixels are counted.
_COUNT_BLOCK_ROWS = 512
#: Share of a plane from which on strokes hide the image.
_COVERING_SHARE = 0.5
#: Rows and columns from one pixel to the next, where a share need not be exact.
_SAMPLE_STEP = 8
#: Rows and columns that are read of labels to see what kind they are.
_GLANCE_PX = 1024

Index = tuple[int, ...]


# ------------------------------------------------------------------------------------------------- images


def full_resolution(layer: Layer) -> Any:
    """The layer's array; of a pyramid, its finest level."""
    return layer.data[0] if getattr(layer, "multiscale", False) else layer.data


def layer_axes(layer: Layer) -> str:
    """The likeliest axes of a layer's array: named ones if they make sense, else guessed; empty if hopeless.

    Names come from the layer, or from the file that it was read from.
    """
    shape, rgb = tuple(full_resolution(layer).shape), bool(getattr(layer, "rgb", False))
    known = {name: letter for letter, name in AXIS_NAMES.items()} | {letter.lower(): letter for letter in AXIS_NAMES}
    named = [known.get(str(label).lower(), "") for label in getattr(layer, "axis_labels", ())]
    letters = "".join(named) + ("S" if rgb else "")
    if all(named) and len(letters) == len(shape) == len(set(letters)) and {"Y", "X"} <= set(letters):
        return letters
    source = Path(layer.source.path or "")
    if len(shape) > 2 + rgb and source.suffix.lower() in (".tif", ".tiff"):
        facts = file_facts(source)
        if facts and facts.shape == shape and (not rgb or facts.axes[-1] in "SC"):
            return facts.axes
    try:
        return guess_axes(shape, rgb)
    except ImageError:
        return ""


class FileFacts(NamedTuple):
    """What an image file says of itself."""

    axes: str
    #: Of the array, and of its planes.
    shape: tuple[int, ...]
    shape_yx: tuple[int, int]
    pixel_size: PixelSize


def file_facts(path: Path) -> FileFacts | None:
    """What a file says; None if it is no image that the engine reads, or its axes are not known."""
    return _facts_as_written(path, path.stat().st_mtime_ns) if path.exists() else None


@lru_cache(maxsize=64)
def _facts_as_written(path: Path, written_ns: int) -> FileFacts | None:
    """The same, read once as long as nobody writes the file anew."""
    from napari_cellbrush.engine.image_file import open_image

    try:
        file = open_image(path)
    except (CellbrushError, OSError):
        return None
    planes = file.planes
    return FileFacts(planes.axes, tuple(planes.data.shape), planes.shape_yx, file.pixel_size)


def planes_of(layer: Layer, axes: str) -> Planes:
    """The layer's pixels for the engine; they are referred to, not copied."""
    return Planes(full_resolution(layer), axes, layer.name)


# ------------------------------------------------------------------------------- labels that lie on an image


def labels_axes(image_axes: str) -> str:
    """Axes of labels for an image: without samples, without channels if they come first."""
    return image_axes.replace("S", "").removeprefix("C")


def labels_shape(image_axes: str, image_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a labels layer for an image; a channel axis that stays has length one."""
    sizes = dict(zip(image_axes, image_shape, strict=True)) | {"C": 1}
    return tuple(int(sizes[letter]) for letter in labels_axes(image_axes))


def in_engine_order(labels: NDArray[Any], axes: str) -> NDArray[Any]:
    """A view of a labels layer's array with stack axes first, then Y and X; writing to it writes to the layer."""
    order = [axes.index(letter) for letter in axes if letter in "TZ"] + [axes.index("Y"), axes.index("X")]
    if "C" not in axes:
        return labels.transpose(order)
    position = axes.index("C")
    return labels.squeeze(position).transpose([i - (i > position) for i in order])


def box_in_engine_order(box: tuple[slice, ...], axes: str) -> tuple[slice, ...]:
    """The box of a layer's array in the order of :func:`in_engine_order`."""
    return tuple(box[axes.index(letter)] for letter in (*(a for a in axes if a in "TZ"), "Y", "X"))


def in_layer_order(labels: NDArray[Any], axes: str) -> NDArray[Any]:
    """The opposite of :func:`in_engine_order`."""
    stack = [letter for letter in axes if letter in "TZ"]
    have = [*stack, "Y", "X"]
    ordered = labels.transpose([have.index(letter) for letter in axes if letter != "C"])
    return np.expand_dims(ordered, axes.index("C")) if "C" in axes else ordered


def placement(image: Layer, image_axes: str) -> dict[str, Any]:
    """Where a labels layer must lie to cover an image: scale, translate, rotate, shear, affine and units."""
    letters = image_axes.replace("S", "")
    kept = [i for i, letter in enumerate(letters) if not (i == 0 and letter == "C")]
    scale, translate = np.array(image.scale, float), np.array(image.translate, float)
    if "C" in letters[1:]:
        channel = letters.index("C")
        n_channels = full_resolution(image).shape[channel]
        translate[channel] += scale[channel] * (n_channels - 1) / 2
        scale[channel] *= n_channels
    affine = np.asarray(image.affine.affine_matrix)
    return {
        "scale": scale[kept],
        "translate": translate[kept],
        "rotate": np.asarray(image.rotate)[np.ix_(kept, kept)],
        "shear": _shear_matrix(image)[np.ix_(kept, kept)],
        "affine": affine[np.ix_([*kept, len(letters)], [*kept, len(letters)])],
        "units": [image.units[i] for i in kept],
    }


def new_labels(image: Layer, image_axes: str, data: NDArray[Any], name: str, **look: Any) -> Labels:
    """A labels layer that lies on an image; ``data`` is stack axes + YX."""
    axes = labels_axes(image_axes)
    return Labels(in_layer_order(data, axes), name=name, metadata={METADATA_KEY: {"axes": axes}},
                  **placement(image, image_axes), **look)


def new_probability(image: Layer, image_axes: str, name: str, color: str) -> Image:
    """An image layer, float32 in [0, 1], that lies on an image: the likelier, the less transparent."""
    axes = labels_axes(image_axes)
    data = np.zeros(labels_shape(image_axes, full_resolution(image).shape), np.float32)
    # Additive colours would turn a bright-field image white.
    colormap = Colormap([f"{color}00", f"{color}ff"], name=f"to {color}")
    return Image(data, name=name, metadata={METADATA_KEY: {"axes": axes}}, contrast_limits=(0, 1), colormap=colormap,
                 blending="translucent", opacity=PROBABILITY_OPACITY, **placement(image, image_axes))


def new_uncertainty(image: Layer, image_axes: str, name: str) -> Image:
    """An image layer, uint8, that lies on an image: the brighter, the less a model knows."""
    axes = labels_axes(image_axes)
    data = np.zeros(labels_shape(image_axes, full_resolution(image).shape), np.uint8)
    colormap = Colormap(["#ff00ff00", "#ff00ffff"], name="unsure")
    return Image(data, name=name, metadata={METADATA_KEY: {"axes": axes, "output": "probability"}},
                 contrast_limits=(0, 255), colormap=colormap, blending="translucent", opacity=PROBABILITY_OPACITY,
                 **placement(image, image_axes))


def new_difference(image: Layer, image_axes: str, name: str) -> Labels:
    """A labels layer that lies on an image and shows what another model says."""
    data = np.zeros(labels_shape(image_axes, full_resolution(image).shape), np.uint8)
    layer = Labels(data, name=name, metadata={METADATA_KEY: {"axes": labels_axes(image_axes), "output": "classes"}},
                   **placement(image, image_axes))
    layer.editable = False
    return layer


def note_of(layer: Layer) -> dict[str, Any]:
    """What this plugin noted in a layer's metadata."""
    return dict(layer.metadata.get(METADATA_KEY, {}))


def note_on(layer: Layer, **values: Any) -> None:
    """Note something in a layer's metadata, next to what stands there."""
    layer.metadata[METADATA_KEY] = {**note_of(layer), **values}


def mask_axes(layer: Layer) -> str:
    """Axes of a layer's array as noted when it was made, else the likeliest."""
    noted = note_of(layer).get("axes", "")
    return noted if len(noted) == full_resolution(layer).ndim else layer_axes(layer)


def without_channel(data: NDArray[Any], axes: str) -> tuple[NDArray[Any], str]:
    """Labels without the axis of length one that stands for the channels."""
    if "C" in axes and data.shape[axes.index("C")] == 1:
        return data.squeeze(axes.index("C")), axes.replace("C", "")
    return data, axes


def _shear_matrix(layer: Layer) -> NDArray[Any]:
    shear = np.asarray(layer.shear)
    if shear.ndim == 2:
        return shear
    matrix = np.eye(layer.ndim)
    matrix[np.triu_indices(layer.ndim, 1)] = shear
    return matrix


# ------------------------------------------------------------------------------------------------ pixel size


def pixel_size(layer: Layer, axes: str) -> PixelSize:
    """The size of a pixel in µm if the layer's units are lengths, else in the layer's own numbers."""
    letters = axes.replace("S", "")
    scale = {letter: abs(float(s)) for letter, s in zip(letters, layer.scale, strict=True)}
    factors = {letter: _micrometres(unit) for letter, unit in zip(letters, layer.units, strict=True)}
    metric = all(factors[letter] is not None for letter in "YX")
    sizes = {k: scale[k] * ((factors[k] or 1.0) if metric else 1.0) for k in letters if k in "ZYX"}
    return PixelSize(sizes["Y"], sizes["X"], sizes.get("Z"), "µm" if metric else "pixel")


def _micrometres(unit: Any) -> float | None:
    """How many µm a unit is; None if it is no length."""
    try:
        return float((1 * unit).to("micrometer").magnitude)
    except Exception:  # whatever pint raises for pixels, and whatever stands there instead of a unit
        return None


# ------------------------------------------------------------------------------------------------ the view


def plane_index(layer: Layer, axes: str, point: Sequence[float]) -> Index:
    """Which plane of a layer the viewer shows at a world point."""
    position = layer.world_to_data(np.asarray(point)[-layer.ndim :])
    letters, shape = axes.replace("S", ""), full_resolution(layer).shape
    return tuple(min(max(round(float(position[i])), 0), shape[i] - 1)
                 for i, letter in enumerate(letters) if letter in "TZ")


def visible_region(layer: Layer, axes: str, displayed: Sequence[int]) -> Region | None:
    """Rows and columns of a layer that the camera sees; None where the view does not show planes of the image.

    Parameters
    ----------
    layer
        The image.
    axes
        Its axes.
    displayed
        The layer's axes that the view shows.

    Raises
    ------
    AnnotationError
        If the image lies outside the view.
    """
    letters = axes.replace("S", "")
    y, x = letters.index("Y"), letters.index("X")
    if set(displayed) != {y, x}:
        return None
    corners = np.asarray(layer.corner_pixels, float)
    if not corners.any():  # never drawn
        return None
    if getattr(layer, "multiscale", False):
        corners = corners * layer.downsample_factors[layer.data_level]
    shape = full_resolution(layer).shape
    rows, columns = (slice(max(0, int(corners[0, i])), min(shape[i], int(np.ceil(corners[1, i])) + 1)) for i in (y, x))
    if rows.stop - rows.start < 2 < shape[y] or columns.stop - columns.start < 2 < shape[x]:
        raise AnnotationError(f"The image '{layer.name}' lies outside the view", "Move the view onto it, or choose "
                              "another scope")
    return rows, columns


def region_in_sight(layer: Layer, axes: str, dims: Any) -> Region | None:
    """The same for a viewer's dims, and None where the image lies outside the view as well."""
    try:
        return visible_region(layer, axes, displayed_axes(layer, dims))
    except AnnotationError:
        return None


def displayed_axes(layer: Layer, dims: Any) -> list[int]:
    """The layer's axes that the view shows; napari lays the last axes of all layers on each other."""
    return [axis - dims.ndim + layer.ndim for axis in dims.displayed]


def centre_of(region: Region) -> tuple[float, float]:
    """Row and column of a region's centre."""
    rows, columns = region
    return (rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2


def pixel_at(layer: Layer, axes: str, position: Sequence[float]) -> tuple[Index, float, float] | None:
    """Plane, row and column of a layer at a world point, the pixel's centre being a whole number; None if outside."""
    point = layer.world_to_data(np.asarray(position)[-layer.ndim :])
    shape = full_resolution(layer).shape
    if any(not -0.5 <= at < n - 0.5 for at, n in zip(point, shape, strict=True)):
        return None
    row, column = (float(point[axes.index(letter)]) for letter in "YX")
    return tuple(round(float(point[i])) for i, letter in enumerate(axes) if letter in "TZ"), row, column


def in_layer_coordinates(axes: str, index: Index, rows: NDArray[Any],
                         columns: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Pixels of a plane as coordinates along each axis of a labels layer."""
    at = dict(zip((letter for letter in axes if letter in "TZ"), index, strict=True)) | {"C": 0}
    fixed = {letter: np.full(len(rows), value) for letter, value in at.items()}
    return tuple({**fixed, "Y": rows, "X": columns}[letter] for letter in axes)


# ------------------------------------------------------------------------------------------------- classes


def class_colormap(classes: Iterable[ClassDefinition], background_alpha: float = 1.0) -> DirectLabelColormap:
    """Colours of label values; 0 and unknown values are transparent."""
    colors: dict[int | None, Any] = {None: "transparent", 0: "transparent"}
    for value, definition in enumerate(classes, start=1):
        alpha = background_alpha if definition.role == "background" else 1.0
        red, green, blue = (int(definition.color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        colors[value] = np.array([red, green, blue, alpha])
    return DirectLabelColormap(color_dict=colors)


def class_features(classes: Sequence[ClassDefinition]) -> dict[str, list[Any]]:
    """Names of label values, for napari's status bar."""
    return {"index": list(range(len(classes) + 1)), "class": ["unlabelled", *(c.name for c in classes)]}


def keys_in_words(n_classes: int) -> str:
    """The keys of an annotation layer, in one line that breaks between them alone."""
    keys = (f"1–{min(n_classes, 9)} class", "[ ] brush size", "E erase", "F fill", "Ctrl+Z undo", "L live",
            "N next place", "Space (held) no mask, move")
    return ", ".join(key.replace(" ", "\N{NO-BREAK SPACE}") for key in keys)


def bind_class_keys(layer: Labels, n_classes: int) -> None:
    """Digits choose a class and the brush, on this layer alone, instead of napari's tools (which keep their letters).

    Digits without a class do nothing: the same key must not be an eraser today and a class tomorrow.
    """
    for digit in range(1, 10):
        layer.bind_key(str(digit), _select(digit) if digit <= n_classes else _do_nothing, overwrite=True)


def _select(value: int) -> Any:
    def select(layer: Labels) -> None:
        layer.selected_label = value
        layer.mode = "paint"

    return select


def _do_nothing(layer: Labels) -> None:
    """What a digit without a class does. (napari's own way to block a key, ``...``, raises when it is pressed.)"""


def painted_box(atom: Any) -> tuple[slice, ...]:
    """The box of a layer's array that one item of a ``paint`` event touched."""
    key = getattr(atom, "slice_key", None)
    if key is not None:
        return tuple(k if isinstance(k, slice) else slice(int(k), int(k) + 1) for k in key)
    return tuple(slice(int(np.min(i)), int(np.max(i)) + 1) for i in atom[0])


def painted_pixels(atom: Any) -> tuple[tuple[NDArray[Any], ...], NDArray[Any], NDArray[Any]]:
    """Coordinates of the pixels that one item of a ``paint`` event touched, and their values before and after."""
    key = getattr(atom, "slice_key", None)
    if key is None:
        coordinates, before, after = atom
        return coordinates, np.asarray(before), np.broadcast_to(after, np.shape(before))
    box = painted_box(atom)
    shape = [side.stop - side.start for side in box]
    mask = np.ones(shape, bool) if atom.mask is None else np.reshape(atom.mask, shape)
    coordinates = tuple(at + side.start for at, side in zip(np.nonzero(mask), box, strict=True))
    before = np.ravel(atom.old_values)
    return coordinates, before, np.broadcast_to(atom.new_value, before.shape)


def count_labels(plane: NDArray[Any], n_classes: int) -> NDArray[np.int64]:
    """Pixels of each class in labels of any shape; block by block, so that little memory is touched."""
    counts = np.zeros(n_classes, np.int64)
    for start in range(0, len(plane), _COUNT_BLOCK_ROWS):
        block = plane[start : start + _COUNT_BLOCK_ROWS]
        counts += [np.count_nonzero(block == value) for value in range(1, n_classes + 1)]
    return counts


def opacity_of(strokes: NDArray[np.uint8]) -> float:
    """How opaque an annotation of these strokes (stack axes + YX) may be without hiding the image."""
    painted = strokes[..., ::_SAMPLE_STEP, ::_SAMPLE_STEP] > 0
    covers = painted.mean(axis=(-2, -1)).max(initial=0) > _COVERING_SHARE
    return COVERING_OPACITY if covers else ANNOTATION_OPACITY


def largest_at_a_glance(layer: Labels, point: Sequence[float]) -> int:
    """The largest value in the middle of the plane shown at a world point; more may have to be read from far away."""
    data, axes = full_resolution(layer), mask_axes(layer)
    if not axes:
        return 0
    stack = dict(zip((letter for letter in axes if letter in "TZ"), plane_index(layer, axes, point), strict=True))
    place = tuple(_middle(n) if letter in "YX" else stack.get(letter, 0)
                  for letter, n in zip(axes, data.shape, strict=True))
    return int(np.asarray(data[place]).max(initial=0))


def _middle(n: int) -> slice:
    return slice(max(0, (n - _GLANCE_PX) // 2), min(n, (n + _GLANCE_PX) // 2))


def without_class(labels: NDArray[np.uint8], value: int) -> NDArray[np.uint8]:
    """A copy in which one class is unlabelled and those after it are one lower."""
    table = np.arange(256, dtype=np.uint8)
    table[value] = 0
    table[value + 1 :] -= 1
    return table[labels]


def axes_on_image(source: Labels, image_axes: str, image_shape: Sequence[int]) -> str:
    """Axes of a labels layer's array if it covers an image.

    Raises
    ------
    CellbrushError
        If the shapes do not fit.
    """
    given = tuple(full_resolution(source).shape)
    shape, axes = labels_shape(image_axes, image_shape), labels_axes(image_axes)
    if given == shape:
        return axes
    if given == tuple(n for n, letter in zip(shape, axes, strict=True) if letter != "C"):
        return axes.replace("C", "")
    raise CellbrushError(f"The labels '{source.name}' have the shape {given}, the image needs {shape}",
                         "Choose labels of the same image, without an axis for channels")
