"""Batches for a world's heads, its cloned policy and its network that acts: rewarded steps, and goals that
were reached."""

import numpy as np
import torch
from torch import Tensor

from kinema.data.latents import Rows
from kinema.data.lerobot import DataError, Dataset
from kinema.data.segments import Segments
from kinema.model.acting import ActingBatch, ActingConfig, Aims
from kinema.model.heads import Frame, HeadsBatch, HeadsConfig
from kinema.model.tokens import Values
from kinema.policies.cloned import CloneBatch, CloneConfig
from kinema.simulation.session import SimulationBatch
from kinema.simulation.world import World
from kinema.train.latents import Encoded

REWARD, TERMINATED = "next.reward", "next.terminated"
FAR_SHARE = 0.1
"""Share of the goals that are from anywhere in the data; they count as the farthest."""


class Hindsight:
    """Encoded episodes, and the batches that can be drawn from them."""

    def __init__(self, world: World, dataset: Dataset, segments: Segments, values: Encoded):
        """``segments`` of episodes of ``dataset``, and the same rows encoded."""
        self._world, self.segments = world, segments
        normalize = world.action_normalizer.normalize
        self._actions = normalize(torch.from_numpy(segments.actions).to(world.device)).cpu()
        self._led = values.action
        self._rewards, is_terminal = _columns(dataset, segments.episodes)
        ends = segments.starts + segments.lengths - 1
        final = ends[is_terminal[ends]]
        latents, proprio = _imagine_after(world, segments, values, final)
        self.latents = values.latents.followed_by(Rows([latents.half()]))
        self.proprio = torch.cat([values.proprio, proprio])
        inner = np.flatnonzero(segments.has_action)
        # Frames before and after each step that was rewarded. The frame after a last step is not recorded:
        # where the step ended the episode for good, it is the world's guess, behind the recorded rows.
        self._before = np.concatenate([inner - 1, final])
        self._after = np.concatenate([inner, segments.num_rows + np.arange(len(final))])
        self._is_terminal = np.arange(len(self._before)) >= len(inner)

    @property
    def num_terminations(self) -> int:
        """Episodes that ended for good."""
        return int(self._is_terminal.sum())

    @property
    def reward_range(self) -> tuple[float, float]:
        """The least and the largest reward."""
        return float(self._rewards.min()), float(self._rewards.max())

    def draw_heads(self, rng: np.random.Generator, batch: int, config: HeadsConfig) -> HeadsBatch:
        """Steps, and pairs of a frame and a goal; of recordings with rewards (``require_rewards``)."""
        drawn = rng.integers(0, len(self._before), batch)
        before = self._before[drawn]
        rows, goals, steps = self.segments.draw_goals(rng, batch, config.max_steps)
        is_far = rng.random(batch) < FAR_SHARE
        goals = np.where(is_far, rng.integers(0, self.segments.num_rows, batch), goals)
        steps = np.where(is_far, config.max_steps, steps)
        return HeadsBatch(
            before=self._frames(before),
            after=self._frames(self._after[drawn]),
            action=self._taken(before),
            reward=torch.from_numpy(self._rewards[before]),
            is_terminal=torch.from_numpy(self._is_terminal[drawn]),
            start=self._places(rows),
            goal=self._places(goals),
            steps=torch.from_numpy(steps.astype(np.float32)),
        )

    def draw_clone(self, rng: np.random.Generator, batch: int, config: CloneConfig) -> CloneBatch:
        """Moments with goals that they came to, and what was done in the next steps; beyond the end of the
        episode the last action is repeated."""
        rows, goals, _ = self.segments.draw_goals(rng, batch, config.max_steps)
        last = self.segments.last_rows(rows)
        ahead = np.minimum(rows[:, None] + np.arange(config.chunk), last[:, None])
        before = rows - self.segments.has_action[rows]
        return CloneBatch(
            before=self._places(before),
            now=self._places(rows),
            goal=self._places(goals),
            actions=self._taken(ahead),
        )

    def draw_acting(
        self, rng: np.random.Generator, batch: int, length: int, config: ActingConfig
    ) -> ActingBatch:
        """Segments (of the longest episodes at most), each frame with a goal that the episode came to, and
        what was done in the next steps."""
        length = min(length, int(self.segments.lengths.max()))
        rows = self.segments.draw_rows(rng, batch, length)
        goals, steps = self.segments.draw_goals_of(rng, rows, config.max_steps)
        last = self.segments.last_rows(rows)[..., None]
        ahead = rows[..., None] + np.arange(config.chunk)
        index = torch.from_numpy(rows)
        now = self._places(rows)
        tau = self._world.tau(batch, length, action_tau=1.0).cpu().clone()
        # No action led to the first frame of a session.
        tau[:, 0, -1] = 0.0
        return ActingBatch(
            frames=Values(*self._frames(rows), self._led[index]),
            tau=tau,
            aims=Aims(
                before=torch.cat([now[:, :1], now[:, :-1]], dim=1),
                now=now,
                goal=self._places(goals),
                has_goal=torch.ones(batch, length, dtype=torch.bool),
            ),
            steps=torch.from_numpy(steps),
            actions=self._taken(np.minimum(ahead, last)),
            is_recorded=torch.from_numpy(ahead <= last),
        )

    def _frames(self, rows: np.ndarray) -> Frame:
        return self.latents[rows].float(), self.proprio[torch.from_numpy(rows)]

    def _places(self, rows: np.ndarray) -> Tensor:
        latents, proprio = (part.to(self._world.device) for part in self._frames(rows.reshape(-1)))
        # Cloned outside inference mode, so that autograd may save them.
        return self._world.place(latents, proprio).cpu().clone().unflatten(0, rows.shape)

    def _taken(self, rows: np.ndarray) -> Tensor:
        """Normalised actions that were taken at rows; the values' own are those that led there."""
        return self._actions[torch.from_numpy(rows)]


