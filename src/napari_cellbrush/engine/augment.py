"""Random variations of training patches: parameters are drawn first, then applied in one resampling.

Drawing happens on the CPU, so that a seed means the same patch on every device; applying happens wherever the
patch lies. Images are normalised to about [-1, 1]; labels are 0 for unlabelled and are never blended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from napari_cellbrush.config import AugmentationConfig

#: Displacements are drawn on a grid of 3×3 points (Ronneberger, Fischer, Brox 2015, section 3.1).
GRID_POINTS = 3
#: Windows are never read larger than this many times the patch; what lies beyond is mirrored and unlabelled.
_LARGEST_SOURCE = 2.0
#: Displacements of the grid are normal; this many standard deviations are read around the patch.
_READ_SIGMAS = 3.0
#: A Gaussian narrower than this changes no pixel by more than one part in 10^20.
_SMALLEST_BLUR_PX = 0.1
#: Width of the normalised range [-1, 1], of which offset and noise are fractions.
_IMAGE_RANGE = 2.0


@dataclass(frozen=True, eq=False)
class Augmentation:
    """Drawn parameters of N patches. All tensors are float32 on the CPU."""

    #: N×2×2, row first: where one patch pixel step leads in the source, in pixels (rotation, scale and flip).
    matrix: Tensor
    #: N×2×3×3, row first: displacement in source pixels on a grid that spans the input patch.
    displacement: Tensor
    #: N: factor on the normalised image.
    gain: Tensor
    #: N: added to the normalised image.
    offset: Tensor
    #: N: exponent on the image's range, brought to [0, 1].
    gamma: Tensor
    #: N: standard deviation of the noise, in normalised units.
    noise: Tensor
    #: N: standard deviation of the blur, in pixels.
    blur_px: Tensor
    #: Start of the noise, which is drawn on the image's device: copying it there would cost more than making it.
    noise_seed: int
    #: False where matrix and displacement are exactly the identity; the source is then cropped, not resampled.
    moves: bool


def source_size(config: AugmentationConfig, input_size: int) -> int:
    """Side of the square window to read so that deformed patches see true pixels.

    Parameters
    ----------
    config
        The largest deformations.
    input_size
        Side of the patch the network reads, in pixels.

    Returns
    -------
    int
        ``input_size`` plus an even number of pixels, at most twice the patch: rarer reaches are mirrored.
    """
    angle = min(math.radians(config.rotation_deg), math.pi / 4)
    reach = input_size * (math.cos(angle) + math.sin(angle)) * (1 + config.scale_range)
    reach += 2 * _READ_SIGMAS * config.elastic_sigma_px
    extra = min(reach, _LARGEST_SOURCE * input_size) - input_size
    return input_size + 2 * math.ceil(extra / 2 - 1e-9)


def draw(config: AugmentationConfig, n: int, size: int, generator: torch.Generator) -> Augmentation:
    """Draw the parameters of ``n`` patches.

    Parameters
    ----------
    config
        How far each variation may go.
    n
        Number of patches.
    size
        Side of the input patch in pixels, over which the displacement grid is spread.
    generator
        Source of all randomness; lives on the CPU.

    Returns
    -------
    Augmentation
        The same for the same state of ``generator``, whatever the device they are applied on.
    """
    def uniform() -> Tensor:
        return 2 * torch.rand(n, generator=generator) - 1

    sigma = config.elastic_sigma_px
    angle = uniform() * math.radians(config.rotation_deg)
    scale = (1 + config.scale_range) ** uniform()
    flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0) if config.flips else torch.ones(n)
    displacement = sigma * torch.randn(n, 2, GRID_POINTS, GRID_POINTS, generator=generator)
    blur = config.blur_px * torch.rand(n, generator=generator)
    # Whole pixels fall on whole pixels after right angles, because source and patch have the same centre.
    plain = torch.rand(n, generator=generator) < config.plain_share
    angle = torch.where(plain, (angle / (math.pi / 2)).round() * (math.pi / 2), angle)
    scale, blur = torch.where(plain, 1.0, scale), torch.where(plain, 0.0, blur)
    displacement = torch.where(plain[:, None, None, None], 0.0, displacement)
    return Augmentation(
        matrix=_matrix(angle, scale, flip),
        displacement=displacement,
        gain=1 + config.gain * uniform(),
        offset=_IMAGE_RANGE * config.offset * uniform(),
        gamma=(1 + config.gamma) ** uniform(),
        noise=_IMAGE_RANGE * config.noise * torch.rand(n, generator=generator),
        blur_px=blur,
        noise_seed=int(torch.randint(2**31 - 1, (1,), generator=generator)),
        moves=bool(config.flips or config.rotation_deg or config.scale_range or sigma))


def apply(augmentation: Augmentation, images: Tensor, labels: Tensor, input_size: int,
          output_size: int) -> tuple[Tensor, Tensor]:
    """Deform, crop and tint patches, on the device they lie on.

    Images are sampled bilinearly and mirrored beyond the source; labels are sampled at the nearest pixel with the
    same field and are 0 (unlabelled) beyond it, so no pixel gets a label that was not painted there.

    Parameters
    ----------
    augmentation
        What :func:`draw` gave for B patches of ``input_size``.
    images
        BCSS, normalised; S is the side of the square source window (see :func:`source_size`).
    labels
        BSS, 0 unlabelled, k + 1 for class number k; or BMSS, M maps that belong together, such as labels and weights.
    input_size
        Side of the patch that the network reads.
    output_size
        Side of the network's output, the centre of the patch.

    Returns
    -------
    tuple of Tensor
        Images BC, input_size, input_size, float32; labels B (M), output_size, output_size, int64, or float32 if they
        were floating-point numbers.
    """
    images = images.float()
    if augmentation.moves:
        grid = sampling_grid(augmentation, input_size, images.shape[-1], images.device)
        patch = functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
        maps = labels if labels.ndim == 4 else labels[:, None]
        truth = functional.grid_sample(maps.float(), _centre(grid, 1, output_size), mode="nearest",
                                       padding_mode="zeros", align_corners=True).view(*labels.shape[:-2], output_size,
                                                                                      output_size)
    else:
        patch, truth = (_centre(images, 2, input_size), _centre(labels, labels.ndim - 2, output_size))
    return tinted(augmentation, patch), truth.float() if labels.is_floating_point() else truth.long()


def sampling_grid(augmentation: Augmentation, input_size: int, source: int, device: torch.device) -> Tensor:
    """Where each pixel of the patch comes from: matrix · position + displacement, both from the centre.

    Returns
    -------
    Tensor
        BHW2 float32, column first, -1 and 1 at the centres of the outermost source pixels (``align_corners``).
    """
    weights = torch.from_numpy(bicubic_weights(GRID_POINTS, input_size)).to(device)
    elastic = weights @ augmentation.displacement.to(device) @ weights.T
    matrix = augmentation.matrix.to(device)[..., None, None]
    steps = torch.arange(input_size, dtype=torch.float32, device=device) - (input_size - 1) / 2
    moved = matrix[:, :, 0] * steps[:, None] + matrix[:, :, 1] * steps + elastic
    # The source has its centre where the patch has, so positions from the centre need no shift.
    return (moved.flip(1) / (max(source - 1, 1) / 2)).permute(0, 2, 3, 1)


def bicubic_weights(n_points: int, size: int) -> NDArray[np.float32]:
    """Cubic convolution from ``n_points`` to ``size`` positions that share their first and last one.

    Keys 1981 with a = -0.75, border points repeated: a product with this matrix along rows and one along columns
    is the bicubic interpolation of a plane, on any device.

    Returns
    -------
    NDArray
        float32, size × n_points; each row sums to 1.
    """
    position = np.linspace(0, n_points - 1, size)
    first = np.minimum(np.floor(position).astype(int), n_points - 1)
    weights = np.zeros((size, n_points))
    for tap in range(-1, 3):
        column = np.clip(first + tap, 0, n_points - 1)
        np.add.at(weights, (np.arange(size), column), _keys(np.abs(position - (first + tap))))
    return weights.astype(np.float32)


def tinted(augmentation: Augmentation, images: Tensor) -> Tensor:
    """Change intensities as a microscope would: optics blur, the detector's response varies, then comes noise.

    Gain multiplies around 0, the middle of the normalised range. Gamma acts on (x + 1) / 2, keeping the sign, so
    that values below the range stay apart too.
    """
    def each(values: Tensor) -> Tensor:
        return values.to(images.device)[:, None, None, None]

    images = _blurred(images, augmentation.blur_px)
    if not _all_equal(augmentation.gain, 1) or not _all_equal(augmentation.offset, 0):
        images = images * each(augmentation.gain) + each(augmentation.offset)
    if not _all_equal(augmentation.gamma, 1):
        unit = (images + 1) / 2
        images = 2 * unit.abs().pow(each(augmentation.gamma)).copysign(unit) - 1
    if not _all_equal(augmentation.noise, 0):
        random = torch.Generator(images.device).manual_seed(augmentation.noise_seed)
        images = images + each(augmentation.noise) * torch.randn(images.shape, generator=random, device=images.device)
    return images


def _matrix(angle: Tensor, scale: Tensor, flip: Tensor) -> Tensor:
    """Rotation × scale × mirrored columns, row first. With rotation, mirroring one axis gives all orientations."""
    cos, sin = scale * angle.cos(), scale * angle.sin()
    return torch.stack([torch.stack([cos, sin * flip], dim=-1), torch.stack([-sin, cos * flip], dim=-1)], dim=-2)


def _keys(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _blurred(images: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur with one width per image, mirrored at the border; as shifted sums, faster than a convolution."""
    widest = float(sigma_px.max()) if len(sigma_px) else 0.0
    if widest < _SMALLEST_BLUR_PX:
        return images
    radius = min(math.ceil(3 * widest), images.shape[-1] - 1)
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernels = torch.exp(-0.5 * (taps / sigma_px.clamp_min(_SMALLEST_BLUR_PX)[:, None]) ** 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).to(images.device)[:, :, None, None, None]
    for axis, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded = functional.pad(images, padding, mode="reflect")
        size = images.shape[axis]
        images = kernels[:, 0] * padded.narrow(axis, 0, size)
        for tap in range(1, 2 * radius + 1):
            images = images.addcmul(kernels[:, tap], padded.narrow(axis, tap, size))
    return images


def _centre(values: Tensor, first_axis: int, size: int) -> Tensor:
    """The central size × size window along two neighbouring axes."""
    margin = (values.shape[first_axis] - size) // 2
    return values.narrow(first_axis, margin, size).narrow(first_axis + 1, margin, size)


def _all_equal(values: Tensor, neutral: float) -> bool:
    return bool((values == neutral).all())
