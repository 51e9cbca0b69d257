"""The causal diffusion transformer over blocks of tokens, one block for each frame, and its cache.

A block holds the latents of every camera (patched together), the proprioception, the action that led to
the frame, and a few registers. Beside its own value each token is given those of the two frames before. Each
token carries its own noise level, so what is given and what is to be found is decided by whoever calls, not
by the network.

A frame is remembered as it was when it was predicted: its keys and values are those of the pass in which what
is observed of it, its pictures, was noise. What the pictures then were, the next two frames are given at
their input. So a frame that is simulated in one call of the network goes through it once, and not once more
to be remembered.
"""

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kinema.model.attention import KeysValues
from kinema.model.blocks import Block, Context, Far, norm
from kinema.model.cache import Cache
from kinema.model.context import GoalInput
from kinema.model.embeddings import FourierFeatures, rotary_table
from kinema.model.response import DEFAULT_PRIOR_ERROR, LinearResponse
from kinema.model.tokens import (
    NUM_BEFORE,
    DynamicsConfig,
    Goal,
    Memory,
    Past,
    TokenInput,
    Values,
    VectorInput,
    combine,
)

EXACT_PROPRIO = 1e-3
"""Errors of proprioception, in halves of its range, that do not matter."""


class Dynamics(nn.Module):
    """Predicts the clean values of noised frames from the frames before them.

    ``tau`` has one entry for each *modality* of a frame (``B T M``): the cameras in order, proprioception if
    there is any, the action. All tokens of a modality share it.
    """

    patch_camera: Tensor
    latent_camera: Tensor

    def __init__(self, config: DynamicsConfig):
        super().__init__()
        self.config = config
        width = config.width
        patch_dim = config.patch**2 * config.latent_dim
        self.response = (
            LinearResponse(
                latents=(config.num_latents, config.latent_dim),
                proprio_dim=config.proprio_dim,
                action_dim=config.action_dim,
                num_directions=config.motion_directions,
            )
            if config.proprio_dim
            else None
        )
        self.latents_in = nn.Linear((2 + NUM_BEFORE) * patch_dim, width) if config.grids else None
        self.action_in = VectorInput(config.action_dim, config)
        self.proprio_in = VectorInput(config.proprio_dim, config) if config.proprio_dim else None
        self.noise_in = nn.Linear(config.noise_dim, width, bias=False) if config.noise_dim else None
        num_vectors = 1 + (config.proprio_dim > 0) + (config.noise_dim > 0)
        self.vectors_to_tokens = TokenInput(num_vectors * width, config.num_tokens, width)
        tau_features = FourierFeatures(1, 5)
        self.tau_in = nn.Sequential(tau_features, nn.Linear(tau_features.size, width, bias=False))
        self.token_bias = nn.Parameter(0.02 * torch.randn(config.num_tokens, width))
        hidden = 64 * round(width * 8 / 3 / 64)
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.num_heads,
                hidden,
                is_temporal=(i + 1) % config.time_every == 0,
                has_context=config.has_goals,
            )
            for i in range(config.depth)
        )
        self.goal_in = GoalInput(config) if config.has_goals else None
        self.latents_out = nn.Linear(width, patch_dim)
        self.action_out = nn.Linear(width, config.action_dim)
        self.proprio_out = nn.Linear(width, config.proprio_dim) if config.proprio_dim else None
        for head in (self.latents_out, self.action_out, self.proprio_out):
            if head is not None:
                nn.init.zeros_(head.weight)
        cameras = [
            camera
            for camera, (rows, columns) in enumerate(config.grids)
            for _ in range(rows * columns // config.patch**2)
        ]
        self.register_buffer("patch_camera", torch.tensor(cameras, dtype=torch.long), persistent=False)
        latents = self.patch_camera.repeat_interleave(config.patch**2)
        self.register_buffer("latent_camera", latents, persistent=False)

    def forward(
        self,
        context: Values,
        context_tau: Float[Tensor, "B T M"],
        target: Values,
        target_tau: Float[Tensor, "B U M"],
        *,
        context_noise: Float[Tensor, "B T O"] | None = None,
        target_noise: Float[Tensor, "B U X"] | None = None,
        num_copies: int = 1,
        goal: Goal | None = None,
    ) -> Values:
        """The training path: predict clean values of every target frame, all at once.

        Target frame ``u`` of ``U`` is the frame at time ``T - U + 1 + u``, where ``U`` is ``T + 1`` at most:
        it sees the context frames before that time within the window, and itself; the context frames see only
        earlier context and themselves. So every target sees exactly the frames that it will see when the
        frames before it have been simulated and committed.

        Args:
            context: frames before the targets.
            context_tau: noise times of the context, by modality.
            target: noised frames; all frames of the first copy, then all of the next.
            target_tau: noise times of the targets, by modality.
            context_noise: noise in place of the observations of the context, see ``blind``; zeros by default.
            target_noise: extra noise of the targets, ``X`` = ``noise_dim``; zeros by default.
            num_copies: copies of the target frames, each with noise of its own.
            goal: the goal of each segment, for the targets that have one; the context never sees it.
        """
        num_context, num_target = context_tau.shape[1], target_tau.shape[1] // num_copies
        assert num_target <= num_context + 1
        # The frames before time t are at the indices t to t + NUM_BEFORE - 1.
        padded = F.pad(self._known(context, context_tau), (0, 0, NUM_BEFORE, 0))
        past = self._past(context, context_tau, padded[:, :-1])
        before = padded[:, num_context + 1 - num_target :]
        target_past = self._past(target, target_tau, before, num_copies=num_copies)
        wanted = self._embed(target, target_tau, target_past, target_noise)
        seen = self._embed(
            *self.blind(context, context_tau, context_noise), past, self.extra_noise(context_noise)
        )
        times, mask, far = self._masks(num_context, num_target, seen.device, num_copies)
        context_tokens = None
        if goal is not None and goal.is_shown.any():
            shown = F.pad(goal.is_shown, (num_context, 0))
            segment = shown.nonzero()[:, 0]
            rows = shown.flatten().nonzero()[:, 0]
            context_tokens = rows, self.goal_tokens(goal.frame, goal.knows_proprio)[segment]
        x, _ = self._through(torch.cat([seen, wanted], dim=1), times, mask, far, context_tokens)
        return self._read(x[:, num_context:], target, target_tau, target_past)

    def forward_from_noise(
        self, frames: Values, tau: Float[Tensor, "B T M"], noise: Float[Tensor, "B T O"] | None = None
    ) -> Values:
        """Clean values of frames (but the first, of which nothing is known) as ``forward`` has them of
        targets that are as they will be remembered, with ``noise`` as ``blind`` takes it.

        What a frame is found from is then what is remembered of it: each goes through the network once, not
        twice."""
        before = F.pad(self._known(frames, tau), (0, 0, NUM_BEFORE, 0))[:, :-1]
        frames, tau = self.blind(frames, tau, noise)
        past = self._past(frames, tau, before)
        x, _ = self._through(
            self._embed(frames, tau, past, self.extra_noise(noise)), *self._masks(tau.shape[1], 0, tau.device)
        )
        return self._read(x, frames, tau, past)

    def goal_tokens(self, goal: Values, knows_proprio: Bool[Tensor, " B"]) -> Float[Tensor, "B C D"]:
        """Context tokens of goal frames (T = 1)."""
        assert self.goal_in is not None
        patches = self._patchify(goal.latents)[:, 0] if self.config.grids else goal.latents[:, 0]
        return self.goal_in(patches, goal, knows_proprio)

    def _masks(
        self, num_context: int, num_target: int, device: torch.device, num_copies: int = 1
    ) -> tuple[Int[Tensor, " S"], Bool[Tensor, "S S"], Far | None]:
        """Times of context and target frames, and who sees whom; the registers may see farther."""
        config = self.config
        times, mask = two_stream_mask(num_context, num_target, config.window, device, num_copies)
        if not config.memory:
            return times, mask, None
        _, far = two_stream_mask(num_context, num_target, config.memory, device, num_copies)
        return times, mask, (config.num_registers, far)

    def _through(
        self,
        x: Float[Tensor, "B S N D"],
        times: Int[Tensor, " S"],
        mask: Bool[Tensor, "S S"],
        far: Far | None = None,
        context: Context | None = None,
    ) -> tuple[Float[Tensor, "B S N D"], list[KeysValues]]:
        """Frames through all blocks, without a cache, and their keys and values in those that see time."""
        rotary, keys_values = self._rotary(times), []
        for block in self.blocks:
            x, own = block(x, rotary, mask, None, far, context)
            if own is not None:
                keys_values.append(own)
        return x, keys_values

    def _rotary(self, times: Int[Tensor, " S"]) -> tuple[Tensor, Tensor]:
        return rotary_table(times.float(), self.config.width // self.config.num_heads)

    @torch.no_grad()
    def memory(
        self, frames: Values, tau: Float[Tensor, "B T M"], noise: Float[Tensor, "B T O"] | None = None
    ) -> "Memory":
        """What each of the frames and those before it leave for who chooses what to do next, with ``noise``
        as ``blind`` takes it."""
        config, num_frames = self.config, tau.shape[1]
        before = F.pad(self._known(frames, tau), (0, 0, NUM_BEFORE, 0))
        past = self._past(frames, tau, before[:, :-1])
        x = self._embed(*self.blind(frames, tau, noise), past, self.extra_noise(noise))
        _, keys_values = self._through(x, *self._masks(num_frames, 0, tau.device))
        next_times, next_mask = two_stream_mask(num_frames, num_frames, config.window, tau.device)
        return Memory(
            tokens=self._agent_tokens(frames, before[:, 1:]),
            last_action=frames.unpack(before[:, NUM_BEFORE:]).action,
            keys_values=[(self._of_agent(keys), self._of_agent(values)) for keys, values in keys_values],
            rotary=self._rotary(next_times[num_frames:]),
            mask=next_mask[num_frames:],
        )

    @torch.no_grad()
    def memory_of(self, cache: Cache) -> "Memory":
        """The same of the present frames of streaming sessions."""
        frames, before = cache.past()[0], self._before(cache)
        first, num = self.config.num_patches, self.config.num_agent_tokens
        pairs = (layer.past()[:, :, first:].flatten(1, 2).unbind(0) for layer in cache.layers)
        cos, sin = (part.flatten(1, 2).repeat_interleave(num, 0) for part in cache.rotary())
        return Memory(
            tokens=self._agent_tokens(frames, before),
            last_action=frames.unpack(before[:, -1:]).action,
            keys_values=[(keys, values) for keys, values in pairs],
            rotary=(cos, sin),
            mask=None,
        )

    def _of_agent(self, x_RHSE: Tensor) -> Tensor:
        """Of what there is for all tokens of frames, that for those of the agent."""
        of_tokens = x_RHSE.unflatten(0, (-1, self.config.num_tokens))
        return of_tokens[:, self.config.num_patches :].flatten(0, 1)

    def _agent_tokens(self, like: Values, before: Float[Tensor, "B S V"]) -> Float[Tensor, "B T K D"]:
        """The agent's tokens of ``S - 1`` frames of which nothing is known but those before."""
        batch, time = len(before), before.shape[1] - NUM_BEFORE + 1
        unknown = like.map(lambda x: x.new_zeros(batch, time, *x.shape[2:]))
        tau = before.new_zeros(batch, time, self.config.num_modalities)
        tokens = self._embed(unknown, tau, self._past(unknown, tau, before))
        return tokens[:, :, self.config.num_patches :]

    def new_cache(self, batch: int, *, max_rewind: int = 0) -> Cache:
        """An empty cache for ``batch`` sessions."""
        return Cache(self.config, batch, max_rewind, like=self.token_bias)

    def step(
        self,
        frame: Values,
        tau: Float[Tensor, "B 1 M"],
        cache: Cache,
        *,
        noise: Float[Tensor, "B 1 X"] | None = None,
        goal: Float[Tensor, "B C D"] | None = None,
        only_latents: bool = False,
        commits: bool = False,
    ) -> Values:
        """The streaming path: clean values of one frame (T = 1) that sees the cache, ``noise`` being its
        extra noise (zeros by default) and ``goal`` its context (``goal_tokens``).

        With ``only_latents`` the other parts stay as they are given, and nothing is computed for them. With
        ``commits`` the cache takes the keys and values of this call for the frame, in which what is observed
        of it must be noise; ``keep`` then need not run the network, whatever calls come between.
        """
        past = self._past(frame, tau, self._before(cache), only_latents=only_latents)
        x = self._embed(frame, tau, past, noise)
        if cache.holds_next and not commits:
            cache.hold_next()
        x = self._through_blocks(x, cache, self.blocks, goal)
        cache.holds_next |= commits
        return self._read(x, frame, tau, past, only_latents=only_latents)

    def keep(
        self,
        frame: Values,
        tau: Float[Tensor, "B 1 M"],
        cache: Cache,
        noise: Float[Tensor, "B 1 O"] | None = None,
    ) -> None:
        """Add one frame (T = 1) to the cache. Where no step has let it be remembered, it goes through the
        network for that, with ``noise`` as ``blind`` takes it."""
        if not cache.holds_next:
            past = self._past(frame, tau, self._before(cache), only_latents=True)
            last_temporal = self.config.depth // self.config.time_every * self.config.time_every
            x = self._embed(*self.blind(frame, tau, noise), past, self.extra_noise(noise))
            self._through_blocks(x, cache, self.blocks[:last_temporal])
            cache.holds_next = True
        cache.keep(frame, tau)

    def blind(
        self, frames: Values, tau: Float[Tensor, "B T M"], noise: Float[Tensor, "B T O"] | None
    ) -> tuple[Values, Float[Tensor, "B T M"]]:
        """Frames as they are remembered, and their noise levels: ``noise`` is in place of what is
        ``observed`` of them, extra noise behind it. Without it there are zeros, the mean of all noise."""
        observed, given = tau.tensor_split([self.config.num_observed], dim=-1)
        tau = torch.cat([torch.zeros_like(observed), given], dim=-1)
        if noise is not None:
            noise = noise[..., : noise.shape[-1] - self.config.noise_dim]
        if not self.config.grids:
            proprio = torch.zeros_like(frames.proprio) if noise is None else noise
            return dataclasses.replace(frames, proprio=proprio), tau
        latents = torch.zeros_like(frames.latents) if noise is None else noise.view_as(frames.latents)
        return dataclasses.replace(frames, latents=latents), tau

    def extra_noise(self, noise: Float[Tensor, "B T O"] | None) -> Float[Tensor, "B T X"] | None:
        """The extra noise behind the noise of ``blind``."""
        return noise[..., noise.shape[-1] - self.config.noise_dim :] if noise is not None else None

    def _through_blocks(
        self,
        x: Float[Tensor, "B 1 N D"],
        cache: Cache,
        blocks: nn.ModuleList,
        goal: Float[Tensor, "B C D"] | None = None,
    ) -> Tensor:
        """A frame through blocks that see the cache, and are written to it without being kept."""
        rotary, layers, far_layers = cache.rotary(), iter(cache.layers), iter(cache.far_layers)
        context = None if goal is None else (torch.arange(len(x), device=x.device), goal)
        for block in blocks:
            assert isinstance(block, Block)
            layer, far = (next(layers), next(far_layers, None)) if block.time is not None else (None, None)
            x = block.step(x, rotary, layer, far, context)
        return x

    def _known(self, values: Values, tau: Tensor) -> Float[Tensor, "B T V"]:
        """Frames packed, with zeros where a modality is mostly noise."""
        known = (tau > 0.5).to(values.latents.dtype)
        latents = values.latents * known[:, :, self.latent_camera, None]
        proprio = values.proprio * known[:, :, -2:-1]
        packed = Values(latents, proprio, values.action * known[:, :, -1:]).pack()
        return torch.cat([packed, known[:, :, -2:]], dim=-1)

    def _before(self, cache: Cache) -> Float[Tensor, "B S V"]:
        """The ``NUM_BEFORE`` frames kept last."""
        past = self._known(*cache.past())
        return F.pad(past, (0, 0, NUM_BEFORE - past.shape[1], 0))

    def _past(
        self,
        values: Values,
        tau: Tensor,
        before: Float[Tensor, "B S V"],
        *,
        only_latents: bool = False,
        num_copies: int = 1,
    ) -> Past:
        """Compute the prior of each frame. ``before`` holds ``NUM_BEFORE`` more frames than
        there are in each copy, packed: those before frame ``t`` are ``t`` to ``t + NUM_BEFORE - 1``. With
        ``only_latents`` the other parts are taken for exact as they are."""
        packed = self._frames_before(tau.shape[1] // num_copies, before)
        if num_copies > 1:
            packed = [frame.repeat(1, num_copies, 1) for frame in packed]
        frames = [values.unpack(frame) for frame in packed]
        last, earlier = frames
        if self.response is None:
            no_action = torch.zeros_like(values.action)
            prior = Values(last.latents, last.proprio, no_action)
            return Past(frames, prior, values.proprio, torch.ones_like(no_action))
        is_known = (tau[:, :, -2:-1] > 0.5).to(before.dtype) * packed[0][..., -2:-1]
        latents = last.latents
        if self.config.grids:
            change = self.response.latents_change(values.proprio, last.proprio)
            latents = latents + is_known.unsqueeze(-1) * change
        if only_latents:
            exact = torch.zeros_like(values.proprio), torch.zeros_like(values.action)
            return Past(frames, Values(latents, values.proprio, values.action), *exact)
        proprio, proprio_error = self._proprio_prior(values, tau, packed)
        # Where the frame before the last is not known, the robot is taken to have rested.
        before_last = torch.lerp(last.proprio, earlier.proprio, packed[1][..., -2:-1])
        action = is_known * self.response.action(values.proprio, last.proprio, before_last)
        ones = torch.ones_like(action)
        action_error = torch.lerp(ones, self.response.action_error.expand_as(ones), is_known)
        return Past(frames, Values(latents, proprio, action), proprio_error, action_error)

    def _frames_before(self, time: int, before: Float[Tensor, "B S V"]) -> list[Float[Tensor, "B T V"]]:
        """The packed frames before each of ``time`` frames, the last first."""
        return [before[:, i : i + time] for i in reversed(range(NUM_BEFORE))]

    def _proprio_prior(
        self, values: Values, tau: Tensor, packed: Sequence[Float[Tensor, "B T V"]]
    ) -> tuple[Float[Tensor, "B T P"], Float[Tensor, "B T P"]]:
        """Proprioception by the linear response, and about how far that is off."""
        assert self.response is not None
        last, earlier = (values.unpack(frame) for frame in packed)
        (knew_proprio, knew_action), (knew_earlier, _) = (frame[..., -2:].split(1, -1) for frame in packed)
        knows_action = (tau[:, :, -1:] > 0.5).to(last.proprio.dtype)
        change = self.response.proprio_change(last.proprio, earlier.proprio, values.action, last.action)
        has_prior = knows_action * knew_action * knew_proprio * knew_earlier
        proprio = last.proprio + has_prior * change
        error = torch.lerp(
            torch.ones_like(proprio), self.response.proprio_error.expand_as(proprio), has_prior
        )
        return proprio, error

    @property
    def has_exact_prior(self) -> bool:
        """True where the linear response predicts proprioception so well that no error is left."""
        return self.response is not None and bool(self.response.proprio_error.max() < EXACT_PROPRIO)

    def exact_proprio(
        self, frame: Values, tau: Float[Tensor, "B 1 M"], cache: Cache
    ) -> tuple[Float[Tensor, "B 1 P"], Bool[Tensor, "B 1 1"]] | None:
        """Proprioception of a frame (T = 1) without the network, and in which sessions the linear response
        has it exactly; None where it never does."""
        if not self.has_exact_prior:
            return None
        packed = self._frames_before(1, self._before(cache))
        proprio, error = self._proprio_prior(frame, tau, packed)
        return proprio, error.amax(-1, keepdim=True) < EXACT_PROPRIO

    def prior(self, values: Values) -> Values:
        """Frames as the linear response predicts them from those before, all known."""
        known = torch.ones(*values.action.shape[:2], self.config.num_modalities, device=values.action.device)
        before = F.pad(self._known(values, known), (0, 0, NUM_BEFORE, 0))[:, :-1]
        return self._past(values, known, before).prior

    def _embed(
        self, values: Values, tau: Tensor, past: Past, noise: Float[Tensor, "B T X"] | None = None
    ) -> Tensor:
        """Tokens ``B T N D`` of frames with extra noise. With the frames before at hand, what moves steadily
        or a little is a local change, which attention alone is slow to find."""
        batch, time = tau.shape[:2]
        seen = [values, *past.frames]
        noise_levels = self.tau_in(tau.unsqueeze(-1))
        vectors = [self.action_in([frame.action for frame in seen]) + noise_levels[:, :, -1]]
        if self.proprio_in is not None:
            proprio = self.proprio_in([frame.proprio for frame in seen])
            vectors.insert(0, proprio + noise_levels[:, :, -2])
        tokens = torch.stack(vectors, dim=2)
        if self.latents_in is not None:
            pictures = [frame.latents for frame in seen] + [past.prior.latents]
            latents = self.latents_in(torch.cat([self._patchify(picture) for picture in pictures], dim=-1))
            latents = latents + noise_levels[:, :, self.patch_camera]
            tokens = torch.cat([latents, tokens], dim=2)
        registers = tokens.new_zeros(batch, time, self.config.num_registers, self.config.width)
        if self.noise_in is not None:
            if noise is None:
                noise = tokens.new_zeros(batch, time, self.config.noise_dim)
            vectors.append(self.noise_in(noise))
            registers = registers + vectors[-1].unsqueeze(2)
        tokens = torch.cat([tokens, registers], dim=2) + self.token_bias
        # What the robot is and does bears on every place of a picture: attention would find it late.
        return tokens + self.vectors_to_tokens(torch.cat(vectors, dim=-1))

    def _read(
        self, x_BTND: Tensor, noised: Values, tau: Tensor, past: Past, *, only_latents: bool = False
    ) -> Values:
        """Clean values: what is learned is the change from what is known already, which is the prior from
        the frames before where a frame is all noise, and more and more the frame itself as its noise
        goes. Without that most of training is spent on learning to copy."""
        x = norm(x_BTND)
        num_patches, num_cameras = self.config.num_patches, len(self.config.grids)
        latents, proprio = noised.latents, noised.proprio
        if num_cameras:
            known = tau[:, :, self.latent_camera].unsqueeze(-1)
            change = self._unpatchify(self.latents_out(x[:, :, :num_patches]))
            if self.noise_in is not None:
                change = change * self._unknown(known)
            latents = combine(past.prior.latents, self._latents_error(), latents, known) + change
        if only_latents:
            return Values(latents.float(), proprio, noised.action)
        if self.proprio_out is not None:
            known = tau[:, :, -2:-1]
            change = self.proprio_out(x[:, :, num_patches]) * past.proprio_error
            if self.noise_in is not None:
                change = change * self._unknown(known)
            proprio = combine(past.prior.proprio, past.proprio_error, proprio, known) + change
        action_at = num_patches + (self.proprio_out is not None)
        change = self.action_out(x[:, :, action_at]) * past.action_error
        if self.noise_in is not None:
            change = change * self._unknown(tau[:, :, -1:])
        action = combine(past.prior.action, past.action_error, noised.action, tau[:, :, -1:]) + change
        return Values(latents.float(), proprio.float(), action.float())

    @staticmethod
    def _unknown(tau: Tensor) -> Tensor:
        """Share of its spread that a value keeps once it is seen noised at ``tau``: 1 at 0, 0 at 1."""
        return (1.0 - tau) / (tau.square() + (1.0 - tau).square()).sqrt()

    def _latents_error(self) -> Tensor:
        """About how far the prior of latents is off, ``L Z`` or one for all."""
        return self.response.latents_error if self.response is not None else torch.tensor(DEFAULT_PRIOR_ERROR)

    def _patchify(self, latents: Tensor) -> Tensor:
        patch, parts, start = self.config.patch, [], 0
        for rows, columns in self.config.grids:
            grid = latents[:, :, start : start + rows * columns].unflatten(
                2, (rows // patch, patch, columns // patch, patch)
            )
            parts.append(grid.transpose(3, 4).flatten(4).flatten(2, 3))
            start += rows * columns
        return torch.cat(parts, dim=2)

    def _unpatchify(self, patches: Tensor) -> Tensor:
        patch, parts, start = self.config.patch, [], 0
        for rows, columns in self.config.grids:
            size = rows * columns // patch**2
            grid = patches[:, :, start : start + size].unflatten(-1, (patch, patch, -1))
            grid = grid.unflatten(2, (rows // patch, columns // patch))
            parts.append(grid.transpose(3, 4).flatten(2, 5))
            start += size
        if not parts:
            return patches.new_zeros(*patches.shape[:2], 0, self.config.latent_dim)
        return torch.cat(parts, dim=2)


def two_stream_mask(
    num_context: int, num_target: int, window: int, device: torch.device, num_copies: int = 1
) -> tuple[Int[Tensor, " S"], Bool[Tensor, "S S"]]:
    """Times of context then target frames in each copy, and who sees whom (True: the row sees the column)."""
    context = torch.arange(num_context, device=device)
    target = torch.arange(num_context - num_target + 1, num_context + 1, device=device)
    times = torch.cat([context, *[target] * num_copies])
    is_context = torch.arange(len(times), device=device) < num_context
    age = times[:, None] - times[None, :]
    sees_past = is_context[None, :] & (age > 0) & (age <= window)
    return times, sees_past | torch.eye(len(times), dtype=torch.bool, device=device)
