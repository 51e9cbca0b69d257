"""A scripted policy of mixed quality for the cart-pole of dm_control: swing the pole up, balance it.

It exists to record data: much of what it does is bad, some is good, and no episode is perfect, so that a
policy has something to learn in the world that comes of it. Units are those of the environment: metres,
radians, seconds; the action is the force on the cart, from -1 to 1.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

GRAVITY = 9.81
PULL = 1.5 * GRAVITY
"""Angular acceleration by gravity of a rod of one metre that lies level, whose end is fixed."""
FORCE_PER_ACCELERATION = 0.11
"""Action for a metre per second squared: cart and pole weigh 1.1 kg, the motor pushes with 10 N."""
BALANCE = np.array([39.2, 10.3, 3.2, 4.7])
"""Acceleration of the cart by angle, its rate, place and speed near upright: the linear-quadratic regulator
of the cart with a uniform rod at 20 steps a second, weights 10, 1, 2, 0.5, and 0.1 of the acceleration."""
CENTRE = np.array([4.0, 2.5])
"""Acceleration towards the middle by place and speed, while the pole is swung."""
PUMP = 0.2
"""How soon the push is a full one as energy is missing."""
AT_REST_COSINE, AT_REST_RATE = -0.85, 2.0
"""Below these the pole hangs nearly at rest, and the way to push is always the same."""
NEAR_ANGLE, NEAR_RATE = 0.5, 4.0
"""Within these of upright the pole can be caught."""
OUT = 1.35
"""Beyond this place the cart is brought back, whatever else goes on: the picture ends a little behind it."""

Kind = Literal["random", "swing", "balance"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CartpoleSwingConfig:
    random_share: float = 0.2
    """Share of the episodes that only push at random."""
    swing_share: float = 0.5
    """Share of those that swing the pole, too little or too much, and never catch it; the others do."""
    lapse: float = 0.015
    """Probability that a step begins a lapse: a few steps of random pushes."""

    def __post_init__(self) -> None:
        for name in ("random_share", "swing_share", "lapse"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1")
        if self.random_share + self.swing_share > 1.0:
            raise ValueError(
                f"random_share {self.random_share} and swing_share {self.swing_share} are more than 1 "
                "together"
            )


class CartpoleSwing:
    """Each episode draws a kind, how well it is done and how shaky the hand is."""

    def __init__(self, config: CartpoleSwingConfig | None = None):
        self.config = config or CartpoleSwingConfig()

    def reset(self, rng: np.random.Generator, info: Mapping[str, Any]) -> None:
        config = self.config
        self._rng = rng
        shares = (config.random_share, config.swing_share)
        kinds: tuple[Kind, ...] = ("random", "swing", "balance")
        self.kind: Kind = kinds[rng.choice(3, p=(*shares, max(0.0, 1.0 - sum(shares))))]
        self._noise = float(rng.uniform(0.05, 0.4))
        self._limit = float(rng.uniform(0.3, 1.0))
        # Of the energy between hanging and upright.
        self._wanted = (
            float(rng.uniform(0.4, 1.5)) if self.kind == "swing" else float(rng.uniform(0.95, 1.15))
        )
        self._strength = float(rng.uniform(0.5, 1.2))
        self._pushes_left, self._push = 0, 0.0

    def act(self, observation: Any, info: Mapping[str, Any]) -> np.ndarray:
        """The force on the cart, ``(1,)`` float32 in [-1, 1]."""
        x, cosine, sine, speed, rate = _state(observation)
        action = self._random_push() if self.kind == "random" else self._skilled(x, cosine, sine, speed, rate)
        if abs(x) > OUT:
            action = -np.sign(x) * abs(action)
        return np.clip([action], -1.0, 1.0).astype(np.float32)

    def _skilled(self, x: float, cosine: float, sine: float, speed: float, rate: float) -> float:
        rng = self._rng
        if self._pushes_left == 0 and rng.uniform() < self.config.lapse:
            self._pushes_left, self._push = int(rng.integers(3, 13)), float(rng.uniform(-1.0, 1.0))
        if self._pushes_left:
            self._pushes_left -= 1
            return self._push
        angle = float(np.arctan2(sine, cosine))
        if self.kind == "balance" and abs(angle) < NEAR_ANGLE and abs(rate) < NEAR_RATE:
            wanted = self._strength * float(BALANCE @ (angle, rate, x, speed))
            return FORCE_PER_ACCELERATION * wanted + rng.normal(0.0, self._noise)
        missing = PULL * (2.0 * self._wanted - 1.0 - cosine) - 0.5 * rate**2
        # Energy grows by -1.5 times acceleration, rate and cosine.
        toward = -float(np.sign(rate * cosine))
        if cosine < AT_REST_COSINE and abs(rate) < AT_REST_RATE:
            # Whoever learns from this must not learn to wait for noise.
            toward = 1.0 if x < 0.2 else -1.0
        pump = self._limit * float(np.tanh(PUMP * missing)) * toward
        centre = FORCE_PER_ACCELERATION * float(CENTRE @ (-x, -speed))
        return pump + centre + rng.normal(0.0, self._noise)

    def _random_push(self) -> float:
        """A push that lasts a while."""
        if self._pushes_left == 0:
            self._pushes_left, self._push = int(self._rng.integers(1, 9)), float(self._rng.uniform(-1.0, 1.0))
        self._pushes_left -= 1
        return self._push


def make(*, random_share: float = 0.2, swing_share: float = 0.5, lapse: float = 0.015) -> CartpoleSwing:
    """The policy from plain arguments, as ``kinema record --policy-args`` has them."""
    return CartpoleSwing(CartpoleSwingConfig(random_share=random_share, swing_share=swing_share, lapse=lapse))


def _state(observation: Any) -> tuple[float, float, float, float, float]:
    """Place of the cart, cosine and sine of the pole's angle from upright, speed and rate."""
    try:
        position, velocity = observation["position"], observation["velocity"]
        (x, cosine, sine), (speed, rate) = np.asarray(position, float), np.asarray(velocity, float)
    except (KeyError, TypeError, IndexError, ValueError):
        raise ValueError(
            "the cart-pole policy needs an observation with 'position' (3 numbers) and 'velocity' (2): "
            "use dm_control/cartpole-swingup-v0"
        ) from None
    return float(x), float(cosine), float(sine), float(speed), float(rate)
