from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_cellbrush.engine.geometry import UNetGeometry
from napari_cellbrush.engine.tiling import grid_tiles, nearest_first, plan_tiles

GEOMETRIES = st.sampled_from([UNetGeometry(3), UNetGeometry(4), UNetGeometry(5)])


@st.composite
def regions(draw: st.DrawFn) -> tuple[slice, slice]:
    def span() -> slice:
        start = draw(st.integers(0, 200))
        return slice(start, start + draw(st.integers(1, 400)))

    return span(), span()


@given(region=regions(), geometry=GEOMETRIES, size=st.integers(1, 900))
@settings(max_examples=200, deadline=None)
def test_every_pixel_of_the_region_is_answered_once_and_no_other(region: tuple[slice, slice], geometry: UNetGeometry,
                                                                 size: int) -> None:
    answered = np.zeros((650, 650), int)
    for tile in plan_tiles(region, geometry, size):
        answered[tile.rows, tile.columns] += 1
    assert (answered[region] == 1).all()
    assert answered.sum() == answered[region].size


@given(region=regions(), geometry=GEOMETRIES, size=st.integers(1, 900))
@settings(max_examples=200, deadline=None)
def test_every_window_is_valid_aligned_and_covers_its_output(region: tuple[slice, slice], geometry: UNetGeometry,
                                                             size: int) -> None:
    for tile in plan_tiles(region, geometry, size):
        for start, extent, wanted in ((tile.top, tile.height, tile.rows), (tile.left, tile.width, tile.columns)):
            first = start + geometry.margin
            assert first % geometry.stride == 0
            assert first <= wanted.start < wanted.stop <= first + geometry.output_size(extent)


@given(region=regions(), geometry=GEOMETRIES, size=st.integers(1, 900))
@settings(deadline=None)
def test_windows_are_no_larger_than_asked_if_one_stride_of_output_fits(region: tuple[slice, slice],
                                                                      geometry: UNetGeometry, size: int) -> None:
    limit = max(size, geometry.input_size_for(geometry.stride))
    assert all(max(tile.height, tile.width) <= limit + geometry.stride for tile in plan_tiles(region, geometry, size))


def test_tiles_come_from_the_centre_outwards() -> None:
    tiles = plan_tiles((slice(0, 2000), slice(0, 2000)), UNetGeometry(4), 508, centre=(1900, 100))
    first, last = tiles[0], tiles[-1]
    assert first.rows.start <= 1900 < first.rows.stop
    assert first.columns.start <= 100 < first.columns.stop
    assert last.rows.start == 0
    assert last.columns.stop == 2000


def test_the_papers_tile_of_572_answers_384_aligned_pixels() -> None:
    tiles = plan_tiles((slice(0, 384), slice(0, 384)), UNetGeometry(4), 572)
    assert [(tile.top, tile.left, tile.height) for tile in tiles] == [(-92, -92, 572)]


@given(st.integers(0, 900), st.integers(1, 400), st.integers(2, 5))
def test_tiles_of_a_grid_are_the_same_for_every_region(start: int, length: int, depth: int) -> None:
    geometry, shape = UNetGeometry(depth), (1000, 700)
    side = 4 * geometry.stride
    rows = slice(start, min(start + length, 1000))
    tiles = grid_tiles((rows, slice(10, 20)), shape, geometry, side)
    whole = grid_tiles((slice(0, 1000), slice(0, 700)), shape, geometry, side)
    assert all(tile in whole for tile in tiles)
    assert tiles[0].rows.start <= rows.start
    assert tiles[-1].rows.stop >= rows.stop
    assert all(tile.rows.start < rows.stop and tile.rows.stop > rows.start for tile in tiles)


def test_what_a_view_shows_comes_first_though_other_tiles_are_nearer_to_its_centre() -> None:
    geometry = UNetGeometry(3)
    tiles = grid_tiles((slice(0, 640), slice(0, 640)), (640, 640), geometry, 64)
    view = slice(0, 64), slice(0, 640)
    ordered = nearest_first(tiles, view, (32, 320))
    assert {tile.rows.start for tile in ordered[:10]} == {0}
    assert ordered[0].columns.start in (256, 320)
    assert ordered[10].rows.start == 64
