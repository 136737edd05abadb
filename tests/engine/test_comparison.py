from __future__ import annotations

import numpy as np
import pytest

from napari_cellbrush.config import DEFAULT_CLASSES, ClassDefinition, InferenceConfig, NetworkConfig, classes_from_names
from napari_cellbrush.engine.comparison import Difference, compare
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.inference import segment_array
from napari_cellbrush.engine.model import Model, ModelCard, new_model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.errors import ModelError
from napari_cellbrush.events import StopToken, run_to_end

CPU = Device(kind="cpu", name="CPU", memory_bytes=None, half=None, channels_last=False)


def model(seed: int, classes: tuple[ClassDefinition, ...] = DEFAULT_CLASSES) -> Model:
    return new_model(ModelCard(name=f"m{seed}", classes=classes, in_channels=1, n_steps=1,
                               network=NetworkConfig(depth=3, base_filters=8)), seed)


def found(first: Model, second: Model, stop: StopToken | None = None) -> Difference | None:
    image = np.random.default_rng(0).normal(size=(3, 150, 170)).astype(np.float32)
    return run_to_end(compare(first, second, Planes(image, "ZYX"), (1,), (slice(20, 120), slice(30, 130)),
                              config=InferenceConfig(), device=CPU, stop=stop or StopToken()))


def test_the_difference_shows_the_second_model_where_it_says_something_else() -> None:
    image = np.random.default_rng(0).normal(size=(3, 150, 170)).astype(np.float32)
    maps = [segment_array(model(seed), Planes(image, "ZYX"), device=CPU)[1, 20:120, 30:130] for seed in (0, 3)]
    difference = found(model(0), model(3))
    assert difference is not None
    np.testing.assert_array_equal(difference.classes, np.where(maps[0] != maps[1], maps[1], 0))
    assert difference.share == pytest.approx((maps[0] != maps[1]).mean())
    assert difference.share > 0


def test_a_model_does_not_differ_from_itself() -> None:
    difference = found(model(0), model(0))
    assert difference is not None
    assert difference.share == 0


def test_models_of_other_classes_cannot_be_compared() -> None:
    with pytest.raises(ModelError, match=r"m0.*boundary.*m1.*same classes"):
        found(model(0), model(1, classes_from_names(["background", "cell"])))


def test_a_stopped_comparison_shows_nothing() -> None:
    stop = StopToken()
    stop.stop()
    assert found(model(0), model(3), stop) is None
