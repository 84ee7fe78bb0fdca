"""Which inputs each tap of an operation sees: fully connected layers, convolutions in groups, pools, with padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from qrobust.errors import ResourceError, ShapeError
from qrobust.layers import IntArray

MOST_ENTRIES = 2**24  # of a table of windows: 128 MiB


@dataclass(frozen=True, eq=False)
class Windows:
    """For each group of output channels and each place, the inputs that the taps see; `inputs` stands for the padding.

    Shapes    table (groups, places, taps)
    """

    table: IntArray
    inputs: int

    @property
    def groups(self) -> int:
        return int(self.table.shape[0])

    @property
    def places(self) -> int:
        return int(self.table.shape[1])

    @property
    def taps(self) -> int:
        return int(self.table.shape[2])

    @property
    def is_whole(self) -> bool:
        """Whether there is one place, which sees all inputs in their order."""
        return self.table.shape == (1, 1, self.inputs) and bool((np.diff(self.table[0, 0]) == 1).all())

    @classmethod
    def whole(cls, inputs: int) -> Windows:
        """One place that sees all inputs."""
        return cls(np.arange(inputs, dtype=np.int64)[None, None], inputs)

    @classmethod
    def over_image(cls, image: Sequence[int], size: Sequence[int], sliding: Sliding, groups: int = 1) -> Windows:
        """Windows of one size over an image, on the channels of each group.

        Shapes    image (channels, height, width); size (height, width); taps in the order channel, row, column
        Raises    ShapeError, ResourceError
        """
        channels, height, width = image
        if groups < 1 or channels % groups:
            raise ShapeError(f"{channels} channels cannot be shared among {groups} groups")
        places = sliding.places((height, width), size)
        if min(places) < 1:
            raise ShapeError(f"windows {tuple(size)} do not fit an image {(height, width)}")
        if prod(places) * prod(size) * channels > MOST_ENTRIES:
            raise ResourceError(f"windows {tuple(size)} over an image {tuple(image)} need more than {MOST_ENTRIES:,} entries")
        top, left = sliding.padding
        rows = np.arange(places[0])[:, None] * sliding.stride[0] + np.arange(size[0]) - top
        columns = np.arange(places[1])[:, None] * sliding.stride[1] + np.arange(size[1]) - left
        row, column = rows[:, None, :, None], columns[None, :, None, :]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        plane = np.where(inside, row * width + column, -1).reshape(prod(places), 1, prod(size))
        offsets = (np.arange(channels) * height * width).reshape(groups, 1, channels // groups, 1)
        table = np.where(plane < 0, prod(image), plane + offsets).reshape(groups, prod(places), -1)
        table.setflags(write=False)
        return cls(table.astype(np.int64), prod(image))


@dataclass(frozen=True)
class Sliding:
    """How windows move over an image: stride (down, right), padding before (top, left) and whether it is padded at all."""

    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    same: bool = False

    @classmethod
    def same_size(cls, image: Sequence[int], size: Sequence[int], stride: tuple[int, int]) -> Sliding:
        """Pad so that ceil(size / stride) places fit, the odd one of the padding below and at the right."""
        total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(image, size, stride, strict=True)]
        return cls(stride, (total[0] // 2, total[1] // 2), same=True)

    def places(self, image: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
        """Return how many windows stand below and beside each other."""
        if self.same:
            down, across = (-(-n // s) for n, s in zip(image, self.stride, strict=True))
        else:
            down, across = ((n - k) // s + 1 if n >= k else 0 for n, k, s in zip(image, size, self.stride, strict=True))
        return down, across
