"""The network as a policy: the next actions, denoised while what they lead to is left out, towards a goal.

A world that is finished is taught to act without being changed: what it remembers of frames is its own, and
the next frame's tokens that do not carry latents (*agent tokens*) go through its blocks with what low-rank
matrices add to their weights (2106.09685). They look at the past, and nothing looks at them (Dreamer 4,
2509.24527, section 3.1), so the world simulates as before, to the last bit.
"""

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from kinema.model.blocks import norm
from kinema.model.embeddings import FourierFeatures
from kinema.model.flow import interpolate, sample_tau
from kinema.model.heads import PlaceFeatures, PlaceSizes
from kinema.model.tokens import Memory, TokenInput, Values, combine
from kinema.model.transformer import Dynamics


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActingConfig:
    rank: int = 16
    """Rank of what is added to the weights of the dynamics' blocks."""
    width: int = 256
    """Width of the map that reads goals."""
    chunk: int = 8
    """Actions that are found together."""
    max_steps: int = 100
    """Goals are up to so many steps away."""
    goal_dropout: float = 0.1
    """Share of what is learned from without a goal, so that the network can also act without one."""

    def __post_init__(self) -> None:
        for name in ("rank", "width", "chunk", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        if not 0.0 <= self.goal_dropout <= 1.0:
            raise ValueError(f"goal_dropout={self.goal_dropout}: it is a share, from 0 to 1")


@dataclasses.dataclass(frozen=True)
class Aims:
    """What is told of moments: the frame before, the present one, the goal and whether there is any, the
    frames as places (``WorldModel.place``)."""

    before: Float[Tensor, "B T G"]
    now: Float[Tensor, "B T G"]
    goal: Float[Tensor, "B T G"]
    has_goal: Bool[Tensor, "B T"]


class Acting(nn.Module):
    """What a dynamics needs to act."""

    change: Tensor

    def __init__(self, config: ActingConfig, *, dynamics: Dynamics, sizes: PlaceSizes):
        super().__init__()
        self.config, self.action_dim = config, dynamics.config.action_dim
        width = dynamics.config.width
        self.features = PlaceFeatures(sizes)
        self.goal = nn.Sequential(
            nn.Linear(self.features.aim_size, config.width),
            nn.SiLU(),
            nn.Linear(config.width, config.width),
            nn.SiLU(),
        )
        self.tell = TokenInput(config.width, dynamics.config.num_agent_tokens, width)
        num_values = config.chunk * self.action_dim
        self.chunk_features, self.tau_features = FourierFeatures(num_values, 2), FourierFeatures(1, 4)
        self.chunk_in = nn.Linear(self.chunk_features.size + self.tau_features.size, width)
        self.chunk_out = nn.Linear(width, num_values)
        nn.init.zeros_(self.chunk_out.weight)
        self.added = nn.ModuleList(LowRank(block, config.rank) for block in dynamics.blocks)
        self.action_at = int(dynamics.config.proprio_dim > 0)
        # Root mean square by which actions differ from the last one before them, by their place in a chunk.
        self.register_buffer("change", torch.ones(config.chunk, 1))

    def fit(self, actions: Float[Tensor, "N C A"], last: Float[Tensor, "N A"]) -> None:
        """Take from recorded chunks how far actions are from the last one before them."""
        offset = actions - last.unsqueeze(1)
        self.change.copy_(offset.square().mean((0, 2)).sqrt().clamp_min(1e-3).unsqueeze(-1))

    def forward(
        self,
        blocks: nn.ModuleList,
        memory: Memory,
        aims: Aims,
        noised: Float[Tensor, "B T C A"],
        tau: Float[Tensor, "B T"],
    ) -> Float[Tensor, "B T C A"]:
        """The chunks of actions, normalised, that noised ones are of.

        Args:
            blocks: those of the dynamics.
            memory: what it remembers of the moments at which actions are chosen.
            aims: what shall come of them.
            noised: the actions at noise time ``tau``.
            tau: 0 where they are noise alone.
        """
        times = tau.unsqueeze(-1)
        chunk = torch.cat([self.chunk_features(noised.flatten(2)), self.tau_features(times)], dim=-1)
        told = self.features.of_aim(aims.before, aims.now, aims.goal, aims.has_goal)
        x = memory.tokens + self.tell(self.goal(told))
        token = torch.arange(x.shape[2], device=x.device) == self.action_at
        x = x + token[:, None] * self.chunk_in(chunk).unsqueeze(2)
        keys_values = iter(memory.keys_values)
        for block, added in zip(blocks, self.added, strict=True):
            past = next(keys_values) if block.time is not None else None
            x, _ = functional_call(block, added(block), (x, memory.rotary, memory.mask, past))
        found = self.chunk_out(norm(x[:, :, self.action_at])).float().view_as(noised)
        last = memory.last_action.unsqueeze(2)
        return combine(last, self.change, noised, times.unsqueeze(-1)) + found * self.change


class LowRank(nn.Module):
    """What is added to the matrices of a block: products of two matrices each, zero at first."""

    def __init__(self, block: nn.Module, rank: int):
        super().__init__()
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, linear in _linears(block):
            down = torch.randn(rank, linear.in_features) / linear.in_features**0.5
            self.down[name.replace(".", "_")] = nn.Parameter(down)
            self.up[name.replace(".", "_")] = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, block: nn.Module) -> dict[str, Tensor]:
        """The weights of the block by their names, with what is added. The block's own do not learn."""
        weights = {}
        for name, linear in _linears(block):
            key = name.replace(".", "_")
            weights[f"{name}.weight"] = linear.weight.detach() + self.up[key] @ self.down[key]
        return weights