def require_rewards(dataset: Dataset) -> None:
    """Raises DataError where rewards were not recorded."""
    if REWARD not in dataset.features:
        raise DataError(
            "rewards are needed to learn heads from; record them, as `kinema record` does",
            path=dataset.root,
            key=REWARD,
        )


def _columns(dataset: Dataset, episodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rewards, zero where none were recorded, and True where a step terminated its episode, by row."""
    rewards, is_terminal = [], []
    for index in episodes.tolist():
        columns = dataset.episode(index, cameras=()).columns
        num_rows = len(columns["action"])
        rewards.append(np.asarray(columns.get(REWARD, np.zeros(num_rows)), dtype=np.float32).reshape(-1))
        flags = columns.get(TERMINATED, np.zeros(len(rewards[-1]), dtype=bool))
        is_terminal.append(np.asarray(flags, dtype=bool).reshape(-1))
    joined = np.concatenate(rewards)
    if not np.isfinite(joined).all():
        raise DataError("a reward is not finite", path=dataset.root, key=REWARD)
    return joined, np.concatenate(is_terminal)


def _imagine_after(world: World, segments: Segments, values: Encoded, rows: np.ndarray) -> Frame:
    """The frames, ``N L Z`` and ``N P``, that the world expects after given rows, the last of their
    episodes."""
    config = world.config.dynamics
    latents = torch.zeros(len(rows), config.num_latents, config.latent_dim)
    proprio = torch.zeros(len(rows), config.proprio_dim)
    episode_lengths = rows - segments.first_rows(rows) + 1
    given = np.minimum(episode_lengths, config.reach + 1)
    for length in np.unique(given):
        members = np.flatnonzero(given == length)
        window = rows[members][:, None] - np.arange(length)[::-1]
        piece = values.frames(window).to(world.device)
        sessions = SimulationBatch(world, [0] * len(members), None, max_rewind=0)
        # The action that led to a frame lies with it, and that before the first one is not asked for.
        sessions.begin(piece.latents, piece.proprio, world.proprio_dim > 0, piece.action[:, 1:])
        sessions.step(segments.actions[rows[members]], decode=False)
        latents[members] = sessions.latents.cpu()
        proprio[members] = sessions.normalized_proprio.cpu()
    return latents, proprio
