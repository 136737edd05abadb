"""What the axes of an image mean, and how large its pixels are.

Letters are those of TIFF metadata: T time, C channel, Z depth, Y row, X column, S colour samples (RGB).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from napari_cellbrush.errors import ConfigError, ImageError

AXIS_NAMES = {"T": "time", "C": "channel", "Z": "depth", "Y": "row", "X": "column", "S": "colour"}


@dataclass(frozen=True)
class PixelSize:
    """Distance between neighbouring pixels; the unit is "pixel" where nobody knows better."""

    y: float
    x: float
    z: float | None = None
    unit: str = "pixel"

    def over(self, read: Self, axes: str) -> Self:
        """This size, said by a person, over the one that was ``read`` for an image with these axes.

        The distance of planes stays as read where it was not said, and goes where there are no planes.
        """
        z = self.z or (read.z if read.unit == self.unit else None)
        return replace(self, z=z if "Z" in axes else None)

    @property
    def is_known(self) -> bool:
        """Whether somebody said how large a pixel is."""
        return self.unit != "pixel" or {self.y, self.x, self.z or 1.0} != {1.0}

    def written(self) -> str:
        """The numbers in full, as :meth:`read` takes them; the unit is left out."""
        return " x ".join(str(float(length)) for length in (self.z, self.y, self.x) if length is not None)

    @classmethod
    def read(cls, text: str) -> Self:
        """What a person wrote: one number in µm, or row × column, or depth × row × column, with × or x between.

        Raises
        ------
        ConfigError
            If it is anything else.
        """
        without_unit = re.sub(r"(?<=[\d\s])([µμu]m|microns?)(?![a-z])", " ", text.lower())
        # A comma between digits is a decimal point, where that is written so.
        words = [word.replace(",", ".") for word in re.split(r"[×x*;\s]+|,\s+", without_unit) if word]
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = []
        if not 1 <= len(numbers) <= 3 or not all(0 < number < math.inf for number in numbers):
            raise ConfigError(f"The pixel size '{text}' is not understood",
                              "Give it in µm: one number, or row × column, or depth × row × column, for example 0.65 "
                              "or 2 x 0.65 x 0.65")
        y, x = numbers[-2:] if len(numbers) > 1 else numbers * 2
        return cls(y, x, numbers[0] if len(numbers) == 3 else None, "µm")


def check_axes(axes: str, shape: Sequence[int]) -> str:
    """The letters in upper case, if they fit an image of ``shape``.

    Raises
    ------
    ImageError
        If a letter is unknown or given twice, the number is wrong, Y or X is missing, or channels are named twice.
    """
    letters = axes.strip().upper()
    help_text = "Give one letter an axis: T time, C channel, Z depth, Y row, X column, S colour, for example ZYX"
    if len(letters) != len(shape):
        raise ImageError(f"The axes '{letters}' name {len(letters)} axes, the image has {len(shape)} "
                         f"(shape {tuple(shape)})", help_text)
    unknown = sorted(set(letters) - set(AXIS_NAMES))
    if unknown or len(set(letters)) != len(letters):
        raise ImageError(f"The axes '{letters}' hold an unknown letter or one twice", help_text)
    if not {"Y", "X"} <= set(letters):
        raise ImageError(f"The axes '{letters}' lack Y or X", help_text)
    if {"C", "S"} <= set(letters):
        raise ImageError(f"The axes '{letters}' name both channels (C) and colours (S)", help_text)
    return letters


def guess_axes(shape: Sequence[int], rgb: bool = False) -> str:
    """The likeliest axes of an array without metadata; shown to the user, who may change them.

    Three axes are taken as a stack (ZYX), never as channels: lengths alone do not tell.

    Raises
    ------
    ImageError
        If there are fewer than two or more than five axes (samples not counted).
    """
    last = "YXS" if rgb else "YX"
    n_more = len(shape) - len(last)
    if not 0 <= n_more <= 3:
        raise ImageError(f"An image of shape {tuple(shape)} has {len(shape)} axes, need 2 to 5",
                         "Take out one plane or stack, and name its axes")
    return ["", "Z", "TZ", "TCZ"][n_more] + last
