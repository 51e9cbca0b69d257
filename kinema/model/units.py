"""The numbers of a robot as a network has them, and back.

A continuous number is scaled, so that its recorded range becomes [-1, 1]; an angle is its sine and cosine; a
discrete number has one for each choice. A network may therefore have more numbers than were recorded.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinema.data.dimensions import Dimension


class Normalizer(nn.Module):
    """Maps recorded vectors (``A`` numbers) to those of the network (``num_columns``). Values outside the
    recorded range are not clipped."""

    center: Tensor
    scale: Tensor
    dimension_of: Tensor
    """For each column the recorded number that it is of."""
    first: Tensor
    """For each recorded number its first column."""
    is_angle: Tensor
    is_choice: Tensor
    frequency: Tensor
    phase: Tensor
    choice: Tensor

    def __init__(self, dimensions: Sequence[Dimension]):
        super().__init__()
        self.dimensions = tuple(dimensions)
        sizes = [dimension.num_columns for dimension in self.dimensions]
        columns = [
            (each, place) for each, size in zip(self.dimensions, sizes, strict=True) for place in range(size)
        ]
        self.num_columns = len(columns)
        self.is_plain = all(each.kind not in ("angle", "discrete") for each in self.dimensions)
        self.register_buffer("center", torch.zeros(len(columns)))
        self.register_buffer("scale", torch.ones(len(columns)))
        is_angle = torch.tensor([each.kind == "angle" for each, _ in columns], dtype=torch.bool)
        place = torch.tensor([place for _, place in columns], dtype=torch.float32)
        low, high = (torch.tensor([getattr(each, end) for each, _ in columns]) for end in ("low", "high"))
        turn = torch.where(is_angle, high - low, torch.ones_like(low))
        for name, value in {
            "dimension_of": torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.long)),
            "first": torch.tensor([0, *sizes], dtype=torch.long).cumsum(0)[:-1],
            "is_angle": is_angle,
            "is_choice": torch.tensor([each.kind == "discrete" for each, _ in columns], dtype=torch.bool),
            "frequency": 2 * math.pi / turn,
            # A cosine is a sine a quarter of a turn later.
            "phase": place * (math.pi / 2),
            "choice": low + place,
        }.items():
            self.register_buffer(name, value, persistent=False)

    def fit(self, values: Float[np.ndarray, "N A"]) -> None:
        """Take centre and scale from data; outliers beyond 0.1% are left outside the range, and numbers that
        are missing (NaN) do not count."""
        limits = [0.001, 0.999]
        has_holes = bool(np.isnan(values).any())
        found = np.nanquantile(values, limits, axis=0) if has_holes else np.quantile(values, limits, axis=0)
        low, high = found[0], found[1]
        for index, dimension in enumerate(self.dimensions):
            if dimension.kind == "one-hot":
                low[index], high[index] = 0.0, 1.0
        column = self.dimension_of.cpu().numpy()
        low, high = low[column], high[column]
        self.center.copy_(torch.from_numpy((high + low) / 2))
        scale = (high - low) / 2
        # Less than single precision tells apart is a constant; small by itself is not.
        least = np.maximum(4 * np.finfo(np.float32).eps * np.maximum(np.abs(low), np.abs(high)), 1e-30)
        self.scale.copy_(torch.from_numpy(np.where(scale > least, scale, 1.0)))

    def normalize(self, values: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch V"]:
        """Numbers of the network; 0 for those that are missing (NaN)."""
        if self.is_plain:
            numbers = (values - self.center) / self.scale
            return numbers.masked_fill(values.isnan(), 0.0)
        values = values[..., self.dimension_of]
        numbers = (values - self.center) / self.scale
        numbers = torch.where(self.is_angle, torch.sin(self.frequency * values + self.phase), numbers)
        is_chosen = (values.round() == self.choice).to(numbers.dtype)
        numbers = torch.where(self.is_choice, 2.0 * is_chosen - 1.0, numbers)
        return numbers.masked_fill(values.isnan(), 0.0)

    def restore(self, values: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch A"]:
        """Numbers as recorded, angles within their turn."""
        numbers = values * self.scale + self.center
        if self.is_plain:
            return numbers
        numbers = numbers[..., self.first]
        for index, dimension in enumerate(self.dimensions):
            start = int(self.first[index])
            columns = values[..., start : start + dimension.num_columns]
            if dimension.kind == "angle":
                turn = dimension.high - dimension.low
                angle = torch.atan2(columns[..., 0], columns[..., 1]) * (turn / (2 * math.pi))
                numbers[..., index] = torch.remainder(angle - dimension.low, turn) + dimension.low
            elif dimension.kind == "discrete":
                numbers[..., index] = columns.argmax(-1).to(numbers.dtype) + dimension.low
        return numbers

    def restore_error(self, errors: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch A"]:
        """Errors of recorded numbers from those of the network's; of angles in units of the turn."""
        if self.is_plain:
            return errors * self.scale
        restored = (errors * self.scale)[..., self.first]
        for index, dimension in enumerate(self.dimensions):
            start = int(self.first[index])
            if dimension.kind == "angle":
                both = errors[..., start : start + 2].square().sum(-1).sqrt()
                restored[..., index] = both * ((dimension.high - dimension.low) / (2 * math.pi))
        return restored

    @property
    def half_range(self) -> Float[np.ndarray, " A"]:
        """Half of the recorded range of each number; of angles half a turn."""
        low, high = self.range
        return (high - low) / 2

    @property
    def range(self) -> tuple[Float[np.ndarray, " A"], Float[np.ndarray, " A"]]:
        """Lowest and highest recorded numbers, but for outliers; of angles the ends of the turn."""
        middle, half = (x[self.first].cpu().double().numpy() for x in (self.center, self.scale))
        low, high = middle - half, middle + half
        for index, dimension in enumerate(self.dimensions):
            if dimension.kind in ("angle", "discrete"):
                low[index], high[index] = dimension.low, dimension.high
        return low, high

    @property
    def takes_choice(self) -> bool:
        """True where the vector is one choice (Discrete), recorded as one-hot."""
        count, kinds = len(self.dimensions), {each.kind for each in self.dimensions}
        if kinds == {None}:
            # Worlds of kinema 0.1.0 do not say.
            return count > 1 and bool(((self.center == 0.5) & (self.scale == 0.5)).all())
        return kinds == {"one-hot"} and self.dimensions[0].choices == count
