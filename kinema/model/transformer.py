"""The causal diffusion transformer over blocks of tokens, one block for each frame, and its cache.

A block holds the latents of every camera (patched together), the proprioception, the action that led to
the frame, and a few registers. Beside its own value each token is given those of the two frames before. Each
token carries its own noise level, so what is given and what is to be found is decided by whoever calls, not
by the network.

A frame is remembered as it was when it was foreseen: its keys and values are those of the pass in which what
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
from kinema.model.blocks import Block, norm
from kinema.model.cache import Cache
from kinema.model.embeddings import FourierFeatures, rotary_table
from kinema.model.response import UNFORESEEN_ERROR, LinearResponse
from kinema.model.tokens import (
    NUM_BEFORE,
    DynamicsConfig,
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
        num_vectors = 1 + (config.proprio_dim > 0)
        self.vectors_to_tokens = TokenInput(num_vectors * width, config.num_tokens, width)
        tau_features = FourierFeatures(1, 5)
        self.tau_in = nn.Sequential(tau_features, nn.Linear(tau_features.size, width, bias=False))
        self.token_bias = nn.Parameter(0.02 * torch.randn(config.num_tokens, width))
        hidden = 64 * round(width * 8 / 3 / 64)
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, hidden, is_temporal=(i + 1) % config.time_every == 0)
            for i in range(config.depth)
        )
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
    ) -> Values:
        """The training path: clean values of every target frame, all at once.

        Target frame ``u`` is the frame at time ``T - U + 1 + u``, where ``U`` is ``T + 1`` at most: it sees
        the context frames before that time within the window, and itself; the context frames see only earlier
        context and themselves. So every target meets just what it will meet when the frames before it have
        been simulated and kept.

        ``context_noise`` stands for what is observed of the context frames, as ``blind`` takes it.
        """
        num_context, num_target = context_tau.shape[1], target_tau.shape[1]
        assert num_target <= num_context + 1
        # Frame t of this finds the frames before time t at the places t and up.
        padded = F.pad(self._known(context, context_tau), (0, 0, NUM_BEFORE, 0))
        past = self._past(context, context_tau, padded[:, :-1])
        target_past = self._past(target, target_tau, padded[:, num_context + 1 - num_target :])
        wanted = self._embed(target, target_tau, target_past)
        seen = self._embed(*self.blind(context, context_tau, context_noise), past)
        times, mask = two_stream_mask(num_context, num_target, self.config.window, seen.device)
        x, _ = self._through(torch.cat([seen, wanted], dim=1), times, mask)
        return self._read(x[:, num_context:], target, target_tau, target_past)

    def foretell(
        self, frames: Values, tau: Float[Tensor, "B T M"], noise: Float[Tensor, "B T O"] | None = None
    ) -> Values:
        """Clean values of frames (but the first, of which nothing is known) as ``forward`` has them of
        targets that are as they will be remembered, with ``noise`` as ``blind`` takes it.

        What a frame is found from is then what is remembered of it: each goes through the network once, not
        twice."""
        before = F.pad(self._known(frames, tau), (0, 0, NUM_BEFORE, 0))[:, :-1]
        frames, tau = self.blind(frames, tau, noise)
        past = self._past(frames, tau, before)
        times, mask = two_stream_mask(tau.shape[1], 0, self.config.window, tau.device)
        x, _ = self._through(self._embed(frames, tau, past), times, mask)
        return self._read(x, frames, tau, past)

    def _through(
        self, x: Float[Tensor, "B S N D"], times: Int[Tensor, " S"], mask: Bool[Tensor, "S S"]
    ) -> tuple[Float[Tensor, "B S N D"], list[KeysValues]]:
        """Frames through all blocks, without a cache, and their keys and values in those that see time."""
        rotary, keys_values = self._rotary(times), []
        for block in self.blocks:
            x, own = block(x, rotary, mask)
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
        x = self._embed(*self.blind(frames, tau, noise), self._past(frames, tau, before[:, :-1]))
        _, keys_values = self._through(x, *two_stream_mask(num_frames, 0, config.window, tau.device))
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
        only_latents: bool = False,
        remembers: bool = False,
    ) -> Values:
        """The streaming path: clean values of one frame (T = 1) that sees the cache.

        With ``only_latents`` the other parts stay as they are given, and nothing is computed for them. With
        ``remembers`` it will be kept as it is given here, but for what is observed of it, which is noise;
        ``keep`` then need not run the network.
        """
        past = self._past(frame, tau, self._before(cache), only_latents=only_latents)
        x = self._embed(frame, tau, past)
        x = self._through_blocks(x, cache, self.blocks)
        cache.holds_next = remembers
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
            x = self._embed(*self.blind(frame, tau, noise), past)
            self._through_blocks(x, cache, self.blocks[:last_temporal])
            cache.holds_next = True
        cache.keep(frame, tau)

    def observed(self, frames: Values) -> Float[Tensor, "B T O"]:
        """What is observed of frames, and not remembered: latents one after the other, or proprioception in a
        world without cameras."""
        return frames.latents.flatten(2) if self.config.grids else frames.proprio

    def blind(
        self, frames: Values, tau: Float[Tensor, "B T M"], noise: Float[Tensor, "B T O"] | None
    ) -> tuple[Values, Float[Tensor, "B T M"]]:
        """Frames as they are remembered, and their noise levels: ``noise`` is in place of what is
        ``observed`` of them. Without it there are zeros, the mean of all noise."""
        observed, given = tau.tensor_split([self.config.num_observed], dim=-1)
        tau = torch.cat([torch.zeros_like(observed), given], dim=-1)
        if not self.config.grids:
            proprio = torch.zeros_like(frames.proprio) if noise is None else noise
            return dataclasses.replace(frames, proprio=proprio), tau
        latents = torch.zeros_like(frames.latents) if noise is None else noise.view_as(frames.latents)
        return dataclasses.replace(frames, latents=latents), tau

    def _through_blocks(self, x: Float[Tensor, "B 1 N D"], cache: Cache, blocks: nn.ModuleList) -> Tensor:
        """A frame through blocks that see the cache, and are written to it without being kept."""
        rotary, layers = cache.rotary(), iter(cache.layers)
        for block in blocks:
            assert isinstance(block, Block)
            x = block.step(x, rotary, next(layers) if block.time is not None else None)
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
        self, values: Values, tau: Tensor, before: Float[Tensor, "B S V"], *, only_latents: bool = False
    ) -> Past:
        """What is known of each frame from those before. ``before`` holds ``NUM_BEFORE`` more frames,
        packed: those before frame ``t`` are ``t`` to ``t + NUM_BEFORE - 1``. With ``only_latents`` the other
        parts are taken for exact as they are."""
        packed = self._frames_before(tau, before)
        frames = [values.unpack(frame) for frame in packed]
        last, earlier = frames
        if self.response is None:
            no_action = torch.zeros_like(values.action)
            foreseen = Values(last.latents, last.proprio, no_action)
            return Past(frames, foreseen, values.proprio, torch.ones_like(no_action))
        is_known = (tau[:, :, -2:-1] > 0.5).to(before.dtype) * packed[0][..., -2:-1]
        latents = last.latents
        if self.config.grids:
            change = self.response.latents_change(values.proprio, last.proprio)
            latents = latents + is_known.unsqueeze(-1) * change
        if only_latents:
            exact = torch.zeros_like(values.proprio), torch.zeros_like(values.action)
            return Past(frames, Values(latents, values.proprio, values.action), *exact)
        proprio, proprio_error = self._foresee_proprio(values, tau, packed)
        # Where the frame before the last is not known, the robot is taken to have rested.
        before_last = torch.lerp(last.proprio, earlier.proprio, packed[1][..., -2:-1])
        action = is_known * self.response.action(values.proprio, last.proprio, before_last)
        ones = torch.ones_like(action)
        action_error = torch.lerp(ones, self.response.action_error.expand_as(ones), is_known)
        return Past(frames, Values(latents, proprio, action), proprio_error, action_error)

    def _frames_before(self, tau: Tensor, before: Float[Tensor, "B S V"]) -> list[Float[Tensor, "B T V"]]:
        """The packed frames before each frame, the last first."""
        return [before[:, i : i + tau.shape[1]] for i in reversed(range(NUM_BEFORE))]

    def _foresee_proprio(
        self, values: Values, tau: Tensor, packed: Sequence[Float[Tensor, "B T V"]]
    ) -> tuple[Float[Tensor, "B T P"], Float[Tensor, "B T P"]]:
        """Proprioception by the linear response, and about how far that is off."""
        assert self.response is not None
        last, earlier = (values.unpack(frame) for frame in packed)
        (knew_proprio, knew_action), (knew_earlier, _) = (frame[..., -2:].split(1, -1) for frame in packed)
        knows_action = (tau[:, :, -1:] > 0.5).to(last.proprio.dtype)
        change = self.response.proprio_change(last.proprio, earlier.proprio, values.action, last.action)
        is_foreseen = knows_action * knew_action * knew_proprio * knew_earlier
        proprio = last.proprio + is_foreseen * change
        error = torch.lerp(
            torch.ones_like(proprio), self.response.proprio_error.expand_as(proprio), is_foreseen
        )
        return proprio, error

    @property
    def foresees_proprio(self) -> bool:
        """Whether the linear response foresees proprioception so well that nothing is left to find."""
        return self.response is not None and bool(self.response.proprio_error.max() < EXACT_PROPRIO)

    def foresee_proprio(
        self, frame: Values, tau: Float[Tensor, "B 1 M"], cache: Cache
    ) -> tuple[Float[Tensor, "B 1 P"], Bool[Tensor, "B 1 1"]] | None:
        """Proprioception of a frame (T = 1) without the network, and in which sessions the linear response
        has it exactly; None where it never does."""
        if not self.foresees_proprio:
            return None
        packed = self._frames_before(tau, self._before(cache))
        proprio, error = self._foresee_proprio(frame, tau, packed)
        return proprio, error.amax(-1, keepdim=True) < EXACT_PROPRIO

    def foresee(self, values: Values) -> Values:
        """Each frame as the linear response foresees it from those before, all known."""
        known = torch.ones(*values.action.shape[:2], self.config.num_modalities, device=values.action.device)
        before = F.pad(self._known(values, known), (0, 0, NUM_BEFORE, 0))[:, :-1]
        return self._past(values, known, before).foreseen

    def _embed(self, values: Values, tau: Tensor, past: Past) -> Tensor:
        """Tokens ``B T N D`` of frames. With the frames before at hand, what moves steadily or a little is a
        local change, which attention alone is slow to find."""
        batch, time = tau.shape[:2]
        seen = [values, *past.frames]
        noise_levels = self.tau_in(tau.unsqueeze(-1))
        vectors = [self.action_in([frame.action for frame in seen]) + noise_levels[:, :, -1]]
        if self.proprio_in is not None:
            proprio = self.proprio_in([frame.proprio for frame in seen])
            vectors.insert(0, proprio + noise_levels[:, :, -2])
        tokens = torch.stack(vectors, dim=2)
        if self.latents_in is not None:
            pictures = [frame.latents for frame in seen] + [past.foreseen.latents]
            latents = self.latents_in(torch.cat([self._patchify(picture) for picture in pictures], dim=-1))
            latents = latents + noise_levels[:, :, self.patch_camera]
            tokens = torch.cat([latents, tokens], dim=2)
        registers = tokens.new_zeros(batch, time, self.config.num_registers, self.config.width)
        tokens = torch.cat([tokens, registers], dim=2) + self.token_bias
        # What the robot is and does bears on every place of a picture: attention would find it late.
        return tokens + self.vectors_to_tokens(torch.cat(vectors, dim=-1))

    def _read(
        self, x_BTND: Tensor, noised: Values, tau: Tensor, past: Past, *, only_latents: bool = False
    ) -> Values:
        """Clean values: what is learned is the change from what is known already, which is what is foreseen
        from the frames before where a frame is all noise, and more and more the frame itself as its noise
        goes. Without that most of training is spent on learning to copy."""
        x = norm(x_BTND)
        num_patches, num_cameras = self.config.num_patches, len(self.config.grids)
        latents, proprio = noised.latents, noised.proprio
        if num_cameras:
            known = tau[:, :, self.latent_camera].unsqueeze(-1)
            change = self._unpatchify(self.latents_out(x[:, :, :num_patches]))
            latents = combine(past.foreseen.latents, self._latents_error(), latents, known) + change
        if only_latents:
            return Values(latents.float(), proprio, noised.action)
        if self.proprio_out is not None:
            change = self.proprio_out(x[:, :, num_patches]) * past.proprio_error
            proprio = combine(past.foreseen.proprio, past.proprio_error, proprio, tau[:, :, -2:-1]) + change
        action_at = num_patches + (self.proprio_out is not None)
        change = self.action_out(x[:, :, action_at]) * past.action_error
        action = combine(past.foreseen.action, past.action_error, noised.action, tau[:, :, -1:]) + change
        return Values(latents.float(), proprio.float(), action.float())

    def _latents_error(self) -> Tensor:
        """About how far foreseen latents are off, ``L Z`` or one for all."""
        return self.response.latents_error if self.response is not None else torch.tensor(UNFORESEEN_ERROR)

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
    num_context: int, num_target: int, window: int, device: torch.device
) -> tuple[Int[Tensor, " S"], Bool[Tensor, "S S"]]:
    """Times of context then target frames, and who sees whom (True: the row sees the column)."""
    context = torch.arange(num_context, device=device)
    times = torch.cat([context, torch.arange(num_context - num_target + 1, num_context + 1, device=device)])
    is_context = torch.arange(len(times), device=device) < num_context
    age = times[:, None] - times[None, :]
    sees_past = is_context[None, :] & (age > 0) & (age <= window)
    return times, sees_past | torch.eye(len(times), dtype=torch.bool, device=device)