def _linears(block: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in block.named_modules() if isinstance(module, nn.Linear)]


@dataclasses.dataclass(frozen=True)
class ActingBatch:
    """Segments, at each frame a goal that the episode came to later, and what was done from there on."""

    frames: Values
    """Clean and normalised."""
    tau: Float[Tensor, "B T M"]
    """Their noise levels, as those of a session's frames."""
    aims: Aims
    """All with a goal."""
    steps: Int[Tensor, "B T"]
    """Steps to the goal."""
    actions: Float[Tensor, "B T C A"]
    """Normalised."""
    is_recorded: Bool[Tensor, "B T C"]
    """Which of the actions there are: not those behind the episode's end."""

    def to(self, device: torch.device) -> "ActingBatch":
        """The same on another device."""
        aims = Aims(**{name: part.to(device) for name, part in vars(self.aims).items()})
        moved = (part.to(device) for part in (self.tau, self.steps, self.actions, self.is_recorded))
        tau, steps, actions, is_recorded = moved
        frames = self.frames.map(lambda x: x.to(device))
        return ActingBatch(frames, tau, aims, steps, actions, is_recorded)


class ActingObjective(nn.Module):
    """``module(batch) -> (loss, metrics)``: the actions that were taken, found again from noise."""

    PURE_NOISE_SHARE = 0.5
    """Share of chunks that are noise alone, where few-step sampling starts."""
    LEAST_ERROR = 0.1
    """Errors below this, in units of how far actions are from the last one, count as squares."""

    def __init__(self, acting: Acting, dynamics: Dynamics):
        """``dynamics`` does not learn."""
        super().__init__()
        self.acting = acting
        # Not a part of this module: its weights are neither to learn nor to be kept.
        self._dynamics = (dynamics,)

    def forward(
        self, batch: ActingBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        acting, (dynamics,), device = self.acting, self._dynamics, batch.actions.device
        has_goal = torch.rand(batch.steps.shape, generator=generator, device=device)
        has_goal = has_goal >= acting.config.goal_dropout
        aims = dataclasses.replace(batch.aims, has_goal=has_goal)
        size = (*batch.tau.shape[:2], dynamics.config.noise_size)
        noise = torch.randn(size, generator=generator, device=device)
        memory = dynamics.memory(batch.frames, batch.tau, noise)
        tau = sample_tau(
            tuple(batch.steps.shape),
            pure_noise_share=self.PURE_NOISE_SHARE,
            generator=generator,
            device=device,
        )
        noise = torch.randn(batch.actions.shape, generator=generator, device=device)
        found = acting(
            dynamics.blocks, memory, aims, interpolate(batch.actions, noise, tau[..., None, None]), tau
        )
        unit = acting.change
        error = F.smooth_l1_loss(found / unit, batch.actions / unit, reduction="none", beta=self.LEAST_ERROR)
        # Behind its goal an episode went on to somewhere else.
        place = torch.arange(acting.config.chunk, device=device)
        counts = batch.is_recorded & ((place < batch.steps.unsqueeze(-1)) | ~has_goal.unsqueeze(-1))
        loss = _mean_of(error.mean(-1), counts)
        offset = (found.detach() - batch.actions).abs().mean(-1)
        return loss, {"action_error": _mean_of(offset, counts & (tau == 0.0).unsqueeze(-1))}


def _mean_of(x: Tensor, counts: Bool[Tensor, "..."]) -> Tensor:
    return (x * counts).sum() / counts.sum().clamp_min(1)
