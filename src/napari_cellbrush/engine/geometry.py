"""Which input size of a U-Net gives which output size, and where its tiles may start.

Without padding, each level of the contracting path loses 4 pixels (two 3×3 convolutions) and halves the rest; the
expanding path doubles it and loses 4 again. Ronneberger, Fischer, Brox 2015, figure 1: 572 → 388 at depth 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from napari_cellbrush.errors import ConfigError


@dataclass(frozen=True)
class UNetGeometry:
    """Sizes of a U-Net, in pixels along one axis.

    Parameters
    ----------
    depth
        Number of 2×2 poolings.
    padded
        Whether the convolutions are padded, so that every pixel is answered.
    """

    depth: int
    padded: bool = False

    @property
    def stride(self) -> int:
        """Tiles that start at multiples of this pool the same pixels together, so they agree exactly."""
        return 1 << self.depth

    @property
    def margin(self) -> int:
        """Context pixels read on each side of the output: 92 at depth 4, none with padding."""
        return 0 if self.padded else 6 * self.stride - 4

    @property
    def smallest_input(self) -> int:
        """The smallest input with at least one output pixel: 188 at depth 4 (4 output pixels), 16 with padding."""
        return 2 * self.margin + self._smallest_output

    def output_size(self, input_size: int) -> int:
        """Output pixels of a valid input size.

        Raises
        ------
        ConfigError
            If the poolings would not divide evenly, or nothing would be left.
        """
        output = input_size - 2 * self.margin
        if output < self._smallest_output or (output - self._smallest_output) % self.stride:
            raise ConfigError(
                f"A {'padded ' if self.padded else ''}U-Net of depth {self.depth} cannot take {input_size} px",
                f"Use {self.smallest_input} px plus a multiple of {self.stride}, "
                f"for example {self.input_size_at_least(input_size)}")
        return output

    def input_size_for(self, output_size: int) -> int:
        """The smallest valid input that gives at least ``output_size`` output pixels."""
        blocks = max(0, -(-(output_size - self._smallest_output) // self.stride))
        return self.smallest_input + blocks * self.stride

    def input_size_at_least(self, size: int) -> int:
        """The smallest valid input of at least ``size`` pixels."""
        return self.input_size_for(size - 2 * self.margin)

    @property
    def _smallest_output(self) -> int:
        return self.stride if self.padded else 4
