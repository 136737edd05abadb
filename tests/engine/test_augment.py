from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from napari_cellbrush.config import AugmentationConfig
from napari_cellbrush.engine.augment import Augmentation, apply, bicubic_weights, draw, sampling_grid, source_size

STILL = AugmentationConfig(elastic_sigma_px=0, rotation_deg=0, flips=False, scale_range=0, gain=0, offset=0, gamma=0,
                           noise=0, blur_px=0)
WILD = AugmentationConfig(elastic_sigma_px=10, rotation_deg=180, flips=True, scale_range=0.4, plain_share=0)
SHAPES_ONLY = WILD.replace(gain=0, offset=0, gamma=0, noise=0, blur_px=0)
SEEDS = st.integers(0, 2**31)
CPU = torch.device("cpu")


def drawn(config: AugmentationConfig, n: int, size: int, seed: int = 0) -> Augmentation:
    return draw(config, n, size, torch.Generator().manual_seed(seed))


def cubic(distance: float) -> float:
    """Keys' kernel with a = -3/4, written out in its two pieces."""
    a, d = -0.75, abs(distance)
    if d < 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def bicubic_by_loops(points: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """A 3×3 plane at size × size positions, pixel by pixel, tap by tap."""
    result = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            y, x = 2 * row / (size - 1), 2 * column / (size - 1)
            for i in range(math.floor(y) - 1, math.floor(y) + 3):
                for j in range(math.floor(x) - 1, math.floor(x) + 3):
                    value = points[min(max(i, 0), 2), min(max(j, 0), 2)]
                    result[row, column] += value * cubic(y - i) * cubic(x - j)
    return result


def source_coordinates(augmentation: Augmentation, patch: int, size: int, source: int) -> NDArray[np.float64]:
    """2×P×P float64 row and column in the source of the patch's pixels in the centre of ``size``, by the definition."""
    start = (size - patch) // 2
    displacement = augmentation.displacement[0].double().numpy()
    elastic = np.stack([bicubic_by_loops(plane, size) for plane in displacement])[:, start : start + patch,
                                                                                  start : start + patch]
    position = np.stack(np.mgrid[start : start + patch, start : start + patch]) - (size - 1) / 2
    matrix = augmentation.matrix[0].double().numpy()
    return np.einsum("ij,jyx->iyx", matrix, position) + elastic + (source - 1) / 2


def mirrored(coordinates: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    period = 2 * (size - 1)
    folded = np.abs(coordinates) % period
    return np.minimum(folded, period - folded)


@given(seed=SEEDS, size=st.integers(3, 40))
@settings(max_examples=15, deadline=None)
def test_displacements_are_interpolated_bicubically_between_the_grid_points(seed: int, size: int) -> None:
    points = np.random.default_rng(seed).normal(0, 10, (3, 3))
    weights = bicubic_weights(3, size).astype(np.float64)
    np.testing.assert_allclose(weights @ points @ weights.T, bicubic_by_loops(points, size), atol=1e-4)


def test_bicubic_interpolation_is_the_one_torch_calls_bicubic() -> None:
    points = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    weights = torch.from_numpy(bicubic_weights(3, 77))
    expected = torch.nn.functional.interpolate(points, size=(77, 77), mode="bicubic", align_corners=True)
    torch.testing.assert_close(weights @ points @ weights.T, expected, atol=1e-5, rtol=0)


@given(seed=SEEDS, size=st.sampled_from([20, 21, 32]), extra=st.integers(0, 12), channels=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_one_resampling_agrees_with_map_coordinates(seed: int, size: int, extra: int, channels: int) -> None:
    """Images: order 1, mirrored. Labels: order 0 with the same composed field, 0 outside."""
    random = np.random.default_rng(seed)
    source, output = size + 2 * extra, size - 8
    config = SHAPES_ONLY.replace(elastic_sigma_px=2.0)
    augmentation = drawn(config, 1, size, seed)
    image = random.normal(size=(channels, source, source)).astype(np.float32)
    labels = random.integers(0, 256, (source, source)).astype(np.uint8)

    patch, truth = apply(augmentation, torch.from_numpy(image[None]), torch.from_numpy(labels[None]), size, output)

    where = source_coordinates(augmentation, size, size, source)
    expected = [ndimage.map_coordinates(plane, mirrored(where, source), order=1) for plane in image.astype(np.float64)]
    np.testing.assert_allclose(patch[0].numpy(), np.stack(expected), atol=2e-3)

    where = source_coordinates(augmentation, output, size, source)
    # Halfway between two pixels, rounding is free to choose; leave those out.
    clear = (np.abs(where % 1 - 0.5) > 1e-3).all(axis=0)
    inside = ((where > -0.5) & (where < source - 0.5)).all(axis=0)
    nearest = ndimage.map_coordinates(labels, np.rint(where), order=0, mode="nearest")
    expected_labels = np.where(inside, nearest, 0)
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(truth[0].numpy()[clear], expected_labels[clear])


@given(size=st.integers(16, 60), extra=st.integers(0, 9), margin=st.integers(0, 6))
@settings(max_examples=20, deadline=None)
def test_without_variations_the_patch_is_exactly_the_centre(size: int, extra: int, margin: int) -> None:
    source = size + 2 * extra
    image = torch.randn(2, 1, source, source, generator=torch.Generator().manual_seed(size))
    labels = torch.arange(2 * source * source).remainder(256).to(torch.uint8).reshape(2, source, source)
    patch, truth = apply(drawn(STILL, 2, size), image, labels, size, size - 2 * margin)
    inside = slice(extra, extra + size)
    shrunk = slice(extra + margin, extra + size - margin)
    assert torch.equal(patch, image[..., inside, inside])
    assert torch.equal(truth, labels[..., shrunk, shrunk].long())


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_labels_are_never_mixed_or_invented(seed: int) -> None:
    """Two classes with far apart ids: anything between them would be a blend; an empty window stays empty."""
    size, source = 48, 96
    labels = torch.zeros(2, source, source, dtype=torch.uint8)
    labels[0, 30:50, 20:70], labels[0, 50:66, 20:70] = 3, 255
    image = torch.zeros(2, 1, source, source)
    _, truth = apply(drawn(WILD, 2, size, seed), image, labels, size, 40)
    assert set(truth[0].unique().tolist()) <= {0, 3, 255}
    assert not truth[1].any()
    assert truth.dtype == torch.int64


def test_labels_beyond_the_source_are_unlabelled_and_the_image_is_mirrored() -> None:
    """A patch as large as its source, turned by 45°, has corners outside."""
    size = 65
    config = STILL.replace(rotation_deg=180)
    augmentation = Augmentation(**{**vars(drawn(config, 1, size)), "matrix": turned(45.0)})
    image = torch.full((1, 1, size, size), 7.0)
    labels = torch.full((1, size, size), 2, dtype=torch.uint8)
    patch, truth = apply(augmentation, image, labels, size, size)
    assert truth[0, 0, 0] == truth[0, -1, -1] == 0
    assert (truth[0, 20:45, 20:45] == 2).all()
    torch.testing.assert_close(patch, image)


def turned(degrees: float) -> torch.Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[[cos, sin], [-sin, cos]]], dtype=torch.float32)


def test_a_quarter_turn_and_a_flip_are_exact() -> None:
    size = 9
    labels = torch.arange(size * size, dtype=torch.uint8).reshape(1, size, size)
    still = vars(drawn(STILL, 1, size))
    quarter = Augmentation(**{**still, "matrix": turned(90.0), "moves": True})
    mirror = Augmentation(**{**still, "matrix": torch.tensor([[[1.0, 0.0], [0.0, -1.0]]]), "moves": True})
    image = labels[:, None].float()
    for augmentation, expected in ((quarter, labels.rot90(1, (1, 2))), (mirror, labels.flip(2))):
        patch, truth = apply(augmentation, image, labels, size, size)
        assert torch.equal(truth, expected.long())
        torch.testing.assert_close(patch[:, 0], expected.float(), atol=1e-3, rtol=0)


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_undeformed_patches_keep_every_pixel(seed: int) -> None:
    config = SHAPES_ONLY.replace(plain_share=1)
    source = source_size(config, 20)
    image = torch.randn(4, 1, source, source, generator=torch.Generator().manual_seed(seed))
    labels = torch.randint(0, 4, (4, source, source), generator=torch.Generator().manual_seed(seed))
    patches, truths = apply(drawn(config, 4, 20, seed), image, labels, 20, 20)
    start = (source - 20) // 2
    for patch, truth, whole, marks in zip(patches[:, 0], truths, image[:, 0], labels, strict=True):
        centre, mark = (part[start : start + 20, start : start + 20].numpy() for part in (whole, marks))
        turned = [(turn(np.rot90(centre, k)), turn(np.rot90(mark, k)))
                  for k in range(4) for turn in (np.array, np.fliplr)]
        match = [np.allclose(patch, pixels, atol=1e-4) and np.array_equal(truth, mark) for pixels, mark in turned]
        assert any(match)


def test_about_the_share_of_patches_that_is_asked_for_is_undeformed() -> None:
    augmentation = drawn(WILD.replace(plain_share=0.3), 3000, 32)
    plain = (augmentation.displacement == 0).flatten(1).all(1)
    assert 0.26 < float(plain.float().mean()) < 0.34


def test_all_eight_orientations_are_drawn() -> None:
    matrices = drawn(STILL.replace(rotation_deg=180, flips=True), 400, 32).matrix
    mirrored_ones = torch.linalg.det(matrices) < 0
    angles = torch.atan2(matrices[:, 0, 1] * torch.where(mirrored_ones, -1, 1), matrices[:, 0, 0])
    for chosen in (angles[mirrored_ones], angles[~mirrored_ones]):
        assert torch.histc(chosen, 8, -math.pi, math.pi).min() > 5


def test_displacements_have_the_standard_deviation_asked_for() -> None:
    displacement = drawn(SHAPES_ONLY, 500, 64).displacement
    assert displacement.shape == (500, 2, 3, 3)
    assert float(displacement.std()) == pytest.approx(10, rel=0.05)


@given(rotation=st.floats(0, 180), scale=st.floats(0, 0.9), sigma=st.floats(0, 50), size=st.integers(128, 600))
def test_the_source_is_centred_on_the_patch_and_at_most_twice_as_large(
        rotation: float, scale: float, sigma: float, size: int) -> None:
    config = AugmentationConfig(rotation_deg=rotation, scale_range=scale, elastic_sigma_px=sigma)
    source = source_size(config, size)
    assert size <= source <= 2 * size + 1
    assert (source - size) % 2 == 0


def test_rotation_and_scale_never_leave_the_source_that_was_asked_for() -> None:
    config = STILL.replace(rotation_deg=180, scale_range=0.3, flips=True)
    source = source_size(config, 128)
    assert sampling_grid(drawn(config, 300, 128), 128, source, CPU).abs().max() <= 1 + 1e-4
    # A margin for nothing would only cost reading.
    assert sampling_grid(drawn(config, 300, 128), 128, source, CPU).abs().max() > 0.9


def test_a_still_patch_needs_no_margin() -> None:
    assert source_size(STILL, 252) == 252


def test_the_same_seed_draws_the_same_patch_and_another_one_does_not() -> None:
    image = torch.randn(2, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(2, 96, 96, dtype=torch.uint8)
    first, again, other = (apply(drawn(WILD, 2, 64, seed), image, labels, 64, 24)[0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_patches_of_one_batch_differ() -> None:
    image = torch.randn(1, 1, 96, 96, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    patch, _ = apply(drawn(WILD, 2, 64), image, torch.zeros(2, 96, 96, dtype=torch.uint8), 64, 24)
    assert not torch.allclose(patch[0], patch[1])


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    apply(drawn(WILD, 1, 64), torch.zeros(1, 1, 96, 96), torch.zeros(1, 96, 96, dtype=torch.uint8), 64, 24)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.7])
def test_blur_is_a_gaussian_with_its_own_width_per_image(sigma: float) -> None:
    image = torch.randn(2, 2, 40, 40, generator=torch.Generator().manual_seed(0))
    still = vars(drawn(STILL, 2, 40))
    augmentation = Augmentation(**{**still, "blur_px": torch.tensor([sigma, 0.0])})
    patch, _ = apply(augmentation, image, torch.zeros(2, 40, 40, dtype=torch.uint8), 40, 40)
    radius = math.ceil(3 * sigma)
    expected = ndimage.gaussian_filter(image[0].double().numpy(), sigma, mode="mirror", radius=radius, axes=(1, 2))
    np.testing.assert_allclose(patch[0].numpy(), expected, atol=1e-5)
    assert torch.equal(patch[1], image[1])


def test_gain_offset_and_gamma_follow_their_formulas() -> None:
    image = torch.linspace(-2, 4, 256).reshape(1, 1, 16, 16)
    still = vars(drawn(STILL, 1, 16))
    labels = torch.zeros(1, 16, 16, dtype=torch.uint8)
    values = image.double().numpy()
    linear = Augmentation(**{**still, "gain": torch.tensor([1.3]), "offset": torch.tensor([-0.2])})
    np.testing.assert_allclose(apply(linear, image, labels, 16, 16)[0], 1.3 * values - 0.2, atol=1e-5)
    power = Augmentation(**{**still, "gamma": torch.tensor([0.6])})
    unit = (values + 1) / 2
    np.testing.assert_allclose(apply(power, image, labels, 16, 16)[0], 2 * np.sign(unit) * np.abs(unit)**0.6 - 1,
                               atol=1e-5)


def test_noise_has_the_standard_deviation_drawn() -> None:
    still = vars(drawn(STILL, 2, 128))
    augmentation = Augmentation(**{**still, "noise": torch.tensor([0.0, 0.3])})
    patch, _ = apply(augmentation, torch.zeros(2, 1, 128, 128), torch.zeros(2, 128, 128, dtype=torch.uint8), 128, 128)
    assert not patch[0].any()
    assert float(patch[1].std()) == pytest.approx(0.3, rel=0.03)


@given(seed=SEEDS, channels=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_extreme_images_stay_finite_and_float32(seed: int, channels: int) -> None:
    config = AugmentationConfig(elastic_sigma_px=50, scale_range=0.9, gain=0.9, offset=1, gamma=0.9, noise=1, blur_px=5)
    image = torch.rand(2, channels, 128, 128, generator=torch.Generator().manual_seed(seed)) * 6 - 2
    patch, truth = apply(drawn(config, 2, 64, seed), image.double(), torch.ones(2, 128, 128, dtype=torch.uint8), 64, 60)
    assert patch.dtype == torch.float32
    assert patch.shape == (2, channels, 64, 64)
    assert truth.shape == (2, 60, 60)
    assert bool(patch.isfinite().all())


def test_a_sharp_edge_keeps_image_and_labels_together() -> None:
    """Image and labels show the same half plane; after any deformation they still do, but for the edge itself."""
    size, source = 64, 128
    image = torch.full((6, 1, source, source), -1.0)
    image[..., source // 2 :] = 1.0
    labels = torch.where(image[:, 0] > 0, 2, 1).to(torch.uint8)
    patch, truth = apply(drawn(SHAPES_ONLY, 6, size), image, labels, size, 32)
    seen = patch[:, 0, 16:48, 16:48]
    painted = truth > 0
    assert painted.float().mean() > 0.9
    assert torch.equal(truth[painted & (seen > 0.01)], torch.full_like(truth[painted & (seen > 0.01)], 2))
    assert torch.equal(truth[painted & (seen < -0.01)], torch.ones_like(truth[painted & (seen < -0.01)]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cpu_and_gpu_give_the_same_patch() -> None:
    image = torch.randn(3, 2, 120, 120, generator=torch.Generator().manual_seed(0))
    labels = (image[:, 0] > 0).to(torch.uint8) + 1
    augmentation = drawn(WILD.replace(noise=0), 3, 80)
    here, truth_here = apply(augmentation, image, labels, 80, 40)
    there, truth_there = apply(augmentation, image.cuda(), labels.cuda(), 80, 40)
    torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=0)
    assert (truth_there.cpu() != truth_here).float().mean() < 1e-3


@pytest.mark.parametrize("config", [WILD, STILL])
def test_maps_that_belong_together_stay_together(config: AugmentationConfig) -> None:
    labels = torch.randint(0, 4, (3, 90, 90), generator=torch.Generator().manual_seed(1)).float()
    parameters = drawn(config, 3, 60, 2)
    _, maps = apply(parameters, torch.zeros(3, 1, 90, 90), torch.stack([labels, 1.5 * labels], dim=1), 60, 40)
    _, alone = apply(parameters, torch.zeros(3, 1, 90, 90), labels.to(torch.uint8), 60, 40)
    assert maps.shape == (3, 2, 40, 40)
    assert torch.equal(maps[:, 0], alone.float())
    assert torch.equal(maps[:, 1], 1.5 * alone)
