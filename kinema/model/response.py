"""The linear response of a frame to the robot, found by least squares before any training.

A robot under position control follows its commands almost linearly while nothing is in its way; where it
swings and turns, its motion is smooth, and linear in random features of its state. The place where it is
drawn is, patch by patch, a linear function of Fourier features of where it is. Gradient descent is slow to
find any of these; least squares finds them at once, and leaves to the network what is none.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kinema.data.latents import Rows
from kinema.hardware.machine import exact
from kinema.hardware.packed import PackedLinear, pack_matrix
from kinema.model.embeddings import FourierFeatures

NUM_OCTAVES, NUM_DIRECTIONS = 5, 500
SMOOTHNESS = 2.0
"""Length scale of the motion of a robot, in halves of the range of its state."""
RIDGE = 1e-4
"""Added to the mean square of every input."""
FIT_ROWS = 150_000
"""Most rows to fit to."""
PIECE = 4096
STATE_NOISE = 0.005
"""Deviation of noise on the state that a motion is fitted from, in halves of its range: a motion that is
predicted step after step from its own predictions has to come back from small errors, and least squares on
clean recordings, in which positions and velocities always agree, does not teach that."""
MARGIN = 0.05
"""By so much, in halves of the range, a predicted state may lie outside what was recorded."""
SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Of the frequencies of one number of a vector, radians on half of its range, from which a search chooses."""
SEARCH_ROWS, SEARCH_DIRECTIONS, SEARCH_OUTPUTS, SEARCH_ROUNDS = 10_000, 300, 64, 3
HELD_OUT_SHARE = 0.2
DEFAULT_PRIOR_ERROR = 0.3
"""Deviation of latents from the frame before that is expected while no linear response is known."""

_Known = tuple[Sequence[Float[Tensor, "_ _"]], Float[Tensor, "_ _"]]
"""Inputs, and the outputs that belong to them."""


