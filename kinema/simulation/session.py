"""The streaming session over a world: step, fork, rewind, save.

A ``SimulationBatch`` runs many sessions at once; a ``Simulation`` is one. A session has no length limit: its
cache is a ring, positions are relative, and memory is constant.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kinema.data.drawing import write_video
from kinema.data.frames import join_cameras
from kinema.hardware.machine import one_thread
from kinema.model.acting import Aims
from kinema.model.cache import Cache
from kinema.model.goals import encode_goal
from kinema.model.sampler import solve
from kinema.model.tasks import TASKS, Role
from kinema.model.tokens import Values
from kinema.model.world import (
    MAX_PICTURES,
    WorldError,
    WorldModel,
)
from kinema.simulation.history import Moments
from kinema.simulation.next_frame import chosen_action, generated_frame, next_frame, with_proprio
from kinema.simulation.step import Step
from kinema.simulation.trust import expected_error, spread
from kinema.simulation.trust import trust as compute_trust

if TYPE_CHECKING:
    from kinema.simulation.world import World

KEPT_PICTURES = 8192
"""Past pictures that a session keeps unless it is told another number; older ones are forgotten."""
HISTORY_BYTES = 64 * 2**20
"""Most memory that the past pictures of a batch of sessions take."""
FEW_SESSIONS = 2
"""So many step faster on one thread of a CPU than on several."""
ACT_CHUNK = 8
"""Actions that are chosen together unless told otherwise."""
ACT_STEPS = 1
"""Network calls in which the network finds what to do, unless told otherwise."""
GIVEN_STREAM, ACT_STREAM, GENERATED_STREAM = -1, 3, 4
"""First of the streams of noise of a session: of what given frames are remembered with, the last frame first,
downwards; and of what actions are made of, upwards."""
TWIN = 2**31
"""Child of a session from which the seed of its twin is made."""
MAX_REWIND = 256
"""Most steps that ``rewind`` can go back."""
GIVEN_RADII = 3.0
"""Given frames within this distance of the manifold, in its radii, are trusted fully: recorded frames are (up
to 2.3 radii in the bundled recording), and pure noise is not (more than 480)."""
OUTSIDE_TOLERANCE = 0.01
"""Excess over the recorded range, as a share of that range, that is not reported: the range leaves out the
outermost 0.1% of the recorded numbers on either side."""


class SimulationBatch:
    """Many sessions of one world that step together. ``World`` is not changed by them."""

    def __init__(
        self,
        world: "World",
        seeds: Sequence[int],
        num_denoising_steps: int | None,
        max_rewind: int | None = None,
        max_pictures: int | None = None,
        cache: Cache | None = None,
        twin: "SimulationBatch | None" = None,
    ):
        """``cache`` holds what the sessions saw already; without one they have seen nothing. ``twin`` is
        given the same actions, and tells how far the sessions may be trusted."""
        if num_denoising_steps is None:
            num_denoising_steps = world.config.num_denoising_steps
        self.world = world
        self._networks, self._compiled = world.networks, world.compiled
        self.num_denoising_steps = whole("num_denoising_steps", num_denoising_steps, 1)
        self.num_steps = 0
        """Steps simulated so far."""
        self._twin = twin
        self.max_pictures = max_pictures
        self._seeds = list(seeds)
        self._born = [0] * len(self._seeds)
        """Steps that had been simulated when each session began: others may have taken the place of some."""
        self._generator = torch.Generator()
        self._max_rewind = MAX_REWIND if max_rewind is None else max_rewind
        self._cache = cache or world.dynamics.new_cache(len(seeds), max_rewind=self._max_rewind)
        self._doubt = torch.zeros(len(seeds), device=world.device)
        """By how many radii the frames of each session were found outside the manifold's, in all."""
        self._outside = torch.zeros(len(seeds), len(world.column_names), device=world.device)
        """Distance of the last action and of the given proprioception from the recorded range, in units of
        it."""
        self._history = Moments(self._history_length())
        """Latents (in half precision), proprioception, doubt and ``_outside`` of the last steps."""

    def add_twin(self) -> None:
        """Compute trust from here on, by a second simulation with noise of its own."""
        seeds = [_mix(seed, age, TWIN) for seed, age in zip(self._seeds, self._ages(), strict=True)]
        self._twin = self._copy(torch.arange(len(self)), seeds, self._max_rewind)

    def spread(self) -> Float[Tensor, "B K"]:
        """How far the sessions and their twins are apart: see ``kinema.simulation.trust.spread``.

        Raises:
            WorldError: they have none.
        """
        if self._twin is None:
            raise WorldError("these sessions compute no trust; start them with has_trust=True")
        return spread(self._networks, self._cache, self._twin._cache)

    def __repr__(self) -> str:
        return f"SimulationBatch({self.world.name}: {len(self)} sessions, {self.num_steps} steps)"

    def __len__(self) -> int:
        """Number of sessions."""
        return len(self._seeds)

    def __getitem__(self, index: int) -> "Simulation":
        """A session of its own that continues session ``index``; the batch is not changed by it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"session {index} of a batch of {len(self)}")
        index %= len(self)
        one = self._copy(torch.tensor([index]), [self._seeds[index]])
        if self._twin is not None:
            one._twin = self._twin._copy(torch.tensor([index]), [self._twin._seeds[index]])
        return Simulation(one)

    @torch.inference_mode()
    def begin(
        self,
        latents: Tensor,
        proprio: Tensor,
        knows_proprio: bool,
        actions: Tensor | None,
        shown: Sequence[bool] | None = None,
    ) -> None:
        """Show the sessions their first frames: latents ``B T L Z``, proprioception ``B T P`` and the actions
        ``B T-1 A`` between the frames, all normalised; ``shown`` says of which cameras the latents are."""
        with self._networks.autocast():
            self._begin(latents, proprio, knows_proprio, actions, shown)

    def _begin(
        self,
        latents: Tensor,
        proprio: Tensor,
        knows_proprio: bool,
        actions: Tensor | None,
        shown: Sequence[bool] | None,
    ) -> None:
        world = self._networks
        batch, time = latents.shape[:2]
        # Frames beyond the reach change nothing.
        first = max(0, time - 1 - world.config.dynamics.reach)
        for t in range(first, time):
            knows_action = t > 0 and actions is not None
            action = (
                actions[:, t - 1 : t]
                if knows_action and actions is not None
                else self._noise(world.config.dynamics.action_dim)
            )
            given = Values(latents[:, t : t + 1], proprio[:, t : t + 1], action)
            if world.proprio_dim and not knows_proprio:
                step = TASKS["locate"]._replace(action=Role.CLEAN if knows_action else Role.NOISE)
                given = with_proprio(world, self._cache, given, self._noise, self.num_denoising_steps, step)
            levels = world.tau(batch, 1, action_tau=float(knows_action))
            if shown is not None and not all(shown):
                levels = levels.clone()
                levels[..., : len(shown)] *= torch.tensor(shown, device=levels.device)
            noise = self._noise(world.config.dynamics.noise_size, stream=GIVEN_STREAM - (time - 1 - t))
            world.dynamics.keep(given, levels, self._cache, noise)
        self._judge_given(latents[:, first:], proprio[:, first:], actions)
        self._remember()

    def _judge_given(self, latents: Tensor, proprio: Tensor, actions: Tensor | None) -> None:
        """Take trust, and what lies outside the recorded ranges, from the given frames and actions."""
        world, rows = self._networks, latents.shape[:2]
        if world.manifold is not None and world.cameras:
            pieces = zip(*(x.flatten(0, 1).split(MAX_PICTURES) for x in (latents, proprio)), strict=True)
            distance = torch.cat([world.manifold.distance(*piece)[0] for piece in pieces]).view(rows)
            self._doubt = (distance / world.manifold.radius - GIVEN_RADII).clamp_min(0.0).amax(1)
        of_action = torch.zeros(len(self), world.config.dynamics.action_dim, device=world.device)
        if actions is not None and actions.shape[1]:
            of_action = excess(actions, world.held_action(actions)).amax(1)
        of_proprio = excess(proprio, world.held_proprio(proprio)).amax(1)
        self._outside = torch.cat([of_action, of_proprio], dim=1)

    @torch.inference_mode()
    def step(self, actions: Any = None, *, decode: bool = True, judge: bool = True) -> Step:
        """Advance every session by its action.

        Args:
            actions: ``B A`` in the units of the dataset; None in a world without actions.
            decode: whether to make pictures; without, ``frame`` is None and the step costs less.
            judge: whether the world's heads, if it has any, shall tell ``reward`` and ``termination``;
                without, too, the step costs less.

        Raises:
            WorldError: the actions have another shape or are not finite; the sessions are unchanged.
        """
        array = self.world.check_actions(actions, (len(self), self.world.action_dim), "actions")
        action = torch.from_numpy(array).to(self.world.device)
        with one_thread(self._is_small):
            action = self.world.action_normalizer.normalize(action)
            return self._advance(action.unsqueeze(1), decode, judge)

    @torch.inference_mode()
    def generate(self, *, decode: bool = True) -> Step:
        """Advance every session by a frame of video without an action, as the recordings might go on."""
        world = self._networks
        if self._twin is not None:
            self._twin.generate(decode=False)
        with one_thread(self._is_small), world.autocast():
            frame = generated_frame(world, self._cache, self._noise, self.num_denoising_steps)
            noise = self._noise(world.config.dynamics.noise_size, stream=GENERATED_STREAM)
            world.dynamics.keep(frame, world.tau(len(self), 1, action_tau=0.0), self._cache, noise)
        self._outside = torch.zeros_like(self._outside)
        self.num_steps += 1
        self._remember()
        return self.look(decode=decode)

    @property
    def _is_small(self) -> bool:
        return self.world.device.type == "cpu" and len(self) <= FEW_SESSIONS

    def _advance(self, action: Float[Tensor, "B 1 A"], decode: bool, judge: bool) -> Step:
        world, found = self._networks, None
        if self._twin is not None:
            self._twin._advance(action, decode=False, judge=False)
        compiled = self._compiled
        if compiled is not None and compiled.can_step(len(self), self.num_denoising_steps):
            found = compiled.next_frame(self._cache, action, self._noise)
        if found is None:
            with world.autocast():
                found = next_frame(world, self._cache, action, self._noise, self.num_denoising_steps)
        frame, doubt = found
        self._outside = torch.zeros_like(self._outside)
        self._outside[:, : action.shape[-1]] = excess(action, frame.action)[:, 0]
        if doubt is not None:
            self._doubt = self._doubt + (doubt - 1.0).clamp_min(0.0)
        reward = termination = None
        with world.autocast():
            if judge and world.heads is not None:
                before = (self._cache.last_latents, self._cache.last_proprio)
                after = (frame.latents[:, 0], frame.proprio[:, 0])
                judged = world.heads.judge(before, after, frame.action[:, 0])
                reward, termination = (part.cpu().numpy() for part in judged)
            world.dynamics.keep(frame, world.tau(len(self), 1, action_tau=1.0), self._cache)
        self.num_steps += 1
        self._remember()
        step = self.look(decode=decode)
        return dataclasses.replace(step, reward=reward, termination=termination)

    @torch.inference_mode()
    def look(self, *, decode: bool = True) -> Step:
        """The present frame of every session, as the last step gave it, or the last given one as the
        tokenizer has it."""
        world = self._networks
        latents, known = self._cache.last_latents, self._cache.last_proprio
        proprio = world.proprio_normalizer.restore(known).cpu().numpy() if world.proprio_dim else None
        trust = expected = None
        if world.manifold is not None:
            trust = (1.0 / (1.0 + self._doubt)).cpu().numpy()
        if self._twin is not None and world.has_error_fit:
            error = expected_error(world, self.spread())
            trust = compute_trust(world, error).cpu().numpy()
            if not world.cameras:
                error = world.proprio_normalizer.restore_error(error)
            expected = error.cpu().numpy()
        frame, compiled = None, self._compiled
        if decode and compiled is not None and compiled.can_draw(len(self)):
            frame = compiled.draw(latents, known)
        elif decode:
            frame = world.decode(latents, known)
        return Step(
            frame=frame,
            proprio=proprio,
            trust=trust,
            expected_error=expected,
            outside=self._named_outside(),
        )

    def _named_outside(self) -> list[Mapping[str, float]]:
        """``Step.outside`` of every session."""
        excess = self._outside.cpu().numpy()
        outside: list[Mapping[str, float]] = [{}] * len(self)
        for index in np.flatnonzero((excess > OUTSIDE_TOLERANCE).any(1)):
            outside[index] = name_outside(self.world.column_names, excess[index].tolist())
        return outside

    def change(self, *, seeds: Sequence[int] | None = None, num_denoising_steps: int | None = None) -> None:
        """Go on with other noise, or with another number of network calls for a frame.

        Raises:
            WorldError: not one seed for each session, or a number below 1.
        """
        if num_denoising_steps is not None:
            self.num_denoising_steps = whole("num_denoising_steps", num_denoising_steps, 1)
        if seeds is not None:
            if len(seeds) != len(self):
                raise WorldError(f"seeds: {len(self)} sessions need {len(self)}, got {len(seeds)}")
            self._seeds = [whole("seed", seed) for seed in seeds]

    @torch.inference_mode()
    def act(
        self, goal: Any = None, chunk: int | None = None, *, num_denoising_steps: int = ACT_STEPS
    ) -> Float[np.ndarray, "B C A"]:
        """The next actions of every session, in the units of the dataset, as the network itself finds them:
        the same ones in sessions that are alike and have the same noise. The sessions stay as they are.

        Args:
            goal: what they shall lead to: a picture ``H W 3``, several by camera, proprioception ``P`` in a
                world without cameras, or what ``kinema.model.goals.encode_goal`` made of one. Without a
                goal they are what the recordings might have done.
            chunk: actions, no more than are found together (all of them by default).
            num_denoising_steps: network calls. With one they are the middle of what the recordings might have
                done, with several they vary as that does.

        Raises:
            WorldError: this world was not taught to act, the goal does not fit it, or a longer chunk.
        """
        world = self.world
        if world.acting is None and world.config.dynamics.has_goals:
            num = ACT_CHUNK if chunk is None else whole("chunk", chunk, 1)
            return self.imagine(goal, num, decode=False, num_denoising_steps=num_denoising_steps)[0]
        acting = world.require_acting()
        most = acting.config.chunk
        chunk = None if chunk is None else whole("chunk", chunk, 1, most)
        target = goal if goal is None or isinstance(goal, Tensor) else encode_goal(world, goal)
        num_denoising_steps = whole("num_denoising_steps", num_denoising_steps, 1)
        now = world.place(self.latents, self.normalized_proprio)
        has_goal = torch.full((len(self), 1), target is not None, device=world.device)
        aims = Aims(
            before=world.place(*self.frame_before).unsqueeze(1),
            now=now.unsqueeze(1),
            goal=(now if target is None else target.expand_as(now)).unsqueeze(1),
            has_goal=has_goal,
        )
        shape = (most, world.config.dynamics.action_dim)
        noise = self._noise(shape[0] * shape[1], stream=ACT_STREAM).unflatten(-1, shape)
        with self._networks.autocast():
            memory = world.dynamics.memory_of(self._cache)

            def model(noised: Tensor, tau: float) -> Tensor:
                taus = torch.full_like(has_goal, tau, dtype=noised.dtype)
                return acting(world.dynamics.blocks, memory, aims, noised, taus)

            actions = solve(model, noise, num_denoising_steps)[:, 0, :chunk].clamp(-1.0, 1.0)
        return world.action_normalizer.restore(actions).cpu().numpy()

    @torch.inference_mode()
    def imagine(
        self, goal: Any, num_steps: int, *, decode: bool = True, num_denoising_steps: int = ACT_STEPS
    ) -> tuple[Float[np.ndarray, "B C A"], list[Step]]:
        """Imagine actions and the frames that they lead to. The sessions stay as they are.

        Args:
            goal: see ``act``.
            num_steps: actions C, one after the other.
            decode: decode the frames too.
            num_denoising_steps: network calls for an action.

        Raises:
            WorldError: this world does not act, or the goal does not fit it.
        """
        world, ahead = self._networks, self._copy(torch.arange(len(self)), self._seeds, max_rewind=0)
        ahead._born = list(self._born)
        num_denoising_steps = whole("num_denoising_steps", num_denoising_steps, 1)
        actions, steps = [], []
        with world.autocast():
            tokens = None if goal is None else self._goal_tokens(goal)
            for _ in range(num_steps):
                action = chosen_action(world, ahead._cache, ahead._noise, num_denoising_steps, tokens)
                actions.append(self.world.action_normalizer.restore(action[:, 0]).cpu().numpy())
                steps.append(ahead._advance(action, decode, judge=True))
        return np.stack(actions, axis=1), steps

    def _goal_tokens(self, goal: Any) -> Float[Tensor, "B C D"]:
        """Context tokens of one goal for all sessions."""
        world, config = self.world, self.world.config.dynamics
        place = goal if isinstance(goal, Tensor) else encode_goal(world, goal)
        latents, proprio, _ = place.split(world.place_sizes, dim=-1)
        shape = (config.num_latents, config.latent_dim)
        unused = proprio.new_zeros(len(proprio), 1, config.action_dim)
        frame = Values(latents.unflatten(-1, shape).unsqueeze(1), proprio.unsqueeze(1), unused)
        knows_proprio = torch.full((len(proprio),), not world.cameras, device=proprio.device)
        tokens = self._networks.dynamics.goal_tokens(frame, knows_proprio)
        return tokens.expand(len(self), *tokens.shape[1:])

    @property
    def latents(self) -> Float[Tensor, "B L Z"]:
        """Latents of the present frame of every session."""
        return self._cache.last_latents.clone()

    @property
    def normalized_proprio(self) -> Float[Tensor, "B P"]:
        """Proprioception of the present frame of every session, as the networks have it."""
        return self._cache.last_proprio.clone()

    @property
    def frame_before(self) -> tuple[Float[Tensor, "B L Z"], Float[Tensor, "B P"]]:
        """Latents and normalised proprioception of the frame before the present one of every session; of the
        present one where there is no other."""
        frames, _ = self._cache.past()
        index = max(0, frames.latents.shape[1] - 2)
        return frames.latents[:, index].clone(), frames.proprio[:, index].clone()

    def select(self, indices: Sequence[int], seeds: Sequence[int]) -> "SimulationBatch":
        """Sessions that go on from where some of these are, each with noise of its own seed; they cannot be
        rewound."""
        assert len(indices) == len(seeds)
        return self._copy(torch.tensor(list(indices)), list(seeds), max_rewind=0)

    def fork(self, num: int, *, max_rewind: int | None = None) -> "SimulationBatch":
        """``num`` futures of every session, ``B * num`` in all, each with its own noise from here on.

        Args:
            num: futures of each.
            max_rewind: most steps that they shall be able to go back; less is cheaper, and by default it is
                as many as here.
        """
        num = whole("num", num, 1)
        check_rewind(max_rewind)
        indices = torch.arange(len(self)).repeat_interleave(num)
        ages = self._ages()
        seeds = [
            _mix(seed, age, child + 1)
            for seed, age in zip(self._seeds, ages, strict=True)
            for child in range(num)
        ]
        return self._copy(indices, seeds, max_rewind)

    def replace(self, indices: Sequence[int], others: "SimulationBatch") -> None:
        """Let the sessions of another batch of the same world, in their order, take the place of some here.

        What was before cannot be gone back to, by any session here. Each new one goes on as it would alone.

        Raises:
            WorldError: not as many sessions as places, or some session was shown fewer frames than attention
                sees, so that the two cannot stand side by side.
        """
        if len(others) != len(indices) or len(set(indices)) != len(indices):
            raise WorldError(f"replace: {len(others)} sessions for the places {list(indices)}")
        if not (self._cache.is_full and others._cache.is_full):
            least = self.world.config.dynamics.frames_to_fill
            raise WorldError(
                f"replace: all sessions must have seen {least} frames or more; start them with that many"
            )
        places = torch.tensor(list(indices))
        if self._twin is not None:
            if others._twin is None:
                others.add_twin()
            assert others._twin is not None
            self._twin.replace(indices, others._twin)
        self._cache.replace(places, others._cache)
        self._doubt = self._doubt.index_copy(0, places.to(self._doubt.device), others._doubt)
        self._outside = self._outside.index_copy(0, places.to(self._outside.device), others._outside)
        for place, seed, born in zip(indices, others._seeds, others._born, strict=True):
            self._seeds[place], self._born[place] = seed, self.num_steps - (others.num_steps - born)
        self._history.clear()
        self._remember()

    @property
    def num_rewindable(self) -> int:
        """Steps that ``rewind`` can go back."""
        return min(self.num_steps, self._max_rewind, len(self._history) - 1, self._cache.num_rewindable)

    def rewind(self, num_steps: int) -> None:
        """Undo the last steps: what follows is as if they had not been made.

        Raises:
            WorldError: more than were made, or than the kept past allows: ``MAX_REWIND`` in all, counted from
                the furthest step.
        """
        possible = self.num_rewindable
        num_steps = whole("num_steps", num_steps)
        if not 0 <= num_steps <= possible:
            raise WorldError(f"rewind({num_steps}): this session can go back by 0 to {possible} steps")
        if self._twin is not None:
            self._twin.rewind(num_steps)
        self._cache.rewind(num_steps)
        self._history.pop(num_steps)
        self.num_steps -= num_steps
        self._doubt, self._outside = (part[0] for part in self._history[-1:][2:])

    def pictures(self, index: int, rows: slice = slice(None)) -> np.ndarray | dict[str, np.ndarray] | None:
        """The kept pictures of one session, or some rows of them, ``T H W C``, the last given frame first
        while it is kept."""
        dtype = self.world.dynamics.token_bias.dtype
        latents, proprio, *_ = self._history[rows]
        return self._networks.decode(latents[:, index].to(dtype), proprio[:, index])

    @property
    def num_pictures(self) -> int:
        """Pictures of each session that are kept."""
        return len(self._history)

    def save(self, path: str | Path, index: int = 0) -> None:
        """Write the kept pictures of one session as a video, by the suffix ``.mp4`` or ``.gif``; several
        cameras stand side by side."""
        pictures = self.pictures(index)
        if pictures is None:
            raise WorldError(f"world '{self.world.name}' has no camera, so there is nothing to save")
        if isinstance(pictures, dict):
            pictures = join_cameras(pictures.values())
        write_video(path, pictures, fps=self.world.fps, scale=max(1, 256 // pictures.shape[1]))

    def _noise(self, size: int, stream: int = 0) -> Tensor:
        """Noise ``B 1 size``, a function of each session's seed, step and stream alone: the same whatever the
        batch, and again after a rewind."""
        rows = []
        for seed, num_steps in zip(self._seeds, self._ages(), strict=True):
            self._generator.manual_seed(_mix(seed, num_steps, -stream))
            rows.append(torch.randn(1, size, generator=self._generator))
        return torch.stack(rows).to(self.world.device)

    def _ages(self) -> list[int]:
        """Steps that each session has made."""
        return [self.num_steps - born for born in self._born]

    def _history_length(self) -> int:
        bytes_per_step = len(self._seeds) * moment_bytes(self.world)
        return max(2, min(self.max_pictures or KEPT_PICTURES, HISTORY_BYTES // bytes_per_step))

    def _remember(self) -> None:
        latents = self._cache.last_latents.to(torch.float16)
        self._history.append(latents, self._cache.last_proprio, self._doubt, self._outside)

    def _copy(self, indices: Tensor, seeds: list[int], max_rewind: int | None = None) -> "SimulationBatch":
        other = SimulationBatch(
            self.world,
            seeds,
            self.num_denoising_steps,
            self._max_rewind if max_rewind is None else max_rewind,
            self.max_pictures,
            self._cache.select(indices, max_rewind),
        )
        other.num_steps = self.num_steps
        other._born = [self._born[index] for index in indices.tolist()]
        other._doubt, other._outside = self._doubt[indices], self._outside[indices]
        last = len(self._history) if max_rewind is None else 1 + max_rewind
        other._history = self._history.select(indices, other._history_length(), last)
        return other


class Simulation:
    """One session of a world."""

    def __init__(self, batch: SimulationBatch):
        assert len(batch) == 1
        self._batch = batch

    def __repr__(self) -> str:
        return f"Simulation({self.world.name}: {self.num_steps} steps, seed {self.seed})"

    def _repr_png_(self) -> bytes | None:
        return self.look().draw(f"step {self.num_steps}")

    @property
    def world(self) -> WorldModel:
        return self._batch.world

    @property
    def num_steps(self) -> int:
        """Steps simulated so far."""
        return self._batch.num_steps

    def step(self, action: Any = None, *, decode: bool = True) -> Step:
        """Advance by one action ``(A,)`` in the units of the dataset; None in a world without actions.

        Raises:
            WorldError: the action has another shape or is not finite; the session is unchanged.
        """
        if action is None and not self.world.action_dim:
            return self._batch.step(None, decode=decode).of_session(0)
        array = self.world.check_actions(action, (self.world.action_dim,), "action")
        return self._batch.step(array[None], decode=decode).of_session(0)

    def generate(self, *, decode: bool = True) -> Step:
        """Advance by a frame of video without an action, as the recordings might go on."""
        return self._batch.generate(decode=decode).of_session(0)

    def imagine(
        self, goal: Any, num_steps: int, *, decode: bool = True, num_denoising_steps: int = ACT_STEPS
    ) -> tuple[Float[np.ndarray, "C A"], list[Step]]:
        """Imagine actions and the frames that they lead to: see ``SimulationBatch.imagine``."""
        actions, steps = self._batch.imagine(
            goal, num_steps, decode=decode, num_denoising_steps=num_denoising_steps
        )
        return actions[0], [step.of_session(0) for step in steps]

    def act(
        self, goal: Any = None, chunk: int | None = None, *, num_denoising_steps: int = ACT_STEPS
    ) -> Float[np.ndarray, "C A"]:
        """The next actions, in the units of the dataset, as the network itself finds them: see
        ``SimulationBatch.act``."""
        return self._batch.act(goal, chunk, num_denoising_steps=num_denoising_steps)[0]

    def look(self, *, decode: bool = True) -> Step:
        """The present frame, as the last step gave it, or the last given one as the tokenizer has it."""
        return self._batch.look(decode=decode).of_session(0)

    def change(self, *, seed: int | None = None, num_denoising_steps: int | None = None) -> None:
        """Go on with other noise, or with another number of network calls for a frame."""
        seeds = None if seed is None else [seed]
        self._batch.change(seeds=seeds, num_denoising_steps=num_denoising_steps)

    def copy(self) -> "Simulation":
        """Another session that goes on from here with the same noise."""
        return self._batch[0]

    @torch.inference_mode()
    def last_places(self, num: int) -> list[Float[Tensor, "1 G"]]:
        """The last ``num`` frames as heads and policies read them (``World.place``), oldest first; where
        fewer are kept, the oldest stands for those before it."""
        batch = self._batch
        latents, proprio, *_ = batch._history[-num:]
        places = batch.world.place(latents[:, 0].to(batch._cache.last_latents.dtype), proprio[:, 0]).split(1)
        return [*places[:1] * (num - len(places)), *places]

    def future(self, index: int) -> "Simulation":
        """The future that stands at ``index`` in every fork of more than ``index``."""
        return Simulation(
            self._batch._copy(torch.tensor([0]), [_mix(self.seed, self._batch._ages()[0], index + 1)])
        )

    @property
    def seed(self) -> int:
        """Of the noise to come."""
        return self._batch._seeds[0]

    @property
    def num_denoising_steps(self) -> int:
        """Network calls for a frame."""
        return self._batch.num_denoising_steps

    def fork(self, num: int, *, max_rewind: int | None = None) -> SimulationBatch:
        """``num`` futures from here, batched, each with its own noise; they can go back by as many steps as
        this session, or by ``max_rewind``, which is cheaper where it is less."""
        return self._batch.fork(num, max_rewind=max_rewind)

    def rewind(self, num_steps: int) -> None:
        """Undo the last steps, at most ``MAX_REWIND``: what follows is as if they had not been made."""
        self._batch.rewind(num_steps)

    @property
    def num_rewindable(self) -> int:
        """Steps that ``rewind`` can go back."""
        return self._batch.num_rewindable

    @property
    def num_pictures(self) -> int:
        """Pictures so far, as many of them as are kept."""
        return self._batch.num_pictures

    def pictures(self, rows: slice = slice(None)) -> np.ndarray | dict[str, np.ndarray] | None:
        """The pictures so far, or some rows of them, ``T H W C``, the last given frame first; very old ones
        are forgotten."""
        return self._batch.pictures(0, rows)

    def save(self, path: str | Path) -> None:
        """Write the pictures so far as a video, by the suffix ``.mp4`` or ``.gif``."""
        self._batch.save(path)


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """A whole number within bounds.

    Raises:
        WorldError: it is another number, or none.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or (least is not None and value < least) or (most is not None and value > most):
        bounds = [f"from {least}"] * (least is not None) + [f"to {most}"] * (most is not None)
        raise WorldError(f"{name}={value!r}: expected {' '.join(['a whole number', *bounds])}")
    return int(value)


