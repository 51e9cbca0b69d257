"""The linear response of a frame to the robot, found by least squares before any training.

A robot under position control follows its commands almost linearly while nothing is in its way, and the place
where it is drawn is, patch by patch, a linear function of Fourier features of where it is. Gradient descent
is slow to find either; least squares finds both at once, and leaves to the network what is neither.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinema.hardware import exact
from kinema.nn.embeddings import FourierFeatures

NUM_OCTAVES, NUM_DIRECTIONS = 5, 500
RIDGE = 1e-4
"""Added to the mean square of every input."""
FIT_ROWS = 150_000
"""Most rows to fit to."""
PIECE = 4096
UNFORESEEN_ERROR = 0.3
"""Deviation of latents from the frame before that is expected while no linear response is known."""


class LinearResponse(nn.Module):
    """How proprioception and latents change from one frame to the next, as far as that is linear: in the last
    proprioception and actions; and in features of the last proprioception and of the new one. And the action
    between two frames, as far as it is linear in their proprioception and that of the frame before.

    All zero, so that nothing is foreseen to change, until ``fit``.
    """

    to_proprio: Tensor
    to_latents: Tensor
    to_action: Tensor
    proprio_error: Tensor
    """Root mean square of what the response leaves of proprioception's change."""
    latents_error: Tensor
    """The same of the latents, ``L Z``."""
    action_error: Tensor
    """Root mean square of what the response leaves of the action."""

    def __init__(self, *, latents: tuple[int, int], proprio_dim: int, action_dim: int):
        super().__init__()
        self.latents = latents
        self.features = FourierFeatures(proprio_dim, NUM_OCTAVES, NUM_DIRECTIONS)
        num_latents, latent_dim = latents
        self.register_buffer("latents_error", torch.full(latents, UNFORESEEN_ERROR))
        self.register_buffer("to_proprio", torch.zeros(2 * (proprio_dim + action_dim) + 1, proprio_dim))
        self.register_buffer("proprio_error", torch.full([proprio_dim], 0.1))
        self.register_buffer("to_action", torch.zeros(3 * proprio_dim + 1, action_dim))
        self.register_buffer("action_error", torch.ones(action_dim))
        self.register_buffer("to_latents", torch.zeros(2 * self.features.size + 1, num_latents * latent_dim))

    def proprio_change(
        self,
        last: Float[Tensor, "*n P"],
        earlier: Float[Tensor, "*n P"],
        action: Float[Tensor, "*n A"],
        last_action: Float[Tensor, "*n A"],
    ) -> Float[Tensor, "*n P"]:
        """Change of proprioception from its last two values, the action now and the one before."""
        return _linear([last, earlier, action, last_action], self.to_proprio)

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
            return (self._latents_inputs(proprio, last) @ self.to_latents).unflatten(-1, self.latents)

    @torch.no_grad()
    def fit(
        self,
        latents: Float[Tensor, "N L Z"],
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
            now, last, earlier = proprio[rows], proprio[rows - 1], proprio[rows - 2]
            solution, error = _least_squares([last, earlier, action[rows], action[rows - 1]], now - last)
            self.to_proprio.copy_(solution)
            self.proprio_error.copy_(error)
            solution, error = _least_squares([now, last, earlier], action[rows])
            self.to_action.copy_(solution)
            self.action_error.copy_(error)
        if self.to_latents.numel() and len(rows) > 2 * len(self.to_latents):
            gram = torch.zeros(len(self.to_latents), len(self.to_latents), device=device)
            moment, square = torch.zeros_like(self.to_latents), torch.zeros(self.to_latents.shape[1])
            for piece in rows.split(PIECE):
                inputs = self._latents_inputs(proprio[piece].to(device), proprio[piece - 1].to(device))
                change = (latents[piece].float() - latents[piece - 1].float()).flatten(1).to(device)
                gram += inputs.T @ inputs
                moment += inputs.T @ change
                square += change.square().sum(0).cpu()
            solution = ridge(gram.double(), moment.double(), RIDGE * len(rows))
            self.to_latents.copy_(solution)
            # What is left, |change - inputs @ solution|^2, from the sums alone.
            explained = (2.0 * solution * moment - solution * (gram.double() @ solution)).sum(0).cpu()
            left = (square - explained).clamp_min(0.0) / len(rows)
            self.latents_error.copy_(left.sqrt().clamp_min(1e-3).view_as(self.latents_error))

    def _latents_inputs(self, proprio: Tensor, last: Tensor) -> Tensor:
        return F.pad(torch.cat([self.features(proprio), self.features(last)], dim=-1), (0, 1), value=1.0)


def _linear(inputs: Sequence[Float[Tensor, "*n _"]], weights: Float[Tensor, "I O"]) -> Float[Tensor, "*n O"]:
    """Inputs and a constant, weighted: a sum of products, since a matrix product would lose precision under
    autocast."""
    joined = F.pad(torch.cat(list(inputs), dim=-1), (0, 1), value=1.0)
    return (joined.unsqueeze(-1) * weights).sum(-2)


def _least_squares(
    inputs: Sequence[Float[Tensor, "N _"]], outputs: Float[Tensor, "N O"]
) -> tuple[Float[Tensor, "I O"], Float[Tensor, " O"]]:
    """Weights of the inputs and of a constant, and the root mean square of what they leave."""
    joined, wanted = F.pad(torch.cat(list(inputs), dim=-1), (0, 1), value=1.0).double(), outputs.double()
    solution = ridge(joined.T @ joined, joined.T @ wanted, 1e-9 * len(joined))
    return solution, (wanted - joined @ solution).square().mean(0).sqrt().clamp_min(1e-6)


def ridge(gram: Tensor, moment: Tensor, penalty: float) -> Tensor:
    """The solution of ridge regression from sums over rows: ``gram`` of inputs with inputs, ``moment`` of
    inputs with outputs."""
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram), device=gram.device), moment)