class LinearResponse(nn.Module):
    """How proprioception and latents change from one frame to the next, as far as that is linear: in the last
    proprioception and actions, and in random features of them (those of a Gaussian kernel: Rahimi and Recht
    2007); and in features of the last proprioception and of the new one. And the action between two frames,
    as far as it is linear in their proprioception and that of the frame before.

    All zero, so that no change is predicted, until ``fit``.
    """

    directions: Tensor | None
    limits: Tensor | None
    """Least and largest recorded proprioception, ``2 P``."""
    to_proprio: Tensor
    to_latents: Tensor
    to_action: Tensor
    proprio_error: Tensor
    """Root mean square of what the response leaves of proprioception's change."""
    latents_error: Tensor
    """The same of the latents, ``L Z``."""
    action_error: Tensor
    """Root mean square of what the response leaves of the action."""

    def __init__(
        self, *, latents: tuple[int, int], proprio_dim: int, action_dim: int, num_directions: int = 0
    ):
        """``num_directions`` random features of the motion have a sine and a cosine each."""
        super().__init__()
        self.latents = latents
        num_known = 2 * (proprio_dim + action_dim)
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(num_known, num_directions, generator=generator) / SMOOTHNESS
        self.register_buffer("directions", directions if num_directions else None)
        limits = torch.tensor([[-1.0], [1.0]]).repeat(1, proprio_dim)
        self.register_buffer("limits", limits if num_directions else None)
        self.features = FourierFeatures(proprio_dim, NUM_OCTAVES, NUM_DIRECTIONS)
        num_latents, latent_dim = latents
        self.register_buffer("latents_error", torch.full(latents, DEFAULT_PRIOR_ERROR))
        self.register_buffer("to_proprio", torch.zeros(num_known + 2 * num_directions + 1, proprio_dim))
        self.register_buffer("proprio_error", torch.full([proprio_dim], 0.1))
        self.register_buffer("to_action", torch.zeros(3 * proprio_dim + 1, action_dim))
        self.register_buffer("action_error", torch.ones(action_dim))
        self.register_buffer("to_latents", torch.zeros(2 * self.features.size + 1, num_latents * latent_dim))
        self._packed: PackedLinear | None = None

    def proprio_change(
        self,
        last: Float[Tensor, "*n P"],
        earlier: Float[Tensor, "*n P"],
        action: Float[Tensor, "*n A"],
        last_action: Float[Tensor, "*n A"],
    ) -> Float[Tensor, "*n P"]:
        """Change of proprioception from its last two values, the action now and the one before."""
        change = _linear(self._motion_inputs(last, earlier, action, last_action), self.to_proprio)
        if self.limits is None:
            return change
        # What is learned from features means nothing far from where it was learned.
        least, largest = self.limits
        return (last + change).clamp(least - MARGIN, largest + MARGIN) - last

    def action(
        self, proprio: Float[Tensor, "*n P"], last: Float[Tensor, "*n P"], earlier: Float[Tensor, "*n P"]
    ) -> Float[Tensor, "*n A"]:
        """The action that led from ``last`` to ``proprio``."""
        return _linear([proprio, last, earlier], self.to_action)

    def latents_change(
        self, proprio: Float[Tensor, "*n P"], last: Float[Tensor, "*n P"]
    ) -> Float[Tensor, "*n L Z"]:
        """Change of the latents as proprioception goes from ``last`` to ``proprio``."""
        with exact(proprio.device):
            inputs = self._latents_inputs(proprio, last)
            found = inputs @ self.to_latents if self._packed is None else self._packed(inputs)
            return found.unflatten(-1, self.latents)

    def pack(self, dtype: torch.dtype) -> None:
        """Foresee latents by packed weights."""
        self._packed = pack_matrix(self.to_latents)

    @torch.no_grad()
    def fit(
        self,
        latents: Rows | Float[Tensor, "N L Z"],
        proprio: Float[Tensor, "N P"],
        action: Float[Tensor, "N A"],
        is_third: Bool[Tensor, " N"],
    ) -> None:
        """Fit to normalised data by ridge regression.

        Args:
            latents: of all frames, episodes one after the other.
            proprio: the same of proprioception.
            action: the action that led to each frame.
            is_third: frames with at least two before them in their episode; where they are few, nothing is
                fitted.
        """
        rows = is_third.nonzero().squeeze(-1)
        rows = rows[:: -(-len(rows) // FIT_ROWS)] if len(rows) else rows
        device = self.to_proprio.device
        if len(rows) > 2 * len(self.to_proprio):
            generator = torch.Generator().manual_seed(0)

            def motion(piece: Tensor, noise_size: float = 0.0) -> _Known:
                last, earlier = proprio[piece - 1], proprio[piece - 2]
                if noise_size:
                    last, earlier = (
                        state + noise_size * torch.randn(state.shape, generator=generator)
                        for state in (last, earlier)
                    )
                known = (last, earlier, action[piece], action[piece - 1])
                inputs = self._motion_inputs(*(values.to(device) for values in known))
                return inputs, (proprio[piece] - last).to(device)

            def cause(piece: Tensor) -> _Known:
                return [proprio[piece], proprio[piece - 1], proprio[piece - 2]], action[piece]

            state_noise = 0.0 if self.directions is None else STATE_NOISE
            for of, noised, weights, error in (
                (motion, lambda piece: motion(piece, state_noise), self.to_proprio, self.proprio_error),
                (cause, cause, self.to_action, self.action_error),
            ):
                solution, left = _least_squares(rows.split(PIECE), of, noised)
                weights.copy_(solution)
                error.copy_(left)
            if self.limits is not None:
                self.limits.copy_(torch.stack([proprio.amin(0), proprio.amax(0)]))
        if self.to_latents.numel():
            fit_frequencies(self.features, proprio, latents)
        if self.to_latents.numel() and len(rows) > 2 * len(self.to_latents):
            square = torch.zeros(self.to_latents.shape[1], device=device)

            def change(piece: Tensor) -> tuple[Tensor, Tensor]:
                inputs = self._latents_inputs(proprio[piece].to(device), proprio[piece - 1].to(device))
                outputs = (latents[piece].float() - latents[piece - 1].float()).flatten(1).to(device)
                square.add_(outputs.square().sum(0))
                return inputs, outputs

            gram, moment = gram_and_moment(change(piece) for piece in rows.split(PIECE))
            solution = ridge(gram.double(), moment.double(), RIDGE * len(rows))
            self.to_latents.copy_(solution)
            # What is left, |change - inputs @ solution|^2, from the sums alone.
            explained = (2.0 * solution * moment - solution * (gram.double() @ solution)).sum(0)
            left = (square - explained).clamp_min(0.0) / len(rows)
            self.latents_error.copy_(left.sqrt().clamp_min(1e-3).view_as(self.latents_error))

    def _motion_inputs(self, *known: Float[Tensor, "*n _"]) -> list[Float[Tensor, "*n _"]]:
        """What is known of a motion, and random features of it."""
        if self.directions is None:
            return list(known)
        with exact(known[0].device):
            phases = torch.cat(known, dim=-1).float() @ self.directions
        return [*known, phases.sin(), phases.cos()]

    def _latents_inputs(self, proprio: Tensor, last: Tensor) -> Tensor:
        return F.pad(torch.cat([self.features(proprio), self.features(last)], dim=-1), (0, 1), value=1.0)


@torch.no_grad()
def fit_frequencies(
    features: FourierFeatures, values: Float[Tensor, "N V"], outputs: Rows | Float[Tensor, "N *_"]
) -> None:
    """Give features the frequencies in which outputs are most nearly linear: what is drawn may change fast
    with some numbers of a vector and not at all with others, such as velocities, and features that take all
    alike then predict little.

    Random directions, stretched along each axis by one of ``SCALES``; axis by axis the one with the least
    error of ridge regression on rows behind those that it was fitted to. Where that is no better than the
    frequencies that there are, or where there are few rows, these stay.
    """
    rows = torch.arange(0, len(values), -(-len(values) // SEARCH_ROWS)) if len(values) else torch.zeros(0)
    num_fitted = int((1.0 - HELD_OUT_SHARE) * len(rows))
    if not values.shape[1] or num_fitted < 4 * features.size:
        return
    device, generator = features.frequencies.device, torch.Generator().manual_seed(0)
    known, wanted = values[rows].float().to(device), outputs[rows].float().flatten(1).to(device)
    # Sums of outputs with random weights are as far off as the outputs, and are fewer.
    num_outputs = min(SEARCH_OUTPUTS, wanted.shape[1])
    weights = torch.randn(wanted.shape[1], num_outputs, generator=generator).to(device)
    wanted = (wanted - wanted.mean(0)) @ weights

    def error(frequencies: Float[Tensor, "V F"]) -> float:
        phases = known @ frequencies
        inputs = F.pad(torch.cat([known, phases.sin(), phases.cos()], dim=-1), (0, 1), value=1.0)
        gram, moment = gram_and_moment([(inputs[:num_fitted], wanted[:num_fitted])])
        solution = ridge(gram.double(), moment.double(), RIDGE * num_fitted).float()
        return float((inputs[num_fitted:] @ solution - wanted[num_fitted:]).square().mean())

    def directions(num: int) -> Float[Tensor, "V F"]:
        return torch.randn(values.shape[1], num, generator=torch.Generator().manual_seed(0)).to(device)

    tried_directions = directions(SEARCH_DIRECTIONS)
    scales = torch.full((values.shape[1], 1), 2.0, device=device)
    least = error(tried_directions * scales)
    for _ in range(SEARCH_ROUNDS):
        before = least
        for axis, scale in itertools.product(range(len(scales)), SCALES):
            tried = scales.clone()
            tried[axis] = scale
            if not torch.equal(tried, scales) and (found := error(tried_directions * tried)) < least:
                least, scales = found, tried
        if least == before:
            break
    chosen = directions(features.frequencies.shape[1]) * scales
    if error(chosen) < error(features.frequencies):
        features.frequencies.copy_(chosen)


def _linear(inputs: Sequence[Float[Tensor, "*n _"]], weights: Float[Tensor, "I O"]) -> Float[Tensor, "*n O"]:
    """Inputs and a constant, weighted: a sum of products, since a matrix product would lose precision under
    autocast."""
    joined = F.pad(torch.cat(list(inputs), dim=-1), (0, 1), value=1.0)
    return (joined.unsqueeze(-1) * weights).sum(-2)


def _least_squares(
    pieces: Sequence[Int[Tensor, " _"]], of: Callable[[Tensor], _Known], noised: Callable[[Tensor], _Known]
) -> tuple[Float[Tensor, "I O"], Float[Tensor, " O"]]:
    """Weights of inputs and of a constant, and the root mean square of what they leave of the outputs; ``of``
    gives both for some rows, ``noised`` the same as they are to be fitted."""

    def known(piece: Tensor, of: Callable[[Tensor], _Known]) -> tuple[Tensor, Tensor]:
        inputs, outputs = of(piece)
        return F.pad(torch.cat(list(inputs), dim=-1), (0, 1), value=1.0).double(), outputs.double()

    gram, moment = gram_and_moment(known(piece, noised) for piece in pieces)
    num_rows = sum(map(len, pieces))
    solution = ridge(gram, moment, 1e-9 * num_rows)
    square = torch.zeros_like(solution[0])
    for piece in pieces:
        inputs, outputs = known(piece, of)
        square += (outputs - inputs @ solution).square().sum(0)
    return solution, (square / num_rows).sqrt().clamp_min(1e-6)


def gram_and_moment(pieces: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What ``ridge`` solves from: sums over rows of inputs with inputs, and of inputs with outputs, which are
    given in pieces, at least one."""
    gram = moment = None
    for inputs, outputs in pieces:
        of_inputs, of_outputs = inputs.T @ inputs, inputs.T @ outputs
        gram = of_inputs if gram is None else gram.add_(of_inputs)
        moment = of_outputs if moment is None else moment.add_(of_outputs)
    assert gram is not None
    assert moment is not None
    return gram, moment


def ridge(gram: Tensor, moment: Tensor, penalty: float) -> Tensor:
    """The solution of ridge regression from sums over rows: ``gram`` of inputs with inputs, ``moment`` of
    inputs with outputs."""
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram), device=gram.device), moment)
