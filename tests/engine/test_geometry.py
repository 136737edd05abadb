from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_cellbrush.engine.geometry import UNetGeometry
from napari_cellbrush.errors import ConfigError

DEPTHS = st.integers(3, 5)
PADDED = st.booleans()


def sizes_by_walking_the_network(size: int, depth: int) -> int:
    """The output size by going through the layers one by one; fails where a pooling would drop a pixel."""
    for _ in range(depth):
        size -= 4
        if size % 2 or size <= 0:
            raise ValueError(size)
        size //= 2
    size -= 4
    for _ in range(depth):
        size = 2 * size - 4
    if size <= 0:
        raise ValueError(size)
    return size


def test_the_papers_input_of_572_gives_388() -> None:
    assert UNetGeometry(4).output_size(572) == 388


@given(size=st.integers(1, 1200), depth=DEPTHS)
def test_sizes_agree_with_a_walk_through_the_layers(size: int, depth: int) -> None:
    geometry = UNetGeometry(depth)
    try:
        expected = sizes_by_walking_the_network(size, depth)
    except ValueError:
        with pytest.raises(ConfigError):
            geometry.output_size(size)
    else:
        assert geometry.output_size(size) == expected


@given(size=st.integers(1, 300), depth=DEPTHS)
def test_with_padding_every_pixel_is_answered_where_poolings_divide_evenly(size: int, depth: int) -> None:
    geometry = UNetGeometry(depth, padded=True)
    if size % 2**depth:
        with pytest.raises(ConfigError, match="padded"):
            geometry.output_size(size)
    else:
        assert geometry.output_size(size) == size


@given(size=st.integers(1, 3000), depth=DEPTHS, padded=PADDED)
def test_the_input_for_an_output_is_the_smallest_that_covers_it(size: int, depth: int, padded: bool) -> None:
    geometry = UNetGeometry(depth, padded)
    needed = geometry.input_size_for(size)
    assert geometry.output_size(needed) >= size
    if needed > geometry.smallest_input:
        assert geometry.output_size(needed - geometry.stride) < size


@given(size=st.integers(1, 3000), depth=DEPTHS, padded=PADDED)
@settings(max_examples=50)
def test_a_wished_input_size_is_rounded_up_to_a_valid_one(size: int, depth: int, padded: bool) -> None:
    geometry = UNetGeometry(depth, padded)
    rounded = geometry.input_size_at_least(size)
    assert geometry.output_size(rounded) > 0
    assert rounded >= size
    assert rounded < max(size, geometry.smallest_input) + geometry.stride


def test_a_refused_size_is_answered_with_one_that_works() -> None:
    with pytest.raises(ConfigError, match=r"cannot take 570 px.*for example 572"):
        UNetGeometry(4).output_size(570)
