"""The network as a policy: what it is told of a goal, and that training and streaming agree."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kinema.data import Dataset
from kinema.data.segments import SegmentsConfig, load_segments
from kinema.dynamics import Dynamics, Values
from kinema.goals import encode_goal, goal_frame
from kinema.nn.goal import GoalFrame
from kinema.objective import DynamicsObjective, DynamicsObjectiveConfig, Goals
from kinema.policies.acting import ActingPolicy, ActProposer
from kinema.simulation import World, load
from kinema.train import TrainConfig, _extended, train
from kinema.types import Seen
from kinema.world_model import WorldError

from .worlds import (
    CAMERA,
    PROPRIO,
    dynamics_config,
    random_actions,
    random_frames,
    random_tau,
    random_values,
    random_world,
    randomize,
    randomize_response,
    write_exact_world,
)

KINDS = {
    "one camera": {},
    "cameras and proprioception": {"num_cameras": 2, "proprio_dim": 3},
    "vectors alone": {"num_cameras": 0, "proprio_dim": 3},
}


def acting_dynamics(kind: str = "cameras and proprioception") -> Dynamics:
    dynamics = Dynamics(dataclasses.replace(dynamics_config(**KINDS[kind]), use_goal=True))
    randomize(dynamics)
    randomize_response(dynamics)
    return dynamics.eval()


def goal_of(dynamics: Dynamics, batch: int, seed: int = 9) -> GoalFrame:
    values = random_values(dynamics.config, batch, 1, seed)
    return GoalFrame(values.latents[:, 0], values.proprio[:, 0], torch.ones(batch, dtype=torch.bool))


def acting_world() -> World:
    """A world that acts, of random weights."""
    world = _extended(random_world(proprio_dim=2), acts=True)
    assert world.dynamics.goal_in is not None
    randomize(world.dynamics.goal_in, 4)
    with torch.no_grad():
        # Else most actions are those at the ends of the range.
        world.dynamics.action_out.weight *= 0.1
    return world.eval()


# The network.


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_chunk_is_the_same_in_training_and_in_streaming(kind: str) -> None:
    """Frames up to the present are known, those behind it blind; each target is what ``step`` finds."""
    dynamics, present = acting_dynamics(kind), 2
    batch, time = 2, 7
    values, tau = random_values(dynamics.config, batch, time), random_tau(dynamics.config, batch, time)
    tau[:, : present + 1] = 0.9
    tau[:, present + 1 :, :-1] = 0.0
    context_tau = tau.clone()
    context_tau[:, present + 1 :, -1] = 1.0
    has_goal = (torch.arange(time) > present).expand(batch, -1)
    goal = goal_of(dynamics, batch)
    past = values.map(lambda x: x[:, :-1])
    found = dynamics(past, context_tau[:, :-1], values, tau, goal, has_goal)
    cache = dynamics.new_cache(batch)
    for t in range(time):
        frame = values.map(lambda x, t=t: x[:, t : t + 1])
        told = goal if t > present else None
        step = dynamics.step(frame, tau[:, t : t + 1], cache, told)
        torch.testing.assert_close(step.action, found.action[:, t : t + 1], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(step.latents, found.latents[:, t : t + 1], rtol=1e-3, atol=1e-4)
        dynamics.keep(frame, context_tau[:, t : t + 1], cache)


@torch.no_grad()
def test_only_targets_that_are_told_of_a_goal_change_with_it() -> None:
    dynamics = acting_dynamics()
    values, tau = random_values(dynamics.config, 2, 5), random_tau(dynamics.config, 2, 5)
    has_goal = torch.tensor([[False, False, True, False, True]] * 2)
    past = values.map(lambda x: x[:, :-1])
    found = [
        dynamics(past, tau[:, :-1], values, tau, goal, told).action
        for goal, told in (
            (None, None),
            (goal_of(dynamics, 2, 1), has_goal),
            (goal_of(dynamics, 2, 2), has_goal),
        )
    ]
    for other in found[1:]:
        torch.testing.assert_close(other[~has_goal], found[0][~has_goal])
        assert (other[has_goal] - found[0][has_goal]).abs().min() > 1e-5
    assert (found[1][has_goal] - found[2][has_goal]).abs().min() > 1e-5
    # Proprioception that is not known does not matter.
    blind = [
        dynamics(past, tau[:, :-1], values, tau, goal, has_goal).action
        for goal in (
            dataclasses.replace(goal_of(dynamics, 2), knows_proprio=torch.zeros(2, dtype=torch.bool)),
            dataclasses.replace(
                goal_of(dynamics, 2),
                proprio=torch.randn(2, 3),
                knows_proprio=torch.zeros(2, dtype=torch.bool),
            ),
        )
    ]
    torch.testing.assert_close(*blind)


def test_a_world_learns_to_act_from_where_it_was() -> None:
    """Told of no goal, it simulates as before, to the last bit, whatever it makes of goals."""
    before = random_world(proprio_dim=2)
    after = _extended(before, acts=True)
    assert after.config.dynamics.use_goal
    assert after.dynamics.goal_in is not None
    randomize(after.dynamics.goal_in, 4)
    frames, actions = random_frames(3), random_actions(6)
    steps = []
    for world in (before, after.eval()):
        sim = world.start(frames, actions[:2], proprio=np.zeros((3, 2)))
        steps.append([sim.step(action) for action in actions[2:]])
    for one, other in zip(*steps, strict=True):
        assert np.array_equal(one.frame, other.frame)
        assert np.array_equal(one.proprio, other.proprio)


# The objective.


def test_what_the_network_is_shown_of_a_segment_in_which_it_acts() -> None:
    dynamics = acting_dynamics()
    given: list[Any] = []
    dynamics.register_forward_pre_hook(lambda _, words: given.append(words))
    # Frames whose proprioception is to be found are all noise as well.
    config = DynamicsObjectiveConfig(act_share=1.0, goal_dropout=0.3, infer_share=0.0, proprio_share=0.0)
    objective = DynamicsObjective(dynamics, config)
    batch, time = 64, 8
    values = random_values(dynamics.config, batch, time)
    has_action = torch.ones(batch, time, dtype=torch.bool)
    goals = Goals(goal_of(dynamics, batch), torch.full((batch,), 5))
    objective(values, has_action, 1.0, 1, goals, generator=torch.Generator().manual_seed(0))
    context, context_tau, _, target_tau, _, has_goal = given[-1]
    is_blind = (target_tau[..., :-1] == 0).all(-1)
    first_blind = is_blind.float().argmax(1)
    # The present may be any frame but the last, and all behind it are blind.
    assert first_blind.min() == 1
    assert first_blind.max() == time - 1
    rows = torch.arange(time)
    for index in range(batch):
        ahead = rows >= first_blind[index]
        assert is_blind[index, ahead].all()
        assert not has_goal[index, ~ahead].any()
        assert has_goal[index, ahead].all() or not has_goal[index].any()
        behind = ahead[:-1]
        if not behind.any():
            continue
        assert (context_tau[index, behind, :-1] == 0).all()
        assert (context_tau[index, behind, -1] == 1).all()
        # The noise of a blind frame says nothing of it; its action in the context is the true one.
        torch.testing.assert_close(context.action[index, behind], values.action[index, :-1][behind])
        true = values.latents[index, :-1][behind]
        assert (context.latents[index, behind] - true).abs().mean() > 0.5
    assert 0.5 < has_goal.any(1).float().mean() < 0.9
    assert (target_tau[..., -1][is_blind] < 1).all()


def test_what_is_behind_the_goal_does_not_count() -> None:
    dynamics = acting_dynamics()
    objective = DynamicsObjective(
        dynamics, DynamicsObjectiveConfig(act_share=1.0, proprio_share=0, locate_share=0, infer_share=0)
    )
    values = random_values(dynamics.config, 16, 8)
    has_action = torch.ones(16, 8, dtype=torch.bool)

    def act_error(at: int, changed: bool) -> float:
        action = values.action.clone()
        action[:, 5:] += 100.0 * changed
        goals = Goals(goal_of(dynamics, 16), torch.full((16,), at))
        given = Values(values.latents, values.proprio, action)
        generator = torch.Generator().manual_seed(0)
        return float(objective(given, has_action, 0.0, 1, goals, generator=generator)[1]["act"])

    assert act_error(4, True) == pytest.approx(act_error(4, False))
    assert act_error(5, True) > 2 * act_error(5, False)


def test_goals_come_later_in_the_same_episode(tmp_path: Path) -> None:
    data = Dataset.open(write_exact_world(tmp_path / "data", lengths=(30, 12, 40), has_proprio=True))
    config = SegmentsConfig(cameras=(CAMERA,), proprio=PROPRIO, height=32, width=32)
    segments = load_segments(data, config, tmp_path / "unused", progress=False)
    rng = np.random.default_rng(0)
    rows = segments.draw_rows(rng, 2000, 6)
    goals, at = segments.draw_goals_of(rng, rows, 20)
    assert np.array_equal(goals - rows[:, 0], at)
    assert np.array_equal(segments.first_rows(goals), segments.first_rows(rows[:, 0]))
    assert at.min() == 1
    assert 0.5 < (at <= 5).mean() < 0.85
    assert at.max() == 20


# Sessions.


def test_what_a_session_does_depends_on_goal_and_noise_alone() -> None:
    world = acting_world()
    frames, proprio = random_frames(3), np.random.default_rng(0).uniform(-5, 20, (3, 2))
    sim = world.start(frames, random_actions(2), proprio=proprio)
    goals = random_frames(2, seed=3)
    actions = sim.act(goals[0], 5)
    assert actions.shape == (5, 2)
    low, high = world.action_normalizer.restore(torch.tensor([[-1.0], [1.0]])).numpy()
    assert ((actions >= low - 1e-3) & (actions <= high + 1e-3)).all()
    np.testing.assert_array_equal(sim.act(goals[0], 5), actions)
    # A shorter chunk is the beginning of a longer one; a goal may be given as it was encoded.
    np.testing.assert_allclose(sim.act(encode_goal(world, goals[0]), 3), actions[:3], rtol=1e-4, atol=1e-4)
    assert np.abs(sim.act(goals[1], 5) - actions).max() > 1e-3
    assert np.abs(sim.act(None, 5) - actions).max() > 1e-3
    # In a batch and through the world it is the same, and futures of one session do different things.
    forks = sim.fork(3)
    together = forks.act(goals[0], 5)
    for index in range(3):
        np.testing.assert_allclose(together[index], forks[index].act(goals[0], 5), rtol=1e-3, atol=1e-3)
    assert np.abs(together[0] - together[1]).max() > 1e-3
    alone = world.act(frames, goals[0], random_actions(2), proprio=proprio, chunk=5)
    np.testing.assert_array_equal(alone, actions)
    # The session goes on as if it had not been asked.
    other = world.start(frames, random_actions(2), proprio=proprio)
    assert np.array_equal(sim.step(actions[0]).frame, other.step(actions[0]).frame)


def test_the_policy_does_half_a_chunk_of_what_its_session_finds() -> None:
    world = acting_world()
    goal = random_frames(seed=3)
    policy = ActingPolicy(world, goal=goal, chunk=3, context=2)
    policy.begin(np.random.default_rng(0))
    seen = [
        Seen(frames={CAMERA: frame}, proprio=np.full(2, index, np.float32))
        for index, frame in enumerate(random_frames(3))
    ]
    done = [policy.choose(one) for one in seen]
    rng = np.random.default_rng(0)
    seeds = [int(rng.integers(2**31)) for _ in range(2)]
    first = world.act(
        random_frames(3)[:1],
        goal,
        proprio=np.asarray(seen[0].proprio)[None],
        chunk=3,
        generator=torch.Generator().manual_seed(seeds[0]),
    )
    np.testing.assert_array_equal(np.stack(done[:2]), first[:2])
    second = world.act(
        random_frames(3)[1:],
        goal,
        done[1][None],
        proprio=np.stack([seen[1].proprio, seen[2].proprio]),
        chunk=3,
        generator=torch.Generator().manual_seed(seeds[1]),
    )
    np.testing.assert_array_equal(done[2], second[0])


def test_it_proposes_other_plans_to_each_session() -> None:
    world = acting_world()
    sessions = world.start(random_frames(1), proprio=np.zeros((1, 2))).fork(3)
    target = encode_goal(world, random_frames(seed=3))
    proposer = ActProposer(chunk=2)
    drawn = [proposer.propose(sessions, target, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert drawn[0].shape == (3, 2, 2)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-3
    assert np.abs(drawn[0][0] - drawn[0][1]).max() > 1e-3
    assert goal_frame(world, target).knows_proprio.all()


def test_mistakes_are_explained(tmp_path: Path) -> None:
    sim = random_world().start(random_frames(1))
    with pytest.raises(WorldError, match="was not trained to act; train it to: kinema train DATA --act"):
        sim.act(random_frames())
    able = acting_world().start(random_frames(1), proprio=np.zeros((1, 2)))
    with pytest.raises(WorldError, match="chunk=0"):
        able.act(random_frames(), 0)
    with pytest.raises(WorldError, match="frames are 20x32"):
        able.act(random_frames()[:20])
    with pytest.raises(ValueError, match="--act changes the world that --heads and --clone are for"):
        train(TrainConfig(data="d", out=tmp_path, act=True, clone=True))


# Training.


def test_a_finished_world_is_taught_to_act(tmp_path: Path) -> None:
    data = write_exact_world(tmp_path / "data", lengths=(20,) * 4, has_proprio=True)
    random_world(proprio_dim=2).save(tmp_path / "world")
    words = {"data": str(data), "act": True, "world": str(tmp_path / "world"), "recipe": "tiny"}
    words |= {"update_share": 0.0004, "precision": "float32"}
    assert train(TrainConfig(out=tmp_path / "one", **words)) == 0
    calls = 0
    while train(TrainConfig(out=tmp_path / "other", max_minutes=0.0, **words)) == 130:
        calls += 1
    assert calls == 1
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other
    world = load(tmp_path / "one")
    assert world.act(random_frames(1), random_frames(), proprio=np.zeros((1, 2)), chunk=2).shape == (2, 2)
    assert not load(tmp_path / "world").config.dynamics.use_goal
