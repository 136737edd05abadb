from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_cellbrush.errors import ExportError
from napari_cellbrush.export.overlay import save_overlay


@pytest.mark.parametrize("colours", [(), (3,)])
def test_objects_are_coloured_and_the_rest_is_the_image(tmp_path: Path, colours: tuple[int, ...]) -> None:
    image = np.broadcast_to(np.linspace(0, 5000, 20).reshape(20, 1, *[1] * len(colours)), (20, 20, *colours))
    ids = np.zeros((20, 20), np.uint16)
    ids[5:12, 5:12] = 3
    picture = np.asarray(Image.open(save_overlay(tmp_path / "a.png", ids, image)))
    assert picture.shape == (20, 20, 3)
    assert np.ptp(picture[ids == 0], axis=1).max() == 0
    assert picture[0].max() < 5
    assert picture[-1].min() > 250
    rim, inside = picture[5, 8].astype(int), picture[8, 8].astype(int)
    assert np.ptp(rim) > np.ptp(inside) > 20


def test_shapes_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"\(3, 4\)"):
        save_overlay(tmp_path / "a.png", np.zeros((3, 3), int), np.zeros((3, 4)))
