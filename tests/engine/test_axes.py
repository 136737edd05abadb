from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_cellbrush.engine.axes import PixelSize, check_axes, guess_axes
from napari_cellbrush.errors import ConfigError, ImageError


def test_letters_are_read_in_any_case_and_with_spaces() -> None:
    assert check_axes(" zyx ", (3, 4, 5)) == "ZYX"


@pytest.mark.parametrize(("axes", "shape", "complaint"), [
    ("YX", (3, 4, 5), "name 2 axes, the image has 3"),
    ("QYX", (3, 4, 5), "unknown letter"),
    ("YYX", (3, 4, 5), "one twice"),
    ("ZY", (4, 5), "lack Y or X"),
    ("CYXS", (3, 4, 5, 3), "both channels"),
])
def test_axes_that_do_not_fit_are_refused_with_the_reason(axes: str, shape: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(ImageError, match=complaint):
        check_axes(axes, shape)


@pytest.mark.parametrize(("shape", "rgb", "axes"), [
    ((9, 9), False, "YX"), ((3, 9, 9), False, "ZYX"), ((9, 9, 3), True, "YXS"), ((5, 3, 9, 9), False, "TZYX"),
    ((4, 9, 9, 3), True, "ZYXS"), ((2, 2, 2, 9, 9), False, "TCZYX"),
])
def test_the_likeliest_axes_are_guessed(shape: tuple[int, ...], rgb: bool, axes: str) -> None:
    assert guess_axes(shape, rgb) == axes


@pytest.mark.parametrize("shape", [(5,), (1, 2, 3, 4, 5, 6)])
def test_images_with_too_few_or_many_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=f"has {len(shape)} axes"):
        guess_axes(shape)


@pytest.mark.parametrize(("text", "size"), [
    ("0.65", PixelSize(0.65, 0.65, None, "µm")),
    ("0,65 µm", PixelSize(0.65, 0.65, None, "µm")),
    ("0.65um", PixelSize(0.65, 0.65, None, "µm")),
    ("0.65 \N{GREEK SMALL LETTER MU}m", PixelSize(0.65, 0.65, None, "µm")),
    ("0.65 microns", PixelSize(0.65, 0.65, None, "µm")),
    ("0.3x0.2", PixelSize(0.3, 0.2, None, "µm")),
    ("0.3µm x 0.2µm", PixelSize(0.3, 0.2, None, "µm")),
    ("0.3, 0.2", PixelSize(0.3, 0.2, None, "µm")),
    ("1.5 × 0.3 × 0.2", PixelSize(0.3, 0.2, 1.5, "µm")),
])
def test_a_pixel_size_is_read_as_people_write_it(text: str, size: PixelSize) -> None:
    assert PixelSize.read(text) == size


LENGTHS = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


@given(LENGTHS, LENGTHS, st.none() | LENGTHS)
def test_what_was_written_in_full_is_read_as_it_was(y: float, x: float, z: float | None) -> None:
    size = PixelSize(y, x, z, "µm")
    assert PixelSize.read(size.written()) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1 x 2 x 3 x 4", "0.3 mm", "small"])
def test_a_pixel_size_that_is_none_is_refused_with_what_is_needed(text: str) -> None:
    with pytest.raises(ConfigError, match="row × column"):
        PixelSize.read(text)


def test_a_said_size_keeps_the_distance_of_planes_that_was_read_and_has_none_without_planes() -> None:
    said, deep = PixelSize.read("0.5"), PixelSize.read("2 x 0.5 x 0.5")
    read = PixelSize(0.1, 0.1, 3.0, "µm")
    assert said.over(read, "ZYX") == PixelSize(0.5, 0.5, 3.0, "µm")
    assert said.over(PixelSize(1.0, 1.0, 3.0), "ZYX").z is None
    assert deep.over(read, "ZYX") == deep
    assert deep.over(read, "TYX") == said
