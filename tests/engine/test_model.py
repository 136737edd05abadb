from __future__ import annotations

import pytest
import torch

from napari_cellbrush.config import DEFAULT_CLASSES, NetworkConfig, classes_from_names
from napari_cellbrush.engine.model import (
    Model,
    ModelCard,
    class_logits,
    new_model,
    with_channels,
    with_classes,
    with_dropout,
)
from napari_cellbrush.errors import ModelError

SMALL = NetworkConfig(depth=3, base_filters=8)


def small_model(seed: int = 0, **card: object) -> Model:
    return new_model(ModelCard(name="m", classes=DEFAULT_CLASSES, in_channels=1, network=SMALL, **card), seed)


def test_images_are_rescaled_to_a_little_more_than_the_networks_size_unless_their_objects_are_near_it() -> None:
    card = ModelCard(name="tiny", classes=DEFAULT_CLASSES, in_channels=1, diameter_px=24)
    assert card.scale_for(12) == pytest.approx(1.2 * 24 / 12)
    assert card.scale_for(60) == pytest.approx(1.2 * 24 / 60)
    assert [card.scale_for(px) for px in (24, 28, 33)] == [1.0, 1.0, 1.0]
    # Never across the size at which images are taken as they are, nor beyond what resampling is for.
    assert card.scale_for(23) > 1 > card.scale_for(34)
    assert (card.scale_for(2), card.scale_for(2000)) == (3.0, 1 / 8)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    assert small_model(1).weights_hash == small_model(1).weights_hash
    assert small_model(1).weights_hash != small_model(2).weights_hash


def test_making_a_model_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    small_model()
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("n_channels", [2, 3, 5])
def test_spreading_over_channels_keeps_the_answer_on_equal_channels(n_channels: int) -> None:
    model = small_model()
    image = torch.randn(1, 1, 108, 108, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        grey = model.network(image)
        spread = with_channels(model, n_channels).network(image.repeat(1, n_channels, 1, 1))
    torch.testing.assert_close(spread, grey, atol=1e-4, rtol=1e-4)


def test_a_base_for_any_channels_adapts_and_another_refuses_with_both_numbers() -> None:
    assert small_model(any_channels=True).for_channels(3).card.in_channels == 3
    with pytest.raises(ModelError, match=r"3 channel.*needs 1"):
        small_model().for_channels(3)


def test_classes_of_the_same_name_keep_their_weights_in_any_order() -> None:
    model = small_model()
    changed = with_classes(model, classes_from_names(["boundary", "vesicle", "background"]), seed=1)
    old, new = model.network.head.weight, changed.network.head.weight
    assert torch.equal(new[0], old[2])
    assert torch.equal(new[2], old[0])
    assert not any(torch.equal(new[1], row) for row in old)


def test_renamed_colours_keep_every_weight() -> None:
    model = small_model()
    recoloured = tuple(c.replace(color="#000000") for c in DEFAULT_CLASSES)
    changed = with_classes(model, recoloured, seed=0)
    assert changed.weights_hash == model.weights_hash
    assert changed.card.classes[0].color == "#000000"


def test_another_dropout_keeps_the_weights() -> None:
    model = small_model()
    changed = with_dropout(model, 0.4)
    assert changed.weights_hash == model.weights_hash
    assert changed.network.dropout.p == 0.4


def test_a_sigmoid_is_the_softmax_of_zero_and_its_output() -> None:
    outputs = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    probabilities = class_logits(outputs).softmax(1)
    torch.testing.assert_close(probabilities[:, 1:], outputs.sigmoid())


def test_a_sigmoid_for_three_classes_is_refused() -> None:
    card = ModelCard(name="m", classes=DEFAULT_CLASSES, in_channels=1, network=SMALL.replace(activation="sigmoid"))
    with pytest.raises(ModelError, match="3 classes"):
        new_model(card, 0)


def test_without_a_boundary_class_the_rims_of_cells_are_cells() -> None:
    model = new_model(ModelCard(name="m", classes=DEFAULT_CLASSES, in_channels=1,
                                network=NetworkConfig(depth=3, base_filters=8)), seed=0)
    old = model.network.head.weight
    new = with_classes(model, classes_from_names(["background", "cell"]), seed=1).network.head.weight
    assert torch.equal(new[0], old[0])
    assert torch.allclose(new[1], (old[1] + old[2]) / 2)
    kept = with_classes(model, classes_from_names(["background", "cell", "boundary", "other"]), seed=1).network.head
    assert torch.equal(kept.weight[:3], old)
