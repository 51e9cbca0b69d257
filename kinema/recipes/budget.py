"""The scale of a training that takes a given time: the largest size that gets enough updates, by their cost
on a machine."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Protocol, Self, runtime_checkable

from kinema.recipes.sizes import SIZES, Scale, Size

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
RESERVE = 0.03
"""Share of the time for what is not measured: reading files, fits, writing the world."""
TOKENIZER_SHARE = 0.3
"""Share of the time of all updates that goes to the tokenizer, where there is a camera."""
PHASE_TIMES = (0.5, 0.2, 0.3)
"""Shares of the time of the dynamics, by phase: short segments, longer ones, own predictions."""
LADDER = ("mini", "small", "base", "large", "xl")
"""Sizes from which a time chooses."""
ENOUGH = 0.5
"""Share of its updates of the dynamics with which a size is worth its cost: at first the number of updates
counts more than the size of a network."""
PREPARING_SHARE = 0.15
"""Largest share of the time for decoding and encoding; of datasets that take longer a part is used."""
LARGEST_BATCH = 128
NEARLY_FREE = 1.25
"""A batch is doubled as long as its update then takes less than so many times as long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds that the parts of a training take on a machine."""

    frame: float
    """A frame of all cameras, from its file to its latents."""
    tokenizer: float
    """An update of the tokenizer; 0 without one."""
    phases: tuple[float, ...]
    """An update of the dynamics, by phase."""
    overhead: float
    """Evaluations and checkpoints, as a share of the time."""
    once: float = 0.0
    """All that happens once, such as the last evaluation."""


@runtime_checkable
class Costs(Protocol):
    """Measures scales, whatever their numbers of updates."""

    def rates(self, scale: Scale) -> Rates:
        """Return seconds of the parts of a training of this scale."""
        ...

    def first_phase(self, scale: Scale) -> float:
        """Return seconds of an update of the first phase of the dynamics."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A scale, and the seconds that its parts are expected to take."""

    name: str
    """Name of the size."""
    scale: Scale
    is_enough: bool
    """True where the dynamics gets as many updates as make the size worth its cost."""
    preparing: float
    """Decoding and encoding."""
    tokenizer: float
    phases: tuple[float, ...]
    """The dynamics, by phase."""
    other: float
    """Evaluations, checkpoints, and what is not measured."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The plan of which these are the fields, as JSON holds them."""
        scale = fields["scale"]
        scale = Scale(
            **{
                **scale,
                "size": Size(**scale["size"]),
                "phase_updates": tuple(scale["phase_updates"]),
            }
        )
        return cls(**{**fields, "scale": scale, "phases": tuple(fields["phases"])})

    @property
    def seconds(self) -> float:
        """Seconds of all parts."""
        return self.preparing + self.tokenizer + sum(self.phases) + self.other


def parse_budget(text: str) -> float:
    """Return the seconds of a time such as ``90m``, ``6h``, ``1h30m`` or ``2d``.

    Raises:
        ValueError: it is no such time.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(map("".join, parts)) != text or not 0.0 < seconds < math.inf:
        raise ValueError(f"--budget {text}: it must be a time, such as 90m, 6h, 1h30m or 2d")
    return seconds


def choose_plan(
    costs: Costs,
    seconds: float,
    *,
    num_frames: int,
    num_episodes: int,
    size: str | None = None,
) -> Plan:
    """Plan a training.

    Args:
        costs: measures scales.
        seconds: time for all that is still to come.
        num_frames: recorded frames to learn from.
        num_episodes: recorded episodes to learn from.
        size: name of the size; by default the largest that gets enough updates.
    """
    chosen = None
    # From cheap to dear, so that no size is measured of which an update takes an age.
    for name in LADDER if size is None else (size,):
        scale = _with_batch(Scale.of(name), costs)
        plan = _plan(name, scale, costs.rates(scale), seconds, num_frames, num_episodes)
        if chosen is not None and not plan.is_enough:
            break
        chosen = plan
        if not plan.is_enough:
            break
    assert chosen is not None
    return chosen


def _with_batch(scale: Scale, costs: Costs) -> Scale:
    """The scale with the largest batch that costs little more than the next smaller one."""
    while scale.batch < LARGEST_BATCH:
        larger = dataclasses.replace(scale, batch=2 * scale.batch)
        if costs.first_phase(larger) > NEARLY_FREE * costs.first_phase(scale):
            break
        scale = larger
    return scale


def _plan(name: str, scale: Scale, rates: Rates, seconds: float, num_frames: int, num_episodes: int) -> Plan:
    """Share out the time between the parts of a training."""
    preparing, used = rates.frame * num_frames, None
    if preparing > PREPARING_SHARE * seconds:
        used = max(1, int(num_episodes * PREPARING_SHARE * seconds / preparing))
        preparing *= used / num_episodes
    other = min(0.5, RESERVE + rates.overhead) * seconds + rates.once
    left = max(0.0, seconds - preparing - other)
    tokenizer = TOKENIZER_SHARE * left if rates.tokenizer else 0.0
    times = [share * (left - tokenizer) for share in PHASE_TIMES]
    updates = tuple(max(1, int(time / rate)) for time, rate in zip(times, rates.phases, strict=True))
    tokenizer_updates = max(1, int(tokenizer / rates.tokenizer)) if rates.tokenizer else 0
    return Plan(
        name=name,
        scale=dataclasses.replace(
            scale, tokenizer_updates=tokenizer_updates, phase_updates=updates, num_episodes=used
        ),
        is_enough=sum(updates) >= ENOUGH * SIZES[name].dynamics_updates,
        preparing=preparing,
        tokenizer=tokenizer_updates * rates.tokenizer,
        phases=tuple(number * rate for number, rate in zip(updates, rates.phases, strict=True)),
        other=other,
    )
