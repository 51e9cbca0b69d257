"""The network as a policy: what it is told, that training and streaming agree, and what sessions do."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from kinema.data import Dataset
from kinema.data.segments import SegmentsConfig, load_segments
from kinema.model.acting import Acting, ActingBatch, ActingConfig, ActingObjective, Aims
from kinema.model.goals import encode_goal
from kinema.model.heads import PlaceSizes
from kinema.model.transformer import Dynamics
from kinema.model.world import ACTING_FILE, WEIGHTS_FILE, WorldError
from kinema.policies.acting import ActingPolicy, ActProposer
from kinema.simulation.world import World, load
from kinema.train.hindsight import Hindsight
from kinema.train.latents import encode_all
from kinema.types import Seen

from ..worlds import (
    CAMERA,
    PROPRIO,
    SIZE,
    dynamics_config,
    random_actions,
    random_dynamics,
    random_frames,
    random_values,
    random_world,
    randomize,
    write_exact_world,
)

KINDS = {
    "one camera": {},
    "cameras and proprioception": {"num_cameras": 2, "proprio_dim": 3},
    "vectors alone": {"num_cameras": 0, "proprio_dim": 3},
}
SIZES = PlaceSizes(6, 3, 2)
CONFIG = ActingConfig(rank=2, width=16, chunk=5, max_steps=12)


def random_acting(dynamics: Dynamics, sizes: PlaceSizes = SIZES) -> Acting:
    acting = Acting(CONFIG, dynamics=dynamics, sizes=sizes)
    randomize(acting, 4)
    with torch.no_grad():
        # Else most actions are those at the ends of the range.
        acting.chunk_out.weight *= 0.1
    return acting.eval()


def random_aims(batch: int, time: int, sizes: PlaceSizes = SIZES, seed: int = 0) -> Aims:
    generator = torch.Generator().manual_seed(seed)
    before, now, goal = torch.randn(3, batch, time, sum(sizes), generator=generator)
    return Aims(before, now, goal, torch.ones(batch, time, dtype=torch.bool))


def acting_world() -> World:
    """A world that acts, of random weights."""
    world = random_world(proprio_dim=2)
    world.acting = random_acting(world.dynamics, world.place_sizes)
    return world


def known_tau(dynamics: Dynamics, batch: int, time: int) -> torch.Tensor:
    tau = torch.full((batch, time, dynamics.config.num_modalities), 0.95)
    tau[:, 0, -1] = 0.0
    return tau


# The network.


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_chunk_is_the_same_in_training_and_in_streaming(kind: str) -> None:
    dynamics = random_dynamics(dynamics_config(**KINDS[kind]))
    acting = random_acting(dynamics)
    batch, time = 2, 7
    values, tau = random_values(dynamics.config, batch, time), known_tau(dynamics, batch, time)
    noise = torch.randn(batch, time, dynamics.config.noise_size, generator=torch.Generator().manual_seed(1))
    aims = random_aims(batch, time)
    noised = torch.randn(batch, time, 5, 2, generator=torch.Generator().manual_seed(2))
    tau_chunk = torch.rand(batch, time, generator=torch.Generator().manual_seed(3))
    together = acting(dynamics.blocks, dynamics.memory(values, tau, noise), aims, noised, tau_chunk)
    cache = dynamics.new_cache(batch)
    for t in range(time):
        frame = values.map(lambda x, t=t: x[:, t : t + 1])
        dynamics.keep(frame, tau[:, t : t + 1], cache, noise[:, t : t + 1])
        present = Aims(**{name: part[:, t : t + 1] for name, part in vars(aims).items()})
        found = acting(
            dynamics.blocks,
            dynamics.memory_of(cache),
            present,
            noised[:, t : t + 1],
            tau_chunk[:, t : t + 1],
        )
        torch.testing.assert_close(found, together[:, t : t + 1], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_what_matters_to_a_chunk() -> None:
    """The past within reach, what it is told, and the noised actions of its own moment; nothing later."""
    dynamics = random_dynamics(dynamics_config(num_cameras=1, proprio_dim=3))
    acting = random_acting(dynamics)
    values, tau = random_values(dynamics.config, 1, 6), known_tau(dynamics, 1, 6)
    aims, noised, tau_chunk = random_aims(1, 6), torch.randn(1, 6, 5, 2), torch.full((1, 6), 0.3)

    def moments_changed(**changed: object) -> list[int]:
        found = []
        for frames, told, chunk in (
            (values, aims, noised),
            (changed.get("frames", values), changed.get("aims", aims), changed.get("noised", noised)),
        ):
            memory = dynamics.memory(frames, tau)
            found.append(acting(dynamics.blocks, memory, told, chunk, tau_chunk))
        return ((found[0] - found[1]).abs().amax((0, 2, 3)) > 1e-6).nonzero().flatten().tolist()

    def at_three(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, 3] += 1.0
        return x

    assert moments_changed(frames=values.map(at_three)) == [3, 4, 5]
    assert moments_changed(noised=at_three(noised)) == [3]
    for name in ("before", "now", "goal"):
        assert moments_changed(aims=dataclasses.replace(aims, **{name: at_three(getattr(aims, name))})) == [3]
    has_goal = aims.has_goal.clone()
    has_goal[:, 3] = False
    without = dataclasses.replace(aims, has_goal=has_goal)
    assert moments_changed(aims=without) == [3]
    # Without a goal, what stands in its place does not matter.
    aims = without
    assert moments_changed(aims=dataclasses.replace(without, goal=at_three(without.goal))) == []


@torch.no_grad()
def test_as_it_begins_it_goes_on_with_the_last_action() -> None:
    dynamics = random_dynamics(dynamics_config(proprio_dim=3))
    acting = Acting(CONFIG, dynamics=dynamics, sizes=SIZES)
    torch.nn.init.zeros_(acting.chunk_out.bias)
    values, tau = random_values(dynamics.config, 2, 4), known_tau(dynamics, 2, 4)
    memory = dynamics.memory(values, tau)
    found = acting(dynamics.blocks, memory, random_aims(2, 4), torch.randn(2, 4, 5, 2), torch.zeros(2, 4))
    expected = values.action.clone()
    # What led to the first frame is not known.
    expected[:, 0] = 0.0
    torch.testing.assert_close(found, expected.unsqueeze(2).expand_as(found))


def test_only_what_is_added_learns() -> None:
    world = random_world(proprio_dim=2)
    acting = random_acting(world.dynamics, world.place_sizes)
    objective = ActingObjective(acting, world.dynamics)
    assert {id(p) for p in objective.parameters()} == {id(p) for p in acting.parameters()}
    loss, _ = objective(random_batch(world), generator=torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in acting.parameters())
    assert all(p.grad is None for p in world.parameters())


def random_batch(world: World, batch: int = 8, time: int = 4) -> ActingBatch:
    sizes, dynamics = world.place_sizes, world.dynamics
    return ActingBatch(
        frames=random_values(dynamics.config, batch, time),
        tau=known_tau(dynamics, batch, time),
        aims=random_aims(batch, time, sizes),
        steps=torch.full((batch, time), 3),
        actions=torch.randn(batch, time, 5, 2, generator=torch.Generator().manual_seed(5)),
        is_recorded=torch.ones(batch, time, 5, dtype=torch.bool),
    )


def test_what_is_behind_the_goal_or_the_end_does_not_count() -> None:
    world = random_world(proprio_dim=2)
    config = dataclasses.replace(CONFIG, goal_dropout=0.0)
    acting = Acting(config, dynamics=world.dynamics, sizes=world.place_sizes)
    objective, batch = ActingObjective(acting, world.dynamics), random_batch(world)

    def loss(changed_from: int, **fields: torch.Tensor) -> float:
        actions = batch.actions.clone()
        actions[:, :, changed_from:] += 100.0
        given = dataclasses.replace(batch, actions=actions, **fields)
        return objective(given, generator=torch.Generator().manual_seed(0))[0].item()

    # As it begins, chunks do not hang together: each action is found by itself.
    assert loss(3) == pytest.approx(loss(5))
    assert loss(2) > 2 * loss(5)
    is_recorded = batch.is_recorded.clone()
    is_recorded[..., 2:] = False
    assert loss(2, is_recorded=is_recorded) == pytest.approx(loss(5, is_recorded=is_recorded))
    # Without a goal all counts.
    acting.config = dataclasses.replace(CONFIG, goal_dropout=1.0)
    assert loss(3) > 2 * loss(5)


# What is learned from.


def test_goals_come_later_in_the_same_episode(tmp_path: Path) -> None:
    data = Dataset.open(write_exact_world(tmp_path / "data", lengths=(30, 12, 40), has_proprio=True))
    config = SegmentsConfig(cameras=(CAMERA,), proprio=PROPRIO, height=SIZE, width=SIZE)
    segments = load_segments(data, config, tmp_path / "unused", progress=False)
    world = random_world(proprio_dim=2)
    values = encode_all(world, segments, False, tmp_path / "latents")
    lessons = Hindsight(world, data, segments, values)
    batch = lessons.draw_acting(np.random.default_rng(0), 200, 6, CONFIG)
    sizes = world.place_sizes
    # In the exact world the proprioception of a frame is the action that led to it.
    led, shown = batch.frames.action, world.proprio_normalizer.restore(batch.frames.proprio)
    done = world.action_normalizer.restore(led)
    torch.testing.assert_close(shown[:, 1:], done[:, 1:], rtol=1e-3, atol=1e-3)
    # What is done from a frame on is what led to the next ones.
    for k in range(5):
        torch.testing.assert_close(batch.actions[:, : 5 - k, k], led[:, 1 + k :], rtol=1e-4, atol=1e-4)
    assert batch.steps.min() == 0
    assert batch.steps.max() == 12
    torch.testing.assert_close(batch.aims.now[..., sizes.latents : sizes.latents + 2], batch.frames.proprio)
    torch.testing.assert_close(batch.aims.before[:, 1:], batch.aims.now[:, :-1])
    torch.testing.assert_close(batch.aims.before[:, 0], batch.aims.now[:, 0])
    # A goal within the segment is the frame so many steps behind.
    for t in range(6):
        for steps in range(6 - t):
            chosen = batch.steps[:, t] == steps
            torch.testing.assert_close(batch.aims.goal[chosen, t], batch.aims.now[chosen, t + steps])
    # Where an episode ends before the chunk does, the rest is not recorded.
    is_short = ~batch.is_recorded[..., -1]
    assert 0.05 < is_short.float().mean() < 0.5
    assert batch.is_recorded[..., 0].all()
    assert (batch.tau[:, 0, -1] == 0).all()
    assert (batch.tau[:, 1:, -1] == 1).all()


# Sessions.


def test_what_a_session_does_depends_on_goal_and_noise_alone() -> None:
    world = acting_world()
    frames, proprio = random_frames(3), np.random.default_rng(0).uniform(-5, 20, (3, 2))
    sim = world.start(frames, random_actions(2), proprio=proprio)
    goals = random_frames(2, seed=3)
    actions = sim.act(goals[0])
    assert actions.shape == (5, 2)
    low, high = world.action_normalizer.restore(torch.tensor([[-1.0], [1.0]])).numpy()
    assert ((actions >= low - 1e-3) & (actions <= high + 1e-3)).all()
    np.testing.assert_array_equal(sim.act(goals[0]), actions)
    # A shorter chunk is the beginning of a longer one; a goal may be given as it was encoded.
    np.testing.assert_allclose(sim.act(encode_goal(world, goals[0]), 3), actions[:3], rtol=1e-4, atol=1e-4)
    assert np.abs(sim.act(goals[1]) - actions).max() > 1e-3
    assert np.abs(sim.act() - actions).max() > 1e-3
    assert np.abs(sim.act(goals[0], num_denoising_steps=4) - actions).max() > 1e-3
    # In a batch and through the world it is the same, and futures of one session do different things.
    forks = sim.fork(3)
    together = forks.act(goals[0])
    for index in range(3):
        np.testing.assert_allclose(together[index], forks[index].act(goals[0]), rtol=1e-3, atol=1e-3)
    assert np.abs(together[0] - together[1]).max() > 1e-3
    alone = world.act(frames, goals[0], random_actions(2), proprio=proprio)
    np.testing.assert_array_equal(alone, actions)
    # The session goes on as if it had not been asked.
    other = world.start(frames, random_actions(2), proprio=proprio)
    assert np.array_equal(sim.step(actions[0]).frame, other.step(actions[0]).frame)


def test_a_world_that_acts_simulates_as_before() -> None:
    """To the last bit, whatever it makes of goals."""
    frames, actions = random_frames(3), random_actions(6)
    steps = []
    for world in (random_world(proprio_dim=2), acting_world()):
        sim = world.start(frames, actions[:2], proprio=np.zeros((3, 2)))
        steps.append([sim.step(action) for action in actions[2:]])
    for one, other in zip(*steps, strict=True):
        assert np.array_equal(one.frame, other.frame)
        assert np.array_equal(one.proprio, other.proprio)


def test_the_policy_does_half_a_chunk_of_what_its_session_finds() -> None:
    world = acting_world()
    goal = random_frames(seed=3)
    policy = ActingPolicy(world, goal=goal, context=2)
    policy.begin(np.random.default_rng(0))
    seen = [
        Seen(frames={CAMERA: frame}, proprio=np.full(2, index, np.float32))
        for index, frame in enumerate(random_frames(4))
    ]
    done = [policy.choose(one) for one in seen]
    rng = np.random.default_rng(0)
    seeds = [int(rng.integers(2**31)) for _ in range(2)]
    first = world.act(
        random_frames(4)[:1],
        goal,
        proprio=np.asarray(seen[0].proprio)[None],
        generator=torch.Generator().manual_seed(seeds[0]),
    )
    np.testing.assert_array_equal(np.stack(done[:3]), first[:3])
    second = world.act(
        random_frames(4)[2:],
        goal,
        done[2][None],
        proprio=np.stack([seen[2].proprio, seen[3].proprio]),
        generator=torch.Generator().manual_seed(seeds[1]),
    )
    np.testing.assert_array_equal(done[3], second[0])


def test_it_proposes_other_plans_to_each_session() -> None:
    world = acting_world()
    sessions = world.start(random_frames(1), proprio=np.zeros((1, 2))).fork(3)
    target = encode_goal(world, random_frames(seed=3))
    proposer = ActProposer()
    drawn = [proposer.propose(sessions, target, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert drawn[0].shape == (3, 5, 2)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-3
    assert np.abs(drawn[0][0] - drawn[0][1]).max() > 1e-3


def test_what_it_needs_is_kept_beside_the_world(tmp_path: Path) -> None:
    world = acting_world()
    world.save(tmp_path / "acts")
    random_world(proprio_dim=2).save(tmp_path / "plain")
    assert (tmp_path / "acts" / WEIGHTS_FILE).read_bytes() == (tmp_path / "plain" / WEIGHTS_FILE).read_bytes()
    assert not (tmp_path / "plain" / ACTING_FILE).exists()
    sim, goal = world.start(random_frames(1), proprio=np.zeros((1, 2))), random_frames(seed=3)
    again = load(tmp_path / "acts", precision="float32").start(random_frames(1), proprio=np.zeros((1, 2)))
    np.testing.assert_allclose(again.act(goal), sim.act(goal), rtol=1e-4, atol=1e-4)


def test_mistakes_are_explained() -> None:
    sim = random_world().start(random_frames(1))
    with pytest.raises(WorldError, match="was not taught to act; teach it from recordings: kinema train"):
        sim.act(random_frames())
    able = acting_world().start(random_frames(1), proprio=np.zeros((1, 2)))
    for chunk in (0, 6):
        with pytest.raises(WorldError, match=f"chunk={chunk}: expected a whole number from 1 to 5"):
            able.act(random_frames(), chunk)
    with pytest.raises(WorldError, match="frames are 20x32"):
        able.act(random_frames()[:20])
    with pytest.raises(ValueError, match="rank=0: at least 1 is needed"):
        ActingConfig(rank=0)
