"""Images to try the plugin on, without a download."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

LayerData = tuple[Any, dict[str, Any], str]
NUCLEI_PX = 512


def immunohistochemistry() -> list[LayerData]:
    """Stained colon tissue, 512 × 512 RGB; travels with scikit-image (K. Matsuzaki, A. Kameyama; public domain)."""
    from skimage import data

    return [(data.immunohistochemistry(), {"name": "immunohistochemistry"}, "image")]


def nuclei() -> list[LayerData]:
    """Made-up fluorescent nuclei, 512 × 512 uint16, 0.5 µm pixels."""
    return [(synthetic_nuclei(), {"name": "nuclei", "scale": (0.5, 0.5), "units": ("µm", "µm")}, "image")]


def synthetic_nuclei(n: int = 90, size: int = NUCLEI_PX, seed: int = 0) -> NDArray[np.uint16]:
    """Blurred, noisy ellipses of different brightness, some of them touching."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    light = np.zeros((size, size))
    for row, column in random.uniform(0, size, (n, 2)):
        long, short = random.uniform(11, 18), random.uniform(8, 12)
        angle = random.uniform(0, np.pi)
        along = (rows - row) * np.cos(angle) + (columns - column) * np.sin(angle)
        across = (columns - column) * np.cos(angle) - (rows - row) * np.sin(angle)
        inside = (along / long) ** 2 + (across / short) ** 2 < 1
        light[inside] = np.maximum(light[inside], random.uniform(0.35, 1))
    texture = ndimage.gaussian_filter(random.normal(size=light.shape), 3) * 1.5
    light = ndimage.gaussian_filter(light * (1 + texture), 1.5) + 0.08
    return np.asarray(random.poisson(light.clip(0) * 600) + 100, np.uint16)