def moment_bytes(world: WorldModel) -> int:
    """What one past picture of a session takes."""
    config = world.config.dynamics
    return 2 * config.num_latents * config.latent_dim + 4 * (2 * config.proprio_dim + config.action_dim + 1)


def excess(given: Tensor, used: Tensor) -> Tensor:
    """By how much normalised numbers leave the recorded range, in units of it: at least by as much as those
    differ that the network is given in their place."""
    return 0.5 * torch.maximum(given.abs() - 1.0, (given - used).abs()).clamp_min(0.0)


def name_outside(names: Sequence[str], excess: Sequence[float]) -> dict[str, float]:
    """``Step.outside`` from the names of columns and by how much each leaves the recorded range; of several
    columns of one number the most counts."""
    outside: dict[str, float] = {}
    for name, distance in zip(names, excess, strict=True):
        if distance > OUTSIDE_TOLERANCE:
            outside[name] = max(distance, outside.get(name, 0.0))
    return outside


def check_rewind(max_rewind: int | None) -> None:
    if max_rewind is not None:
        whole("max_rewind", max_rewind, 0, MAX_REWIND)


def draw_seed(generator: torch.Generator) -> int:
    """The seed of a session that is given this generator.

    Raises:
        WorldError: it is no generator.
    """
    if not isinstance(generator, torch.Generator):
        raise WorldError(
            f"generator={generator!r}: expected a torch.Generator, such as torch.Generator().manual_seed(0)"
        )
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device).item())


def _mix(*numbers: int) -> int:
    """One well-spread 63-bit seed from several numbers (splitmix64 steps, Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state >> 1
